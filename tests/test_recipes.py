"""Every recipe that is shipped: it parses, its paths and data sets exist, and the real families' recipes run.

The runs replace the hub model by a tiny twin of its architecture and the data by problems made here; every other key is
the recipe's own, but for lengths and step counts.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from twins import write_problems

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "yaml_recipes").rglob("*.yaml"))
FAMILIES = {"qwen2_5_vl_3b": "qwen2_5_vl", "qwen3_vl_2b": "qwen3_vl", "internvl3_5_2b": "internvl"}
ON_CPU = {"bf16": False, "use_cpu": True, "flash_attn": "sdpa"}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "yaml_recipes"))


def test_the_recipes_are_there() -> None:
    expected = {"sft.yaml", "grpo.yaml", "eval.yaml"}
    assert expected <= {name(path) for path in RECIPES}
    for family in FAMILIES:
        assert {f"{family}/{stage}" for stage in expected} <= {name(path) for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_parses_and_its_data_sets_are_listed(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llamafactory.hparams import get_train_args

    from lcot_plugin.arguments import plan_batches
    from lcot_plugin.integration.stage import with_sampling_defaults

    recipe = read(path)
    monkeypatch.chdir(ROOT)
    parsed = get_train_args(with_sampling_defaults({**recipe, **ON_CPU, "output_dir": str(tmp_path)}))
    _, data_args, training_args, finetuning_args, _ = parsed
    listed = json.loads((ROOT / recipe["dataset_dir"] / "dataset_info.json").read_text())
    for data_set in [*(data_args.dataset or []), *(data_args.eval_dataset or [])]:
        assert data_set in listed
        if "file_name" in listed[data_set]:
            assert (ROOT / recipe["dataset_dir"] / listed[data_set]["file_name"]).is_file()
        if recipe["stage"] == "grpo":
            assert "gold" in listed[data_set]["columns"]
    if recipe["stage"] == "grpo":
        finetuning_args.check_grpo(training=training_args.do_train)
        if training_args.do_train:
            accumulation = training_args.gradient_accumulation_steps
            plan_batches(finetuning_args, training_args.per_device_train_batch_size, accumulation, 1)
    lines = path.read_text().splitlines()
    assert f"llamafactory-cli train yaml_recipes/{name(path)}" in path.read_text()
    assert max(map(len, lines)) <= 140


def test_the_stages_of_a_family_agree() -> None:
    for family in FAMILIES:
        sft, grpo, evaluation = (read(ROOT / "yaml_recipes" / family / f"{s}.yaml") for s in ("sft", "grpo", "eval"))
        for key in ("model_name_or_path", "template", "cot_format", "image_max_pixels"):
            assert sft[key] == grpo[key] == evaluation[key], "another prompt than the one trained on"
        assert grpo["adapter_name_or_path"] == sft["output_dir"]
        assert evaluation["adapter_name_or_path"] == grpo["output_dir"]


# Third-party warnings while training are not this test's subject; its assertions are.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_sft_grpo_and_evaluation_run_on_the_familys_twin(
    family: str, twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.data import template
    from llamafactory.train.tuner import run_exp

    # `default_system` is written into LLaMA-Factory's global template; later tests want it as it was.
    monkeypatch.setattr(template, "TEMPLATES", deepcopy(template.TEMPLATES))
    data = tmp_path / "data"
    data.mkdir()
    write_problems(data, 6, num_text_only=2)
    entry = json.loads((data / "dataset_info.json").read_text())["problems"]
    entry["columns"]["response"] = "response"
    names = ("multimodal_cold_start", "geometry3k", "geometry3k_test")
    (data / "dataset_info.json").write_text(json.dumps(dict.fromkeys(names, entry)))
    monkeypatch.chdir(tmp_path)  # the recipes' own relative output folders
    os.symlink(data, tmp_path / "dataset_info")
    small = {
        **ON_CPU,
        "model_name_or_path": str(twin(FAMILIES[family])),
        "media_dir": str(data),
        "max_steps": 2,
        "gradient_accumulation_steps": 4,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "max_new_tokens": 8,
        "save_steps": 2,
        "eval_steps": 2,
        "disable_tqdm": True,
    }
    folder = ROOT / "yaml_recipes" / family
    run_exp({**read(folder / "sft.yaml"), **small})
    assert Path("saves", family, "sft", "adapter_model.safetensors").is_file()

    # An untrained model is cut off and never right: without a divergence there would be nothing to compute.
    run_exp({**read(folder / "grpo.yaml"), **small, "grpo_beta": 0.01, "grpo_mask_truncated": False})
    output = Path("saves", family, "grpo")
    assert (output / "adapter_model.safetensors").is_file()
    completions = [json.loads(line) for line in (output / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 2 * 16
    assert all(set(line["rewards"]) == {"accuracy", "format_think_boxed"} for line in completions)
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    gaps = [entry["sampler_gap/max"] for entry in history if "sampler_gap/max" in entry]
    assert len(gaps) == 2
    assert max(gaps) < 1e-4
    assert any("eval_accuracy" in entry for entry in history)

    run_exp({**read(folder / "eval.yaml"), **small})
    metrics = json.loads(Path("saves", family, "eval", "eval_results.json").read_text())
    assert metrics["eval_problems"] == 6
    assert {"eval_accuracy", "eval_avg@8", "eval_pass@8", "eval_truncated"} <= set(metrics)
