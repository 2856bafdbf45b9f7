"""DDP, ZeRO and FSDP train, save, resume and evaluate as one process does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from scale_out_runs import LORA, assert_same_curve, assert_same_weights, tiny_recipe, train, ways


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Callable[[str], Path]) -> dict[str, Any]:
    return tiny_recipe(tmp_path_factory.mktemp("scale_out"), twin)


@pytest.fixture(scope="module")
def one_process(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(recipe, "one", folder, processes=1)
    return folder


@ways("zero2", "zero3", "fsdp2")
def test_two_processes_train_as_one_does(recipe: dict[str, Any], one_process: Path, tmp_path: Path, way: str) -> None:
    train(recipe, way, tmp_path)
    assert_same_curve(one_process, tmp_path, recipe["max_steps"])
    assert_same_weights(one_process, tmp_path, "model.safetensors")


@pytest.mark.slow
@ways("ddp", "zero2", "zero3", "fsdp2")
def test_a_trained_vision_tower(recipe: dict[str, Any], tmp_path: Path, way: str) -> None:
    changes = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False, "learning_rate": 1e-4}
    train(recipe, "one", tmp_path / "one", processes=1, **changes)
    train(recipe, way, tmp_path / "two", **changes)
    assert_same_curve(tmp_path / "one", tmp_path / "two", recipe["max_steps"])


@pytest.mark.slow
@ways("zero2", "zero3", "zero3_offload", "fsdp2")
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_resumes(recipe: dict[str, Any], tmp_path: Path, way: str, tuning: str) -> None:
    """From a checkpoint between the two updates of a rollout, to the weights of a run that was not interrupted."""
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, **(LORA if tuning == "lora" else {})}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe, way, whole, **changes)
    shutil.copytree(whole / "out" / "checkpoint-3", again / "out" / "checkpoint-3")
    train(recipe, way, again, resume_from_checkpoint=str(again / "out" / "checkpoint-3"), **changes)
    name = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    assert_same_weights(whole, again, name, tolerance=0)


@pytest.mark.slow
@ways("zero2", "zero3", "fsdp2")
def test_an_output_layer_that_shares_the_embeddings(recipe: dict[str, Any], tmp_path: Path, way: str) -> None:
    model = tmp_path / "tied"
    shutil.copytree(recipe["model_name_or_path"], model)
    config = json.loads((model / "config.json").read_text())
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = True
    (model / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    changes = {"model_name_or_path": str(model)}
    train(recipe, "one", tmp_path / "one", processes=1, **changes)
    train(recipe, way, tmp_path / "two", **changes)
    assert_same_curve(tmp_path / "one", tmp_path / "two", recipe["max_steps"])


@pytest.mark.slow
@ways("ddp", "zero2", "zero3", "fsdp2")
def test_an_evaluation_between_updates(recipe: dict[str, Any], tmp_path: Path, way: str) -> None:
    """Eight problems over three processes: one of them has fewer, and still takes part in what gathers weights."""
    changes = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": "problems", "grpo_eval_generations": 0}
    changes |= {
        "per_device_train_batch_size": 12,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-4,
    }
    written = []
    for name, processes in (("one", 1), (way, 3)):
        train(recipe, name, tmp_path / name, processes, **changes)
        lines = map(json.loads, (tmp_path / name / "out" / "eval_completions.jsonl").read_text().splitlines())
        written.append({(line["step"], line["record"]): line["completion"] for line in lines})
    assert len(written[0]) == 2 * 8
    assert written[1] == written[0]
