"""The rewards of one rollout over all ranks, and the averages that estimators take of them.

A reward that was not given is NaN: it moves no mean and no standard deviation, and its completion's advantage is 0.
(TRL 0.24 turns a completion without any reward into a reward of 0; where all have rewards the two agree.)

Legend: P prompts, G completions per prompt, F reward functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

ScaleRewards = Literal["group", "batch", "none"]

STD_EPSILON = 1e-4
"""Added to standard deviations, as in TRL, so that nearly equal rewards do not explode."""


@dataclass(frozen=True)
class RewardTable:
    """What advantages are computed from. The batch of "normalised over the batch" is everything in here."""

    totals: torch.Tensor
    """[P, G] float, weighted sum of the rewards; NaN where the completion has none or is not to be trained on."""
    parts: torch.Tensor
    """[P, G, F] float, unweighted; NaN where the function abstained."""
    weights: torch.Tensor
    """[F] float, weight of each function."""


@dataclass(frozen=True)
class AdvantageSettings:
    """The YAML keys that estimators read, without their `grpo_`."""

    scale_rewards: ScaleRewards = "group"


def has_variance(rewards: torch.Tensor) -> torch.Tensor:
    """[P] bool: whether the rewards [P, G] of a group differ at all; a group that says False teaches GRPO nothing."""
    given = ~rewards.isnan()
    highest = rewards.masked_fill(~given, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(~given, torch.inf).amin(-1)
    return highest > lowest


def given_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the last axis of the values that are not NaN, axis kept; 0 where none is."""
    given = ~values.isnan()
    return values.nansum(-1, keepdim=True) / given.sum(-1, keepdim=True).clamp(min=1)


def given_std(values: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation over the last axis of what is not NaN, axis kept; 0 of fewer than two values."""
    given = ~values.isnan()
    squares = (values - given_mean(values)).square().nansum(-1, keepdim=True)
    return (squares / (given.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt()


def batch_std(values: torch.Tensor) -> torch.Tensor:
    """Scalar: unbiased standard deviation over everything that is not NaN."""
    return given_std(values.flatten())[0]


def zero_where_equal(advantages: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """The advantages [P, G], exactly 0 where the reward is NaN and in groups whose rewards [P, G] do not differ.

    Equal rewards leave rounding noise after centring, which 1 / epsilon would blow up.
    """
    return torch.where(~rewards.isnan() & has_variance(rewards).unsqueeze(-1), advantages, 0.0)
