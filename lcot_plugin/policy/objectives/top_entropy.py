"""Training on the tokens of highest entropy only, where reasoning forks (arXiv 2506.01939)."""

from __future__ import annotations

import torch


def entropy_threshold(entropies: torch.Tensor, quantile: float) -> torch.Tensor:
    """The entropy that a share `quantile` of the tokens' entropies [m] reaches; inf for m = 0."""
    if entropies.numel() == 0:
        return entropies.new_tensor(torch.inf)
    return torch.quantile(entropies, 1.0 - quantile)
