"""The entropy bonus of A3C (arXiv 1602.01783): a policy that stays uncertain goes on exploring."""

from __future__ import annotations

import torch


def entropy_bonus(entropies: torch.Tensor, coefficient: float) -> torch.Tensor:
    """[n] what comes off the loss of each token: coefficient x entropy, entropies [n] in nats with gradient."""
    return coefficient * entropies
