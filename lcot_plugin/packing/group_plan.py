"""Which rank computes which completions of an optimizer step, in which pack.

In: the sizes of all groups, over all ranks. Out: for every rank its packs, in order, each a list of group parts.
Consumed by the policy update, which makes one row of tokens of each pack. Pure: the same on every rank.

Four groups of 2 completions on 2 ranks, packs of at most 10 tokens; each prompt has 2 tokens:

    group   completions   tokens             parts             rank 0             rank 1
    0       7, 6          2 + 13: too many   0:(0,)  0:(1,)    0:(0,)  9 tokens   2:(0, 1), 3:(0, 1)  9 tokens
    1       2, 2          6                  1:(0, 1)          0:(1,)  8          1:(0, 1)            6
    2       1, 2          5                  2:(0, 1)
    3       1, 1          4                  3:(0, 1)

A prompt is computed once per part, so a group is cut only where it must be. A rank's dearest pack comes first: one that
does not fit into memory shows at once, and what the ranks compute at the same micro-step is of like cost. Where there
are too few parts to go round, a rank's last packs are empty.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from lcot_plugin.packing.cost import CostModel

FITTED_SHARES = (0.0, 0.2, 0.5, 1.0)
"""Share of the items, the cheapest, that go to the fullest bin with room instead of the least costly one; the first
with which everything finds a place is taken. 1.0 is best-fit decreasing."""


@dataclass(frozen=True)
class GroupSize:
    """What a plan must know of a group."""

    prompt_tokens: int
    """Image placeholders included."""
    prompt_patches: int
    """Patches that the vision tower reads; 0 for text."""
    completion_tokens: tuple[int, ...]
    """Of each completion that is computed; a group may have none."""


@dataclass(frozen=True)
class GroupPart:
    """A prompt with some of its completions."""

    group: int
    """Index into the groups."""
    completions: tuple[int, ...]
    """Indices into the group's `completion_tokens`, ascending, at least one."""


class _Item(NamedTuple):
    """Something to be put into a bin: a completion into a part, or a part into a pack."""

    tokens: int
    cost: float


def part_tokens(size: GroupSize, completions: Sequence[int]) -> int:
    """Tokens of a part in its pack."""
    return size.prompt_tokens + sum(size.completion_tokens[index] for index in completions)


def part_cost(size: GroupSize, completions: Sequence[int], cost: CostModel) -> float:
    """Cost of a part: its tokens, its patches, and attention of the prompt to itself and of each completion to both."""
    prompt = size.prompt_tokens
    own = cost.token * prompt + cost.square * prompt**2 + cost.patch * size.prompt_patches
    return own + sum(_completion_cost(prompt, size.completion_tokens[index], cost) for index in completions)


def plan_groups(
    groups: Sequence[GroupSize], *, max_tokens: int, num_ranks: int, cost: CostModel
) -> list[list[list[GroupPart]]]:
    """The parts of each pack of each rank: [num_ranks][num_packs] lists, num_packs >= 1 alike on every rank.

    Every completion has exactly one place. A pack holds at most `max_tokens`, unless one prompt with one completion
    exceeds them: that has a pack of its own. Packs are as few as best fit finds; some may be empty, the last ones.
    """
    parts = [part for index, size in enumerate(groups) for part in _parts(index, size, max_tokens, cost)]
    items = [
        _Item(part_tokens(groups[part.group], part.completions), part_cost(groups[part.group], part.completions, cost))
        for part in parts
    ]
    num_packs = max(1, -(-_num_needed(items, max_tokens) // num_ranks))
    plans = [deal(items, num_packs, num_ranks, max_tokens) for deal in (_ranks_first, _packs_first)]
    best = min((plan for plan in plans if plan is not None), key=lambda plan: _waiting(plan, items))
    return [[[parts[index] for index in pack] for pack in packs] for packs in best]


def _ranks_first(
    items: Sequence[_Item], num_packs: int, num_ranks: int, max_tokens: int
) -> list[list[list[int]]] | None:
    """Items dealt over the ranks, then over each rank's packs: [num_ranks][num_packs] lists of items.

    The more level way where a few parts are dearer than the mean pack. None where a rank is dealt what does not fit
    into its packs.
    """
    room = num_packs * max_tokens
    ranks = _placed([_Item(min(item.tokens, room), item.cost) for item in items], num_ranks, room, 0.0)
    plan = []
    for rank in ranks or []:
        packs = _placed_levelled([items[index] for index in rank], num_packs, max_tokens)
        if packs is None:
            return None
        plan.append(_dearest_first([[rank[place] for place in pack] for pack in packs], items))
    return plan or None


def _packs_first(items: Sequence[_Item], num_packs: int, num_ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Items dealt over all packs, which best fit has shown to be possible, then packs over the ranks.

    The more level way for the ranks that meet at every micro-step.
    """
    packs = _placed_levelled(items, num_packs * num_ranks, max_tokens)
    assert packs is not None, "best fit found room in as many packs"
    packs = _dearest_first(packs, items)
    plan: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for step in range(0, len(packs), num_ranks):
        # The dearest pack of a micro-step goes to the rank that has had least.
        lightest = sorted(range(num_ranks), key=lambda rank: (loads[rank], rank))
        for rank, pack in zip(lightest, packs[step : step + num_ranks], strict=True):
            loads[rank] += _sum_of_costs(pack, items)
            plan[rank].append(pack)
    return plan


def _waiting(plan: Sequence[Sequence[Sequence[int]]], items: Sequence[_Item]) -> float:
    """Cost until the last rank is done: where ranks meet once per optimizer step, plus where they meet at every
    micro-step, as sharded weights make them."""
    costs = [[_sum_of_costs(pack, items) for pack in packs] for packs in plan]
    return max(map(sum, costs)) + sum(map(max, zip(*costs, strict=True)))


def _dearest_first(packs: Sequence[list[int]], items: Sequence[_Item]) -> list[list[int]]:
    return sorted(packs, key=lambda pack: -_sum_of_costs(pack, items))


def _sum_of_costs(pack: Sequence[int], items: Sequence[_Item]) -> float:
    return sum(items[index].cost for index in pack)


def _completion_cost(prompt_tokens: int, tokens: int, cost: CostModel) -> float:
    return cost.token * tokens + cost.square * (tokens**2 + 2 * prompt_tokens * tokens)


def _parts(index: int, size: GroupSize, max_tokens: int, cost: CostModel) -> list[GroupPart]:
    """The group whole where it fits, else in as few parts as best fit finds, of like cost."""
    everything = tuple(range(len(size.completion_tokens)))
    if not everything:
        return []
    if part_tokens(size, everything) <= max_tokens:
        return [GroupPart(index, everything)]
    room = max_tokens - size.prompt_tokens  # negative where the prompt alone is too long: then each goes alone
    items = [_Item(tokens, _completion_cost(size.prompt_tokens, tokens, cost)) for tokens in size.completion_tokens]
    bins = _placed_levelled(items, _num_needed(items, room), room)
    assert bins is not None, "best fit found room in as many parts"
    return [GroupPart(index, tuple(found)) for found in bins if found]


def _num_needed(items: Sequence[_Item], capacity: int) -> int:
    """Bins that best-fit decreasing fills."""
    bins = _placed(items, len(items), capacity, 1.0)
    assert bins is not None, "each item has a bin of its own at worst"
    return sum(len(found) > 0 for found in bins)


def _placed_levelled(items: Sequence[_Item], num_bins: int, capacity: int) -> list[list[int]] | None:
    """The items of each bin, the bins' costs as level as the capacity allows."""
    attempts = (_placed(items, num_bins, capacity, share) for share in FITTED_SHARES)
    return next((bins for bins in attempts if bins is not None), None)


def _placed(items: Sequence[_Item], num_bins: int, capacity: int, fitted: float) -> list[list[int]] | None:
    """The items of each bin, ascending; None where they do not find room. What exceeds `capacity` has a bin alone.

    The dearest items go first, each to the least costly bin that has room (longest-processing-time scheduling); then
    the `fitted` share of them, the longest first, each to the fullest bin that has room.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    alone = [index for index, item in enumerate(items) if item.tokens > capacity]
    if len(alone) > num_bins:
        return None
    for number, index in enumerate(alone):
        bins[number].append(index)
    rooms = [capacity] * num_bins
    order = [index for index, item in enumerate(items) if item.tokens <= capacity]
    order.sort(key=lambda index: (-items[index].cost, index))
    num_levelled = len(order) - round(fitted * len(order))
    levelled, rest = order[:num_levelled], order[num_levelled:]

    heap = [(0.0, number) for number in range(len(alone), num_bins)]
    least = list(accumulate((items[index].tokens for index in reversed(levelled)), min))[::-1]
    for index, shortest in zip(levelled, least, strict=True):
        item = items[index]
        passed_over: list[tuple[float, int]] = []
        while heap and rooms[heap[0][1]] < item.tokens:
            skipped = heapq.heappop(heap)
            if rooms[skipped[1]] >= shortest:
                passed_over.append(skipped)
        if not heap:
            return None
        load, number = heap[0]
        heapq.heapreplace(heap, (load + item.cost, number))
        for skipped in passed_over:
            heapq.heappush(heap, skipped)
        bins[number].append(index)
        rooms[number] -= item.tokens

    by_room = sorted((rooms[number], number) for number in range(len(alone), num_bins))
    for index in sorted(rest, key=lambda index: (-items[index].tokens, index)):
        tokens = items[index].tokens
        place = bisect_left(by_room, (tokens, -1))
        if place == len(by_room):
            return None
        room, number = by_room.pop(place)
        insort(by_room, (room - tokens, number))
        bins[number].append(index)
    return [sorted(found) for found in bins]
