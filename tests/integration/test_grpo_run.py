"""The GRPO stage in processes of its own: two processes equal one, a killed run resumes as if it had not been.

Six prompts, four to a rollout, two updates of each: an epoch is two rollouts, that is four updates.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import grpo_recipe, run
from safetensors.torch import load_file
from twins import write_problems

from lcot_plugin.policy.sampler import PromptBlockSampler

REWARD = '''
def even_tokens(completions, completion_ids, **kwargs):
    """Something that a random model earns now and then."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def begins_even(completions, completion_ids, **kwargs):
    """0 or 1, so that all completions of a group often earn the same."""
    return [float(ids[0] % 8 == 0) for ids in completion_ids]
'''
EVERYTHING = {
    "grpo_loss_type": "sapo",
    "grpo_loss_aggregation": "token",
    "grpo_kl_estimator": "k2",
    "grpo_ref_sync_steps": 2,
    "grpo_ref_mixup_alpha": 0.5,
    "grpo_entropy_coef": 0.01,
    "grpo_llds_coef": 0.1,
    "grpo_sampler_correction": "sequence_truncate",
    "grpo_advantage": "rloo",
    "grpo_scale_rewards": "none",
    "grpo_dynamic_sampling": True,
    "grpo_dynamic_sampling_rounds": 1,
    "grpo_replay_groups": 6,
    "grpo_micro_batch_tokens": 200,
    "grpo_rollout_batch_size": 5,
    "grpo_min_p": 0.001,
    "top_p": 0.9,
    "grpo_num_iterations": 1,
    "grpo_steps_per_generation": 2,
    "gradient_accumulation_steps": 1,
}
"""Every option that has a state or talks to other processes."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Any) -> dict[str, Any]:
    """GRPO on a tiny Qwen2.5-VL with image, two-image and text-only prompts, and a user's reward function."""
    folder = tmp_path_factory.mktemp("grpo")
    write_problems(folder, 6, num_text_only=2, num_two_images=2)
    (folder / "reward.py").write_text(REWARD)
    return grpo_recipe(
        folder,
        twin,
        grpo_num_iterations=2,
        grpo_beta=0.05,
        grpo_reward_funcs=f"{folder / 'reward.py'}:even_tokens",
        max_grad_norm=0.0,
        max_steps=8,
        save_steps=5,
        use_cpu=True,
    )


@pytest.fixture(scope="module")
def whole_run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, eight steps, never interrupted; its first gradients saved."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(recipe, folder, f"gradients={folder / 'gradients.pt'}")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_two_processes_give_the_gradients_of_one(whole_run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    halved = {**recipe, "per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": "no", "ddp_backend": "gloo"}
    result = run(halved, tmp_path, f"gradients={tmp_path / 'gradients.pt'}", processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_gradients(whole_run / "gradients.pt", tmp_path / "gradients.pt")


def assert_same_gradients(first: Path, second: Path) -> dict[str, torch.Tensor]:
    one, two = torch.load(first), torch.load(second)
    assert one.keys() == two.keys()
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-3
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=0, msg=name)
    return one


@pytest.mark.slow
def test_two_processes_train_a_vision_tower_and_resume(recipe: dict[str, Any], tmp_path: Path) -> None:
    """A process whose micro-batch holds no image must not leave the other one waiting for the tower's gradients."""
    # Of six prompts the first two have no image: one process begins with text, the other one with images.
    seed = next(s for s in range(99) if (order := list(PromptBlockSampler(6, 2, 1, s)))[0] < 2 <= order[1])
    vision = {**recipe, "freeze_vision_tower": False, "freeze_multi_modal_projector": False, "seed": seed}
    vision |= {"gradient_accumulation_steps": 1}
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "again"
    single = {**vision, "max_steps": 1, "save_strategy": "no"}
    assert run(single, one, f"gradients={one / 'gradients.pt'}").returncode == 0
    halved = {**vision, "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 3, "ddp_backend": "gloo"}
    result = run(halved, two, f"gradients={two / 'gradients.pt'}", processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    gradients = assert_same_gradients(one / "gradients.pt", two / "gradients.pt")
    assert any("visual" in name and gradient.any() for name, gradient in gradients.items())

    shutil.copytree(two / "out" / "checkpoint-3", again / "out" / "checkpoint-3")
    result = run(halved, again, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    whole, resumed = (load_file(folder / "out" / "model.safetensors") for folder in (two, again))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_a_lora_resumes_with_the_reference_it_began_with(recipe: dict[str, Any], tmp_path: Path) -> None:
    lora = {**recipe, "finetuning_type": "lora", "max_steps": 4, "save_steps": 3, "grpo_beta": 10.0}
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(lora, whole).returncode == 0
    shutil.copytree(whole / "out" / "checkpoint-3", again / "out" / "checkpoint-3")
    result = run(lora, again)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(folder / "out" / "adapter_model.safetensors") for folder in (whole, again))
    before = load_file(whole / "out" / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not torch.equal(first[name], before[name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_resumes_to_the_same_weights(whole_run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    # The checkpoint at step 5 lies in the second epoch, between the two updates of a rollout; the kill in the middle of
    # the next one.
    killed = run(recipe, tmp_path, "kill_after=7")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "model.safetensors").exists()
    resumed = run(recipe, tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    whole, again = (load_file(folder / "out" / "model.safetensors") for folder in (whole_run, tmp_path))
    start = load_file(Path(recipe["model_name_or_path"], "model.safetensors"))
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    completions = [(folder / "out" / "completions.jsonl").read_text() for folder in (whole_run, tmp_path)]
    assert completions[0] == completions[1]
    lines = [json.loads(line) for line in completions[0].splitlines()]
    assert len(lines) == 4 * 16  # four rollouts for eight steps
    assert {line["step"] for line in lines} == {0, 2, 4, 6}


def test_a_checkpoint_without_its_completions_is_refused(
    whole_run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-5"
    checkpoint.parent.mkdir()
    (whole_run / "out" / "checkpoint-5").rename(checkpoint)
    (checkpoint / "experience_rank0.pt").unlink()
    result = run({**recipe, "resume_from_checkpoint": str(checkpoint)}, tmp_path)
    assert result.returncode != 0
    assert "experience_rank0.pt is missing" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_with_everything_on_a_run_resumes(recipe: dict[str, Any], tmp_path: Path, processes: int) -> None:
    """The checkpoint lies between the updates of a rollout; replayed groups, the moved reference and the alarms come
    back with it."""
    changes = {**EVERYTHING, "per_device_train_batch_size": 8 // processes, "save_steps": 5}
    changes["grpo_reward_funcs"] = recipe["grpo_reward_funcs"].replace("even_tokens", "begins_even")
    everything = {**recipe, **changes, **({"ddp_backend": "gloo"} if processes > 1 else {})}
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = run(everything, whole, processes=processes)
    assert result.returncode == 0, result.stderr[-3000:]
    logs = json.loads((whole / "out" / "trainer_state.json").read_text())["log_history"]
    assert sum(log.get("sampling/replayed", 0) for log in logs) > 0, "groups were replayed"
    assert max(log.get("sampling/prompts_per_group", 0) for log in logs) > 1, "further prompts were rolled out"
    shutil.copytree(whole / "out" / "checkpoint-5", again / "out" / "checkpoint-5")
    result = run(everything, again, processes=processes)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(folder / "out" / "model.safetensors") for folder in (whole, again))
    before = load_file(whole / "out" / "checkpoint-5" / "model.safetensors")
    assert any(not torch.equal(first[name], before[name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
