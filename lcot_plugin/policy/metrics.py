"""Averages over micro-batches and ranks: every metric is kept as a sum and a count until it is logged.

In: `add(name, total, count)` from the rollout and the loss. Out: one number per name, over everything since the last
log, on every rank.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object

MAXIMUM_SUFFIX = "/max"
"""A name with this ending is reduced by its largest value."""


class MetricSums:
    """Sums and counts by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """`total` over `count` observations; a count of 0 adds nothing."""
        if count == 0:
            return
        old_total, old_count = self._sums.get(name, (float("-inf") if name.endswith(MAXIMUM_SUFFIX) else 0.0, 0.0))
        if name.endswith(MAXIMUM_SUFFIX):
            self._sums[name] = (max(old_total, float(total)), 1.0)
        else:
            self._sums[name] = (old_total + float(total), old_count + float(count))

    def pop_averages(self) -> dict[str, float]:
        """The averages over all ranks; starts anew. A collective: every rank must call it."""
        gathered: list[dict[str, Any]] = gather_object([self._sums])
        self._sums = {}
        merged = MetricSums()
        for sums in gathered:
            for name, (total, count) in sums.items():
                merged.add(name, total, count)
        return {name: total / count for name, (total, count) in merged._sums.items()}
