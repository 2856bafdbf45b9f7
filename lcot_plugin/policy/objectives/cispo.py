"""CISPO: the importance weight is clipped, not the update (MiniMax-M1, arXiv 2506.13585).

Clipped surrogates drop the gradient of rare tokens that gained much in an earlier update, such as "However" and
"Wait". Here every token keeps its gradient, and only how strongly it counts is bounded, from above alone, as the
paper's own runs do.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.ratio import SurrogateSettings, importance_ratio
from lcot_plugin.policy.objectives.terms import PolicyTerms


def cispo(terms: PolicyTerms, settings: SurrogateSettings) -> torch.Tensor:
    """[n] -stop_gradient(min(r, 1 + epsilon_high)) A log p."""
    _, high = settings.clip_range
    weight = importance_ratio(terms, "token").clamp(max=high).detach()
    return -weight * terms.advantages * terms.logps


def bounded_tokens(
    ratio: torch.Tensor, advantages: torch.Tensor, settings: SurrogateSettings
) -> dict[str, torch.Tensor]:
    """[n] bool by name: the tokens whose weight is bounded, whatever the sign of their advantage."""
    return {"clip_high": ratio > settings.clip_range[1]}
