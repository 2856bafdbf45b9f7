import pytest
import torch
from policy_rows import arguments, objective, random_rows, terms_of, value_and_gradients

from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.objectives import (
    LOSS_TYPES,
    LossType,
    get_loss_type,
    policy_loss,
    register_loss_type,
    unregister_loss_type,
)

SOURCE = """
def reinforce(terms, settings):
    return -terms.advantages * terms.logps

reinforce.aggregation = "constant"
reinforce.skips_zero_advantages = True

def bounded(terms, settings):
    return -terms.advantages * terms.logps.clamp(min=-settings.epsilon)

def one_number(terms, settings):
    return terms.logps.sum()

def per_ocean(terms, settings):
    return terms.logps

per_ocean.aggregation = "ocean"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my losses" / "mine.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def reinforce(terms, settings):
    return -terms.advantages * terms.logps


def test_a_loss_from_a_file(file):
    made, rows = objective(loss_type=f"{file}:reinforce"), random_rows(0)
    assert made.aggregation == "constant" and made.skips_zero_advantages
    value, gradient, statistics = value_and_gradients(made, terms_of(made, rows))
    advantages = rows.advantages.repeat_interleave(torch.tensor(rows.lengths))
    weight = 1 / (len(rows.lengths) * 12)
    torch.testing.assert_close(value, -(advantages * rows.logps).sum() * weight)
    torch.testing.assert_close(gradient, -advantages * weight)
    assert "ratio_sum" in statistics and "clip_low_sum" not in statistics


def test_a_plain_function_gets_the_defaults_and_the_settings(file):
    made = objective(loss_type=f"{file}:bounded", epsilon=0.5)
    assert made.aggregation == "token" and made.settings.importance_sampling_level == "token"
    assert not made.skips_zero_advantages, "what it does with an advantage of 0 is not known"
    gradient = value_and_gradients(made, terms_of(made, rows := random_rows(0)))[1]
    assert gradient[rows.logps < -0.5].eq(0).all() and gradient.ne(0).any()


def test_the_written_aggregation_stands_above_the_functions_own(file):
    assert objective(loss_type=f"{file}:reinforce", loss_aggregation="sequence").aggregation == "sequence"


def test_a_registered_loss():
    register_loss_type("reinforce", LossType(reinforce, "sequence"))
    try:
        assert objective(loss_type="reinforce").aggregation == "sequence"
        with pytest.raises(ArgumentError, match=r"'reinforce' already; .* unregister_loss_type\('reinforce'\)"):
            register_loss_type("reinforce", LossType(reinforce))
    finally:
        unregister_loss_type("reinforce")
    assert "reinforce" not in LOSS_TYPES
    with pytest.raises(ArgumentError, match="unknown objective 'reinforce'"):
        unregister_loss_type("reinforce")


@pytest.mark.parametrize("name", ["", "a.py:b"])
def test_a_name_must_not_read_as_a_file(name: str):
    with pytest.raises(ArgumentError, match="cannot name a loss type"):
        register_loss_type(name, LossType(reinforce))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpso", "unknown objective 'gpso'; did you mean 'gspo'.* Known: grpo, bnpo"),
        ("{file}:missing", "has no function 'missing'; it defines bounded, one_number"),
        ("{file}.py:missing", r"loss file .*mine\.py\.py does not exist"),
        ("{file}:per_ocean", "aggregation 'ocean' must be one of sequence, token"),
    ],
)
def test_what_cannot_be_found_is_told(spec: str, message: str, file):
    with pytest.raises(ArgumentError, match=message):
        get_loss_type(spec.format(file=file))


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    with pytest.raises(ArgumentError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        get_loss_type(f"{tmp_path / 'broken.py'}:loss")


def test_one_number_for_all_tokens_is_refused(file):
    made = objective(loss_type=f"{file}:one_number")
    with pytest.raises(ArgumentError, match=r"shape \[\] for \d+ tokens; return one loss per token"):
        policy_loss(made, terms_of(made, random_rows(0)))


def test_every_shipped_name_makes_an_objective():
    assert set(LOSS_TYPES) == {"grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"}
    assert arguments().grpo_loss_type in LOSS_TYPES
