"""The fewest packs: best fit over integer lengths, in time that hardly depends on the number of examples.

Comes in: lengths. Goes out: the pack of each example. Consumed by the planner: its `fill` mode, the number of packs of
an epoch, and the plan that always exists where levelling does not meet that number.

Packs with the same room are alike, so they are kept in one stack per room, and a run of equal lengths is served from
the fullest stack that holds it, many examples at a time. With a cap of 10 and lengths 6 6 4 4 3: two packs open and
keep room 4 (stack 4: packs 0, 1), both 4s fill them at once, and the 3 opens pack 2, which keeps room 7.
"""

from __future__ import annotations

import numpy as np

from lcot_plugin.packing.levelled import level
from lcot_plugin.packing.orders import ascending
from lcot_plugin.types import PackLimits

DEALT_SHARE = 0.3
"""Share of the examples, the longest, that are dealt out first."""
ENOUGH_EMPTY = 0.0005
"""So many packs more than the tokens would fill are as few as best-fit decreasing could be expected to need."""
CROWDED_SHARE = 0.9
"""Packs over the cap on patches are packed anew together with so many packs of few patches that the patches of all
together take at most this share of what is allowed."""

MAX_ROUNDS = 12
"""How often packs over the cap on patches are levelled anew, each time over more packs."""
MAX_FIRST_FIT = 1000
"""So few examples may be left then; they get packs of their own."""


def best_fit(lengths: np.ndarray, cap: int, rooms: np.ndarray | None = None) -> np.ndarray:
    """The pack of each example, [n] int64; new packs are numbered on from those that exist.

    Args:
        lengths: [n] int, each 1 to `cap`, placed in this order, each into the fullest pack that has room. Descending
            order gives the fewest packs; equal neighbours are placed together, which is what makes it fast.
        rooms: [p] int64, tokens that packs which exist already still have room for.
    """
    if len(lengths) == 0:
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1])
    counts = np.diff(np.append(starts, len(lengths)))
    stacks: list[list[int]] = [[] for _ in range(cap + 1)]
    occupied = 0  # bit r is set where stacks[r] is not empty
    num_packs = 0
    if rooms is not None:
        num_packs = len(rooms)
        order = ascending(rooms)
        firsts = np.flatnonzero(np.diff(rooms[order], prepend=-1))
        for room, packs in zip(rooms[order[firsts]].tolist(), np.split(order, firsts[1:]), strict=True):
            stacks[room] = packs.tolist()
            occupied |= 1 << room
    placed: list[int] = []
    for length, left in zip(lengths[starts].tolist(), counts.tolist(), strict=True):
        while left:
            fitting = occupied >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                stack = stacks[room]
                times = room // length
            else:
                room, times = cap, cap // length
                stack = list(range(num_packs, num_packs - (-left // times)))
                num_packs += len(stack)
            # A pack that still has room for the length remains the fullest that has, and takes it again.
            full = min(left // times, len(stack))
            if full:
                taken = stack[-full:]
                del stack[-full:]
                placed += taken if times == 1 else [pack for pack in taken for _ in range(times)]
                stacks[room - times * length] += taken
                occupied |= 1 << (room - times * length)
                left -= times * full
            if left and stack:  # fewer than this pack could take
                pack = stack.pop()
                placed += [pack] * left
                stacks[room - left * length].append(pack)
                occupied |= 1 << (room - left * length)
                left = 0
            if fitting and not stack:
                occupied &= ~(1 << room)
    return np.asarray(placed, dtype=np.int64)


def fill_in_order(lengths: np.ndarray, cap: int) -> np.ndarray:
    """The pack of each example, [n] int64, for `lengths` [n] in about descending order.

    Best-fit decreasing ends with packs of short examples only. So the longest are first dealt out, one to each of the
    fewest packs possible, longest to emptiest, and the rest is fitted in: then all packs are a mix. Where that costs
    packs, as it does without short examples, it is best-fit decreasing from the beginning.
    """
    fewest = -(-int(lengths.sum()) // cap)
    rooms = np.full(fewest, cap, dtype=np.int64)
    packs = np.full(len(lengths), -1, dtype=np.int64)
    for start in range(0, int(len(lengths) * DEALT_SHARE), fewest):
        dealt = lengths[start : start + fewest]
        emptiest = ascending(cap - rooms)[: len(dealt)]
        fits = dealt <= rooms[emptiest]
        packs[start : start + fewest][fits] = emptiest[fits]
        rooms[emptiest[fits]] -= dealt[fits]
    rest = packs < 0
    packs[rest] = best_fit(lengths[rest], cap, rooms)
    if int(packs.max()) + 1 <= fewest * (1 + ENOUGH_EMPTY):
        return packs
    plain = best_fit(lengths, cap)
    return plain if plain.max() < packs.max() else packs


def fill_packs(tokens: np.ndarray, patches: np.ndarray, limits: PackLimits, ties: np.ndarray) -> np.ndarray:
    """The pack of each example, [n] int64, numbered from 0, in as few packs as best fit needs.

    How many packs come out, and the sizes in each, depend on the sizes alone: of examples of the same size it is
    `ties` ([n] int64, a permutation) that decides which goes where.

    A greedy choice by tokens alone piles up patches and then finds no pack for them, so packs over `max_patches` are
    packed anew, levelled, together with packs that have few.
    """
    order = ties[ascending(limits.max_tokens - tokens[ties])]
    if limits.max_patches:
        order = ties[np.lexsort((-patches[ties], -tokens[ties]))]
    packs = fill_in_order(tokens[order], limits.max_tokens)
    if limits.max_patches:
        packs = _within_patches(tokens[order], patches[order], packs, limits)
    pack_of = np.empty(len(tokens), dtype=np.int64)
    pack_of[order] = packs
    return pack_of


def _within_patches(tokens: np.ndarray, patches: np.ndarray, packs: np.ndarray, limits: PackLimits) -> np.ndarray:
    sums = np.zeros(int(packs.max()) + 1, dtype=np.int64)
    np.add.at(sums, packs, patches)
    num_over = int((sums > limits.max_patches).sum())
    if num_over == 0:
        return packs
    # The packs over the cap come first, then those with the fewest patches, as many as it takes.
    by_patches = ascending(int(sums.max()) - sums)
    joined = np.concatenate([by_patches[:num_over], by_patches[num_over:][::-1]])
    mean = np.cumsum(sums[joined]) / np.arange(1, len(joined) + 1)
    uncrowded = np.flatnonzero(mean[num_over:] <= CROWDED_SHARE * limits.max_patches)
    num_joined = num_over + int(uncrowded[0]) + 1 if len(uncrowded) else len(joined)
    anew = np.zeros(len(sums), dtype=bool)
    anew[joined[:num_joined]] = True
    chosen = np.flatnonzero(anew[packs])
    renumbered = np.cumsum(~anew) - 1
    result = renumbered[packs]
    result[chosen] = int((~anew).sum()) + _levelled_fill(tokens[chosen], patches[chosen], num_joined, limits)
    return result


def _levelled_fill(tokens: np.ndarray, patches: np.ndarray, num_packs: int, limits: PackLimits) -> np.ndarray:
    """The pack of each example, from `num_packs` packs on and more until both caps are met."""
    # Both resources as shares of their caps; 2**20 is a full pack.
    loads = (tokens << 20) // limits.max_tokens + (patches << 20) // limits.max_patches
    order = ascending(int(loads.max()) - loads)

    def fewest(examples: np.ndarray) -> int:
        return max(
            -(-int(tokens[examples].sum()) // limits.max_tokens), -(-int(patches[examples].sum()) // limits.max_patches)
        )

    num_packs = max(num_packs, fewest(order))
    for _ in range(MAX_ROUNDS):
        packs = level(
            tokens,
            patches,
            loads,
            order=order,
            counts=np.array([len(tokens)]),
            num_packs=np.array([num_packs]),
            limits=limits,
        )
        left = order[packs[order] < 0]
        if len(left) <= min(num_packs // 100, MAX_FIRST_FIT):
            break
        num_packs += max(1, num_packs // 50, fewest(left))
    # First fit for the few that remain, into packs of their own.
    rooms: list[list[int]] = []
    for example in left.tolist():
        length, sight = int(tokens[example]), int(patches[example])
        number = next((k for k, room in enumerate(rooms) if room[0] >= length and room[1] >= sight), len(rooms))
        if number == len(rooms):
            rooms.append([limits.max_tokens, limits.max_patches])
        rooms[number][0] -= length
        rooms[number][1] -= sight
        packs[example] = num_packs + number
    return np.unique(packs, return_inverse=True)[1]
