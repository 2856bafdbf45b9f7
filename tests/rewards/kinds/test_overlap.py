"""Overlaps are exact, bounded and symmetric, and the pairing of several boxes is the best one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.rewards.kinds.overlap import Box, all_paired, best_total, giou, iou, mean_overlap, same_label

EDGE = st.floats(-1e5, 1e5, allow_nan=False)
ANY = st.one_of(EDGE, st.sampled_from([math.inf, -math.inf, math.nan, 1e308, -1e308, 1e-320, 0.0]))
BOX = st.builds(Box, EDGE, EDGE, EDGE, EDGE)
ANY_BOX = st.builds(Box, ANY, ANY, ANY, ANY)
WHOLE = st.integers(0, 20)
PROPER = st.tuples(WHOLE, WHOLE, st.integers(1, 20), st.integers(1, 20)).map(
    lambda edges: Box(edges[0], edges[1], edges[0] + edges[2], edges[1] + edges[3])
)


@pytest.mark.parametrize(
    ("first", "second", "expected_iou", "expected_giou"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0, 1.0),
        ((0.1, 0.2, 0.5, 0.6), (0.1, 0.2, 0.5, 0.6), 1.0, 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150, 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0, 0.0),
        ((0, 0, 10, 10), (20, 0, 30, 10), 0.0, -100 / 300),
        ((0, 0, 10, 10), (10, 10, 20, 20), 0.0, -200 / 400),
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04, 0.04),
        ((0, 0, 4, 4), (2, 2, 6, 6), 4 / 28, 4 / 28 - 8 / 36),
    ],
)
def test_overlaps_by_hand(
    first: tuple[float, ...], second: tuple[float, ...], expected_iou: float, expected_giou: float
) -> None:
    assert iou(Box(*first), Box(*second)) == pytest.approx(expected_iou, abs=1e-12)
    assert giou(Box(*first), Box(*second)) == pytest.approx(expected_giou, abs=1e-12)


@pytest.mark.parametrize(
    "edges",
    [
        (10, 10, 0, 0),
        (10, 0, 0, 10),
        (0, 0, 0, 10),
        (0, 0, 0, 0),
        (math.nan, 0, 1, 1),
        (0, 0, math.inf, 1),
        (-math.inf, -math.inf, math.inf, math.inf),
        (0, 0, 1e300, 1e300),
        (0, 0, 1e-200, 1e-200),
    ],
)
def test_a_box_without_an_area_overlaps_nothing(edges: tuple[float, ...]) -> None:
    box = Box(*edges)
    assert not box.valid
    for other in (box, Box(0, 0, 1, 1), Box(0, 0, 10, 10)):
        assert iou(box, other) == iou(other, box) == 0.0
        assert giou(box, other) == giou(other, box) == -1.0


@settings(deadline=None, max_examples=300)
@given(ANY_BOX, ANY_BOX)
def test_overlaps_are_bounded_and_symmetric(first: Box, second: Box) -> None:
    assert 0.0 <= iou(first, second) <= 1.0
    assert -1.0 <= giou(first, second) <= iou(first, second)
    assert iou(first, second) == iou(second, first)
    assert giou(first, second) == giou(second, first)
    if first.valid:
        assert iou(first, first) == giou(first, first) == 1.0


@settings(deadline=None)
@given(PROPER, PROPER)
def test_overlap_is_the_count_of_shared_cells(first: Box, second: Box) -> None:
    def cells(box: Box) -> set[tuple[int, int]]:
        return set(itertools.product(range(int(box.x1), int(box.x2)), range(int(box.y1), int(box.y2))))

    union = cells(first) | cells(second)
    hull = (max(x for x, _ in union) - min(x for x, _ in union) + 1) * (
        max(y for _, y in union) - min(y for _, y in union) + 1
    )
    shared = len(cells(first) & cells(second)) / len(union)
    assert iou(first, second) == pytest.approx(shared, abs=1e-12)
    assert giou(first, second) == pytest.approx(shared - (hull - len(union)) / hull, abs=1e-12)


@settings(deadline=None)
@given(PROPER, PROPER, st.sampled_from([0.001, 0.5, 3.0]), st.sampled_from([0.002, 1.0, 7.0]))
def test_stretching_an_axis_changes_nothing(first: Box, second: Box, wide: float, high: float) -> None:
    def stretched(box: Box) -> Box:
        return Box(box.x1 * wide, box.y1 * high, box.x2 * wide, box.y2 * high)

    assert iou(stretched(first), stretched(second)) == pytest.approx(iou(first, second), abs=1e-9)
    assert giou(stretched(first), stretched(second)) == pytest.approx(giou(first, second), abs=1e-9)


@settings(deadline=None)
@given(st.lists(PROPER, min_size=1, max_size=4), st.lists(PROPER, max_size=4))
def test_the_pairing_is_the_best_of_all(gold: list[Box], answers: list[Box]) -> None:
    short, long = sorted((gold, answers), key=len)
    totals = [
        sum(giou(one, other) for one, other in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    ]
    assert best_total(gold, answers, giou) == pytest.approx(max(totals), abs=1e-9)


def test_a_pairing_that_clears_the_bar_is_found_even_where_another_overlaps_more() -> None:
    gold = [Box(0, 0, 10, 10), Box(4, 0, 14, 10)]
    answers = [Box(2, 0, 12, 10), Box(-3, 0, 7, 10)]
    overlaps = [[round(iou(one, other), 2) for other in answers] for one in gold]
    assert overlaps == [[0.67, 0.54], [0.67, 0.18]]
    assert all_paired(gold, answers, 0.5)
    assert all_paired(gold, answers[::-1], 0.5)
    assert not all_paired(gold, answers, 0.6)


def test_two_answers_cannot_share_a_gold_box() -> None:
    gold = [Box(0, 0, 10, 10), Box(50, 50, 60, 60)]
    assert not all_paired(gold, [Box(0, 0, 10, 10), Box(0, 0, 10, 10)], 0.5)
    assert all_paired(gold, [Box(50, 50, 60, 60), Box(0, 0, 10, 10)], 0.5)
    assert not all_paired(gold, gold[:1], 0.5)
    assert not all_paired(gold, [*gold, gold[0]], 0.5)


def test_no_bar_is_so_low_that_a_box_elsewhere_clears_it() -> None:
    assert not all_paired([Box(0, 0, 1, 1)], [Box(5, 5, 6, 6)], 0.0)


def test_boxes_without_a_partner_cost() -> None:
    box = Box(0, 0, 10, 10)
    assert mean_overlap([box], [box, Box(90, 90, 91, 91)], iou, 0.0) == 0.5
    assert mean_overlap([box, Box(90, 90, 91, 91)], [box], iou, 0.0) == 0.5
    assert mean_overlap([box], [box, box], giou, -1.0) == 0.0
    assert mean_overlap([Box(0, 0, 10, 10, "cat")], [Box(0, 0, 10, 10, "dog")], giou, -1.0) == -1.0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("cat", "Cat", True), ("the red_ball", "red ball", True), ("cat", "", True), ("cat", "cats", False)],
)
def test_labels(first: str, second: str, same: bool) -> None:
    assert same_label(Box(0, 0, 1, 1, first), Box(0, 0, 1, 1, second)) is same
