"""GRPO runs over several processes, sharded and not, and in one, to compare: for the tests of scaling out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines_on_cpu import import_path, needs_deepspeed
from recipe_runs import grpo_recipe, run
from safetensors.torch import load_file
from twins import write_problems

ROOT = Path(__file__).parent.parent
REWARD = '''
def even_tokens(completions, completion_ids, **kwargs):
    """Something that a random model earns now and then."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
'''
WAYS = ["ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"]
"""Not FSDP 1, which accelerate cannot wrap on the CPU: tests/test_whole_weights.py has it without accelerate."""
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}


def ways(*names: str) -> Any:
    return pytest.mark.parametrize(
        "way", [pytest.param(name, marks=[needs_deepspeed] if name.startswith("zero") else []) for name in names]
    )


def tiny_recipe(folder: Path, twin: Callable[[str], Path]) -> dict[str, Any]:
    """GRPO on a tiny Qwen2.5-VL with a frozen tower, a reference, two updates per rollout and two micro-steps.

    Of eight prompts three have no image, so that some process has a pass of text alone while another one computes
    images; completions differ in length, so that rollouts take different numbers of forward passes. folder: for the
    data.
    """
    write_problems(folder, 8, num_text_only=3, num_two_images=2)
    (folder / "reward.py").write_text(REWARD)
    return grpo_recipe(
        folder,
        twin,
        grpo_num_iterations=2,
        grpo_beta=0.05,
        grpo_reward_funcs=f"{folder / 'reward.py'}:even_tokens",
        grpo_micro_batch_tokens=300,
        max_grad_norm=1.0,
        max_steps=4,
        save_strategy="no",
    )


def train(recipe: dict[str, Any], way: str, folder: Path, processes: int = 2, **changes: Any) -> Any:
    """Runs the recipe over several processes in one of WAYS, or in one process as `one`."""
    changes = {**recipe, **changes}
    changes["per_device_train_batch_size"] //= processes
    if way.startswith("zero"):
        changes["deepspeed"] = str(configuration(way, folder))
    else:
        changes["use_cpu"] = True  # with it transformers would leave DeepSpeed out
    environment = {"PYTHONPATH": import_path(way)}
    if way.startswith("fsdp"):
        environment |= launched_with(way)
    if processes > 1:
        changes["ddp_backend"] = "gloo"
    result = run(changes, folder, f"way={way}", processes=processes, environment=environment)
    assert result.returncode == 0, result.stderr[-5000:]
    return result


def configuration(way: str, folder: Path) -> Path:
    """The shipped DeepSpeed configuration, with PyTorch's optimizer and without pinned memory: the CPU has neither
    DeepSpeed's own, which is compiled, nor a device to pin for."""
    settings = json.loads((ROOT / "yaml_recipes" / "deepspeed" / f"{way}.json").read_text())
    settings["zero_force_ds_cpu_optimizer"] = False
    for key in ("offload_optimizer", "offload_param"):
        if key in settings["zero_optimization"]:
            settings["zero_optimization"][key]["pin_memory"] = False
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(settings))
    return path


def launched_with(way: str) -> dict[str, str]:
    """The environment that `accelerate launch` makes of the shipped configuration."""
    settings = json.loads((ROOT / "yaml_recipes" / "accelerate" / f"{way}.json").read_text())["fsdp_config"]
    return {"ACCELERATE_USE_FSDP": "true", **{key.upper(): str(value).lower() for key, value in settings.items()}}


def curve(folder: Path) -> list[dict[str, float]]:
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def assert_same_curve(one: Path, several: Path, num_steps: int) -> None:
    first, second = curve(one), curve(several)
    assert len(first) == len(second) == num_steps
    assert max(abs(entry["loss"]) for entry in first) > 1e-3
    for step, (left, right) in enumerate(zip(first, second, strict=True), start=1):
        for key, value in left.items():
            if key in ("loss", "kl", "reward"):
                assert second[step - 1][key] == pytest.approx(value, rel=1e-5, abs=1e-4), f"{key} at step {step}"
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3), f"grad_norm at step {step}"


def assert_same_weights(one: Path, several: Path, name: str, tolerance: float = 1e-4) -> None:
    first, second = load_file(one / "out" / name), load_file(several / "out" / name)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=tolerance, rtol=0, msg=key)
