"""Group-relative advantages: rewards [P, G] come in, advantages [P, G] go out to the policy loss.

Pure functions of the rewards, after "DeepSeekMath" (GRPO, arXiv 2402.03300) and, for `scale="none"`, "Understanding
R1-Zero-Like Training" (Dr. GRPO, arXiv 2503.20783). A reward that was not given is NaN: it moves neither the mean nor
the standard deviation of its group, and its own advantage is 0. (TRL 0.24 turns a row without any reward into a reward
of 0; on rows that all have rewards the two agree.)

Example, one prompt with four completions, the last one without a reward:

    rewards     1.0   0.0   0.0   NaN     mean 1/3, unbiased standard deviation 0.577
    advantages  1.15 -0.58 -0.58  0.0

Legend: P prompts, G completions per prompt.
"""

from __future__ import annotations

from typing import Literal

import torch

ScaleRewards = Literal["group", "batch", "none"]


def group_advantages(rewards: torch.Tensor, scale: ScaleRewards = "group", epsilon: float = 1e-4) -> torch.Tensor:
    """How much better each completion is than the others of its group.

    Args:
        rewards: [P, G] float, NaN where no reward was given. For `scale="batch"` the caller passes the groups of all
            ranks, since the standard deviation is taken over everything in here.
        scale: what the centred rewards are divided by: the standard deviation of their group, of the whole batch, or
            nothing.
        epsilon: added to the standard deviation, so that nearly equal rewards do not explode.

    Returns:
        [P, G], dtype of the rewards; 0 where the reward is NaN and in groups whose rewards do not differ (among them
        those with fewer than two rewards).
    """
    given = ~rewards.isnan()
    group_mean = _mean(rewards, given)
    advantages = rewards - group_mean
    if scale == "group":
        advantages = advantages / (_std(rewards, given) + epsilon)
    elif scale == "batch":
        advantages = advantages / (_std(rewards.flatten(), given.flatten()) + epsilon)
    # Equal rewards leave rounding noise after centring, which 1 / epsilon would blow up: write an exact 0 instead.
    return torch.where(given & has_variance(rewards).unsqueeze(-1), advantages, 0.0)


def has_variance(rewards: torch.Tensor) -> torch.Tensor:
    """[P] bool: whether the rewards [P, G] of a group differ at all; a group that says False teaches nothing."""
    given = ~rewards.isnan()
    highest = rewards.masked_fill(~given, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(~given, torch.inf).amin(-1)
    return highest > lowest


def share_without_variance(rewards: torch.Tensor) -> float:
    """Share of the P groups whose rewards [P, G] do not differ, 0.0 to 1.0."""
    return 1.0 - has_variance(rewards).double().mean().item()


def _mean(values: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Mean over the last axis of the values that are given, axis kept; 0 where none is."""
    total = values.masked_fill(~given, 0.0).sum(-1, keepdim=True)
    return total / given.sum(-1, keepdim=True).clamp(min=1)


def _std(values: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation over the last axis of the values that are given, axis kept; 0 for fewer than two."""
    squares = (values - _mean(values, given)).masked_fill(~given, 0.0).square().sum(-1, keepdim=True)
    return (squares / (given.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt()
