"""Places for the examples that levelling left over.

Comes in: packs that are nearly full, and some examples without one. Goes out: a pack for each, or the answer that there
is none. Consumed by the planner.
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.packing.orders import ascending, exact_sums
from lcot_plugin.types import ExampleSizes, PackLimits

MAX_LEFT = 200
"""One of so many examples may be left over by levelling, to be placed one by one; more would take long."""


def place_left(
    sizes: ExampleSizes,
    limits: PackLimits,
    loads: np.ndarray,
    pack_of: np.ndarray,
    left: np.ndarray,
    window_of: np.ndarray,
    window_packs: np.ndarray,
) -> bool:
    """Finds packs for the examples `left` over and enters them in `pack_of`; False where one finds none.

    An example goes to the lightest pack with room, of its window or the next that has one. Where none has, it takes the
    place of the smallest example of its window that makes room enough, which is then the one that is left: each is
    smaller than the one before and fits more easily.
    """
    if len(left) > max(100, len(sizes) // MAX_LEFT):
        return False
    num_packs = int(window_packs.sum())
    placed = np.flatnonzero(pack_of >= 0)
    sums = [exact_sums(values[placed], pack_of[placed], num_packs) for values in (sizes.tokens, sizes.patches, loads)]
    ends = np.cumsum(window_packs)
    members: dict[int, np.ndarray] = {}

    def fits(tokens: np.ndarray, patches: np.ndarray) -> np.ndarray:
        return (tokens <= limits.max_tokens) & ((patches <= limits.max_patches) | (limits.max_patches == 0))

    def move(example: int, pack: int, sign: int) -> None:
        pack_of[example] = pack if sign > 0 else -1
        for total, values in zip(sums, (sizes.tokens, sizes.patches, loads), strict=True):
            total[pack] += sign * int(values[example])

    for example in left[ascending(limits.max_tokens - sizes.tokens[left])].tolist():
        while pack_of[example] < 0:
            for distance in range(len(window_packs)):
                window = (int(window_of[example]) + distance) % len(window_packs)
                part = slice(int(ends[window] - window_packs[window]), int(ends[window]))
                open_packs = fits(sums[0][part] + sizes.tokens[example], sums[1][part] + sizes.patches[example])
                if open_packs.any():
                    lightest = np.where(open_packs, sums[2][part], np.iinfo(np.int64).max).argmin()
                    move(example, part.start + int(lightest), 1)
                    break
            else:
                home = int(window_of[example])
                if home not in members:
                    members[home] = np.flatnonzero(window_of == home)
                others = members[home]
                others = others[(pack_of[others] >= 0) & (sizes.tokens[others] < sizes.tokens[example])]
                packs = pack_of[others]
                others = others[
                    fits(
                        sums[0][packs] - sizes.tokens[others] + sizes.tokens[example],
                        sums[1][packs] - sizes.patches[others] + sizes.patches[example],
                    )
                ]
                if len(others) == 0:
                    return False
                evicted = int(others[sizes.tokens[others].argmin()])
                pack = int(pack_of[evicted])
                move(evicted, pack, -1)
                move(example, pack, 1)
                example = evicted
    return True
