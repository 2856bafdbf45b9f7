"""The GRPO keys in LLaMA-Factory's own argument class."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

RECIPE = {
    "model_name_or_path": "x",
    "stage": "grpo",
    "do_train": True,
    "dataset": "x",
    "template": "qwen2_vl",
    "output_dir": "x",
    "report_to": "none",
    "use_cpu": True,
}


def parse(**keys: object) -> object:
    from llamafactory.hparams import get_train_args

    return get_train_args({**RECIPE, **keys})[3]


def test_keys_arrive_with_their_types() -> None:
    arguments = parse(grpo_beta=0.1, grpo_num_generations=4, grpo_loss_type="grpo", grpo_epsilon_high=0.28)
    assert (arguments.stage, arguments.grpo_beta, arguments.grpo_num_generations) == ("grpo", 0.1, 4)
    assert (arguments.grpo_loss_type, arguments.grpo_epsilon_high, arguments.grpo_delta) == ("grpo", 0.28, None)


def test_lists_arrive_as_they_are_written() -> None:
    arguments = parse(grpo_reward_funcs=["accuracy", "format_think_boxed"], grpo_reward_weights=[1, 0.2])
    assert arguments.reward_functions() == ["accuracy", "format_think_boxed"]
    assert arguments.reward_weights() == [1.0, 0.2]


def test_other_stages_are_as_they_were() -> None:
    assert parse(stage="sft").stage == "sft"
    assert parse(stage="dpo").use_ref_model


def test_the_arguments_can_be_logged_and_sent_to_a_worker() -> None:
    arguments = parse()
    assert arguments.to_dict()["grpo_loss_type"] == "dapo"
    assert pickle.loads(pickle.dumps(arguments)) == arguments


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grpo_bta": 0.1}, "grpo_bta"),
        ({"grpo_scale_rewards": "std"}, "group, batch, none"),
        ({"grpo_delta": 1.0}, "grpo_delta"),
        ({"grpo_reward_weights": "1,2"}, "2 weights for the 1 functions"),
    ],
)
def test_what_cannot_work_is_rejected(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(**keys)


def test_help_shows_the_keys() -> None:
    command = [sys.executable, "-m", "lcot_plugin.integration.worker", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "--grpo_num_generations" in result.stdout
    assert "Completions sampled per prompt" in " ".join(result.stdout.split())


def test_activating_too_late_says_so() -> None:
    code = "import llamafactory.hparams; from lcot_plugin.activation import activate; activate()"
    environment = {"LCOT_PLUGIN": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-S", "-c", "import sys; " + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode != 0
    assert "before the first import of llamafactory" in result.stderr
