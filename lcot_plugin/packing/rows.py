"""The order of packs: which ranks compute side by side, and which rows make an optimizer step.

Comes in: the costs of packs, window by window. Goes out: the packs in the order of training. Consumed by the planners.

A row is one pack per rank. Packs of like cost share a row, so that no rank waits long. Rows of dear packs hold long
examples, so an optimizer step takes one row of each stratum, such that the steps have the same mean mark (the planner
gives log lengths). With 2 ranks, 2 micro-steps per step and packs of cost 9 1 8 2 3 7 3 6: rows (1 2) (3 3) (6 7)
(8 9); one step gets, say, (1 2) and (8 9), the other (3 3) and (6 7).
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.packing.orders import ascending, ascending_rows, permutation, shuffled_rows

VISION_WEIGHTS = (0, 1, 2, 4)
"""Quarters of the vision cost that count in the first sorting: all four where ranks wait once per micro-step, none
where they wait after the language model."""
BLOCK_ROWS = (1, 2, 4, 8, 16)
"""Rows of like cost that are sorted by their vision cost once more before they are cut."""
MAX_TRIED_PACKS = 1 << 14
"""Packs on which the combinations of the two are tried; they decide for all windows, which are alike."""
MATCHING_ROUNDS = 3
"""How often each stratum of rows is matched anew to the others."""


def arrange(
    language: np.ndarray,
    vision: np.ndarray,
    num_packs: np.ndarray,
    *,
    marks: np.ndarray,
    counts: np.ndarray,
    num_ranks: int,
    micro_steps: int,
    generator: np.random.Generator,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """[all packs] int64: the packs in the order of training, row by row.

    Args:
        language, vision: [all packs] int64 costs in one unit.
        num_packs: [w] int64, packs of each window, a multiple of `num_ranks`; of `num_ranks * micro_steps` in all
            windows but the last.
        marks: [all packs] int64, sum over a pack's examples of what should have the same mean in every step.
        counts: [all packs] int64, examples of each pack.
        places: [all packs] mean position of a pack's examples in the data set, which steps then follow; None: they are
            shuffled.
    """
    weight, block = _best_sorting(language, vision, num_packs, num_ranks)
    ordered = np.empty(len(language), dtype=np.int64)
    start = 0
    for size in num_packs.tolist():
        window = slice(start, start + size)
        packs = start + _sorted_packs(language[window], vision[window], weight, block * num_ranks)
        rows = shuffled_rows(packs.reshape(-1, num_ranks), generator)
        row_places = None if places is None else places[rows].mean(axis=1)
        num_examples, total = counts[window].sum(), marks[window].sum()
        excess = marks[rows].sum(axis=1) * num_examples - total * counts[rows].sum(axis=1)
        steps = _steps(excess, micro_steps, generator, row_places)
        ordered[window] = rows[steps].ravel()
        start += size
    return ordered


def _best_sorting(language: np.ndarray, vision: np.ndarray, num_packs: np.ndarray, num_ranks: int) -> tuple[int, int]:
    """The vision weight and the rows per block with the least waiting."""
    if num_ranks == 1:
        return 4, 1
    size = int(num_packs[0])
    count = min(len(num_packs), max(1, MAX_TRIED_PACKS // size))
    starts = np.cumsum(num_packs)[:count] - num_packs[:count]

    def waiting(weight: int, block: int) -> int:
        total = 0
        for start in starts.tolist():
            window = slice(start, start + size)
            order = _sorted_packs(language[window], vision[window], weight, block * num_ranks)
            text, sight = (costs[window][order].reshape(-1, num_ranks) for costs in (language, vision))
            # Time of a micro-step when ranks wait once, plus when they wait after each phase.
            total += int((text + sight).max(axis=1).sum() + text.max(axis=1).sum() + sight.max(axis=1).sum())
        return total

    return min(((weight, block) for weight in VISION_WEIGHTS for block in BLOCK_ROWS), key=lambda way: waiting(*way))


def _sorted_packs(language: np.ndarray, vision: np.ndarray, weight: int, block: int) -> np.ndarray:
    """[p] int64: packs by cost, and within each block of so many packs by vision cost."""
    order = ascending(4 * language + weight * vision)
    whole = len(order) // block * block
    blocks = order[:whole].reshape(-1, block)
    rest = order[whole:]
    return np.concatenate(
        [np.take_along_axis(blocks, ascending_rows(vision[blocks]), axis=1).ravel(), rest[ascending(vision[rest])]]
    )


def _steps(
    excess: np.ndarray, micro_steps: int, generator: np.random.Generator, places: np.ndarray | None
) -> np.ndarray:
    """[rows] int64: the rows in the order of training.

    Args:
        excess: [rows] int64, how much a row's sum of marks is above that of as many average examples.
        places: [rows], or None where steps are shuffled.
    """
    ranked = np.argsort(excess, kind="stable")
    short = _short_step(excess[ranked], len(ranked) % micro_steps)
    strata = np.delete(ranked, short).reshape(micro_steps, -1)
    short = ranked[short]
    if places is not None:
        strata = np.take_along_axis(strata, np.argsort(places[strata], axis=1, kind="stable"), axis=1)
        return np.concatenate([strata.T.ravel(), short])
    # One stratum after the other is matched anew to what the steps have without it, most to least.
    steps = shuffled_rows(strata, generator)
    for _ in range(MATCHING_ROUNDS):
        for number in range(micro_steps):
            others = excess[steps].sum(axis=0) - excess[steps[number]]
            steps[number, np.argsort(-others, kind="stable")] = strata[number]
    steps = shuffled_rows(steps.T[permutation(steps.shape[1], generator)], generator)
    return np.concatenate([steps.ravel(), short[permutation(len(short), generator)]])


def _short_step(excess: np.ndarray, num_short: int) -> np.ndarray:
    """[num_short] int64, places in the ascending `excess` [rows] of rows for a step with fewer micro-steps than the
    others: one of each stratum as well, such that together they have as little excess as possible."""
    chosen: list[int] = []
    total = 0
    for number in range(num_short):
        start, end = (part * len(excess) // num_short for part in (number, number + 1))
        # The middle of the stratum, unless it is the last: that one evens out the others.
        chosen.append(
            start + int(np.abs(total + excess[start:end]).argmin()) if number == num_short - 1 else (start + end) // 2
        )
        total += int(excess[chosen[-1]])
    return np.array(chosen, dtype=np.int64)
