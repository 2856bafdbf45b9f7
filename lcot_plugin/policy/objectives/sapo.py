"""SAPO: a soft gate instead of a clip (arXiv 2511.20347).

The gate's slope is 1 on policy and falls smoothly as the ratio leaves 1, faster where the advantage is negative: such
tokens raise the logits of all others, which is what makes updates unstable.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.ratio import SurrogateSettings, importance_ratio
from lcot_plugin.policy.objectives.terms import PolicyTerms


def sapo(terms: PolicyTerms, settings: SurrogateSettings) -> torch.Tensor:
    """[n] -sigmoid(tau (r - 1)) (4 / tau) A, with tau by the sign of A."""
    ratio = importance_ratio(terms, "token")
    positive, negative = settings.sapo_temperature_pos, settings.sapo_temperature_neg
    tau = torch.where(terms.advantages > 0, positive, negative)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return -gate * terms.advantages
