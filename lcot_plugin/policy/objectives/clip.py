"""The clipped surrogate of PPO (arXiv 1707.06347), which GRPO (arXiv 2402.03300) uses without a critic.

"Clip-higher" (DAPO, arXiv 2503.14476) is an epsilon_high above epsilon: rare tokens may gain more before they are
clipped. delta bounds the ratio where the advantage is negative, which one-sided clipping leaves unbounded (INTELLECT-2,
arXiv 2505.07291).

With one ratio per completion, the geometric mean over its tokens, it is GSPO (arXiv 2507.18071): completions of all
lengths move in the same range, which is far narrower than a token's; the paper clips at epsilon 3e-4 and epsilon_high
4e-4. Every token then has its completion's value, and their weights share its gradient among them.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.ratio import SurrogateSettings, importance_ratio
from lcot_plugin.policy.objectives.terms import PolicyTerms


def clip(terms: PolicyTerms, settings: SurrogateSettings) -> torch.Tensor:
    """[n] -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), the first r bounded by delta."""
    ratio = importance_ratio(terms, settings.importance_sampling_level)
    clipped = ratio.clamp(*settings.clip_range)
    if settings.delta is not None:
        ratio = ratio.clamp(max=settings.delta)
    return -torch.min(ratio * terms.advantages, clipped * terms.advantages)


def clipped_tokens(
    ratio: torch.Tensor, advantages: torch.Tensor, settings: SurrogateSettings
) -> dict[str, torch.Tensor]:
    """[n] bool by name: the tokens without gradient, since their ratio is out of range on the side that A pushes to."""
    low, high = settings.clip_range
    clip_low = (ratio < low) & (advantages < 0)
    clip_high = (ratio > high) & (advantages > 0)
    return {"clip_low": clip_low, "clip_high": clip_high, "clip_region": clip_low | clip_high}
