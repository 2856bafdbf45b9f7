"""Packed SFT in processes of its own: two processes equal one, a killed run resumes as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import run
from safetensors.torch import load_file
from twins import TWIN_TEMPLATES, write_problems


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Any) -> dict[str, Any]:
    """SFT of a tiny Qwen2.5-VL on packs of image, two-image and text-only records, two packs to an optimizer step."""
    folder = tmp_path_factory.mktemp("packed")
    write_problems(folder, 30, num_text_only=9, num_two_images=8)
    return {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "freeze_vision_tower": False,
        "freeze_multi_modal_projector": False,
        "dataset": "problems",
        "dataset_dir": str(folder),
        "media_dir": str(folder),
        "cutoff_len": 256,
        "length_aware_packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "max_steps": 12,
        "save_steps": 7,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }


@pytest.fixture(scope="module")
def whole_run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, never interrupted; its first gradients saved."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(recipe, folder, f"gradients={folder / 'gradients.pt'}")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_killed_run_resumes_to_the_same_weights(whole_run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    # The checkpoint lies within an epoch, the kill three packs after it.
    checkpoint = json.loads((whole_run / "out" / "checkpoint-7" / "packing.json").read_text())
    steps_per_epoch = -(-checkpoint["num_packs"] // 2)
    assert 7 % steps_per_epoch and steps_per_epoch < 7, "mid-epoch, and not the first one"
    killed = run(recipe, tmp_path, "kill_after=9")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = run(recipe, tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert losses(tmp_path) == losses(whole_run)

    whole, again = (load_file(folder / "out" / "model.safetensors") for folder in (whole_run, tmp_path))
    start = load_file(Path(recipe["model_name_or_path"], "model.safetensors"))
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The whole set is one optimizer step, however it is packed; some packs hold no image, and the tower is trained."""
    one, two = tmp_path / "one", tmp_path / "two"
    step = {**recipe, "num_train_epochs": 1, "max_steps": -1, "save_strategy": "no"}
    result = run({**step, "gradient_accumulation_steps": 100}, one, f"gradients={one / 'gradients.pt'}")
    assert result.returncode == 0, result.stderr[-3000:]
    halved = {**step, "gradient_accumulation_steps": 50, "ddp_backend": "gloo"}
    result = run(halved, two, f"gradients={two / 'gradients.pt'}", processes=2)
    assert result.returncode == 0, result.stderr
    assert len(losses(one)) == len(losses(two)) == 1
    assert losses(one) == pytest.approx(losses(two), abs=1e-4)
    first, second = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert first.keys() == second.keys()
    assert any("visual" in name and gradient.abs().max() > 1e-4 for name, gradient in first.items())
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_a_lora_run_on_two_processes_resumes(recipe: dict[str, Any], tmp_path: Path) -> None:
    lora = {**recipe, "finetuning_type": "lora", "freeze_vision_tower": True, "ddp_backend": "gloo", "max_steps": 5}
    lora |= {"save_steps": 3, "gradient_accumulation_steps": 1}
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = run(lora, whole, processes=2)
    assert result.returncode == 0, result.stderr
    shutil.copytree(whole / "out" / "checkpoint-3", again / "out" / "checkpoint-3")
    result = run(lora, again, processes=2)
    assert result.returncode == 0, result.stderr
    first, second = (load_file(folder / "out" / "adapter_model.safetensors") for folder in (whole, again))
    before = load_file(whole / "out" / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not torch.equal(first[name], before[name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_stream_on_two_processes_resumes(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Passes over the stream follow each other: thirty records are read more than once in eight steps."""
    stream = {**recipe, "streaming": True, "dataloader_num_workers": 1, "buffer_size": 8, "pack_buffer_size": 12}
    stream |= {"ddp_backend": "gloo", "max_steps": 8, "save_steps": 5, "preprocessing_num_workers": None}
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = run(stream, whole, processes=2)
    assert result.returncode == 0, result.stderr
    shutil.copytree(whole / "out" / "checkpoint-5", again / "out" / "checkpoint-5")
    result = run(stream, again, processes=2)
    assert result.returncode == 0, result.stderr
    assert len(losses(again)) == 8
    assert losses(again) == losses(whole)
    first, second = (load_file(folder / "out" / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
