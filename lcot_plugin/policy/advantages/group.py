"""GRPO's advantage: how much better a completion is than its group (arXiv 2402.03300).

With `scale_rewards: none` it is Dr. GRPO's (arXiv 2503.20783). Example, one prompt with four completions, the last one
without a reward:

    rewards     1.0   0.0   0.0   NaN     mean 1/3, unbiased standard deviation 0.577
    advantages  1.15 -0.58 -0.58  0.0
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.advantages.table import (
    STD_EPSILON,
    AdvantageSettings,
    RewardTable,
    ScaleRewards,
    batch_std,
    given_mean,
    given_std,
    zero_where_equal,
)


def group(table: RewardTable, settings: AdvantageSettings) -> torch.Tensor:
    """[P, G] advantages of the weighted sums, scaled as `scale_rewards` says."""
    return group_advantages(table.totals, settings.scale_rewards)


def group_advantages(rewards: torch.Tensor, scale: ScaleRewards = "group") -> torch.Tensor:
    """[P, G]: (r - mean of the group) / (standard deviation of the group or of the batch, or 1).

    rewards: [P, G]. Exactly 0 where the reward is NaN and in groups whose rewards do not differ, among them those with
    fewer than two rewards.
    """
    advantages = rewards - given_mean(rewards)
    if scale == "group":
        advantages = advantages / (given_std(rewards) + STD_EPSILON)
    elif scale == "batch":
        advantages = advantages / (batch_std(rewards) + STD_EPSILON)
    return zero_where_equal(advantages, rewards)
