"""RLOO's advantage: the baseline of a completion is the mean reward of the others (arXiv 2402.14740).

A baseline that leaves the completion itself out keeps the policy gradient unbiased; nothing is divided by a standard
deviation. Example: rewards 1, 0, 0 give 1, -1/2, -1/2.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.advantages.table import AdvantageSettings, RewardTable, zero_where_equal


def rloo(table: RewardTable, settings: AdvantageSettings) -> torch.Tensor:
    """[P, G]: r - (sum of the group - r) / (k - 1), k the rewards given in the group; 0 where k < 2."""
    rewards = table.totals
    num_given = (~rewards.isnan()).sum(-1, keepdim=True)
    others = (rewards.nansum(-1, keepdim=True) - rewards) / (num_given - 1).clamp(min=1)
    return zero_where_equal(rewards - others, rewards)
