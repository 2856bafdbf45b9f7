import pytest
from policy_rows import arguments

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.objectives import check_objective

REFUSED = [
    ({"loss_type": "cipso"}, "did you mean 'cispo'"),
    ({"advantage": "rlo"}, "did you mean 'rloo'"),
    ({"loss_type": "gspo", "importance_sampling_level": "token"}, "gspo with a ratio per token is grpo"),
    ({"loss_type": "sapo", "importance_sampling_level": "sequence"}, "sapo has one ratio per token by definition"),
    ({"loss_type": "cispo", "delta": 2.0}, "grpo_delta: cispo does not read it"),
    ({"sapo_temperature_pos": 0.0}, "grpo_sapo_temperature_pos: 0.0 must be more than 0"),
    ({"sapo_temperature_neg": -1.0}, "grpo_sapo_temperature_neg: -1.0 must be more than 0"),
    ({"sampler_correction_cap": 0.5}, "grpo_sampler_correction_cap: 0.5 must be at least 1"),
    ({"beta": 0.1, "ref_sync_steps": 5, "ref_mixup_alpha": 0.0}, r"must lie in \(0, 1\]"),
    ({"beta": 0.1, "ref_sync_steps": 5, "ref_mixup_alpha": 1.5}, r"must lie in \(0, 1\]"),
    ({"beta": 0.1, "ref_mixup_alpha": 0.5}, "never moved: set grpo_ref_sync_steps"),
    ({"ref_sync_steps": 5}, "no reference policy to move: set grpo_beta"),
    ({"kl_in": "reward"}, "no KL divergence to take off the reward: set grpo_beta"),
    ({"beta": 0.1, "kl_estimator": "k1"}, "expected gradient of 0 on policy"),
    ({"advantage": "reinforce_pp", "scale_rewards": "none"}, "reinforce_pp normalises over the batch by definition"),
    ({"advantage": "rloo", "scale_rewards": "batch"}, "rloo divides by no standard deviation"),
    ({"advantage": "rloo", "multi_objective_aggregation": "normalize_then_sum"}, "cannot use rloo"),
    ({"scale_rewards": "none", "multi_objective_aggregation": "normalize_then_sum"}, "leave the key out"),
    (
        {"beta": 0.1, "kl_in": "reward", "kl_estimator": "k1", "multi_objective_aggregation": "normalize_then_sum"},
        "comes off their sum: write `grpo_kl_in: loss`",
    ),
]


@pytest.mark.parametrize(
    ("keys", "message"), REFUSED, ids=lambda value: None if isinstance(value, dict) else value[:20]
)
def test_what_cannot_work_is_refused(keys: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        check_objective(arguments(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"loss_type": "gspo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"loss_type": "sapo", "advantage": "rloo", "scale_rewards": "none"},
        {"beta": 0.01, "ref_sync_steps": 64, "ref_mixup_alpha": 0.6},
        {"beta": 0.01, "kl_in": "reward", "kl_estimator": "k1", "advantage": "reinforce_pp"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"llds_coef": 0.1, "num_iterations": 2},
        {"delta": 2.0, "sampler_correction": "token_truncate", "sampler_correction_cap": 1.0},
    ],
    ids=str,
)
def test_what_works_passes_without_a_word(keys: dict):
    assert check_objective(arguments(**keys)) == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loss_type": "gspo"}, "grpo_epsilon: 0.2 clips next to nothing"),
        ({"importance_sampling_level": "sequence"}, "3.0e-4"),
        ({"beta": 0.01, "kl_in": "reward", "scale_rewards": "none"}, "k3 in the reward"),
        ({"llds_coef": 0.1}, "set grpo_num_iterations to 2"),
    ],
    ids=str,
)
def test_what_is_unlikely_to_work_is_told(keys: dict, words: str):
    (warning,) = check_objective(arguments(**keys))
    assert words in warning


def test_a_users_functions_are_loaded_at_once(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def loss(terms, settings):\n    return -terms.logps\n")
    assert check_objective(arguments(loss_type=f"{file}:loss", delta=2.0, importance_sampling_level="token")) == []
    with pytest.raises(ArgumentError, match=r"advantage file .* has no function 'best'"):
        check_objective(arguments(advantage=f"{file}:best"))


@pytest.mark.parametrize(
    ("keys", "unread"),
    [
        ({"grpo_loss_type": "sapo", "grpo_epsilon_high": 0.28, "grpo_epsilon": 0.1}, ["epsilon", "epsilon_high"]),
        ({"grpo_loss_type": "cispo", "grpo_epsilon": 0.1}, []),
        ({"grpo_loss_type": "cispo", "grpo_epsilon": 0.1, "grpo_epsilon_high": 4.0}, ["epsilon"]),
        (
            {"grpo_sapo_temperature_neg": 2.0, "grpo_sampler_correction_cap": 3.0},
            ["sampler_correction_cap", "sapo_temp"],
        ),
        ({"grpo_kl_estimator": "k2", "grpo_dynamic_sampling_rounds": 5}, ["dynamic_sampling_rounds", "kl_estimator"]),
        ({"grpo_kl_estimator": "k2", "grpo_beta": 0.01}, []),
        ({}, []),
    ],
)
def test_keys_that_nothing_reads_are_told(keys, unread):
    told = [warning for warning in check_objective(GrpoArguments(**keys)) if "nothing reads it" in warning]
    assert len(told) == len(unread)
    assert all(warning.startswith(f"grpo_{key}") for warning, key in zip(told, unread, strict=True))
