"""The ids of problems whose variants are records: from the column that dataset_info.json names to PromptRecord."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twins import TWIN_TEMPLATES

from lcot_plugin.errors import DataError
from lcot_plugin.integration.conversion import problem_id
from lcot_plugin.policy.prompts import prompt_records

RECORDS = [
    {"problem": "What is 1 plus 1?", "answer": "2", "id": 7},
    {"problem": "What is 2 plus 1?", "answer": "3", "id": 8},
    {"problem": "What is 3 plus 1?", "answer": "4", "id": None},
]


@pytest.fixture
def ids(twin: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Of the records of an evaluation set with this entry of dataset_info.json."""

    def load(**entry: Any) -> list[str]:
        from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        (tmp_path / "problems.json").write_text(json.dumps(RECORDS))
        (tmp_path / "dataset_info.json").write_text(json.dumps({"problems": {"file_name": "problems.json", **entry}}))
        keys = {
            "model_name_or_path": str(twin("qwen2_5_vl")),
            "template": TWIN_TEMPLATES["qwen2_5_vl"],
            "stage": "grpo",
            "do_eval": True,
            "eval_dataset": "problems",
            "dataset_dir": str(tmp_path),
            "output_dir": str(tmp_path / "out"),
            "report_to": "none",
            "use_cpu": True,
        }
        model_args, data_args, training_args, _, _ = get_train_args(keys)
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        loaded = get_dataset(template, model_args, data_args, training_args, stage="grpo", **module)
        return [record.problem_id for record in prompt_records(list(loaded["eval_dataset"]))]

    return load


@pytest.mark.parametrize("formatting", ["alpaca", "lcot_problem", "lcot_auto"])
def test_ids_reach_the_evaluation(ids: Callable[..., list[str]], formatting: str) -> None:
    columns = {"prompt": "problem", "gold": "answer"}
    assert ids(formatting=formatting, columns={**columns, "problem_id": "id"}) == ["7", "8", ""]
    assert ids(formatting=formatting, columns=columns) == ["", "", ""]


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (7.0, "7"), (" a1 ", "a1"), (None, ""), (0, "0"), (1.5, "1.5")])
def test_an_id_as_text(value: Any, text: str) -> None:
    assert problem_id(value) == text


def test_a_column_that_is_not_there_is_told(ids: Callable[..., list[str]]) -> None:
    columns = {"prompt": "problem", "gold": "answer", "problem_id": "number"}
    with pytest.raises(DataError, match="number"):
        ids(formatting="alpaca", columns=columns)
    with pytest.raises(
        DataError, match=r"column 'number', which dataset_info.json names for 'problem_id', is not there"
    ):
        ids(formatting="lcot_problem", columns=columns)
