"""Importance weights for the gap between the sampler's and the trainer's probabilities of the same tokens.

In: log-probabilities by the trainer's own pass and by the sampler that drew the tokens. Out: a weight per token, by
which `policy.objectives` multiplies the policy term. The two differ where the sampler computes in other kernels or
another precision; what top-p or a penalty did to the draw is no such gap. Truncated importance sampling:
Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
(fengyao.notion.site/off-policy-rl); masking: IcePop (arXiv 2510.18855), which masks small weights too.

Example, one completion of two tokens that the trainer thinks 3 and 1.5 times as likely as the sampler did, cap 2:

    token_truncate     2.0  1.5        sequence_truncate  2.0  2.0    (3 x 1.5 = 4.5, bounded)
    token_mask         0.0  1.5        sequence_mask      0.0  0.0

Legend: n completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

LARGEST_LOG_WEIGHT = 20.0
"""The product over a long completion can overflow. e^20 is above every sensible cap, and its mean stays a number."""


@dataclass(frozen=True)
class SamplerCorrection:
    """What the weights do to the policy term, and how they came about."""

    weights: torch.Tensor
    """[n], without gradient."""
    uncapped: torch.Tensor
    """[n], or [S] where the weight is the sequence's: before the cap."""
    over_cap: torch.Tensor
    """Bool, like `uncapped`: those that were bounded or masked."""


@torch.no_grad()
def sampler_correction(
    logps: torch.Tensor, sampler_logps: torch.Tensor, lengths: Sequence[int], mode: CorrectionMode, cap: float
) -> SamplerCorrection:
    """The weight of each token in the policy term.

    Args:
        logps: [n] nats, of the policy that wrote the completions, by the trainer's pass.
        sampler_logps: [n] nats, of the same policy, by the sampler's pass.
        lengths: tokens of each completion, adding up to n.
        mode: per token or per sequence, bounded or masked.
        cap: the largest weight.
    """
    level, _, treatment = mode.partition("_")
    log_weights = logps - sampler_logps
    if level == "sequence":
        sums = [piece.sum() for piece in log_weights.split(list(lengths))]
        log_weights = torch.stack(sums) if sums else log_weights[:0]
    uncapped = log_weights.clamp(max=LARGEST_LOG_WEIGHT).exp()
    over_cap = uncapped > cap
    weights = uncapped.clamp(max=cap) if treatment == "truncate" else uncapped.masked_fill(over_cap, 0.0)
    if level == "sequence":
        weights = torch.cat([w.expand(length) for w, length in zip(weights, lengths, strict=True)] or [weights])
    return SamplerCorrection(weights, uncapped, over_cap)
