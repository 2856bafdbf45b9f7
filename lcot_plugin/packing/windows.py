"""Windows: parts of the data set that are packed on their own, each whole optimizer steps.

Comes in: the number of packs of an epoch. Goes out: packs per window, and which examples each window gets. Consumed by
the planner. Levelling within some thousands of examples is as good as within all of them, takes a fixed time per
example, and gives other neighbours in every epoch.
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.packing.orders import ascending_fractions
from lcot_plugin.types import ExampleSizes, PackLimits

WINDOW_EXAMPLES = 4096
WINDOW_STEPS = 64
"""A window has at least so many examples and optimizer steps."""


def packs_per_window(num_examples: int, num_packs: int, num_ranks: int, micro_steps: int) -> np.ndarray:
    """[w] int64, packs of each window: whole optimizer steps, but for the last of the last window."""
    num_rows = num_packs // num_ranks
    num_steps = num_rows // micro_steps
    num_windows = max(1, min(num_examples // WINDOW_EXAMPLES, num_steps // WINDOW_STEPS))
    steps = np.diff(np.arange(num_windows + 1) * num_steps // num_windows)
    rows = steps * micro_steps
    rows[-1] += num_rows % micro_steps
    return rows * num_ranks


def deal(descending: np.ndarray, window_packs: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """[n] window of each example and [w] examples per window: a random sample for each, every length in proportion.

    Window k draws one position in each of its counts[k] equal parts of the descending order; with two windows of equal
    size, of any two neighbours about one goes to each.
    """
    ends = np.cumsum(window_packs) * len(descending) // window_packs.sum()
    counts = np.diff(ends, prepend=0)
    window = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(descending)) - (ends - counts)[window]
    positions = (number + generator.random(len(descending))) / counts[window]
    window_of = np.empty(len(descending), dtype=np.int64)
    window_of[descending] = window[ascending_fractions(positions)]
    return window_of, counts


def cut(sizes: ExampleSizes, limits: PackLimits, window_packs: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same for neighbours in the data set, cut so that what is scarcer is in proportion to the windows' packs."""
    scarce = sizes.tokens
    if limits.max_patches and sizes.patches.sum() / limits.max_patches > sizes.tokens.sum() / limits.max_tokens:
        scarce = sizes.patches
    ends = np.cumsum(scarce)
    shares = np.cumsum(window_packs) * (int(ends[-1]) / int(window_packs.sum()))
    window_of = np.minimum(np.searchsorted(shares, ends - scarce / 2), len(window_packs) - 1)
    return window_of, np.bincount(window_of, minlength=len(window_packs))
