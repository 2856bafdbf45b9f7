"""The KL divergence from the reference policy, estimated token by token from log-probabilities of sampled tokens.

Out of `kl_terms` come [n] nats per token, for a term of the loss (`policy.objectives`); out of `completion_kl` come [S]
nats per completion, to be taken off its reward. The three estimates are Schulman's ("Approximating KL Divergence",
joschu.net/blog/kl-approx.html). With r the probability of a token under the reference over that under the policy, all
of whose tokens were drawn from the policy:

    estimate  formula       as a value               gradient where it is a term of the loss
    k1        -log r        unbiased, high variance  0 on average: it only adds noise
    k2        (log r)^2/2   biased, never negative   that of KL(policy || reference)
    k3        r - 1 - log r unbiased, never negative that of KL(reference || policy)

As a reward only k1 gives the gradient of KL(policy || reference): the reward stands beside the gradient of the whole
log-probability (Tang and Munos, arXiv 2506.09477). The gradients of the table hold on policy; importance ratios leave
this term alone, as in TRL.

Legend: n completion tokens, S completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

KlEstimator = Literal["k1", "k2", "k3"]


def kl_terms(logps: torch.Tensor, ref_logps: torch.Tensor, estimator: KlEstimator) -> torch.Tensor:
    """[n] nats: the estimate of KL(policy || reference) at each token.

    logps, ref_logps: [n] log-probabilities of the tokens; gradients go through `logps`.
    """
    log_ratio = ref_logps - logps
    match estimator:
        case "k1":
            return -log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return log_ratio.exp() - 1 - log_ratio


def completion_kl(
    logps: torch.Tensor, ref_logps: torch.Tensor, lengths: Sequence[int], estimator: KlEstimator
) -> torch.Tensor:
    """[S] nats: the divergence of each completion, the sum over its tokens; beta times this comes off its reward."""
    pieces = kl_terms(logps, ref_logps, estimator).split(list(lengths))
    return torch.stack([piece.sum() for piece in pieces]) if pieces else logps.new_zeros(0)
