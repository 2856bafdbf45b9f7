"""The shipped sets: what is in the files, and that they can be made again."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lcot_plugin.demo.data import DATA_DIR, SET_SIZES, build_sets, records_of
from lcot_plugin.demo.task import Problem

DATASET_INFO = Path(__file__).parents[2] / "dataset_info" / "dataset_info.json"
FILES = {"sft_long": ("sft", "long"), "sft_short": ("sft", "short"), "rl": ("rl", None), "test": ("test", None)}


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Problem]]:
    return build_sets()


def shipped(name: str) -> list[dict]:
    return pq.read_table(DATA_DIR / f"{name}.parquet").to_pylist()


def pixels(record: dict) -> np.ndarray:
    (image,) = record["images"]
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


@pytest.mark.parametrize("name", FILES)
def test_generating_again_gives_the_shipped_records(name: str, sets: dict[str, list[Problem]]) -> None:
    """Pixels and not PNG bytes are compared: another zlib packs the same picture differently."""
    problems = sets[FILES[name][0]]
    made, stored = records_of(problems, FILES[name][1]), shipped(name)
    assert len(made) == len(stored)
    for again, record in zip(made, stored, strict=True):
        assert again.keys() == record.keys()
        assert {k: v for k, v in again.items() if k != "images"} == {k: v for k, v in record.items() if k != "images"}
        assert again["images"][0]["path"] == record["images"][0]["path"]
        assert np.array_equal(pixels(again), pixels(record))


def test_no_problem_is_in_two_sets(sets: dict[str, list[Problem]]) -> None:
    expressions = [problem.expression for problems in sets.values() for problem in problems]
    assert len(expressions) == sum(SET_SIZES.values())
    assert len(set(expressions)) == len(expressions)


def test_no_picture_is_in_two_sets() -> None:
    pictures = [pixels(record).tobytes() for name in ("sft_long", "rl", "test") for record in shipped(name)]
    assert len(set(pictures)) == len(pictures)


def test_responses_end_in_the_gold_answer() -> None:
    for record in shipped("sft_long"):
        assert record["response"].startswith("<think>\n")
        assert record["response"].endswith(f"\n</think>\n\n\\boxed{{{record['answer']}}}")
    for record in shipped("sft_short"):
        assert record["response"] == f"\\boxed{{{record['answer']}}}"


def test_short_and_long_sets_ask_the_same() -> None:
    for long, short in zip(shipped("sft_long"), shipped("sft_short"), strict=True):
        assert (long["problem"], long["answer"], long["images"]) == (short["problem"], short["answer"], short["images"])


def test_every_prompt_is_the_same_question() -> None:
    assert {record["problem"] for name in FILES for record in shipped(name)} == {"<image>What is the result modulo 10?"}


def test_the_sets_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA_DIR.glob("*.parquet")) < 8e6


def test_dataset_info_names_files_and_columns_that_exist() -> None:
    entries = json.loads(DATASET_INFO.read_text())
    assert {"demo_sft_long", "demo_sft_short", "demo_rl", "demo_test"} <= entries.keys()
    for name in ("demo_sft_long", "demo_sft_short", "demo_rl", "demo_test"):
        table = pq.read_table(DATASET_INFO.parent / entries[name]["file_name"])
        assert set(entries[name]["columns"].values()) <= set(table.column_names)
