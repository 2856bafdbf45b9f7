"""GDPO: every reward is normalised by itself before they are added up (arXiv 2601.05242).

Normalised sums forget how many rewards made the difference: of two rewards, (1, 0) against (0, 0) and (1, 1) against
(0, 0) give the same advantages. Here the second pair gets twice the first's, and a reward of small spread is not
drowned by one of large spread.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.advantages.group import group_advantages
from lcot_plugin.policy.advantages.table import STD_EPSILON, RewardTable, batch_std


def gdpo(table: RewardTable) -> torch.Tensor:
    """[P, G]: s / standard deviation of s over the batch, with s = sum over rewards of weight x its group advantage.

    Exactly 0 where the total is NaN and in groups in which no single reward differs.
    """
    given = ~table.totals.isnan()
    parts = table.parts.masked_fill(~given.unsqueeze(-1), torch.nan)
    summed = sum(weight * group_advantages(part) for part, weight in zip(parts.unbind(-1), table.weights, strict=True))
    # The mean over the batch, which the paper takes off, is 0 already: each group's advantages add up to 0.
    spread = batch_std(torch.where(given, summed, torch.nan))
    return torch.where(given, summed / (spread + STD_EPSILON), 0.0)
