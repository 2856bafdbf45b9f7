"""From files of any schema to tokens: nothing is lost without being counted, nothing is decoded, nothing done twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.public_sets import PUBLIC_SETS, Expected, PublicSet
from data_runs import AUTO, QUESTION, RESPONSE, SHAREGPT, findings, loader, picture
from twins import write_problems

from lcot_plugin.data.gold import gold_text
from lcot_plugin.errors import ArgumentError
from lcot_plugin.rewards import extract_answer, verify

WITH_RESPONSES = [
    public for public in PUBLIC_SETS.values() if any(expected.answer is not None for expected in public.expected)
]


@pytest.fixture
def load(twin: Any, tmp_path: Path) -> Any:
    return loader(twin, tmp_path)


# --- every public schema ----------------------------------------------------------------------------------------------


def write_all(sets: list[PublicSet], folder: Path, formatting: str | None) -> None:
    info = {}
    for public in sets:
        entry = public.write(folder / public.name)
        entry["file_name"] = f"{public.name}/{entry['file_name']}"
        info[public.name] = {**entry, "formatting": formatting or entry["formatting"]}
        if formatting:
            info[public.name].pop("columns", None)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for public in sets:  # pictures are looked up in one media_dir
        for path in (folder / public.name).rglob("*"):
            if path.is_file() and path.suffix in (".png", ".jpg"):
                target = folder / path.relative_to(folder / public.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())


def every_record(sets: list[PublicSet]) -> list[tuple[PublicSet, Expected]]:
    return [(public, expected) for public in sets for expected in public.expected]


def written(expected: Expected) -> str:
    return expected.question.replace("<image>", "").strip()


@pytest.mark.parametrize("formatting", [None, "lcot_auto"], ids=["named", "auto"])
def test_every_public_set_in_one_sft_run(load: Any, tmp_path: Path, formatting: str | None) -> None:
    """All of them joined: paths, bytes and base64, none, one and several pictures."""
    write_all(WITH_RESPONSES, tmp_path, formatting)
    names = ",".join(public.name for public in WITH_RESPONSES)
    dataset, tokenizer, _ = load("sft", datasets=names)
    records = [(public, expected) for public, expected in every_record(WITH_RESPONSES) if expected.answer is not None]
    assert len(dataset) == len(records)
    for row, (public, expected) in zip(dataset, records, strict=True):
        text = tokenizer.decode(row["input_ids"])
        response = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert written(expected) in re.sub(r"<\|vision_start\|>.*?<\|vision_end\|>", "", text), public.name
        assert len(row["images"]) == text.count("<|vision_start|>") == expected.images, public.name
        assert "<think>" in response or not expected.thought, public.name
        assert response.endswith("<|im_end|>\n") or response.endswith("<|im_end|>"), public.name
        found = extract_answer(response.rstrip("\n").removesuffix("<|im_end|>").rpartition("<|im_end|>")[2])
        assert found is not None and verify(rf"\boxed{{{found.answer}}}", expected.answer).matched, public.name


@pytest.mark.parametrize("formatting", [None, "lcot_auto"], ids=["named", "auto"])
def test_every_public_set_in_one_grpo_run(load: Any, tmp_path: Path, formatting: str | None) -> None:
    sets = list(PUBLIC_SETS.values())
    write_all(sets, tmp_path, formatting)
    dataset, tokenizer, _ = load("grpo", datasets=",".join(PUBLIC_SETS))
    records = [(p, e) for p, e in every_record(sets) if e.gold is not None or e.answer is not None]
    assert len(dataset) == len(records)
    for row, (public, expected) in zip(dataset, records, strict=True):
        assert row["source"] == public.name
        assert written(expected) in row["question"].replace("<image>", ""), public.name
        assert len(row["images"]) == expected.images, public.name
        assert tokenizer.decode(row["input_ids"]).endswith("<|im_start|>assistant\n"), public.name
        wanted = gold_text(expected.gold) if expected.gold is not None else expected.answer
        assert row["gold"] == wanted or verify(rf"\boxed{{{row['gold']}}}", wanted).matched, public.name


# --- responses --------------------------------------------------------------------------------------------------------

THOUGHT = "I count the legs one by one, then I check the sum again. " * 3


def traces() -> list[dict[str, Any]]:
    responses = {
        "whole": (f"<think>\n{THOUGHT}\n</think>\n\nSo \\boxed{{4}}.", 4),
        "unclosed": (f"<think>\n{THOUGHT}", 4),
        "unclosed, no gold": (f"<think>\n{THOUGHT}", None),
        "contradicts": (f"<think>\n{THOUGHT}\n</think>\n\nSo \\boxed{{5}}.", 4),
        "short": ("4", 4),
    }
    return [
        {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": text}], "solution": gold}
        for name, (text, gold) in responses.items()
    ]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("keep", ["whole", "unclosed", "unclosed, no gold", "contradicts", "short"]),
        ("repair", ["whole", "unclosed", "short"]),
        ("drop", ["whole"]),
    ],
)
def test_malformed_traces_by_policy(load: Any, policy: str, kept: list[str]) -> None:
    dataset, tokenizer, report = load("sft", AUTO, traces(), malformed_trace_policy=policy)
    texts = [tokenizer.decode(row["input_ids"]) for row in dataset]
    assert [text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts] == kept
    assert report["records"]["dropped"] == len(traces()) - len(kept)
    if policy == "repair":
        assert "</think>" in texts[1] and "\\boxed{4}" in texts[1]
        assert findings(report)["answer contradicts gold"].startswith("dropped")


@pytest.mark.parametrize(
    ("cot_format", "ending"),
    [("think_boxed", "</think>\n\nSo \\boxed{4}."), ("think_answer", "<answer>4</answer>"), ("native", "\\boxed{4}.")],
)
def test_target_formats(load: Any, cot_format: str, ending: str) -> None:
    dataset, tokenizer, _ = load("sft", AUTO, traces()[:1], cot_format=cot_format)
    response = tokenizer.decode([label for label in dataset[0]["labels"] if label != -100])
    assert response.startswith("<think>\n") and response.rstrip().removesuffix("<|im_end|>").endswith(ending)


# --- length -----------------------------------------------------------------------------------------------------------


def test_truncation_cuts_the_thought_only(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (160, 160))
    long = f"<think>\n{THOUGHT * 20}\n</think>\n\nSo \\boxed{{4}}."
    messages = [QUESTION, {"role": "assistant", "content": long}]
    records = [
        {"messages": messages, "images": ["a.png"]},
        {"messages": [QUESTION, RESPONSE], "images": ["a.png"]},
        # Too long without its thought: the answer would have to be cut.
        {"messages": [{"role": "user", "content": "How many? " * 300}, RESPONSE], "images": []},
    ]
    dataset, tokenizer, report = load("sft", AUTO, records, cutoff_len=300, overlong_policy="truncate")
    assert len(dataset) == 2
    whole, _, _ = load("sft", AUTO, records[:1])
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = dataset[0]
    assert 200 < len(row["input_ids"]) <= 300
    assert row["input_ids"].count(image) == whole[0]["input_ids"].count(image) > 10
    response = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert response.startswith("<think>\nI count the legs")
    assert response.rstrip().endswith("\n</think>\n\nSo \\boxed{4}.<|im_end|>")
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["attention_mask"])
    counts = {(item["fault"], item["handling"]): item["count"] for item in report["records"]["findings"]}
    assert counts == {("longer than cutoff_len", "truncated"): 1, ("longer than cutoff_len", "dropped"): 1}


# --- equal to LLaMA-Factory, and fast ---------------------------------------------------------------------------------

ALONE = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
arguments = json.loads(sys.argv[1])
model_args, data_args, training_args, _, _ = get_train_args(arguments)
module = load_tokenizer(model_args)
template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
print("ROWS" + json.dumps([[row["input_ids"], row["labels"]] for row in dataset]))
"""


@pytest.mark.parametrize("packing", [{}, {"neat_packing": True, "cutoff_len": 400}], ids=["rows", "packed"])
def test_the_tokens_are_those_of_llamafactory_alone(
    load: Any, twin: Any, tmp_path: Path, packing: dict[str, Any]
) -> None:
    write_problems(tmp_path, 6, num_text_only=2, num_two_images=1)
    arguments = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": "qwen2_vl",
        "stage": "sft",
        "do_train": True,
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "alone"),
        "report_to": "none",
        "use_cpu": True,
        **packing,
    }
    environment = {**os.environ, "LCOT_PLUGIN": "0", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ALONE, json.dumps(arguments)]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert output.returncode == 0, output.stderr[-2000:]
    rows = json.loads(next(line[4:] for line in output.stdout.splitlines() if line.startswith("ROWS")))
    dataset, _, _ = load("sft", datasets="problems", **packing)
    assert [[row["input_ids"], row["labels"]] for row in dataset] == rows


def test_no_picture_is_decoded(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    write_problems(tmp_path, 4, num_two_images=1)

    def load_pixels(self: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_pixels)
    for stage in ("sft", "grpo"):
        dataset, _, _ = load(stage, datasets="problems")
        assert len(dataset) == 4


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over"])
def test_the_counts_add_up_where_sets_are_mixed(load: Any, tmp_path: Path, strategy: str) -> None:
    info = {}
    for name, num in (("few", 3), ("many", 12)):
        questions = [f"{n}? " * (300 if n == 2 else 1) for n in range(num)]
        records = [{"messages": [{"role": "user", "content": question}, RESPONSE]} for question in questions]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
        info[name] = {"file_name": f"{name}.json", "formatting": "lcot_auto"}
    dataset, _, report = load(
        "sft", info, datasets="few,many", cutoff_len=200, mix_strategy=strategy, interleave_probs="0.5,0.5"
    )
    assert len(dataset) == sum(entry["kept"] for entry in report.values())
    assert any(entry["mixed_in"] for entry in report.values())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_several_processes_make_the_same(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": ["a.png"]} for _ in range(7)]
    records[3]["images"] = ["gone.png"]
    alone, _, _ = load("sft", AUTO, records, overwrite_cache=True)
    shared, _, report = load("sft", AUTO, records, preprocessing_num_workers=2, overwrite_cache=True)
    assert shared.to_dict() == alone.to_dict() and len(alone) == 6
    assert findings(report)["missing image"].startswith("dropped")


def test_streams_lose_nothing_silently_either(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": [name]} for name in ("a.png", "gone.png", "a.png")]
    stream, tokenizer, _ = load("sft", AUTO, records, streaming=True, max_steps=1, dataloader_num_workers=1)
    rows = list(stream)
    assert len(rows) == 2
    assert set(rows[0]) == {"input_ids", "attention_mask", "labels", "images", "videos", "audios"}
    assert "\\boxed{2}" in tokenizer.decode(rows[0]["input_ids"])
    with pytest.raises(ArgumentError, match="dataloader_num_workers: 1"):
        load("sft", AUTO, records, streaming=True, max_steps=1, dataloader_num_workers=0)


def test_streams_of_any_kind_can_be_joined(load: Any, tmp_path: Path) -> None:
    """Paths in LLaMA-Factory's format, pictures in a parquet file, paths in ours; none is decoded and encoded anew."""
    from datasets import Dataset, Features, Image, Sequence, Value

    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": ["a.png"]} for _ in range(2)]
    contents = (tmp_path / "a.png").read_bytes()
    Dataset.from_dict(
        {"q": ["<image>How many?"], "a": [RESPONSE["content"]], "images": [[{"bytes": contents, "path": None}]]},
        features=Features({"q": Value("string"), "a": Value("string"), "images": Sequence(Image())}),
    ).to_parquet(str(tmp_path / "pictures.parquet"))
    columns = {"prompt": "q", "response": "a", "images": "images"}
    info = {
        "records": SHAREGPT,
        "ours": {"file_name": "records.json", "formatting": "lcot_auto"},
        "pictures": {"file_name": "pictures.parquet", "columns": columns},
    }
    stream, _, _ = load(
        "sft", info, records, datasets="records,ours,pictures", streaming=True, max_steps=1, dataloader_num_workers=1
    )
    images = [row["images"][0] for row in stream]
    assert len(images) == 5
    assert sum(image["bytes"] == contents for image in images) == 1
    assert sum(image["path"] == str(tmp_path / "a.png") for image in images) == 4
