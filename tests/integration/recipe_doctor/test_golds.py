"""The recipe's own rewards of gold answers, and max_new_tokens beside the responses of SFT."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcot_plugin.data.targets import THINK_WORDS
from lcot_plugin.integration.recipe_doctor.golds import reward_line, room_line
from lcot_plugin.integration.recipe_doctor.lines import Line
from lcot_plugin.integration.recipe_doctor.settings import parse
from lcot_plugin.types import GoldAnswer

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("default")
RECIPE: Any = SimpleNamespace(template=SimpleNamespace(thought_words=THINK_WORDS))
GOLDS = {"a": {0: GoldAnswer("7", "auto"), 3: GoldAnswer("B", "choice")}}


def run(tmp_path: Path, **written: Any) -> Any:
    keys = {"model_name_or_path": "x", "stage": "grpo", "do_train": True, "dataset": "x", "template": "qwen2_vl"}
    found, problem = parse(keys | {"output_dir": str(tmp_path / "out")} | written)
    assert found is not None, problem
    return found


def rewards(tmp_path: Path, functions: str, **written: Any) -> Line:
    line = reward_line(RECIPE, run(tmp_path, grpo_reward_funcs=functions, **written), GOLDS)
    assert line is not None
    return line


def test_gold_answers_earn_what_the_functions_can_give(tmp_path: Path) -> None:
    line = rewards(tmp_path, "accuracy,format_think_boxed")
    expected = "accuracy 1.00, format_think_boxed 1.00 for 2 gold answers in the form of cot_format think_boxed"
    assert (line.level, line.text) == ("ok", f"{expected}; a wrong answer earns less")
    # The form that the data are written in is not the one that is rewarded.
    other = rewards(tmp_path, "accuracy,format_think_boxed", cot_format="think_answer")
    assert "accuracy 1.00, format_think_boxed 0.00" in other.text


def test_rewards_that_do_not_look_at_the_answer_are_wrong(tmp_path: Path) -> None:
    line = rewards(tmp_path, "format_think_boxed")
    assert line.level == "WRONG" and "a wrong answer earns as much in every one" in line.text


def test_a_function_of_the_user_runs_once_before_the_training(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def right(completions, gold, **kwargs):\n    return [2.0 * (g in c) for c, g in zip(completions, gold)]\n"
        "def broken(completions, **kwargs):\n    return [completions[9]]\n"
    )
    assert "right 2.00 for 2 gold answers" in rewards(tmp_path, f"{file}:right").text
    line = rewards(tmp_path, f"{file}:broken")
    assert line.level == "WRONG" and "IndexError" in line.text


def test_responses_of_sft_are_held_against_max_new_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sft = ROOT / "yaml_recipes/sft.yaml"
    enough = room_line(run(tmp_path, max_new_tokens=64), sft, 50)
    assert enough is not None and (enough.level, enough.subject) == ("ok", "room to answer")
    assert f"0 of 50 responses of {sft} are longer than max_new_tokens 64" in enough.text
    scarce = room_line(run(tmp_path, max_new_tokens=8), sft, 50)
    assert scarce is not None and scarce.level == "WRONG" and "are enough for 95 %" in scarce.text
    assert room_line(run(tmp_path), None, 50) is None
    assert room_line(run(tmp_path), ROOT / "yaml_recipes/grpo.yaml", 50) is None


def test_responses_that_are_not_here_are_said_not_to_have_been_looked_at(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("stage: sft\ndataset: far\ndataset_dir: " + str(tmp_path))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "some/set"}}))
    line = room_line(run(tmp_path), tmp_path / "sft.yaml", 50)
    assert line is not None and line.level == "skip" and "was not looked at" in line.text
