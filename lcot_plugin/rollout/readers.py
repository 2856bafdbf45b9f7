"""Who reads which block at one decoding step: from lists of blocks to the tensors that attention computes with.

Positions are counted along a row's path, its prompt and then its completion. Example, blocks of 4 tokens: a prompt of 6
tokens in blocks 0 and 1, two rows of 5 and 1 tokens in blocks 0, 2 and 1 of the other store:

    prompt's store        readers  0 1 | 0 1       starts  0 4        ends  6 6
    completions' store    readers  0 | 1 | 0       starts  6 6 10     ends  11 7 11
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

SPARSE = 0.5
"""Blocks are picked out, which copies them, where fewer than this share of the store's is read."""

NEVER = 1 << 60
"""A position that no token has."""


@dataclass(frozen=True)
class Holding:
    """The blocks of one sequence."""

    blocks: Sequence[int]
    rows: Sequence[int]
    """Those that read them."""
    start: int
    """Position of the first token."""
    end: int
    """Position after the last."""


@dataclass(frozen=True)
class Readers:
    """Blocks of a store and the rows that read them."""

    blocks: np.ndarray | None
    """[blocks] int64, which of the store's; None for its first ones as they lie."""
    rows: np.ndarray
    """[blocks, most readers] int64; num_rows stands for nobody."""
    starts: np.ndarray
    """[blocks] int64, position of the first token."""
    ends: np.ndarray
    """[blocks] int64, position after the last token; 0 where the block is free."""

    def within(self, queries: np.ndarray, window: int) -> Readers:
        """Without the blocks that no row sees through its window. queries: [num_rows + 1] positions."""
        nobody = len(queries) - 1
        before = np.where(self.rows < nobody, queries[self.rows] - window, NEVER).min(-1)
        seen = self.ends > before + 1
        if seen.sum() > SPARSE * len(seen):
            return self
        blocks = np.arange(len(seen)) if self.blocks is None else self.blocks
        return Readers(blocks[seen], self.rows[seen], self.starts[seen], self.ends[seen])


def find_readers(holdings: Sequence[Holding], num_rows: int, block_size: int) -> Readers:
    """`holdings` have distinct blocks; there is at least one block."""
    blocks = np.concatenate([np.asarray(held.blocks, dtype=np.int64) for held in holdings])
    counts = np.array([len(held.blocks) for held in holdings])
    which = np.repeat(np.arange(len(holdings)), counts)
    ordinals = np.arange(len(blocks)) - np.repeat(counts.cumsum() - counts, counts)
    rows = np.full((len(holdings), max(len(held.rows) for held in holdings)), num_rows, dtype=np.int64)
    for index, held in enumerate(holdings):
        rows[index, : len(held.rows)] = held.rows
    starts = np.array([held.start for held in holdings])[which] + ordinals * block_size
    ends = np.minimum(np.array([held.end for held in holdings])[which], starts + block_size)
    span = int(blocks.max()) + 1
    if len(blocks) < SPARSE * span:
        return Readers(blocks, rows[which], starts, ends)
    all_rows = np.full((span, rows.shape[1]), num_rows, dtype=np.int64)
    all_starts, all_ends = np.zeros(span, dtype=np.int64), np.zeros(span, dtype=np.int64)
    all_rows[blocks], all_starts[blocks], all_ends[blocks] = rows[which], starts, ends
    return Readers(None, all_rows, all_starts, all_ends)


@dataclass(frozen=True)
class ReadPlan:
    """Readers as tensors, for all layers with the same window."""

    blocks: torch.Tensor | None
    """[blocks] int64; None for the store's first ones."""
    queries: torch.Tensor
    """[blocks, most readers] int64, the row whose query is taken; any one for nobody."""
    targets: torch.Tensor
    """[blocks * most readers] int64, the row that the result belongs to; num_rows for nobody."""
    bias: torch.Tensor
    """[blocks, most readers, block_size] float32: 0 where the row sees the token, minus infinity where not."""


def read_plan(
    readers: Readers, queries: np.ndarray, window: int | None, block_size: int, device: torch.device
) -> ReadPlan:
    """queries: [num_rows + 1] int64, the position of each row's query, and -1 for nobody."""
    if window is not None:
        readers = readers.within(queries, window)
    num_rows = len(queries) - 1
    rows = torch.from_numpy(readers.rows).to(device)
    starts, ends = (torch.from_numpy(values).to(device) for values in (readers.starts, readers.ends))
    at = torch.from_numpy(queries).to(device)[rows][:, :, None]
    keys = starts[:, None] + torch.arange(block_size, device=device)
    seen = (keys[:, None] <= at) & (keys < ends[:, None])[:, None]
    if window is not None:
        seen &= keys[:, None] > at - window
    return ReadPlan(
        None if readers.blocks is None else torch.from_numpy(readers.blocks).to(device),
        rows.clamp(max=num_rows - 1),
        rows.flatten(),
        torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf),
    )
