"""LLaMA-Factory's and transformers' settings around a GRPO run: held-out sets, best checkpoint, adapters, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot
from safetensors.torch import load_file
from twins import TWIN_TEMPLATES, write_problems

# Third-party warnings while training are not this module's subject; its assertions are.
pytestmark = pytest.mark.filterwarnings("default")

REWARD = """
def even_tokens(completion_ids):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
"""


@pytest.fixture
def recipe(tmp_path: Path, twin: Any) -> dict[str, Any]:
    """One step per rollout of two prompts on a tiny Qwen2.5-VL, evaluated after each."""
    write_problems(tmp_path, 8)
    (tmp_path / "reward.py").write_text(REWARD)
    return {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "media_dir": str(tmp_path),
        "cutoff_len": 512,
        "max_new_tokens": 8,
        "grpo_num_generations": 4,
        "grpo_eval_generations": 0,
        "grpo_reward_funcs": [f"{tmp_path / 'reward.py'}:even_tokens", "accuracy"],
        "grpo_reward_weights": [1, 0.5],
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "no",
        "output_dir": str(tmp_path / "out"),
        "plot_loss": True,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }


def run(recipe: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The output folder and the trainer's state."""
    from llamafactory.train.tuner import run_exp

    run_exp(dict(recipe))
    pyplot.close("all")  # plot_loss leaves its figures open
    output = Path(recipe["output_dir"])
    return output, json.loads((output / "trainer_state.json").read_text())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_checkpoint_is_that_of_the_best_accuracy(recipe: dict[str, Any]) -> None:
    changes = {
        "val_size": 3,
        "load_best_model_at_end": True,
        "early_stopping_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 4,
    }
    output, state = run({**recipe, **changes})
    accuracies = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert all(entry["eval_problems"] == 3 for entry in state["log_history"] if "eval_problems" in entry)
    assert state["best_metric"] == max(accuracies)
    assert state["global_step"] < 4, "an untrained model gains nothing, which stops the run"
    best, last = state["best_model_checkpoint"], output / f"checkpoint-{state['global_step']}"
    saved = load_file(output / "model.safetensors")
    assert same(saved, load_file(Path(best, "model.safetensors")))
    assert not same(saved, load_file(last / "model.safetensors"))


def test_each_evaluation_set_has_its_metrics_and_curve(recipe: dict[str, Any], tmp_path: Path) -> None:
    write_problems(tmp_path, 3, name="easy", num_text_only=3)
    write_problems(tmp_path, 2, name="hard", num_two_images=2)
    output, state = run({**recipe, "eval_dataset": "easy,hard", "eval_on_each_dataset": True, "do_eval": True})
    metrics = json.loads((output / "eval_results.json").read_text())
    assert (metrics["eval_easy_problems"], metrics["eval_hard_problems"]) == (3, 2)
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"eval_easy_accuracy", "eval_hard_accuracy", "rewards/even_tokens", "rewards/accuracy"} <= logged
    curves = {path.name for path in output.glob("training_*.png")}
    assert curves == {
        f"training_{name}.png"
        for name in (
            *("loss", "reward", "completions_length", "entropy", "rewards_even_tokens", "rewards_accuracy"),
            *("eval_easy_accuracy", "eval_hard_accuracy"),
        )
    }
    lines = [json.loads(line) for line in (output / "completions.jsonl").read_text().splitlines()]
    assert all(set(line["rewards"]) == {"even_tokens", "accuracy"} for line in lines)


def test_a_new_adapter_is_trained_on_top_of_that_of_sft(recipe: dict[str, Any], tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp

    lora = {**recipe, "finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 8, "eval_strategy": "no", "max_steps": 1}
    for key in [key for key in lora if key.startswith("grpo_")]:
        del lora[key]
    run_exp({**lora, "stage": "sft", "output_dir": str(tmp_path / "sft"), "learning_rate": 0.05, "plot_loss": False})
    keys = {key: value for key, value in recipe.items() if key.startswith("grpo_")}
    changes = {"adapter_name_or_path": str(tmp_path / "sft"), "create_new_adapter": True, "lora_rank": 2}
    output, state = run({**lora, **keys, **changes, "grpo_beta": 0.1, "max_steps": 2})
    trained = load_file(output / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in trained.values()} == {2}, "a new adapter, of its own rank"
    assert any(weight.abs().max() > 0 for name, weight in trained.items() if "lora_B" in name)
    divergences = [entry["kl"] for entry in state["log_history"] if "kl" in entry]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6), "the reference is the model of SFT, where this one starts"
