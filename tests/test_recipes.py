"""Every recipe that is shipped: it parses, its keys are known, its paths and data sets exist, stages agree.

The families' recipes run on tiny twins in tests/families/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from families.runs import ON_CPU, TWINS

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "yaml_recipes").rglob("*.yaml"))
STAGES = ("sft", "grpo", "eval", "sft_full", "grpo_full")
PAPER_MODELS = ("qwen2_5_vl_3b", "qwen2_5_vl_7b")
CURRICULUM = ("curriculum_1_easy", "curriculum_2_medium", "curriculum_3_hard")
ARMS = ("rl_only", "sft", "sft_rl", "sft_text_only", *CURRICULUM)
BENCHMARKS = ("mathvista", "mathvision", "mathverse", "dynamath", "logicvista", "mmmu", "geometry3k", "all")
LISTED = json.loads((ROOT / "dataset_info" / "dataset_info.json").read_text(encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "yaml_recipes"))


def recipe(*parts: str) -> dict[str, Any]:
    return read(ROOT.joinpath("yaml_recipes", *parts).with_suffix(".yaml"))


def test_the_recipes_are_there() -> None:
    expected = {"sft.yaml", "grpo.yaml", "eval.yaml"}
    expected |= {f"{family}/{stage}.yaml" for family in TWINS for stage in STAGES}
    expected |= {f"paper/{model}/{arm}.yaml" for model in PAPER_MODELS for arm in ARMS}
    expected |= {f"paper/eval/{benchmark}.yaml" for benchmark in BENCHMARKS}
    assert {name(path) for path in RECIPES} == expected


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_parses_and_what_it_names_is_there(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llamafactory.hparams import get_train_args

    from lcot_plugin.arguments import plan_batches
    from lcot_plugin.integration.stage import with_sampling_defaults

    recipe = read(path)
    monkeypatch.chdir(ROOT)
    # DeepSpeed is not a dependency: its file is looked at, and left out.
    given = with_sampling_defaults({**recipe, **ON_CPU, "output_dir": str(tmp_path), "deepspeed": None})
    _, data_args, training_args, finetuning_args, _ = get_train_args(given)
    if "deepspeed" in recipe:
        assert json.loads(Path(recipe["deepspeed"]).read_text())["zero_optimization"]["stage"] in (1, 2, 3)
    for data_set in [*(data_args.dataset or []), *(data_args.eval_dataset or [])]:
        check_data_set(data_set, recipe)
    if recipe["stage"] == "grpo":
        finetuning_args.check_grpo(training=training_args.do_train)
        if training_args.do_train:
            accumulation = training_args.gradient_accumulation_steps
            plan_batches(finetuning_args, training_args.per_device_train_batch_size, accumulation, 1)
    text = path.read_text()
    assert f"llamafactory-cli train yaml_recipes/{name(path)}" in text
    assert max(map(len, text.splitlines())) <= 140


def check_data_set(data_set: str, recipe: dict[str, Any]) -> None:
    from lcot_plugin.data.formats import PREFIX, get_format

    if recipe["dataset_dir"] != "dataset_info":  # `lcot data difficulty` writes sets by difficulty
        assert recipe["dataset_dir"].startswith("saves/")
        data_set = re.sub("_(easy|medium|hard)$", "", data_set)
    entry = LISTED[data_set]
    if "file_name" in entry and not (ROOT / "dataset_info" / entry["file_name"]).is_file():
        assert recipe["media_dir"] == f"dataset_info/{Path(entry['file_name']).parent}"
        assert "Download" in entry["note"] or "in the same repository" in entry["note"]
    if recipe["stage"] == "grpo":
        columns, formatting = entry.get("columns", {}), entry.get("formatting", "")
        assert "gold" in columns or "gold" in get_format(formatting).roles
    elif entry.get("formatting", "").startswith(PREFIX):
        get_format(entry["formatting"])


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """Else the test above could not fail for a misspelt one."""
    from llamafactory.hparams import get_train_args

    shipped = {**recipe("qwen2_vl_2b", "grpo"), **ON_CPU, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="grpo_num_generation"):
        get_train_args({**shipped, "grpo_num_generation": 8})


@pytest.mark.parametrize("family", TWINS)
def test_the_stages_of_a_family_agree(family: str) -> None:
    stages = {stage: recipe(family, stage) for stage in STAGES}
    keys = ("template", "cot_format", "image_max_pixels", "trust_remote_code")
    for key in keys:
        assert len({stage[key] for stage in stages.values()}) == 1, "another prompt than the one trained on"
    hub_id = stages["sft"]["model_name_or_path"]
    for stage in ("grpo", "eval", "sft_full"):
        assert stages[stage]["model_name_or_path"] == hub_id
    assert hub_id in (ROOT / "yaml_recipes" / family / "grpo_full.yaml").read_text()
    assert stages["grpo"]["adapter_name_or_path"] == stages["sft"]["output_dir"]
    assert stages["eval"]["adapter_name_or_path"] == stages["grpo"]["output_dir"]
    assert stages["grpo_full"]["model_name_or_path"] == stages["sft_full"]["output_dir"]
    assert len({stage["output_dir"] for stage in stages.values()}) == len(STAGES)
    for stage in ("sft_full", "grpo_full"):
        assert stages[stage]["finetuning_type"] == "full" and "deepspeed" in stages[stage]


@pytest.mark.parametrize("family", TWINS)
def test_hub_ids_are_llamafactorys_where_it_has_them(family: str) -> None:
    """Names cannot be looked up here; LLaMA-Factory's list of models is the nearest thing."""
    from llamafactory.extras.constants import SUPPORTED_MODELS

    known = {model_id for sources in SUPPORTED_MODELS.values() for model_id in sources.values()}
    hub_id = recipe(family, "sft")["model_name_or_path"]
    not_listed = {
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "LiquidAI/LFM2-VL-1.6B",
    }
    assert (hub_id in known) != (hub_id in not_listed)


# --- the paper --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_the_arms_have_the_papers_settings(model: str) -> None:
    """facts of the official scripts, arm by arm."""
    arms = {arm: recipe("paper", model, arm) for arm in ARMS}
    for arm in ("sft", "sft_text_only"):
        sft = {
            "learning_rate": 2e-5,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 32,
            "cutoff_len": 8192,
            "warmup_ratio": 0.05,
        }
        assert sft.items() <= arms[arm].items()
        assert "NPROC_PER_NODE=4" in (ROOT / f"yaml_recipes/paper/{model}/{arm}.yaml").read_text()
        assert arms[arm]["deepspeed"].endswith("zero1.json")
    rl = {
        "learning_rate": 1e-6,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "grpo_num_generations": 4,
        "grpo_num_iterations": 4,
        "max_new_tokens": 8192,
        "grpo_beta": 2e-3,
        "grpo_epsilon_high": 0.28,
        "grpo_mask_truncated": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 50,
        "max_grad_norm": 1.0,
        "warmup_ratio": 0.01,
        "grpo_reward_funcs": "accuracy",
    }
    for arm, cot_format in (("rl_only", "think_answer"), ("sft_rl", "think_boxed")):
        assert {**rl, "cot_format": cot_format}.items() <= arms[arm].items()
        assert arms[arm]["deepspeed"].endswith("zero2.json")
    assert all(arm["finetuning_type"] == "full" and arm["image_max_pixels"] == 1003520 for arm in arms.values())


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_an_arm_starts_where_the_one_before_it_ended(model: str) -> None:
    arms = {arm: recipe("paper", model, arm) for arm in ARMS}
    hub_id = "Qwen/Qwen2.5-VL-" + {"qwen2_5_vl_3b": "3B", "qwen2_5_vl_7b": "7B"}[model] + "-Instruct"
    for arm in ("sft", "sft_text_only", "rl_only", CURRICULUM[0]):
        assert arms[arm]["model_name_or_path"] == hub_id
    for before, after in (("sft", "sft_rl"), CURRICULUM[:2], CURRICULUM[1:]):
        assert arms[after]["model_name_or_path"] == arms[before]["output_dir"]
    assert len({arm["output_dir"] for arm in arms.values()}) == len(ARMS)


def test_all_is_every_benchmark_of_the_papers_table() -> None:
    alone = ("mathvista", "mathvision", "mathverse", "dynamath", "logicvista")
    sets = ",".join(recipe("paper", "eval", benchmark)["eval_dataset"] for benchmark in alone)
    assert recipe("paper", "eval", "all")["eval_dataset"].replace(" ", "") == sets.replace(" ", "")


def test_lcot_init_brings_all_of_them(tmp_path: Path) -> None:
    from lcot_plugin.recipes import copy_recipes

    copy_recipes(tmp_path)
    assert sorted(path.relative_to(tmp_path / "yaml_recipes") for path in tmp_path.rglob("*.yaml")) == [
        path.relative_to(ROOT / "yaml_recipes") for path in RECIPES
    ]
    for path in RECIPES:
        deepspeed = read(path).get("deepspeed")
        assert deepspeed is None or (tmp_path / deepspeed).is_file()
    assert (tmp_path / "dataset_info" / "dataset_info.json").is_file()
