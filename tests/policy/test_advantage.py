import pytest
import torch

from lcot_plugin.policy.advantage import group_advantages, has_variance, share_without_variance

NAN = float("nan")


def trl_advantages(rewards: torch.Tensor, scale: str) -> torch.Tensor:
    """The advantages as TRL 0.24 computes them inside `GRPOTrainer._generate_and_score_completions`."""
    num_generations = rewards.size(1)
    flat = rewards.flatten()
    mean = flat.view(-1, num_generations).mean(dim=1).repeat_interleave(num_generations)
    advantages = flat - mean
    if scale == "group":
        std = flat.view(-1, num_generations).std(dim=1).repeat_interleave(num_generations)
    else:
        std = flat.std().expand_as(flat)
    if scale != "none":
        advantages = advantages / (std + 1e-4)
    return advantages.view_as(rewards)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equals_trl_where_every_reward_is_given(scale: str, seed: int):
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(rewards, scale), trl_advantages(rewards, scale), atol=1e-6, rtol=1e-6)


def test_the_three_scales_differ():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.1, 0.2, 0.3]])
    group, batch, none = (group_advantages(rewards, scale) for scale in ("group", "batch", "none"))
    assert not torch.allclose(group, batch, atol=1e-2)
    assert not torch.allclose(group, none, atol=1e-2)
    assert not torch.allclose(batch, none, atol=1e-2)


def test_the_standard_deviation_is_unbiased():
    advantages = group_advantages(torch.tensor([[0.0, 1.0]]), epsilon=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 1.0]]) / 2**0.5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_missing_reward_is_as_if_the_completion_were_not_there(scale: str):
    with_gap = group_advantages(torch.tensor([[1.0, NAN, 0.0, 0.25], [0.0, 0.0, NAN, 1.0]]), scale)
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.25], [0.0, 0.0, 1.0]]), scale)
    torch.testing.assert_close(with_gap[0, [0, 2, 3]], without[0])
    torch.testing.assert_close(with_gap[1, [0, 1, 3]], without[1])
    assert with_gap[0, 1] == with_gap[1, 2] == 0.0
    as_zero = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.25], [0.0, 0.0, 0.0, 1.0]]), scale)
    assert not torch.allclose(with_gap, as_zero, atol=1e-2)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_fewer_than_two_rewards_give_exactly_zero(scale: str):
    rewards = torch.tensor([[NAN, 1.0, NAN], [NAN, NAN, NAN], [0.0, 1.0, 0.5]])
    advantages = group_advantages(rewards, scale)
    assert advantages[:2].eq(0.0).all()
    assert advantages[2].abs().max() > 0.4


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((1, 7), 0.1)
    assert trl_advantages(rewards, "group").abs().max() > 1e-6, "no rounding noise here: the test shows nothing"
    assert group_advantages(rewards, "group").eq(0.0).all()


def test_share_without_variance_counts_groups_that_teach_nothing():
    rewards = torch.tensor([[0.0, 0.0, 0.0], [1.0, NAN, 1.0], [NAN, 0.5, NAN], [NAN, NAN, NAN], [0.0, NAN, 1.0]])
    assert has_variance(rewards).tolist() == [False, False, False, False, True]
    assert share_without_variance(rewards) == pytest.approx(0.8)
