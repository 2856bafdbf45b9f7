import pytest
import torch

from lcot_plugin.policy.sampler_correction import sampler_correction

RATIOS = torch.tensor([3.0, 1.5, 0.5, 1.0, 0.25])
LENGTHS = [2, 3]

EXPECTED = {
    "token_truncate": [2.0, 1.5, 0.5, 1.0, 0.25],
    "token_mask": [0.0, 1.5, 0.5, 1.0, 0.25],
    "sequence_truncate": [2.0, 2.0, 0.125, 0.125, 0.125],
    "sequence_mask": [0.0, 0.0, 0.125, 0.125, 0.125],
}


@pytest.mark.parametrize("mode", EXPECTED)
def test_weights_by_hand(mode: str):
    logps = RATIOS.log().requires_grad_()
    correction = sampler_correction(logps, torch.zeros(5), LENGTHS, mode, cap=2.0)
    assert correction.weights.tolist() == pytest.approx(EXPECTED[mode])
    assert not correction.weights.requires_grad
    per_sequence = mode.startswith("sequence")
    assert correction.uncapped.tolist() == pytest.approx([4.5, 0.125] if per_sequence else RATIOS.tolist())
    assert correction.over_cap.tolist() == ([True, False] if per_sequence else [True, *[False] * 4])


@pytest.mark.parametrize("mode", EXPECTED)
def test_a_sampler_that_agrees_changes_nothing(mode: str):
    logps = -torch.rand(5)
    correction = sampler_correction(logps, logps, LENGTHS, mode, cap=1.0)
    assert correction.weights.tolist() == [1.0] * 5
    assert not correction.over_cap.any()


def test_truncation_makes_the_expectation_right_up_to_the_cap():
    """Draws of the sampler, weighted, have the policy's mean; without weights they have the sampler's."""
    policy, sampler = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    values = torch.tensor([1.0, 2.0, 4.0])
    weights = sampler_correction(policy.log(), sampler.log(), [1, 1, 1], "token_truncate", cap=2.0).weights
    torch.testing.assert_close((sampler * weights * values).sum(), (policy * values).sum())
    assert (sampler * values).sum() - (policy * values).sum() > 0.3


@pytest.mark.parametrize("treatment", ["truncate", "mask"])
def test_a_product_that_overflows_stays_a_number(treatment: str):
    correction = sampler_correction(torch.zeros(100), torch.full((100,), -5.0), [100], f"sequence_{treatment}", cap=2.0)
    assert correction.weights.tolist() == [2.0 if treatment == "truncate" else 0.0] * 100
    assert correction.uncapped.isfinite().all()


@pytest.mark.parametrize("mode", EXPECTED)
def test_no_tokens(mode: str):
    assert sampler_correction(torch.zeros(0), torch.zeros(0), [], mode, cap=2.0).weights.shape == (0,)
