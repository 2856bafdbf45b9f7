"""The plan of an epoch: which examples every rank computes at every micro-step.

Comes in: the sizes of all examples, the caps of a pack, a cost model. Goes out: a `PackPlan`. Consumed by the sampler
and by the statistics. Pure: the same arguments give the same plan in every process, on every platform.

How `levelled` plans: the examples are dealt to windows of some thousands, each a random sample of the data set in which
every range of lengths has its share; in each window they are levelled over a fixed number of packs (levelled.py); packs
of like cost become rows of one pack per rank, and optimizer steps take rows from every range of costs (rows.py).

The number of packs follows from the sizes alone, never from seed, epoch or cost model, so that every epoch has the same
number of steps. It is such that a plan exists: where levelling should not meet it, best-fit decreasing does (fill.py).
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.errors import DataError
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.fill import fill_in_order, fill_packs
from lcot_plugin.packing.leftovers import place_left
from lcot_plugin.packing.levelled import integer_costs, level, mixed_loads
from lcot_plugin.packing.orders import ascending, exact_sums, generator_of, permutation
from lcot_plugin.packing.rows import arrange
from lcot_plugin.packing.windows import cut, deal, packs_per_window
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan

MODES = ("levelled", "fill")
SLACK = 0.01
"""Share of the tokens that levelled packs leave empty; without it the last examples would go where they fit and not
where they level."""
TRIED_SLACKS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
"""Shares of packs that are added until a trial finds a place for every example; beyond, packs are filled instead."""
FITTED_SHARES = (0.0, 0.2, 0.4)
"""Shares of the examples that are not levelled but fitted in, tried one after the other."""
TRIAL_EXAMPLES = 1 << 16
JITTER = 0.1
"""Loads are sorted after multiplying each by up to 1 + this, so that packs differ between epochs in small data sets."""
MAX_JITTERED_FILL = 20_000
"""Best-fit in a jittered order costs time per example; larger sets have enough examples of equal length to exchange."""
TRIAL_COST = CostModel(token=24576.0, square=1.0, patch=2183.0)
"""Of a model of 7 billion parameters with a vision tower of 675 million that trains; for the number of packs."""


def plan_epoch(
    sizes: ExampleSizes,
    limits: PackLimits,
    *,
    num_ranks: int,
    micro_steps: int,
    cost: CostModel,
    seed: int,
    epoch: int,
    mode: str = "levelled",
    shuffle: bool = True,
    num_packs: int | None = None,
) -> PackPlan:
    """The packs of one epoch; every example is in exactly one pack that is not idle.

    Args:
        sizes: of every example.
        limits: caps that no pack exceeds.
        num_ranks: data-parallel ranks.
        micro_steps: micro-steps (gradient accumulation steps) per optimizer step.
        cost: what is levelled between packs.
        seed, epoch: another plan for each; the number of packs stays.
        mode: `levelled`, or `fill` for the fewest packs, whose costs then differ more.
        shuffle: False keeps examples in the order of the data set on the scale of a window.
        num_packs: from `number_of_packs` with the same arguments, to save computing it every epoch.

    Raises:
        DataError: an example is larger than a cap, or there is none.
    """
    check_sizes(sizes, limits)
    if mode not in MODES:
        raise ValueError(f"Unknown mode of packing {mode!r}: choose one of {', '.join(MODES)}.")
    if num_packs is None:
        num_packs = number_of_packs(sizes, limits, num_ranks=num_ranks, mode=mode)
    generator = generator_of(seed, epoch)
    window_packs = packs_per_window(len(sizes), num_packs, num_ranks, micro_steps)
    language, vision = integer_costs(sizes, cost)
    pack_of = None
    if mode == "levelled":
        loads = mixed_loads(sizes, language, vision)
        pack_of = _levelled(sizes, limits, loads, window_packs, generator, shuffle)
    if pack_of is None:
        pack_of = _filled(sizes, limits, num_packs, generator, shuffle)
    return ordered_plan(
        sizes,
        pack_of,
        window_packs,
        (language, vision),
        num_ranks=num_ranks,
        micro_steps=micro_steps,
        generator=generator,
        shuffle=shuffle,
    )


def ordered_plan(
    sizes: ExampleSizes,
    pack_of: np.ndarray,
    window_packs: np.ndarray,
    costs: tuple[np.ndarray, np.ndarray],
    *,
    num_ranks: int,
    micro_steps: int,
    generator: np.random.Generator,
    shuffle: bool,
) -> PackPlan:
    """The plan in which example i is in pack `pack_of[i]`, or in none where that is -1; packs are put in order.

    Args:
        window_packs: [w] int64, packs of each window, numbered through.
        costs: [n] int64 language and vision costs from `integer_costs`.
    """
    num_packs = int(window_packs.sum())
    examples = np.flatnonzero(pack_of >= 0)
    pack_of = _spread(sizes.tokens[examples], pack_of[examples], num_packs)
    # Where there are fewer examples than packs, the cheapest example is repeated.
    idle = np.bincount(pack_of, minlength=num_packs) == 0
    examples = np.concatenate([examples, np.full(idle.sum(), int((costs[0] + costs[1]).argmin()))])
    pack_of = np.concatenate([pack_of, np.flatnonzero(idle)])
    counts = np.bincount(pack_of, minlength=num_packs)
    marks = np.rint(np.log2(sizes.tokens[examples]) * 1024).astype(np.int64)
    language, vision = (exact_sums(part[examples], pack_of, num_packs) for part in costs)
    order = arrange(
        language,
        vision,
        window_packs,
        marks=exact_sums(marks, pack_of, num_packs),
        counts=counts,
        num_ranks=num_ranks,
        micro_steps=micro_steps,
        generator=generator,
        places=None if shuffle else np.bincount(pack_of, weights=examples, minlength=num_packs) / counts,
    )
    position = np.empty(num_packs, dtype=np.int64)
    position[order] = np.arange(num_packs)
    return PackPlan(
        indices=examples[ascending(position[pack_of])],
        offsets=np.concatenate([[0], np.cumsum(counts[order])]),
        idle=idle[order],
        num_ranks=num_ranks,
        micro_steps=micro_steps,
    )


def number_of_packs(sizes: ExampleSizes, limits: PackLimits, *, num_ranks: int, mode: str = "levelled") -> int:
    """Packs of every epoch, idle ones included: a multiple of `num_ranks`, from the sizes alone.

    Raises:
        DataError: as `plan_epoch`.
    """
    check_sizes(sizes, limits)
    fewest = int(fill_packs(sizes.tokens, sizes.patches, limits, np.arange(len(sizes))).max()) + 1
    most = _multiple(len(sizes), num_ranks)
    if mode == "fill":
        return min(_multiple(fewest, num_ranks), most)
    wanted = max(fewest, int(np.ceil(sizes.tokens.sum() / limits.max_tokens / (1 - SLACK))))
    if limits.max_patches:
        wanted = max(wanted, int(np.ceil(sizes.patches.sum() / limits.max_patches / (1 - 2 * SLACK))))
    loads = mixed_loads(sizes, *integer_costs(sizes, TRIAL_COST))
    # Windows are alike: a few of them show how much slack they need.
    num_windows = len(packs_per_window(len(sizes), wanted, num_ranks, 1))
    num_tried = min(num_windows, max(1, TRIAL_EXAMPLES * num_windows // len(sizes)))
    size = len(sizes) * num_tried // num_windows
    sample = ascending(int(loads.max()) - loads)[(2 * np.arange(size) + 1) * len(sizes) // (2 * size)]
    sampled = ExampleSizes(sizes.tokens[sample], sizes.patches[sample], sizes.labels[sample])
    share = sampled.tokens.sum() / sizes.tokens.sum()
    for more in TRIED_SLACKS:
        num_packs = min(_multiple(int(np.ceil(wanted * (1 + more))), num_ranks), most)
        window_packs = np.diff(np.arange(num_tried + 1) * max(num_tried, int(num_packs * share)) // num_tried)
        if _levelled(sampled, limits, loads[sample], window_packs, generator_of(0), True) is not None:
            return num_packs
    return min(_multiple(wanted, num_ranks), most)


def check_sizes(sizes: ExampleSizes, limits: PackLimits) -> None:
    """DataError where an example can never be in a pack."""
    if len(sizes) == 0:
        raise DataError("There is no example to pack: the data set is empty, or every record was dropped.")
    wrong = (sizes.tokens > limits.max_tokens) | (sizes.tokens < 1)
    if limits.max_patches:
        wrong |= sizes.patches > limits.max_patches
    if wrong.any():
        first = int(wrong.argmax())
        check_size(first, int(sizes.tokens[first]), int(sizes.patches[first]), limits)


def check_size(index: int, tokens: int, patches: int, limits: PackLimits) -> None:
    """DataError where example number `index` can never be in a pack."""
    if tokens < 1:
        raise DataError(f"Example {index} has no tokens.")
    for size, cap, name, key in (
        (tokens, limits.max_tokens, "tokens", "pack_max_tokens"),
        (patches, limits.max_patches, "patches", "pack_max_patches"),
    ):
        if cap and size > cap:
            raise DataError(
                f"Example {index} has {size} {name}, more than a pack may hold ({key}: {cap}). Raise {key}, or have "
                "such examples dropped or truncated (overlong_policy)."
            )


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _levelled(
    sizes: ExampleSizes,
    limits: PackLimits,
    loads: np.ndarray,
    window_packs: np.ndarray,
    generator: np.random.Generator,
    shuffle: bool,
) -> np.ndarray | None:
    """The pack of each example, [n] int64; None where some example found no room."""
    # Several windows are another random sample in every epoch; the examples of a single one are always the same.
    jitter = JITTER if shuffle and len(window_packs) == 1 else 0.0
    ties = permutation(len(sizes), generator)
    keys = loads[ties] * (1 + jitter * generator.random(len(sizes)))
    descending = ties[ascending((2.0**21 - keys).astype(np.int64))]
    if shuffle:
        window_of, counts = deal(descending, window_packs, generator)
    else:
        window_of, counts = cut(sizes, limits, window_packs)
    order = descending[np.argsort(window_of[descending].astype(np.uint16), kind="stable")]
    for fitted in FITTED_SHARES:
        pack_of = level(
            sizes.tokens,
            sizes.patches,
            loads,
            order=order,
            counts=counts,
            num_packs=window_packs,
            limits=limits,
            fitted=fitted,
        )
        left = np.flatnonzero(pack_of < 0)
        if place_left(sizes, limits, loads, pack_of, left, window_of, window_packs):
            return pack_of
    return None


def _filled(
    sizes: ExampleSizes, limits: PackLimits, num_packs: int, generator: np.random.Generator, shuffle: bool
) -> np.ndarray:
    """The pack of each example, [n] int64, from best-fit decreasing; packs are split until there are `num_packs`."""
    pack_of = None
    if shuffle and len(sizes) <= MAX_JITTERED_FILL and not limits.max_patches:
        for jitter in (JITTER, JITTER / 4):
            keys = sizes.tokens * (1 + jitter * generator.random(len(sizes)))
            order = ascending(((2 * limits.max_tokens - keys) * 256).astype(np.int64))
            packs = fill_in_order(sizes.tokens[order], limits.max_tokens)
            if int(packs.max()) < num_packs:
                pack_of = np.empty(len(sizes), dtype=np.int64)
                pack_of[order] = packs
                break
    if pack_of is None:
        pack_of = fill_packs(sizes.tokens, sizes.patches, limits, permutation(len(sizes), generator))
    pack_of = _spread(sizes.tokens, pack_of, num_packs)
    if shuffle:
        return permutation(num_packs, generator)[pack_of]
    counts = np.bincount(pack_of, minlength=num_packs)
    means = np.bincount(pack_of, weights=np.arange(len(sizes)), minlength=num_packs) / np.maximum(counts, 1)
    rank = np.empty(num_packs, dtype=np.int64)
    rank[np.argsort(np.where(counts > 0, means, len(sizes)), kind="stable")] = np.arange(num_packs)
    return rank[pack_of]


def _spread(tokens: np.ndarray, pack_of: np.ndarray, num_packs: int) -> np.ndarray:
    """Halves the packs with most tokens until none is empty, or none that holds several examples is left."""
    while True:
        counts = np.bincount(pack_of, minlength=num_packs)
        empty = np.flatnonzero(counts == 0)[: int((counts > 1).sum())]
        if len(empty) == 0:
            return pack_of
        held = np.where(counts > 1, exact_sums(tokens, pack_of, num_packs), 0)
        receiver = np.full(num_packs, -1, dtype=np.int64)
        receiver[ascending(int(held.max()) - held)[: len(empty)]] = empty
        # Every second example of a pack moves.
        order = ascending(pack_of)
        number = np.arange(len(order)) - (np.cumsum(counts) - counts)[pack_of[order]]
        moved = order[(number % 2 == 1) & (receiver[pack_of[order]] >= 0)]
        pack_of = pack_of.copy()
        pack_of[moved] = receiver[pack_of[moved]]
