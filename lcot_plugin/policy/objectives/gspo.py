"""GSPO: the clipped surrogate with one importance ratio per completion (arXiv 2507.18071).

The ratio is the geometric mean over the tokens, so that completions of all lengths move in the same range; that range
is far narrower than a token's: the paper clips at epsilon 3e-4 and epsilon_high 4e-4.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.ratio import SurrogateSettings
from lcot_plugin.policy.objectives.terms import PolicyTerms


def gspo(terms: PolicyTerms, settings: SurrogateSettings) -> torch.Tensor:
    """[n] -min(s A, clip(s, 1 - epsilon, 1 + epsilon_high) A), s = exp(mean over tokens of log r).

    Every token of a completion has its completion's value; their weights share its gradient among them.
    """
    ratio = terms.per_token(terms.sequence_means(terms.logps - terms.old)).exp()
    clipped = ratio.clamp(*settings.clip_range)
    return -torch.min(ratio * terms.advantages, clipped * terms.advantages)
