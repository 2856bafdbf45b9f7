"""Examples to a given number of packs, so that all packs carry about the same load and none is over its caps.

Comes in: sizes, a load per example, examples grouped in windows, the number of packs of each window. Goes out: the pack
of each example. Consumed by the planner (plan.py), the streaming planner and the fill mode where patches are capped.

The rule is the one of longest-processing-time scheduling, examples by descending load to the pack that carries least,
taken a chunk at a time: the C heaviest examples left go to the C lightest packs with room. Their loads are nearly
equal, so which of them goes where hardly matters to the load; it is decided by patches, most patches to the pack with
fewest. That levels the vision tower's work next to the language model's, and keeps clear of the cap on patches. Windows
are independent of each other and share every NumPy operation.

Loads are integers: the plan does not depend on how a platform rounds a sum.
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.orders import ascending_rows
from lcot_plugin.types import ExampleSizes, PackLimits

FULL = np.iinfo(np.int64).max
"""The key of a pack without room."""
MANY_PATCHES = 1 << 40
"""More patches than a pack can have."""
MAX_GROUPED_PACKS = 1 << 17
"""Packs of the windows that are placed side by side: their state should fit the processor's cache."""
CHUNKS = ((0.8, 4), (0.95, 16), (1.0, 128))
"""(up to this share of the examples, packs / chunk size): light examples come last and mend what the heavy ones left,
so they are placed in finer steps."""

AGAIN = (256, FULL)
"""Packs / chunk size when examples that found no room are tried again, in the end one by one."""
MAX_SINGLE = 300
"""So many examples of a window at most are tried one by one."""


def integer_costs(sizes: ExampleSizes, cost: CostModel) -> tuple[np.ndarray, np.ndarray]:
    """[n] int64 language and vision costs in units of which the dearest example has 2**20; sums of them are exact."""
    unit = float(cost.costs(sizes.tokens, sizes.patches).max()) / 2.0**20
    language, vision = cost.language(sizes.tokens) / unit, cost.vision(sizes.patches) / unit
    return np.rint(language).astype(np.int64), np.rint(vision).astype(np.int64)


def mixed_loads(sizes: ExampleSizes, language: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """[n] int64: what is levelled, mostly tokens.

    Rows are made of packs of like cost afterwards, so costs may differ between packs. If they were levelled, a pack
    with a long example would get the very short ones only, which come last, and the steps that hold such rows would see
    another mix of lengths than the others.
    """
    per_token = int(language.sum()) / int(sizes.tokens.sum())
    even = np.rint(per_token * sizes.tokens).astype(np.int64)
    return np.maximum((9 * even + language + 3 * vision) // 10, 1)


def level(
    tokens: np.ndarray,
    patches: np.ndarray,
    loads: np.ndarray,
    *,
    order: np.ndarray,
    counts: np.ndarray,
    num_packs: np.ndarray,
    limits: PackLimits,
    fitted: float = 0.0,
) -> np.ndarray:
    """The pack of each example, [n] int64; -1 where its window has no room for it.

    Args:
        tokens, patches: [n] int64 sizes.
        loads: [n] int64 from `mixed_loads`.
        order: [n] int64, examples by window, within a window by descending load.
        counts: [w] int64, examples of each window.
        num_packs: [w] int64, packs of each window. Packs are numbered through: window 1 begins at `num_packs[0]`.
        limits: caps that no pack exceeds.
        fitted: share of the examples, the lightest, that go to the fullest packs with room instead of the lightest
            packs: less level, but more find a place.
    """
    pack_of = np.full(len(tokens), -1, dtype=np.int64)
    first_example = np.cumsum(counts) - counts
    first_pack = np.cumsum(num_packs) - num_packs
    group = max(1, MAX_GROUPED_PACKS // int(num_packs.max()))
    for start in range(0, len(counts), group):
        part = slice(start, start + group)
        columns = np.arange(counts[part].max())
        present = columns < counts[part, None]
        examples = np.where(present, order[np.where(present, first_example[part, None] + columns, 0)], -1)
        windows = _Windows(num_packs[part], limits)
        sizes = (tokens, patches, loads)
        packs = windows.place(examples, *sizes, CHUNKS, fitted)
        for fineness in AGAIN:
            left = (examples >= 0) & (packs < 0)
            num_left = left.sum(axis=1).max()
            if num_left == 0 or (num_left > MAX_SINGLE and fineness == FULL):
                break
            # What found no room among a chunk's packs is tried once more.
            rows, columns = np.nonzero(left)
            places = np.cumsum(left, axis=1)[rows, columns] - 1
            again = np.full((len(examples), num_left), -1, dtype=np.int64)
            again[rows, places] = examples[rows, columns]
            packs[rows, columns] = windows.place(again, *sizes, ((1.0, fineness),), 1.0)[rows, places]
        placed = packs >= 0
        pack_of[examples[placed]] = (packs + first_pack[part, None])[placed]
    return pack_of


class _Windows:
    """What the packs of some windows hold so far; arrays [windows, packs]."""

    def __init__(self, num_packs: np.ndarray, limits: PackLimits) -> None:
        shape = (len(num_packs), int(num_packs.max()))
        self.bits = max(1, int(shape[1] - 1).bit_length())
        # A pack's load and its number in one integer, so that sorting is the same on every platform.
        self.keys = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape).copy()
        self.room = np.where(np.arange(shape[1]) < num_packs[:, None], limits.max_tokens, -1)
        self.patches = np.zeros(shape, dtype=np.int64)
        self.max_patches = limits.max_patches

    def place(
        self,
        examples: np.ndarray,
        tokens: np.ndarray,
        patches: np.ndarray,
        loads: np.ndarray,
        chunks: tuple[tuple[float, int], ...],
        fitted: float,
    ) -> np.ndarray:
        """The pack within its window of each of `examples` [windows, t] (-1: none), or -1."""
        num_windows, num_columns = examples.shape
        num_packs = self.keys.shape[1]
        present = examples >= 0
        tokens, patches, loads = (np.where(present, sizes[examples], 0) for sizes in (tokens, patches, loads))
        loads <<= self.bits
        most = int(patches.max(initial=0))
        matched = most > 0
        packs = np.full(examples.shape, -1, dtype=np.int64)
        window = np.arange(num_windows)[:, None]
        start = 0
        while start < num_columns:
            by_fit = start >= (1 - fitted) * num_columns
            fineness = next(fineness for share, fineness in chunks if start < share * num_columns)
            chunk = slice(start, start + max(1, num_packs // (chunks[-1][1] if by_fit else fineness)))
            size = len(range(num_columns)[chunk])
            start += size
            # Room for the longest of the chunk: any of its examples may go to any of these packs.
            needed = tokens[:, chunk].max(axis=1, keepdims=True)
            keys = (self.room << self.bits) | np.arange(num_packs) if by_fit else self.keys
            candidates = np.where(self.room >= needed, keys, FULL)
            if self.max_patches:
                fewest = np.where(present[:, chunk], patches[:, chunk], FULL).min(axis=1, keepdims=True)
                candidates[self.patches + fewest > self.max_patches] = FULL
            if size > 1:
                candidates = np.partition(candidates, size - 1, axis=1)[:, :size]
                candidates.sort(axis=1)
            else:
                candidates = candidates.min(axis=1, keepdims=True)
            # An example whose turn finds no pack is left; the lightest packs go to the heaviest examples.
            found = (candidates < FULL) & present[:, chunk]
            pack = np.where(found, candidates & ((1 << self.bits) - 1), 0)
            column = np.broadcast_to(np.arange(start - size, start), pack.shape)
            if matched and size > 1:
                column = start - size + ascending_rows(np.where(found, most - patches[:, chunk], most + 1))
                by_room = ascending_rows(np.where(found, self.patches[window, pack], MANY_PATCHES))
                pack = np.take_along_axis(pack, by_room, axis=1)
                found = np.take_along_axis(found, by_room, axis=1)
            if self.max_patches:
                found &= self.patches[window, pack] + patches[window, column] <= self.max_patches
            rows, places = np.nonzero(found)
            pack, column = pack[rows, places], column[rows, places]
            self.room[rows, pack] -= tokens[rows, column]
            self.patches[rows, pack] += patches[rows, column]
            self.keys[rows, pack] += loads[rows, column]
            packs[rows, column] = pack
        return packs
