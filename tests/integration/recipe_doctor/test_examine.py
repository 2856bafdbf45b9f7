"""`lcot doctor RECIPE` on the embedded recipes and on broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcot_plugin import cli
from lcot_plugin.integration.recipe_doctor.examine import examine
from lcot_plugin.integration.recipe_doctor.lines import GIB, Line, gib, millions

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def in_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def doctor(tmp_path: Path, *overrides: str, **options: Any) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "doctor.json"
    changes = [f"output_dir={tmp_path}/out", *overrides]
    code = examine("yaml_recipes/grpo.yaml", changes, json_file=file, num_records=40, **options)
    return code, json.loads(file.read_text())


MODEL = "model_name_or_path=lcot_plugin/demo/model"


def texts(result: dict[str, Any], level: str) -> str:
    return "\n".join(f"{found['subject']}: {found['text']}" for found in result["findings"] if found["level"] == level)


def test_the_embedded_recipe_is_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, result = doctor(tmp_path, MODEL, memory_gib=4.0)
    assert code == 0 and result["ok"], texts(result, "WRONG")
    good = texts(result, "ok")
    assert "gold answers score 1.0 under their own verifier" in good
    assert "16 prompts x 8 completions = 128 a rollout" in good
    assert "image token: template '<|image_pad|>'" in good
    phases = result["estimates"]["memory"]["phases"]
    assert set(phases) == {"rollout", "update", "optimizer step"}
    assert all(0.7 * GIB < value < 4 * GIB for value in phases.values())
    assert "grpo_micro_batch_tokens" in texts(result, "note")
    assert result["estimates"]["least_seconds"]["update"] > 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("nothing is wrong")


def test_what_does_not_fit_is_wrong(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, memory_gib=0.5)
    assert code == 1
    assert "does not fit into 512 MiB" in texts(result, "WRONG")


def test_a_template_of_another_family_is_found(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "template=llava")
    assert code == 1
    assert "chat template" in texts(result, "WRONG")


def test_prompts_longer_than_the_cap_are_counted(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "cutoff_len=20")
    assert code == 1
    assert "100.0% exceed cutoff_len 20" in texts(result, "WRONG")


def test_more_tokens_than_the_model_has_positions_for(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "max_new_tokens=4096")
    assert code == 1
    assert "of the model's 2,048: lower cutoff_len or max_new_tokens." in texts(result, "WRONG")


def test_a_model_that_is_not_here_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, result = doctor(tmp_path, "model_name_or_path=Nobody/Nothing-1B")
    assert code == 0
    assert "Nobody/Nothing-1B is not on this machine" in texts(result, "skip")
    assert "--download" in texts(result, "skip")


def test_a_model_that_a_recipe_makes_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, "model_name_or_path=saves/sft")
    assert code == 1  # the recipe that makes it is named
    assert "saves/sft is not there yet, so template" in texts(result, "skip")
    assert "--download" not in texts(result, "skip")


def test_a_data_set_that_is_not_listed(tmp_path: Path) -> None:
    code, result = doctor(tmp_path, MODEL, "dataset=demo_rll")
    assert code == 1
    assert "did you mean demo_rl?" in texts(result, "WRONG")


def test_from_the_command_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--dry-run", "output_dir=saves/never"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing is wrong")
    assert cli.main(["doctor", "nothing.yaml"]) == 1
    assert "There is no file nothing.yaml" in capsys.readouterr().err
    assert cli.main(["doctor", "yaml_recipes/eval.yaml", "--processes", "0"]) == 1
    assert "--processes 0 must be more than 0." in capsys.readouterr().err


def test_figures_are_written_as_people_read_them() -> None:
    assert [gib(2**30 * 1.25), gib(3 * 2**20)] == ["1.2 GiB", "3 MiB"]
    assert [millions(3.146e9), millions(850_000)] == ["3,146 M", "0.85 M"]
    assert str(Line("ok", "model", "x")) == "ok     model                  x"
