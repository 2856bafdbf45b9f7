"""What a run says of its packs: tokens per second, fill, predicted waiting, patches.

In: one `PackCount` per micro-step and the duration of every optimizer step. Out: a few numbers over all processes,
since the last log and over the whole run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.types import PackedBatch


class PackCount(NamedTuple):
    """One pack, computed."""

    tokens: int
    squares: int
    """Sum of the squared lengths of its segments: what attention costs."""
    patches: int
    examples: int
    labels: int
    """Tokens that were trained on."""

    @classmethod
    def of(cls, batch: PackedBatch) -> PackCount:
        lengths = batch.segments.lengths
        squares = sum(length * length for length in lengths)
        labels = len(batch.target_ids) if batch.num_examples else 0  # an idle pack's weigh nothing
        return cls(sum(lengths), squares, batch.num_patches, batch.num_examples, labels)


@dataclass
class Totals:
    """Sums over all processes; `summary` divides them."""

    seconds: float = 0.0
    """Of the optimizer steps, waiting for data included, evaluations and checkpoints not."""
    steps: int = 0
    packs: int = 0
    tokens: int = 0
    labels: int = 0
    examples: int = 0
    patches: int = 0
    most_patches: int = 0
    cost: float = 0.0
    cost_if_all_waited: float = 0.0
    """Processes times the dearest pack of every micro-step."""

    def __add__(self, other: Totals) -> Totals:
        sums = {name: getattr(self, name) + getattr(other, name) for name in vars(self)}
        return Totals(**{**sums, "most_patches": max(self.most_patches, other.most_patches)})

    def summary(self, max_tokens: int) -> dict[str, float]:
        """Shares of 1, tokens per second and per optimizer step, over all processes."""
        if not self.steps or not self.seconds:
            return {}
        return {
            "pack/tokens_per_second": round(self.tokens / self.seconds, 1),
            "pack/tokens_per_step": round(self.tokens / self.steps, 1),
            "pack/labels_per_step": round(self.labels / self.steps, 1),
            "pack/examples_per_step": round(self.examples / self.steps, 2),
            "pack/fill": round(self.tokens / (self.packs * max_tokens), 4),
            "pack/predicted_bubble": round(1 - self.cost / self.cost_if_all_waited, 4),
            "pack/patches": round(self.patches / self.packs, 1),
            "pack/patches/max": self.most_patches,
        }


def totals_of(counts: Sequence[Sequence[PackCount]], seconds: Sequence[float], steps: int, cost: CostModel) -> Totals:
    """counts: per process, its packs in the order of the micro-steps; seconds: per process, the same steps."""
    table = np.array(counts, dtype=np.int64)  # [ranks, micro-steps, fields]
    costs = cost.fixed + cost.token * table[..., 0] + cost.square * table[..., 1] + cost.patch * table[..., 2]
    costs /= costs.mean()  # a fitted model has another unit than that of the epochs before it
    tokens, _, patches, examples, labels = table.sum((0, 1)).tolist()
    return Totals(
        seconds=max(seconds),
        steps=steps,
        packs=table.shape[0] * table.shape[1],
        tokens=tokens,
        labels=labels,
        examples=examples,
        patches=patches,
        most_patches=int(table[..., 2].max()),
        cost=float(costs.sum()),
        cost_if_all_waited=float(costs.max(0).sum() * len(table)),
    )


@dataclass
class Throughput:
    """Collects on one process; `pop` and `of_run` are collectives."""

    max_tokens: int
    counts: list[PackCount] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    run: Totals = field(default_factory=Totals)

    def add_step(self, seconds: float) -> None:
        """An optimizer step has ended."""
        self.seconds += seconds
        self.steps += 1

    def pop(self, cost: CostModel) -> dict[str, float]:
        """The summary since the last call; every process must call it."""
        gathered: list[tuple[list[PackCount], float]] = gather_object([(self.counts, self.seconds)])
        if not self.steps:
            return {}
        totals = totals_of([counts for counts, _ in gathered], [s for _, s in gathered], self.steps, cost)
        self.run += totals
        self.counts, self.seconds, self.steps = [], 0.0, 0
        return totals.summary(self.max_tokens)

    def of_run(self, cost: CostModel) -> dict[str, float]:
        """The summary of the whole run."""
        self.pop(cost)
        return self.run.summary(self.max_tokens)


NUM_WARM_UP = 4
"""Micro-steps that are not timed: memory is allocated and kernels are chosen in them."""
NUM_TIMED = 32
"""Micro-steps per process that a cost model is fitted to."""


@dataclass
class PackTimes:
    """How long the first packs took, for `pack_cost: auto`."""

    active: bool
    rows: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Tokens, squares, patches, seconds."""
    num_seen: int = 0

    @contextmanager
    def measured(self, batch: PackedBatch, device: torch.device) -> Iterator[None]:
        """Times what is inside; a device is waited for only while packs are being timed."""
        self.num_seen += 1
        if not self.active or self.num_seen <= NUM_WARM_UP:
            yield
            return
        wait_for(device)
        started = time.perf_counter()
        yield
        wait_for(device)
        count = PackCount.of(batch)
        self.rows.append((count.tokens, count.squares, count.patches, time.perf_counter() - started))

    @property
    def complete(self) -> bool:
        return self.active and len(self.rows) >= NUM_TIMED

    def take(self) -> list[tuple[int, int, int, float]]:
        """The measurements; ends the timing."""
        self.active, rows = False, self.rows
        self.rows = []
        return rows


def wait_for(device: Any) -> None:
    """Until a CUDA device has done what it was told; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
