"""Arguments, files and batch arithmetic of a recipe, before anything is loaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, WRONG, Line
from lcot_plugin.integration.recipe_doctor.settings import (
    launch_lines,
    looks_local,
    made_by,
    offloads,
    path_lines,
    read_settings,
    version_line,
)
from lcot_plugin.integration.recipe_doctor.settings import zero_stage as stage_of

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "yaml_recipes").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def in_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def settings(config: str, *overrides: str, processes: int = 1, dry_run: bool = True) -> tuple[Any, Any, list[Line]]:
    _, run, plan, lines = read_settings(config, overrides, processes, dry_run)
    return run, plan, lines


def wrong(lines: list[Line]) -> list[str]:
    return [f"{line.subject}: {line.text}" for line in lines if line.level == WRONG]


@pytest.mark.filterwarnings("default")
def test_batch_arithmetic_of_a_grpo_recipe_on_two_processes(tmp_path: Path) -> None:
    output = f"output_dir={tmp_path}"
    _, plan, lines = settings("yaml_recipes/grpo.yaml", output, "grpo_num_iterations=2", processes=2)
    assert wrong(lines) == []
    assert plan.prompts_per_rollout == 32
    batch = next(line for line in lines if line.subject == "batch")
    expected = "32 prompts x 8 completions = 256 a rollout, for 2 optimizer steps, on 2 processes"
    assert (batch.level, batch.text) == (GOOD, expected)


@pytest.mark.filterwarnings("default")
def test_a_batch_that_is_not_divisible_says_what_to_write(tmp_path: Path) -> None:
    _, plan, lines = settings("yaml_recipes/grpo.yaml", "grpo_num_generations=7", f"output_dir={tmp_path}")
    assert plan is None
    assert "Write gradient_accumulation_steps: 7" in wrong(lines)[0]


def test_an_unknown_key_is_named_with_a_near_one() -> None:
    run, _, lines = settings("yaml_recipes/grpo.yaml", "grpo_num_generation=8")
    assert run is None
    assert wrong(lines) == [
        "keys: no argument is called grpo_num_generation: did you mean grpo_num_generations or grpo_num_iterations?"
    ]


@pytest.mark.filterwarnings("default")
def test_a_folder_that_another_recipe_writes_is_wrong_only_until_it_is_trained() -> None:
    family = "yaml_recipes/qwen2_5_vl_3b/"
    _, _, dry = settings(f"{family}grpo.yaml")
    assert wrong(dry) == []
    assert Line(NOTE, "adapter_name_or_path", f"saves/qwen2_5_vl_3b/sft is made by {family}sft.yaml") in dry
    _, _, lines = settings(f"{family}grpo.yaml", dry_run=False)
    assert f"`llamafactory-cli train {family}sft.yaml` makes it" in wrong(lines)[0]


@pytest.mark.filterwarnings("default")
def test_a_folder_that_nobody_writes_is_wrong(tmp_path: Path) -> None:
    _, _, lines = settings("yaml_recipes/sft.yaml", "model_name_or_path=saves/nowhere", f"output_dir={tmp_path}")
    assert wrong(lines)[0].startswith("model_name_or_path: there is no folder saves/nowhere, and no recipe beside")


@pytest.mark.filterwarnings("default")
def test_a_reward_file_that_is_missing_is_named(tmp_path: Path) -> None:
    _, _, lines = settings("yaml_recipes/grpo.yaml", "grpo_reward_funcs=nothing/here.py:f", f"output_dir={tmp_path}")
    assert "grpo_reward_funcs: there is no file nothing/here.py." in wrong(lines)


def test_an_address_is_no_name_of_a_hub() -> None:
    (line,) = path_lines({"model_name_or_path": "https://huggingface.co/Some/Model-2B/"}, Path("x.yaml"), True)
    assert line.level == WRONG and line.text.endswith("is an address: write the hub's name, Some/Model-2B.")


def test_releases_that_do_not_work_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_line().text.startswith("llamafactory 0.")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5.2.0" if name == "transformers" else "0.9.5")
    assert version_line().level == WRONG and "transformers 5.2.0" in version_line().text


def test_packages_that_a_recipe_needs() -> None:
    lines = launch_lines({"enable_liger_kernel": True, "flash_attn": "sdpa"})
    assert [line.text for line in lines if line.subject == "packages"] == (
        []
        if find_spec("liger_kernel")
        else ["enable_liger_kernel needs the package liger-kernel, which is not installed here."]
    )


def test_hub_names_are_not_taken_for_folders() -> None:
    assert not looks_local("Qwen/Qwen2.5-VL-3B-Instruct")
    assert all(map(looks_local, ("saves/sft", "./model", "/models/qwen", "a/b/c", "../x", "model")))


def test_the_recipe_that_makes_a_folder_is_found(tmp_path: Path) -> None:
    for name, output in (("sft", "saves/x/sft"), ("grpo", "saves/x/grpo")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"stage": name, "output_dir": output}))
    (tmp_path / "broken.yaml").write_text("a: [")
    assert made_by("saves/x/sft/", tmp_path / "grpo.yaml") == tmp_path / "sft.yaml"
    assert made_by("saves/y", tmp_path / "grpo.yaml") is None


def test_deepspeed_files_are_read(tmp_path: Path) -> None:
    written = {"deepspeed": "yaml_recipes/deepspeed/zero3_offload.json"}
    assert (stage_of(written), offloads(written)) == (3, (True, True))
    assert (stage_of({}), offloads({})) == (None, (False, False))
    inline = {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}}
    assert (stage_of(inline), offloads(inline)) == (2, (True, False))
    (tmp_path / "ds.json").write_text("{")
    assert "is not JSON" in wrong(launch_lines({"deepspeed": str(tmp_path / "ds.json")}))[0]
    assert "there is no file" in wrong(launch_lines({"deepspeed": "missing.json"}))[0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "yaml_recipes")))
def test_every_shipped_recipe_passes_a_dry_run(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from lcot_plugin.integration.recipe_doctor.examine import examine

    report = tmp_path / "doctor.json"
    code = examine(str(path.relative_to(ROOT)), [f"output_dir={tmp_path}/out"], dry_run=True, json_file=report)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert json.loads(report.read_text())["ok"] is True
