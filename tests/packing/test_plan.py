import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.fill import best_fit, fill_packs
from lcot_plugin.packing.plan import number_of_packs, plan_epoch
from lcot_plugin.packing.statistics import plan_statistics
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan

ROOT = Path(__file__).resolve().parents[2]
COST = CostModel(token=24576.0, square=1.0, patch=2183.0)


def long_cot_sizes(num_examples: int, seed: int = 0) -> ExampleSizes:
    """Log-normal lengths, median 1,500, 95th percentile 6,000, at most 16,000; four of five with a picture or more."""
    generator = np.random.default_rng(seed)
    tokens = np.clip(generator.lognormal(np.log(1500), 0.843, num_examples), 32, 16000).astype(np.int64)
    pictures = generator.choice(4, num_examples, p=[0.2, 0.65, 0.1, 0.05])
    patches = pictures * np.clip(generator.lognormal(np.log(2000), 0.7, num_examples), 256, 16384)
    patches = np.minimum(patches, 3.2 * tokens).astype(np.int64)
    return ExampleSizes(tokens, patches, tokens)


def text_sizes(tokens: np.ndarray) -> ExampleSizes:
    tokens = np.asarray(tokens, dtype=np.int64)
    return ExampleSizes(tokens, np.zeros_like(tokens), tokens)


def digest(plan: PackPlan) -> str:
    return hashlib.sha256(plan.indices.tobytes() + plan.offsets.tobytes() + plan.idle.tobytes()).hexdigest()


def trained_examples(plan: PackPlan) -> np.ndarray:
    return plan.indices[~np.repeat(plan.idle, np.diff(plan.offsets))]


def check(plan: PackPlan, sizes: ExampleSizes, limits: PackLimits) -> None:
    """What holds of every plan."""
    counts = np.diff(plan.offsets)
    assert counts.min() >= 1
    assert plan.num_packs % plan.num_ranks == 0
    assert np.array_equal(np.sort(trained_examples(plan)), np.arange(len(sizes)))
    assert plan.idle.sum() == max(0, plan.num_packs - len(sizes)) <= plan.num_ranks - 1
    assert np.all(counts[plan.idle] == 1)
    pack_of = np.repeat(np.arange(plan.num_packs), counts)
    assert np.bincount(pack_of, weights=sizes.tokens[plan.indices]).max() <= limits.max_tokens
    if limits.max_patches:
        assert np.bincount(pack_of, weights=sizes.patches[plan.indices]).max() <= limits.max_patches


@st.composite
def problems(draw: st.DrawFn) -> tuple[ExampleSizes, PackLimits, dict]:
    cap = draw(st.sampled_from([1, 7, 100, 1000]))
    max_patches = draw(st.sampled_from([0, 1, 50]))
    length = st.one_of(st.integers(1, cap), st.just(cap), st.integers(1, max(1, cap // 20)))
    size = st.tuples(length, st.one_of(st.just(0), st.integers(0, max_patches or 3000)))
    tokens, patches = np.array(draw(st.lists(size, min_size=1, max_size=120)), dtype=np.int64).T
    options = {
        "num_ranks": draw(st.sampled_from([1, 2, 3, 8, 64, 256])),
        "micro_steps": draw(st.integers(1, 5)),
        "mode": draw(st.sampled_from(["levelled", "fill"])),
        "shuffle": draw(st.booleans()),
    }
    return ExampleSizes(tokens, patches, tokens), PackLimits(cap, max_patches), options


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 2**32), st.integers(0, 3))
def test_nothing_is_lost_doubled_or_over_a_cap(problem: tuple, seed: int, epoch: int) -> None:
    sizes, limits, options = problem
    plan = plan_epoch(sizes, limits, cost=COST, seed=seed, epoch=epoch, **options)
    check(plan, sizes, limits)
    num_packs = number_of_packs(sizes, limits, num_ranks=options["num_ranks"], mode=options["mode"])
    assert plan.num_packs == num_packs
    other = plan_epoch(sizes, limits, cost=CostModel(1.0, 1.0, 1.0), seed=seed + 1, epoch=epoch + 1, **options)
    assert other.num_packs == num_packs
    check(other, sizes, limits)


GENERATOR = np.random.default_rng(5)
SKEWED = {
    "equal": np.full(20_000, 1000),
    "more than half a pack": np.full(5_000, 9000),
    "all at the cap": np.full(5_000, 16384),
    "tiny": GENERATOR.integers(8, 20, 20_000),
    "one giant": np.append(GENERATOR.integers(8, 20, 20_000), 16384),
    "pairs": np.where(GENERATOR.random(10_000) < 0.5, 9000, 7100),
    "triples": GENERATOR.integers(5000, 5800, 10_000),
    "uniform": GENERATOR.integers(1, 16385, 20_000),
}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("mode", ["levelled", "fill"])
@pytest.mark.parametrize("name", SKEWED)
def test_skewed_lengths(name: str, mode: str, shuffle: bool) -> None:
    sizes, limits = text_sizes(SKEWED[name]), PackLimits(16384)
    num_packs = number_of_packs(sizes, limits, num_ranks=8, mode=mode)
    fewest = int(best_fit(-np.sort(-sizes.tokens), 16384).max()) + 1
    assert num_packs <= 1.03 * fewest + 8
    for epoch in range(2):
        plan = plan_epoch(
            sizes, limits, num_ranks=8, micro_steps=3, cost=COST, seed=1, epoch=epoch, mode=mode, shuffle=shuffle
        )
        check(plan, sizes, limits)
        assert plan.num_packs == num_packs


@pytest.mark.parametrize("mode", ["levelled", "fill"])
@pytest.mark.parametrize(
    ("max_tokens", "max_patches"), [(16384, 60000), (16384, 18000), (32768, 36000), (32768, 64000)]
)
def test_a_cap_on_patches_costs_little_fill(max_tokens: int, max_patches: int, mode: str) -> None:
    sizes = long_cot_sizes(20_000)
    sizes = ExampleSizes(sizes.tokens, np.minimum(sizes.patches, max_patches), sizes.labels)
    limits = PackLimits(max_tokens, max_patches)
    plan = plan_epoch(sizes, limits, num_ranks=8, micro_steps=4, cost=COST, seed=0, epoch=0, mode=mode)
    check(plan, sizes, limits)
    fewest = max(sizes.tokens.sum() / max_tokens, sizes.patches.sum() / max_patches)
    assert plan.num_packs <= 1.05 * fewest + 8


@pytest.mark.parametrize(("num_examples", "num_ranks"), [(1, 1), (1, 8), (10, 8), (17, 8), (10, 256), (300, 256)])
@pytest.mark.parametrize("mode", ["levelled", "fill"])
def test_few_examples(num_examples: int, num_ranks: int, mode: str) -> None:
    sizes, limits = long_cot_sizes(num_examples), PackLimits(16384)
    plan = plan_epoch(sizes, limits, num_ranks=num_ranks, micro_steps=4, cost=COST, seed=0, epoch=0, mode=mode)
    check(plan, sizes, limits)
    cheapest = COST.costs(sizes.tokens, sizes.patches).argmin()
    assert np.all(plan.indices[np.repeat(plan.idle, np.diff(plan.offsets))] == cheapest)


@pytest.mark.parametrize("mode", ["levelled", "fill"])
@pytest.mark.parametrize("num_examples", [200, 30_000])
def test_epochs_differ_in_packs_and_order_but_not_in_number(num_examples: int, mode: str) -> None:
    sizes, limits = long_cot_sizes(num_examples), PackLimits(16384)

    def packs(seed: int, epoch: int) -> set[tuple[int, ...]]:
        plan = plan_epoch(sizes, limits, num_ranks=2, micro_steps=4, cost=COST, seed=seed, epoch=epoch, mode=mode)
        return {tuple(sorted(pack.tolist())) for pack in np.split(plan.indices, plan.offsets[1:-1])}

    first = packs(0, 0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = packs(seed, epoch)
        assert len(other) == len(first)
        assert len(first & other) < 0.2 * len(first)


@pytest.mark.parametrize("mode", ["levelled", "fill"])
def test_the_same_plan_in_another_process(mode: str) -> None:
    code = (
        "import numpy as np; from packing.test_plan import COST, digest, long_cot_sizes;"
        "from lcot_plugin.packing.plan import plan_epoch; from lcot_plugin.types import PackLimits;"
        "print(digest(plan_epoch(long_cot_sizes(9000), PackLimits(16384, 40000), num_ranks=4, micro_steps=2, cost=COST,"
        f" seed=3, epoch=2, mode={mode!r})))"
    )
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}];"
    result = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=True)
    plan = plan_epoch(
        long_cot_sizes(9000),
        PackLimits(16384, 40000),
        num_ranks=4,
        micro_steps=2,
        cost=COST,
        seed=3,
        epoch=2,
        mode=mode,
    )
    assert result.stdout.strip() == digest(plan)


def test_the_number_of_packs_may_be_given() -> None:
    sizes, limits = long_cot_sizes(5000), PackLimits(16384)
    options = {"num_ranks": 8, "micro_steps": 4, "cost": COST, "seed": 0, "epoch": 0}
    given_number = plan_epoch(sizes, limits, **options, num_packs=number_of_packs(sizes, limits, num_ranks=8))
    assert digest(given_number) == digest(plan_epoch(sizes, limits, **options))


@pytest.mark.parametrize("mode", ["levelled", "fill"])
def test_unshuffled_examples_stay_near_their_place(mode: str) -> None:
    sizes, limits = long_cot_sizes(60_000), PackLimits(16384)
    options = {"num_ranks": 2, "micro_steps": 4, "cost": COST, "seed": 0, "mode": mode}
    plan = plan_epoch(sizes, limits, epoch=0, shuffle=False, **options)
    check(plan, sizes, limits)
    shuffled = plan_epoch(sizes, limits, epoch=0, **options)

    def correlation(plan: PackPlan) -> float:
        return float(np.corrcoef(np.arange(len(plan.indices)), plan.indices)[0, 1])

    assert correlation(plan) > (0.99 if mode == "levelled" else 0.3)
    assert abs(correlation(shuffled)) < 0.05


@pytest.mark.parametrize(("num_ranks", "most_bubble"), [(8, 0.005), (64, 0.015)])
def test_ranks_hardly_wait_and_steps_are_unbiased(num_ranks: int, most_bubble: float) -> None:
    sizes, limits = long_cot_sizes(50_000), PackLimits(16384)
    plan = plan_epoch(sizes, limits, num_ranks=num_ranks, micro_steps=4, cost=COST, seed=0, epoch=0)
    statistics = plan_statistics(plan, sizes, limits, COST)
    assert statistics.bubble_micro <= most_bubble
    assert statistics.bubble_phase <= 0.015
    assert statistics.order_bias <= 1.2
    assert statistics.fill >= 0.985
    assert statistics.cap_violations == 0


@pytest.mark.parametrize(
    "cost", [CostModel(3000.0, 1.0, 200.0), CostModel(24576.0, 1.0, 20000.0), CostModel(0.0, 1.0, 0.0)]
)
def test_other_models_are_balanced_too(cost: CostModel) -> None:
    sizes, limits = long_cot_sizes(50_000), PackLimits(16384)
    plan = plan_epoch(sizes, limits, num_ranks=8, micro_steps=4, cost=cost, seed=0, epoch=0)
    statistics = plan_statistics(plan, sizes, limits, cost)
    assert statistics.bubble_micro <= 0.012
    assert statistics.order_bias <= 1.2
    assert statistics.fill >= 0.985


def test_fill_mode_leaves_almost_nothing_empty() -> None:
    sizes, limits = long_cot_sizes(50_000), PackLimits(16384)
    plan = plan_epoch(sizes, limits, num_ranks=1, micro_steps=4, cost=COST, seed=0, epoch=0, mode="fill")
    assert plan_statistics(plan, sizes, limits, COST).fill >= 0.999


def test_the_last_step_has_the_micro_steps_that_remain() -> None:
    sizes, limits = text_sizes(np.full(11, 10)), PackLimits(10)
    plan = plan_epoch(sizes, limits, num_ranks=2, micro_steps=4, cost=COST, seed=0, epoch=0)
    assert (plan.num_packs, plan.micro_steps, plan.idle.sum()) == (12, 4, 1)
    assert plan_statistics(plan, sizes, limits, COST).num_steps == 2


def test_too_large_examples_and_empty_data_are_refused() -> None:
    options = {"num_ranks": 1, "micro_steps": 1, "cost": COST, "seed": 0, "epoch": 0}
    with pytest.raises(DataError, match=r"Example 1 has 101 tokens, more than .* \(pack_max_tokens: 100\)"):
        plan_epoch(text_sizes([100, 101]), PackLimits(100), **options)
    sizes = ExampleSizes(np.array([10, 10]), np.array([5, 9]), np.array([1, 1]))
    with pytest.raises(DataError, match=r"Example 1 has 9 patches, more than .* \(pack_max_patches: 8\)"):
        plan_epoch(sizes, PackLimits(100, 8), **options)
    with pytest.raises(DataError, match="no example"):
        plan_epoch(text_sizes([]), PackLimits(100), **options)
    with pytest.raises(DataError, match="Example 1 has no tokens"):
        plan_epoch(text_sizes([1, 0]), PackLimits(100), **options)
    with pytest.raises(ValueError, match="levelled, fill"):
        plan_epoch(text_sizes([1]), PackLimits(100), mode="fast", **options)


def plain_best_fit(lengths: list[int], cap: int) -> list[int]:
    """One example after the other, into the fullest pack with room."""
    rooms: list[int] = []
    chosen = []
    for length in lengths:
        fitting = [room for room in rooms if room >= length]
        pack = rooms.index(min(fitting)) if fitting else len(rooms)
        if not fitting:
            rooms.append(cap)
        rooms[pack] -= length
        chosen.append(pack)
    return chosen


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.booleans())
def test_best_fit_equals_the_plain_one(lengths: list[int], descending: bool) -> None:
    if descending:
        lengths = sorted(lengths, reverse=True)
    packs = best_fit(np.array(lengths), 30)
    rooms = 30 - np.bincount(packs, weights=lengths)
    plain_rooms = 30 - np.bincount(plain_best_fit(lengths, 30), weights=lengths)
    assert sorted(rooms) == sorted(plain_rooms)


def test_how_many_packs_filling_takes_does_not_depend_on_ties() -> None:
    sizes, limits = long_cot_sizes(3000), PackLimits(16384, 20000)
    packs = {
        int(fill_packs(sizes.tokens, sizes.patches, limits, np.random.default_rng(seed).permutation(3000)).max())
        for seed in range(4)
    }
    assert len(packs) == 1
