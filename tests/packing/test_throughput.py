import time

import pytest
import torch

from lcot_plugin.packing import throughput
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.throughput import PackCount, PackTimes, Throughput, Totals, totals_of
from lcot_plugin.types import PackedBatch, Segments

COST = CostModel(token=1.0, square=0.5, patch=2.0)
CPU = torch.device("cpu")


def batch(*lengths: int, patches: int = 0, labels: int = 3, examples: int = 1) -> PackedBatch:
    tokens = sum(lengths)
    return PackedBatch(
        input_ids=torch.zeros(1, tokens, dtype=torch.long),
        position_ids=torch.arange(tokens)[None],
        segments=Segments(lengths),
        media={},
        token_types={},
        target_columns=torch.arange(labels),
        target_ids=torch.arange(labels),
        target_weights=torch.ones(labels),
        num_patches=patches,
        num_examples=examples,
    )


def test_what_a_pack_counts() -> None:
    assert PackCount.of(batch(3, 4, patches=8, labels=2, examples=2)) == PackCount(7, 25, 8, 2, 2)


def test_totals_over_two_processes() -> None:
    # Costs 10 + 50 = 60 and 20 + 20 = 40; then 10 and 4 + 2 * 8 = 20.
    counts = [
        [PackCount(10, 100, 0, 1, 5), PackCount(10, 0, 0, 2, 7)],
        [PackCount(20, 40, 0, 2, 5), PackCount(4, 0, 8, 1, 3)],
    ]
    totals = totals_of(counts, [4.0, 5.0], 1, COST)
    mean = 130 / 4  # the unit of costs
    assert totals == Totals(5.0, 1, 4, 44, 20, 6, 8, 8, cost=pytest.approx(4), cost_if_all_waited=160 / mean)
    summary = totals.summary(max_tokens=20)
    assert summary["pack/tokens_per_second"] == 8.8
    assert summary["pack/fill"] == 0.55
    assert summary["pack/predicted_bubble"] == 0.1875
    assert summary["pack/patches"] == 2.0
    both = totals + totals
    assert (both.steps, both.tokens, both.most_patches, both.cost) == (2, 88, 8, pytest.approx(8))


def test_the_bubble_has_no_unit() -> None:
    counts = [[PackCount(10, 100, 0, 1, 5)], [PackCount(20, 40, 3, 2, 5)]]
    scaled = CostModel(*(1e15 * value for value in (COST.token, COST.square, COST.patch)))
    first, second = (totals_of(counts, [1.0, 1.0], 1, cost) for cost in (COST, scaled))
    assert (first + second).summary(20)["pack/predicted_bubble"] == first.summary(20)["pack/predicted_bubble"] > 0


def test_an_idle_pack_trains_nothing() -> None:
    assert PackCount.of(batch(5, labels=3, examples=0)).labels == 0


def test_each_log_starts_anew_and_the_run_sums_up() -> None:
    collected = Throughput(max_tokens=10)
    assert collected.pop(COST) == {}
    for lengths in ((5,), (10,)):
        collected.counts.append(PackCount.of(batch(*lengths)))
        collected.add_step(0.5)
        assert collected.pop(COST)["pack/tokens_per_second"] == sum(lengths) / 0.5
    assert collected.of_run(COST) == collected.run.summary(10)
    assert collected.of_run(COST)["pack/fill"] == 0.75


def test_the_first_packs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    times = PackTimes(active=True)
    for _ in range(throughput.NUM_WARM_UP + throughput.NUM_TIMED):
        assert not times.complete
        with times.measured(batch(2, 3, patches=4), CPU):
            pass
    assert times.complete
    assert times.take() == [(5, 13, 4, 1.0)] * throughput.NUM_TIMED
    assert not times.complete and not times.active


def test_without_a_fit_nothing_is_timed() -> None:
    times = PackTimes(active=False)
    for _ in range(throughput.NUM_WARM_UP + 2):
        with times.measured(batch(2), CPU):
            pass
    assert times.rows == []
