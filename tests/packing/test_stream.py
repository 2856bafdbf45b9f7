from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.statistics import plan_statistics
from lcot_plugin.packing.stream import StreamPlanner, StreamRow
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan

COST = CostModel(token=24576.0, square=1.0, patch=2183.0)


def fed(sizes: ExampleSizes) -> Iterator[tuple[str, int, int]]:
    for index, (tokens, patches) in enumerate(zip(sizes.tokens.tolist(), sizes.patches.tolist(), strict=True)):
        yield f"example {index}", tokens, patches


def number(example: str) -> int:
    return int(example.removeprefix("example "))


def plan_of(rows: list[StreamRow[str]], num_ranks: int, micro_steps: int) -> PackPlan:
    packs = [[number(example) for example in pack] for row in rows for pack in row.packs]
    return PackPlan(
        indices=np.array([index for pack in packs for index in pack]),
        offsets=np.cumsum([0, *map(len, packs)]),
        idle=np.array([idle for row in rows for idle in row.idle]),
        num_ranks=num_ranks,
        micro_steps=micro_steps,
    )


def lognormal_sizes(num_examples: int, seed: int = 0) -> ExampleSizes:
    generator = np.random.default_rng(seed)
    tokens = np.clip(generator.lognormal(np.log(1500), 0.843, num_examples), 32, 16000).astype(np.int64)
    patches = np.where(generator.random(num_examples) < 0.7, 2 * tokens, 0)
    return ExampleSizes(tokens, patches, tokens)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.integers(1, 100), st.just(100)), st.integers(0, 40)), max_size=300),
    st.sampled_from([1, 2, 5]),
    st.integers(1, 3),
    st.sampled_from([0, 40, 90]),
    st.sampled_from(["levelled", "fill"]),
    st.booleans(),
)
def test_nothing_is_lost_doubled_or_over_a_cap(
    sizes_list: list[tuple[int, int]], num_ranks: int, micro_steps: int, max_patches: int, mode: str, shuffle: bool
) -> None:
    tokens, patches = np.array(sizes_list, dtype=np.int64).reshape(-1, 2).T
    sizes, limits = ExampleSizes(tokens, patches, tokens), PackLimits(100, max_patches)
    planner: StreamPlanner[str] = StreamPlanner(
        limits,
        num_ranks=num_ranks,
        micro_steps=micro_steps,
        cost=COST,
        buffer_size=30,
        mode=mode,
        shuffle=shuffle,
    )
    rows = list(planner.rows(fed(sizes)))
    if not sizes_list:
        assert rows == []
        return
    plan = plan_of(rows, num_ranks, micro_steps)
    assert all(len(row.packs) == len(row.idle) == num_ranks for row in rows)
    trained = plan.indices[~np.repeat(plan.idle, np.diff(plan.offsets))]
    assert np.array_equal(np.sort(trained), np.arange(len(sizes)))
    assert np.diff(plan.offsets).min() >= 1
    assert plan.idle.sum() <= num_ranks - 1
    assert plan_statistics(plan, sizes, limits, COST).cap_violations == 0


def test_no_pack_is_idle_while_another_has_several_examples() -> None:
    tokens = np.array([1, 1, 2, 2, 3, 3, 14, 14, 14, 100])
    sizes = ExampleSizes(tokens, np.array([8, 38, 30, 33, 11, 19, 0, 3, 3, 0]), tokens)
    planner: StreamPlanner[str] = StreamPlanner(PackLimits(100, 40), num_ranks=1, micro_steps=1, cost=COST)
    assert not any(row.idle[0] for row in planner.rows(fed(sizes)))


@pytest.mark.parametrize("num_ranks", [1, 8])
def test_as_good_as_a_plan_of_everything(num_ranks: int) -> None:
    sizes, limits = lognormal_sizes(30_000), PackLimits(16384)
    planner: StreamPlanner[str] = StreamPlanner(limits, num_ranks=num_ranks, micro_steps=4, cost=COST)
    plan = plan_of(list(planner.rows(fed(sizes))), num_ranks, 4)
    statistics = plan_statistics(plan, sizes, limits, COST)
    assert statistics.bubble_micro <= 0.01
    assert statistics.bubble_phase <= 0.015
    assert statistics.order_bias <= 1.2
    assert statistics.fill >= 0.985


def test_the_same_rows_again_and_others_in_another_epoch() -> None:
    sizes, limits = lognormal_sizes(9000), PackLimits(16384)

    def rows(epoch: int) -> list[StreamRow[str]]:
        planner: StreamPlanner[str] = StreamPlanner(
            limits, num_ranks=2, micro_steps=4, cost=COST, buffer_size=2000, seed=4, epoch=epoch
        )
        return list(planner.rows(fed(sizes)))

    first = rows(0)
    assert rows(0) == first
    assert rows(1) != first


def test_rows_come_as_soon_as_the_buffer_is_full_and_nobody_waits_for_ever() -> None:
    sizes, limits = lognormal_sizes(20_000), PackLimits(16384)
    planner: StreamPlanner[str] = StreamPlanner(limits, num_ranks=2, micro_steps=2, cost=COST, buffer_size=1000)
    longest_wait = 0
    for index, (example, tokens, patches) in enumerate(fed(sizes)):
        rows = planner.add(example, tokens, patches)
        assert bool(rows) is False or len(rows) % 2 == 0
        for row in rows:
            for pack in row.packs:
                longest_wait = max([longest_wait, *(index - number(example) for example in pack)])
    assert 999 <= longest_wait < 3000
    assert len(planner.flush()) > 0
    assert planner.flush() == []


def test_a_buffer_grows_to_hold_enough_steps() -> None:
    tokens = np.full(5000, 100, dtype=np.int64)
    sizes, limits = ExampleSizes(tokens, 0 * tokens, tokens), PackLimits(1000)
    planner: StreamPlanner[str] = StreamPlanner(limits, num_ranks=4, micro_steps=4, cost=COST, buffer_size=1)
    ready = [index for index, example in enumerate(fed(sizes)) if planner.add(*example)]
    # 8 steps of 16 packs of 990 tokens
    assert ready[0] + 1 == 8 * 16 * 990 // 100 + 1


def test_too_large_an_example_is_named_by_its_place_in_the_stream() -> None:
    planner: StreamPlanner[str] = StreamPlanner(PackLimits(1000, 50), num_ranks=1, micro_steps=1, cost=COST)
    planner.add("a", 1000, 50)
    with pytest.raises(DataError, match="Example 1 has 51 patches"):
        planner.add("b", 10, 51)
    with pytest.raises(ValueError, match="levelled, fill"):
        StreamPlanner(PackLimits(10), num_ranks=1, micro_steps=1, cost=COST, mode="best")
