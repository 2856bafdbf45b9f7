"""Groups to ranks and packs: nothing lost, nothing over the cap, ranks level."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.group_plan import GroupPart, GroupSize, part_cost, part_tokens, plan_groups

TOKENS_ONLY = CostModel(token=1.0, square=0.0, patch=0.0)
COST = CostModel(token=32_400.0, square=1.0, patch=3_000.0)
"""About that of a model with 7 billion parameters."""

SIZES = st.builds(
    GroupSize,
    prompt_tokens=st.integers(1, 60),
    prompt_patches=st.sampled_from([0, 0, 16, 400]),
    completion_tokens=st.lists(st.integers(0, 120), max_size=10).map(tuple),
)


def long_tailed(seed, num_groups=64, num_generations=8, sigma=1.0):
    """Lognormal lengths with a median of 600 tokens, cut at 16,384."""
    generator = random.Random(seed)

    def length():
        return min(16_384, round(600 * generator.lognormvariate(0, sigma)) + 1)

    return [
        GroupSize(
            generator.randrange(100, 1500),
            generator.choice([0, 1200, 4000]),
            tuple(length() for _ in range(num_generations)),
        )
        for _ in range(num_groups)
    ]


def costs(plan, groups):
    """[num_ranks][num_packs]"""
    return [[sum(part_cost(groups[p.group], p.completions, COST) for p in pack) for pack in packs] for packs in plan]


def waiting(plan, groups):
    """Share of the time that ranks wait, where they meet once per optimizer step and where at every micro-step."""
    by_rank = costs(plan, groups)
    mean = sum(map(sum, by_rank)) / len(by_rank)
    by_step = zip(*by_rank, strict=True)
    return 1 - mean / max(map(sum, by_rank)), 1 - mean / sum(map(max, by_step))


# --- invariants -------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(SIZES, max_size=24), st.integers(1, 300), st.integers(1, 5))
@example([], 10, 3)
@example([GroupSize(50, 0, (5,) * 10)], 10, 2)
@example([GroupSize(2, 0, (0, 0))], 1, 1)
def test_every_completion_once_and_no_pack_over_the_cap(groups, max_tokens, num_ranks):
    plan = plan_groups(groups, max_tokens=max_tokens, num_ranks=num_ranks, cost=COST)
    assert len(plan) == num_ranks
    assert len({len(packs) for packs in plan}) == 1 and len(plan[0]) >= 1
    parts = [part for packs in plan for pack in packs for part in pack]
    placed = sorted((part.group, index) for part in parts for index in part.completions)
    assert placed == [(g, index) for g, size in enumerate(groups) for index in range(len(size.completion_tokens))]
    assert all(part.completions and list(part.completions) == sorted(part.completions) for part in parts)
    for packs in plan:
        for pack in packs:
            tokens = sum(part_tokens(groups[part.group], part.completions) for part in pack)
            assert tokens <= max_tokens or (len(pack) == 1 and len(pack[0].completions) == 1)
    for index, size in enumerate(groups):
        whole = size.completion_tokens and size.prompt_tokens + sum(size.completion_tokens) <= max_tokens
        assert not whole or sum(part.group == index for part in parts) == 1, "a group that fits is not cut"
    assert plan == plan_groups(list(groups), max_tokens=max_tokens, num_ranks=num_ranks, cost=COST)


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=24), st.integers(1, 300), st.integers(1, 5))
def test_packs_are_few(groups, max_tokens, num_ranks):
    """Two packs of best fit hold more than one could: fewer than twice the packs that the tokens fill, and those of
    what exceeds the cap."""
    plan = plan_groups(groups, max_tokens=max_tokens, num_ranks=num_ranks, cost=COST)
    tokens = [part_tokens(groups[p.group], p.completions) for packs in plan for pack in packs for p in pack]
    fitting = [count for count in tokens if count <= max_tokens]
    most = 2 * sum(fitting) // max_tokens + 1 + len(tokens) - len(fitting)
    assert len(plan[0]) <= max(1, -(-most // num_ranks))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_module():
    groups = [GroupSize(2, 0, lengths) for lengths in ((7, 6), (2, 2), (1, 2), (1, 1))]
    assert plan_groups(groups, max_tokens=10, num_ranks=2, cost=TOKENS_ONLY) == [
        [[GroupPart(0, (0,))], [GroupPart(0, (1,))]],
        [[GroupPart(2, (0, 1)), GroupPart(3, (0, 1))], [GroupPart(1, (0, 1))]],
    ]


def test_a_group_is_cut_into_as_few_parts_as_possible_long_with_short():
    groups = [GroupSize(10, 0, (50, 40, 9, 1, 30, 30))]
    plan = plan_groups(groups, max_tokens=90, num_ranks=2, cost=TOKENS_ONLY)
    assert plan == [[[GroupPart(0, (0, 5))]], [[GroupPart(0, (1, 2, 3, 4))]]]


def test_what_exceeds_the_cap_has_a_pack_alone():
    groups = [GroupSize(10, 0, (200, 5, 300)), GroupSize(3, 0, (4,))]
    plan = plan_groups(groups, max_tokens=30, num_ranks=1, cost=TOKENS_ONLY)
    assert plan == [[[GroupPart(0, (2,))], [GroupPart(0, (0,))], [GroupPart(0, (1,)), GroupPart(1, (0,))]]]


def test_too_few_parts_leave_packs_empty():
    groups = [GroupSize(10, 0, (5, 5)), GroupSize(10, 0, ())]
    plan = plan_groups(groups, max_tokens=100, num_ranks=3, cost=TOKENS_ONLY)
    assert sorted(plan, reverse=True) == [[[GroupPart(0, (0, 1))]], [[]], [[]]]
    assert plan_groups([], max_tokens=100, num_ranks=2, cost=TOKENS_ONLY) == [[[]], [[]]]


def test_the_cost_of_a_part():
    """A prompt of 3 tokens with completions of 2 and 1: 6 tokens; pairs 3*3, 2*2 + 2*3*2, 1*1 + 2*3*1; 5 patches."""
    cost = CostModel(token=1.0, square=100.0, patch=10_000.0)
    assert part_cost(GroupSize(3, 5, (2, 1)), (0, 1), cost) == 6 + 100 * (9 + 16 + 7) + 50_000


@pytest.mark.parametrize("coefficient", ["square", "patch"])
def test_cost_decides_not_tokens(coefficient):
    """Four groups of 100 tokens, two of them dear by their long completion or their patches: one for each rank."""
    dear = GroupSize(20, 1000 * (coefficient == "patch"), (80,))
    cheap = GroupSize(1, 0, (9,) * 11)
    cost = CostModel(**{"token": 1.0, "square": 0.0, "patch": 0.0, coefficient: 1.0})
    plan = plan_groups([dear, dear, cheap, cheap], max_tokens=200, num_ranks=2, cost=cost)
    assert sorted(sorted(part.group for pack in packs for part in pack) for packs in plan) == [[0, 2], [1, 3]]


# --- level ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [8_192, 16_384, 32_768, 65_536])
def test_eight_ranks_wait_little_for_each_other(max_tokens):
    """64 groups of 8 on 8 ranks, 20 draws: ranks wait 2 % of an optimizer step, 20 % if dealt in order."""
    per_optimizer_step, per_micro_step, in_order = [], [], []
    for seed in range(20):
        groups = long_tailed(seed)
        once, at_each = waiting(plan_groups(groups, max_tokens=max_tokens, num_ranks=8, cost=COST), groups)
        per_optimizer_step.append(once)
        per_micro_step.append(at_each)
        dealt = [[[GroupPart(rank * 8 + k, tuple(range(8))) for k in range(8)]] for rank in range(8)]
        in_order.append(waiting(dealt, groups)[0])
    assert sum(per_optimizer_step) / 20 < 0.04 and max(per_optimizer_step) < 0.15
    assert sum(per_micro_step) / 20 < 0.15 and max(per_micro_step) < 0.25
    assert sum(in_order) / 20 > 0.1


def test_many_groups_are_level():
    groups = long_tailed(0, num_groups=512)
    once, at_each = waiting(plan_groups(groups, max_tokens=16_384, num_ranks=8, cost=COST), groups)
    assert once < 0.01 and at_each < 0.03


def test_a_ranks_dearest_pack_comes_first():
    groups = long_tailed(3)
    for packs in costs(plan_groups(groups, max_tokens=16_384, num_ranks=4, cost=COST), groups):
        assert len(packs) > 4 and packs == sorted(packs, reverse=True)
