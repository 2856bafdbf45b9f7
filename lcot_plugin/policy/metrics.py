"""Averages over micro-batches and ranks: every metric is kept as a sum and a count until it is logged.

In: `add(name, total, count)` from the rollout and the loss. Out: one number per name, over everything since the last
log, on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

MAXIMUM_SUFFIX, MINIMUM_SUFFIX = "/max", "/min"
"""A name with one of these endings is reduced by its largest or smallest value."""


class MetricSums:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | torch.Tensor, float]] = {}

    def add(self, name: str, total: float | torch.Tensor, count: float = 1.0) -> None:
        """`total` over `count` observations; a count of 0 adds nothing.

        A tensor (a scalar, without gradient) stays where it is until the metrics are logged: reading it at once would
        make the host wait for the device in every micro-step.
        """
        if count == 0:
            return
        if name not in self._sums:
            self._sums[name] = (total, float(count))
            return
        old_total, old_count = self._sums[name]
        if name.endswith(MAXIMUM_SUFFIX):
            self._sums[name] = (_larger(old_total, total), old_count)
        elif name.endswith(MINIMUM_SUFFIX):
            self._sums[name] = (_smaller(old_total, total), old_count)
        else:
            self._sums[name] = (old_total + total, old_count + float(count))

    def add_statistics(self, statistics: Mapping[str, torch.Tensor | int]) -> None:
        """What `policy_loss` returns: `x_sum` with `x_count` is logged as `x`, `x_max` as `x/max`, `x_min` likewise."""
        for name, value in statistics.items():
            if name.endswith("_max"):
                self.add(name.removesuffix("_max") + MAXIMUM_SUFFIX, value)
            elif name.endswith("_min"):
                self.add(name.removesuffix("_min") + MINIMUM_SUFFIX, value)
            elif name.endswith("_sum"):
                quantity = name.removesuffix("_sum")
                self.add(quantity, value, int(statistics[f"{quantity}_count"]))

    def state(self) -> dict[str, tuple[float | torch.Tensor, float]]:
        """What has been added since the last log, by name; not changed by later additions."""
        return dict(self._sums)

    def take_up(self, state: Mapping[str, tuple[float | torch.Tensor, float]]) -> None:
        """Goes on where the sums that `state` is of stood."""
        self._sums = {name: (total, float(count)) for name, (total, count) in state.items()}

    def pop_averages(self) -> dict[str, float]:
        """The averages over all ranks; starts anew. A collective: every rank must call it."""
        own = {name: (float(total), count) for name, (total, count) in self._sums.items()}
        gathered: list[dict[str, Any]] = gather_object([own])
        self._sums = {}
        merged = MetricSums()
        for sums in gathered:
            for name, (total, count) in sums.items():
                merged.add(name, total, count)
        return {name: float(total) / count for name, (total, count) in merged._sums.items()}


def _larger(left: float | torch.Tensor, right: float | torch.Tensor) -> float | torch.Tensor:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.maximum(left, right)
    return max(float(left), float(right))


def _smaller(left: float | torch.Tensor, right: float | torch.Tensor) -> float | torch.Tensor:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.minimum(left, right)
    return min(float(left), float(right))
