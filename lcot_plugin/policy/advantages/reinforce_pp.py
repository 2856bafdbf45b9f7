"""REINFORCE++'s advantages: rewards normalised over the whole batch (arXiv 2501.03262).

`reinforce_pp` has no baseline of the prompt: a group of wrong answers alone is pushed down, one of right answers alone
up, so its groups need no variance. `reinforce_pp_baseline` takes the group's mean off first, and its standard deviation
is that of what remains; prompts of all difficulties are then scaled alike. The paper normalises over tokens, each with
its completion's value; here every completion counts once, whatever its length.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.advantages.table import (
    STD_EPSILON,
    AdvantageSettings,
    RewardTable,
    batch_std,
    given_mean,
    has_variance,
    zero_where_equal,
)


def reinforce_pp(table: RewardTable, settings: AdvantageSettings) -> torch.Tensor:
    """[P, G]: (r - mean of the batch) / standard deviation of the batch; 0 where all rewards of the batch are equal."""
    rewards = table.totals
    advantages = (rewards - given_mean(rewards.flatten())) / (batch_std(rewards) + STD_EPSILON)
    # As in `zero_where_equal`, with the batch for a group.
    return torch.where(~rewards.isnan() & has_variance(rewards.flatten()), advantages, 0.0)


def reinforce_pp_baseline(table: RewardTable, settings: AdvantageSettings) -> torch.Tensor:
    """[P, G]: c / standard deviation of c over the batch, with c = r - mean of the group."""
    centred = table.totals - given_mean(table.totals)
    return zero_where_equal(centred / (batch_std(centred) + STD_EPSILON), table.totals)
