"""Pass rates from a record's column to the training set of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import DataError
from lcot_plugin.integration.pass_rates import as_pass_rate, filter_by_pass_rate
from lcot_plugin.types import PromptRecord

NAN = float("nan")
COLUMNS = {"prompt": "problem", "gold": "answer"}
FORMATS = ["alpaca", "lcot_problem", "lcot_auto"]


@pytest.fixture
def load(twin: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Loads the training set as `stage: grpo` does."""

    def load(**changes: Any) -> Any:
        from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        keys = {
            "model_name_or_path": str(twin("qwen2_5_vl")),
            "template": TWIN_TEMPLATES["qwen2_5_vl"],
            "stage": "grpo",
            "do_train": True,
            "dataset": "problems",
            "dataset_dir": str(tmp_path),
            "media_dir": str(tmp_path),
            "cutoff_len": 1024,
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "use_cpu": True,
            **changes,
        }
        model_args, data_args, training_args, _, _ = get_train_args(keys)
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        return get_dataset(template, model_args, data_args, training_args, stage=keys["stage"], **module)[
            "train_dataset"
        ]

    return load


def write(folder: Path, rates: list[Any], *, column: str = "pass_rate", name: str = "problems", **entry: Any) -> None:
    """A JSON lines set of sums; the records of the rate `...` lack the column."""
    lines = [
        {"problem": f"What is {n} plus 1?", "answer": str(n + 1), **({} if rate is ... else {column: rate})}
        for n, rate in enumerate(rates)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = folder / "dataset_info.json"
    info = json.loads(known.read_text()) if known.exists() else {}
    info[name] = {"file_name": f"{name}.jsonl", "columns": COLUMNS, **entry}
    known.write_text(json.dumps(info))


@pytest.mark.parametrize("formatting", FORMATS)
@pytest.mark.parametrize("column", ["pass_rate", "lcot_pass_rate"])
def test_json_lines(load: Callable[..., Any], tmp_path: Path, formatting: str, column: str) -> None:
    write(tmp_path, [0.25, None, 1.0, 0.0], column=column, formatting=formatting)
    dataset = load()
    assert dataset["pass_rate"][:] == [0.25, None, 1.0, 0.0]
    assert [PromptRecord(**row).pass_rate for row in dataset] == [0.25, None, 1.0, 0.0]


@pytest.mark.parametrize("formatting", FORMATS)
def test_a_column_of_another_name(load: Callable[..., Any], tmp_path: Path, formatting: str) -> None:
    columns = {**COLUMNS, "pass_rate": "solved"}
    write(tmp_path, [0.25, None, 1], column="solved", formatting=formatting, columns=columns)
    assert load()["pass_rate"][:] == [0.25, None, 1.0]


def test_our_column_goes_before_the_sets_own(load: Callable[..., Any], tmp_path: Path) -> None:
    records = [
        {"problem": "What is 1 plus 1?", "answer": "2", "pass_rate": 0.9, "lcot_pass_rate": 0.1},
        {"problem": "What is 2 plus 1?", "answer": "3", "pass_rate": 0.9, "lcot_pass_rate": None},
    ]
    for formatting in ("alpaca", "lcot_problem"):
        write(tmp_path, [], formatting=formatting)
        (tmp_path / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert load()["pass_rate"][:] == [0.1, None]


@pytest.mark.parametrize("formatting", ["sharegpt", "lcot_messages"])
def test_chats(load: Callable[..., Any], tmp_path: Path, formatting: str) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry: dict[str, Any] = {"formatting": formatting, "columns": {"messages": "messages", "gold": "answer"}}
    write(tmp_path, [], **(entry if formatting != "sharegpt" else {**entry, "tags": tags}))
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}], "answer": "1", "pass_rate": n / 2} for n in range(3)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chats))
    assert load()["pass_rate"][:] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("formatting", FORMATS)
def test_parquet(load: Callable[..., Any], tmp_path: Path, formatting: str) -> None:
    from datasets import Dataset

    write(tmp_path, [], file_name="problems.parquet", formatting=formatting)
    Dataset.from_dict(
        {"problem": ["1 + 1?", "2 + 1?", "3 + 1?"], "answer": ["2", "3", "4"], "pass_rate": [None, 0.5, 0.125]}
    ).to_parquet(tmp_path / "problems.parquet")
    assert load()["pass_rate"][:] == [None, 0.5, 0.125]


@pytest.mark.parametrize("mix", [{}, {"mix_strategy": "interleave_over", "interleave_probs": "0.4,0.3,0.3"}])
def test_sets_with_and_without_pass_rates_are_joined(
    load: Callable[..., Any], tmp_path: Path, mix: dict[str, str]
) -> None:
    write_problems(tmp_path, 2, name="pictures")
    write(tmp_path, [0.5, 0.75, None])
    write(tmp_path, [0.125, ..., 1.0], name="mixed", formatting="lcot_auto")
    expected = {("problems", 0): 0.5, ("problems", 1): 0.75, ("mixed", 0): 0.125, ("mixed", 2): 1.0}
    for names in ("pictures,problems,mixed", "mixed,problems,pictures"):
        dataset = load(dataset=names, **mix)
        assert set(dataset["source"]) == {"pictures", "problems", "mixed"}
        assert dataset["pass_rate"][:] == [
            expected.get(key) for key in zip(dataset["source"], dataset["record"], strict=True)
        ]


@pytest.mark.parametrize("formatting", ["alpaca", "lcot_solution"])
def test_sft_goes_on_without(load: Callable[..., Any], tmp_path: Path, formatting: str) -> None:
    write_problems(tmp_path, 2, name="pictures")
    write(tmp_path, [0.5, None, 0.75], formatting=formatting, columns={"prompt": "problem", "response": "answer"})
    dataset = load(stage="sft", dataset="pictures,problems", malformed_trace_policy="keep")
    assert len(dataset) == 5
    assert "pass_rate" not in dataset.column_names


def test_prompts_tokenised_before_there_were_pass_rates(load: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import load_from_disk

    write(tmp_path, [0.5, 0.75])
    load(tokenized_path=str(tmp_path / "now"))
    old = load_from_disk(str(tmp_path / "now"))
    old.map(remove_columns=["pass_rate"]).save_to_disk(str(tmp_path / "earlier"))
    with pytest.raises(DataError, match="or by another version of lcot-plugin: stage grpo needs the columns pass_rate"):
        load(tokenized_path=str(tmp_path / "earlier"))


@pytest.mark.parametrize(
    ("value", "rate"),
    [(0, 0.0), (1, 1.0), (0.3, 0.3), (None, None), (NAN, None), (-0.1, None), (62.5, None), ("0.5", None), ([1], None)],
)
def test_only_numbers_from_0_to_1_are_pass_rates(value: Any, rate: float | None) -> None:
    assert as_pass_rate(value) == rate


def prompts(rates: list[float | None], sources: list[str] | None = None) -> Any:
    from datasets import Dataset

    sources = sources or ["problems"] * len(rates)
    return Dataset.from_dict({"record": range(len(rates)), "source": sources, "pass_rate": rates})


def test_prompts_outside_the_bounds_are_left_out_and_counted() -> None:
    dataset = prompts([0.0, 0.1, 0.5, None, 0.9, 1.0, 1.0, None], [*"aaaabbbb"])
    said: list[str] = []
    arguments = GrpoArguments(grpo_min_pass_rate=0.1, grpo_max_pass_rate=0.9)
    assert filter_by_pass_rate(dataset, arguments, said.append)["record"][:] == [1, 2, 4]
    assert said == [
        "Pass rates: 5 of 8 prompts are left out (1 below grpo_min_pass_rate 0.1, 2 above grpo_max_pass_rate 0.9, 2 "
        "not measured (a: 1, b: 1)); 3 are trained on."
    ]
    assert filter_by_pass_rate(dataset, GrpoArguments(grpo_max_pass_rate=0.5), said.append)["record"][:] == [0, 1, 2]
    assert said[1].startswith("Pass rates: 5 of 8 prompts are left out (3 above grpo_max_pass_rate 0.5, 2 not measured")
    assert filter_by_pass_rate(dataset, GrpoArguments(grpo_min_pass_rate=0.0), said.append)["record"][:] == [
        *(0, 1, 2, 4, 5, 6)
    ]


def test_a_curriculum_leaves_nothing_out() -> None:
    said: list[str] = []
    arguments = GrpoArguments(grpo_curriculum="easy_first")
    dataset = prompts([0.0, None, 1.0])
    assert filter_by_pass_rate(dataset, arguments, said.append) is dataset
    assert said == ["Curriculum: 1 of 3 prompts have no pass rate (problems: 1); they stand among those of the median."]
    said.clear()
    filter_by_pass_rate(prompts([0.0, 1.0]), arguments, said.append)
    assert said == []


def test_without_the_keys_nothing_is_asked_of_the_data() -> None:
    said: list[str] = []
    dataset = prompts([None, None])
    assert filter_by_pass_rate(dataset, GrpoArguments(), said.append) is dataset
    assert said == []


@pytest.mark.parametrize(
    "keys", [{"grpo_min_pass_rate": 0.1}, {"grpo_max_pass_rate": 0.9}, {"grpo_curriculum": "easy_first"}]
)
def test_a_set_that_was_not_measured(keys: dict[str, Any]) -> None:
    (key,) = keys
    with pytest.raises(DataError, match=rf"^{key}: no prompt of the training data has a .*`lcot data difficulty`"):
        filter_by_pass_rate(prompts([None, None]), GrpoArguments(**keys), print)


def test_bounds_that_leave_nothing() -> None:
    arguments = GrpoArguments(grpo_min_pass_rate=0.4, grpo_max_pass_rate=0.6)
    with pytest.raises(
        DataError,
        match=r"of 3 are 1 below grpo_min_pass_rate 0.4, 1 above grpo_max_pass_rate 0.6, 1 not measured \(problems: "
        r"1\)\. The measured pass rates go from 0.25 to 0.875",
    ):
        filter_by_pass_rate(prompts([0.25, 0.875, None]), arguments, print)


def test_what_lcot_data_difficulty_writes(load: Callable[..., Any], tmp_path: Path) -> None:
    """Its own writer, for a JSON set that has a column `difficulty` already and for one read as a parquet file."""
    from datasets import load_dataset

    from lcot_plugin.integration.difficulty_sets import LoadedSource, merge_json, write_set
    from lcot_plugin.report.data import DataReport
    from lcot_plugin.report.difficulty import SetDifficulty, Thresholds

    write(tmp_path, ["easy"] * 4, column="difficulty")
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["problems"]
    path = str(tmp_path / "problems.jsonl")
    raw = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    for name, files in (("lines", [path]), ("table", [])):
        measured = SetDifficulty(name, 4, Thresholds(), {0: 0.5, 2: 0.0, 3: 1.0}, num_rollouts=8)
        merge_json(
            tmp_path / "dataset_info.json",
            write_set(LoadedSource(raw, files, DataReport()), measured, entry, tmp_path),
        )
        assert load(dataset=name)["pass_rate"][:] == [0.5, None, 0.0, 1.0]
        assert load(dataset=f"{name}_learnable")["pass_rate"][:] == [0.5]
