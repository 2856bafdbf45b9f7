"""RL prompts are the prompts of SFT, token for token, and the gold answer arrives with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.errors import DataError
from lcot_plugin.policy.trainer import prompt_records
from lcot_plugin.rewards import Verifier
from lcot_plugin.rewards.requests import scoring_request
from lcot_plugin.types import Completion, Ending, Outcome


def load(stage: str, model: Path, template: str, folder: Path, **changes: Any) -> Any:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": str(model),
            "template": template,
            "stage": stage,
            "do_train": True,
            "dataset": "problems",
            "dataset_dir": str(folder),
            "media_dir": str(folder),
            "cutoff_len": 1024,
            "output_dir": str(folder / "out"),
            "report_to": "none",
            "use_cpu": True,
            **changes,
        }
    )
    module = load_tokenizer(model_args)
    lf_template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return get_dataset(lf_template, model_args, data_args, training_args, stage=stage, **module)["train_dataset"]


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    ("family", "template"), [*TWIN_TEMPLATES.items(), ("qwen3_vl", "qwen3_vl")], ids=lambda value: value
)
def test_prompts_equal_those_of_sft(family: str, template: str, twin: Any, tmp_path: Path) -> None:
    # The reasoning template `qwen3_vl` must not put an empty thought into the prompt of a model that is to think.
    write_problems(tmp_path, 4, num_text_only=1, num_two_images=1)
    sft = load("sft", twin(family), template, tmp_path)
    grpo = load("grpo", twin(family), template, tmp_path)
    assert len(sft) == len(grpo)
    for trained, prompt in zip(sft, grpo, strict=True):
        masked = [token for token, label in zip(trained["input_ids"], trained["labels"], strict=True) if label == -100]
        assert prompt["input_ids"] == masked
    records = json.loads((tmp_path / "problems.json").read_text())
    assert grpo["gold"][:] == [record["answer"] for record in records]
    assert grpo["question"][:] == [record["problem"] for record in records]
    assert grpo["record"][:] == list(range(len(records)))
    assert set(grpo["source"]) == {"problems"}


def rewrite(folder: Path, records: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    (folder / "problems.json").write_text(json.dumps(records))
    (folder / "dataset_info.json").write_text(json.dumps({"problems": {"file_name": "problems.json", **entry}}))


def test_user_turn_only_with_a_numeric_gold(twin: Any, tmp_path: Path) -> None:
    """The schema of the paper's RL files: a chat that ends with the question, and `solution` beside it."""
    write_problems(tmp_path, 2)
    image = json.loads((tmp_path / "problems.json").read_text())[0]["images"]
    records = [
        {"messages": [{"role": "user", "content": "<image>How many?"}], "images": image, "solution": -2},
        {"messages": [{"role": "user", "content": "<image>Which?"}], "images": image, "solution": 7},
    ]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images", "gold": "solution"}
    rewrite(tmp_path, records, {"formatting": "sharegpt", "columns": columns, "tags": tags})
    dataset = load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path)
    assert dataset["gold"][:] == ["-2", "7"]
    assert dataset["question"][:] == ["<image>How many?", "<image>Which?"]


def test_without_a_gold_column_the_response_has_the_answer(twin: Any, tmp_path: Path) -> None:
    write_problems(tmp_path, 3)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    del info["problems"]["columns"]["gold"]
    info["problems"]["columns"]["response"] = "response"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    dataset = load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path)
    records = json.loads((tmp_path / "problems.json").read_text())
    assert dataset["gold"][:] == [record["answer"] for record in records]


def test_two_sets_keep_their_names_and_answer_types(twin: Any, tmp_path: Path) -> None:
    write_problems(tmp_path, 2)
    records = json.loads((tmp_path / "problems.json").read_text())
    entry = {"prompt": "problem", "images": "images", "gold": "answer"}
    (tmp_path / "typed.json").write_text(json.dumps([{**record, "kind": "number"} for record in records]))
    info = {
        "problems": {"file_name": "problems.json", "columns": entry},
        "typed": {"file_name": "typed.json", "columns": {**entry, "answer_type": "kind"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    dataset = load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path, dataset="problems,typed")
    assert dataset["source"][:] == ["problems", "problems", "typed", "typed"]
    assert dataset["record"][:] == [0, 1, 0, 1]
    assert dataset["answer_type"][:] == ["auto", "auto", "number", "number"]


CHOICES = [
    {"problem": "How wide?", "answer": "B", "choices": ["4 cm", "5 cm"], "how": {"aliases": ["five"]}},
    {"problem": "How much?", "answer": "3.1", "choices": [], "how": {"relative_tolerance": 0.05}},
]


def verdicts(dataset: Any, answers: list[str]) -> list[Outcome]:
    completions = [Completion([1], [0.0], Ending.STOPPED, answer) for answer in answers]
    records = prompt_records([dataset[row] for row in range(len(answers))])
    requests = [scoring_request(*pair) for pair in zip(records, completions, strict=True)]
    return [verdict.outcome for verdict in Verifier().verify_batch(requests)]


@pytest.mark.parametrize("formatting", ["alpaca", "lcot_problem", "lcot_choices"])
def test_a_record_says_how_its_answer_is_compared(twin: Any, tmp_path: Path, formatting: str) -> None:
    columns = {"prompt": "problem", "gold": "answer", "options": "choices", "match": "how"}
    if formatting == "lcot_problem":  # knows its options from the question only
        del columns["options"]
    records = [{**record, "problem": f"{record['problem']} A. 4 cm B. 5 cm"} for record in CHOICES]
    rewrite(tmp_path, records, {"formatting": formatting, "columns": columns})
    dataset = load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path)
    matched, mismatched = Outcome.MATCHED, Outcome.MISMATCHED
    assert verdicts(dataset, [r"\boxed{5\text{ cm}}", r"\boxed{3.0}"]) == [matched, matched]
    assert verdicts(dataset, [r"\boxed{4\text{ cm}}", r"\boxed{2.5}"]) == [mismatched, mismatched]
    assert verdicts(dataset, [r"\boxed{five}", r"\boxed{3.25}"]) == [matched, matched]


@pytest.mark.parametrize("formatting", ["alpaca", "lcot_problem"])
def test_settings_that_cannot_be_meant_are_named(twin: Any, tmp_path: Path, formatting: str) -> None:
    records = [{"problem": "How much?", "answer": "3.1", "how": {"tolerance": 0.05}}] * 2
    columns = {"prompt": "problem", "gold": "answer", "match": "how"}
    rewrite(tmp_path, records, {"formatting": formatting, "columns": columns})
    with pytest.raises(ValueError, match=r"(?s)record 0.*is called tolerance; there are options, aliases"):
        load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path, bad_record_policy="error")


def test_sets_with_and_without_a_response_are_joined(twin: Any, tmp_path: Path) -> None:
    """The first has a `gold` column, the second the answer in its responses, the third neither response nor images."""
    write_problems(tmp_path, 2)
    records = json.loads((tmp_path / "problems.json").read_text())
    text_only = [{"problem": f"What is {n} plus 1?", "answer": n + 1} for n in range(3)]
    (tmp_path / "text.json").write_text(json.dumps(text_only))
    prompt = {"prompt": "problem", "images": "images"}
    info = {
        "plain": {"file_name": "problems.json", "columns": {**prompt, "gold": "answer"}},
        "worked": {"file_name": "problems.json", "columns": {**prompt, "response": "response"}},
        "text": {"file_name": "text.json", "columns": {"prompt": "problem", "gold": "answer"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    dataset = load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path, dataset="plain,worked,text")
    golds = [record["answer"] for record in records]
    assert dataset["gold"][:] == [*golds, *golds, "1", "2", "3"]
    assert [len(images) for images in dataset["images"]] == [1, 1, 1, 1, 0, 0, 0]
    assert dataset["source"][:] == ["plain"] * 2 + ["worked"] * 2 + ["text"] * 3


@pytest.mark.parametrize("images", [{}, {"images": []}], ids=["no-column", "empty-column"])
def test_a_long_text_only_set_before_one_with_images(twin: Any, tmp_path: Path, images: dict[str, Any]) -> None:
    write_problems(tmp_path, 2)
    text_only = [{"problem": f"What is {n} plus 1?", "answer": str(n + 1), **images} for n in range(6)]
    (tmp_path / "text.json").write_text(json.dumps(text_only))
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    columns = {"prompt": "problem", "gold": "answer", **({"images": "images"} if images else {})}
    info["text"] = {"file_name": "text.json", "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    # Batches of 3 stand for those of 1000: the first two have no image.
    dataset = load(
        "grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path, dataset="text,problems", preprocessing_batch_size=3
    )
    assert [len(images) for images in dataset["images"]] == [0] * 6 + [1] * 2


def test_an_answer_that_only_later_responses_have(twin: Any, tmp_path: Path) -> None:
    write_problems(tmp_path, 3)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    del info["problems"]["columns"]["gold"]
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    records = json.loads((tmp_path / "problems.json").read_text())
    records[0]["response"] = ""
    (tmp_path / "problems.json").write_text(json.dumps(records))
    assert load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path)["record"][:] == [1, 2]
    with pytest.raises(DataError, match=r"1 of 3 records cannot be used:\n.*record 0: no gold answer"):
        load("grpo", twin("qwen2_5_vl"), "qwen2_vl", tmp_path, bad_record_policy="error")
