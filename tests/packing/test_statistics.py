import numpy as np
import pytest

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.plan import plan_epoch
from lcot_plugin.packing.statistics import plan_statistics
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan

COST = CostModel(token=24576.0, square=1.0, patch=2183.0)


def lognormal_sizes(num_examples: int) -> ExampleSizes:
    generator = np.random.default_rng(1)
    tokens = np.clip(generator.lognormal(np.log(1500), 0.843, num_examples), 32, 16000).astype(np.int64)
    patches = np.where(generator.random(num_examples) < 0.5, 2 * tokens, 0)
    return ExampleSizes(tokens, patches, tokens)


def next_fit(order: np.ndarray, sizes: ExampleSizes, cap: int, num_ranks: int, micro_steps: int) -> PackPlan:
    """Packs filled one after the other; what remains of the last row is dropped."""
    offsets, held = [0], 0
    for position, length in enumerate(sizes.tokens[order].tolist()):
        if held + length > cap:
            offsets.append(position)
            held = 0
        held += length
    num_packs = (len(offsets) - 1) // num_ranks * num_ranks
    offsets = offsets[: num_packs + 1]
    return PackPlan(order[: offsets[-1]], np.array(offsets), np.zeros(num_packs, dtype=bool), num_ranks, micro_steps)


def test_every_figure_of_a_plan_that_can_be_counted_by_hand() -> None:
    sizes = ExampleSizes(np.array([4, 6, 2, 8, 5]), np.array([0, 10, 4, 0, 2]), np.array([1, 1, 1, 1, 1]))
    # Micro-steps: (0 1 | 2), (3 | 4), (2 idle | 2): the third is a step of its own.
    plan = PackPlan(
        indices=np.array([0, 1, 2, 3, 4, 2, 2]),
        offsets=np.array([0, 2, 3, 4, 5, 6, 7]),
        idle=np.array([False, False, False, False, True, True]),
        num_ranks=2,
        micro_steps=2,
    )
    statistics = plan_statistics(plan, sizes, PackLimits(10, 9), CostModel(token=1.0, square=0.0, patch=1.0, fixed=1.0))
    assert (statistics.num_examples, statistics.num_packs, statistics.num_idle) == (5, 6, 2)
    assert (statistics.num_micro_steps, statistics.num_steps) == (3, 2)
    assert statistics.fill == pytest.approx(25 / 60)
    # Language with the fixed part: 11 3 | 9 6 | 3 3; vision: 10 4 | 0 2 | 4 4.
    work = 11 + 3 + 9 + 6 + 3 + 3 + 10 + 4 + 0 + 2 + 4 + 4
    assert statistics.bubble_micro == pytest.approx(1 - work / (2 * (21 + 9 + 7)))
    assert statistics.bubble_phase == pytest.approx(1 - work / (2 * (11 + 9 + 3 + 10 + 2 + 4)))
    assert statistics.bubble_step == pytest.approx(1 - work / (2 * (30 + 7)))
    assert (statistics.tokens_per_step_min, statistics.tokens_per_step_max) == (0, 25)
    assert statistics.tokens_per_step_mean == 12.5
    assert (statistics.patches_per_pack_max, statistics.patches_per_pack_mean) == (10, 4.0)
    assert statistics.cap_violations == 1


def test_a_pack_over_the_cap_on_tokens_is_counted() -> None:
    sizes = ExampleSizes(np.array([6, 5, 3]), np.zeros(3, dtype=int), np.ones(3, dtype=int))
    plan = PackPlan(np.array([0, 1, 2]), np.array([0, 2, 3]), np.zeros(2, dtype=bool), 1, 1)
    assert plan_statistics(plan, sizes, PackLimits(10), COST).cap_violations == 1
    assert plan_statistics(plan, sizes, PackLimits(11), COST).cap_violations == 0


def test_a_naive_plan_is_seen_to_be_bad() -> None:
    sizes, limits = lognormal_sizes(20_000), PackLimits(16384)
    naive = next_fit(np.random.default_rng(0).permutation(20_000), sizes, 16384, num_ranks=8, micro_steps=4)
    ours = plan_epoch(sizes, limits, num_ranks=8, micro_steps=4, cost=COST, seed=0, epoch=0)
    bad, good = (plan_statistics(plan, sizes, limits, COST) for plan in (naive, ours))
    assert bad.fill < 0.92
    assert bad.bubble_micro > 0.08 > 0.01 > good.bubble_micro
    assert bad.bubble_phase > bad.bubble_micro
    assert bad.bubble_step < bad.bubble_micro
    assert 0.5 < bad.order_bias < 1.6


def test_sorted_examples_are_seen_to_be_biased() -> None:
    sizes, limits = lognormal_sizes(20_000), PackLimits(16384)
    by_length = next_fit(np.argsort(sizes.tokens), sizes, 16384, num_ranks=8, micro_steps=4)
    assert plan_statistics(by_length, sizes, limits, COST).order_bias > 50


def test_one_rank_never_waits_and_one_length_has_no_bias() -> None:
    sizes = ExampleSizes(np.full(100, 500), np.zeros(100, dtype=int), np.ones(100, dtype=int))
    plan = plan_epoch(sizes, PackLimits(1000), num_ranks=1, micro_steps=2, cost=COST, seed=0, epoch=0)
    statistics = plan_statistics(plan, sizes, PackLimits(1000), COST)
    assert (statistics.bubble_micro, statistics.bubble_phase, statistics.bubble_step) == (0.0, 0.0, 0.0)
    assert np.isnan(statistics.order_bias)


def test_the_summary_says_what_matters() -> None:
    sizes, limits = lognormal_sizes(20), PackLimits(16384)
    plan = plan_epoch(sizes, limits, num_ranks=32, micro_steps=4, cost=COST, seed=0, epoch=0)
    summary = plan_statistics(plan, sizes, limits, COST).summary()
    assert "20 examples in 32 packs: 1 optimizer steps" in summary
    assert "12 packs repeat an example" in summary
    assert "patches per pack" in summary
    assert len(summary.splitlines()) <= 5
