"""Intervals and tests equal values that were computed by other means."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import mpmath
import pytest

from lcot_plugin.report.intervals import (
    Interval,
    Z,
    mcnemar,
    p_text,
    paired_answers,
    paired_means,
    percents,
    share_of,
    unpaired,
    wilson,
)


def alone(right: int, num: int) -> list[tuple[int, int]]:
    """`num` problems with one answer each."""
    return [(1, 1)] * right + [(0, 1)] * (num - right)


def test_z_is_the_97_5_percent_point() -> None:
    assert pytest.approx(math.sqrt(2) * float(mpmath.erfinv(mpmath.mpf("0.95"))), abs=1e-15) == Z


@pytest.mark.parametrize(
    ("right", "num", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_equals_published_values(right: int, num: int, low: float, high: float) -> None:
    assert wilson(right / num, num) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("right", "num"), [(3, 10), (50, 100), (999, 1000)])
def test_wilson_limits_are_the_roots_of_the_score_test(right: int, num: int) -> None:
    share = right / num
    for limit in wilson(share, num):
        assert abs(share - limit) / math.sqrt(limit * (1 - limit) / num) == pytest.approx(Z, abs=1e-9)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0.0, 0) == Interval(0.0, 1.0)


def test_one_sample_a_problem_is_plain_wilson() -> None:
    share = share_of(alone(81, 263))
    assert share.interval == wilson(81 / 263, 263)
    assert not share.clustered


def test_samples_that_are_copies_count_once() -> None:
    # The docstring's example: 40 samples of 4 problems, alike within each.
    share = share_of([(10, 10), (10, 10), (0, 10), (0, 10)])
    assert share.effective == pytest.approx(3.0)
    assert share.interval == wilson(0.5, 3.0)
    assert share.interval.high - share.interval.low > 2 * (wilson(0.5, 40).high - wilson(0.5, 40).low)
    assert share.clustered


def test_independent_samples_count_nearly_all() -> None:
    draw = random.Random(0)
    share = share_of([(sum(draw.random() < 0.4 for _ in range(4)), 4) for _ in range(500)])
    assert 1700 < share.effective <= 2000


@pytest.mark.parametrize("right", [0, 4])
def test_shares_of_0_and_1_are_as_sure_as_the_number_of_problems(right: int) -> None:
    share = share_of([(right, 4)] * 25)
    assert share.effective == 25
    assert share.interval == wilson(right / 4, 25)


def test_the_clustered_interval_covers_95_percent() -> None:
    """Problems of pass rates 0.1, 0.5 and 0.9; the interval that forgets problems covers much less."""
    draw = random.Random(1)
    covered = forgetful = 0
    for _ in range(400):
        rights = [(sum(draw.random() < rate for _ in range(8)), 8) for rate in draw.choices((0.1, 0.5, 0.9), k=60)]
        share = share_of(rights)
        covered += share.interval.low <= 0.5 <= share.interval.high
        plain = wilson(share.value, share.num_samples)
        forgetful += plain.low <= 0.5 <= plain.high
    assert 0.92 <= covered / 400 <= 0.98
    assert forgetful / 400 < 0.75


def test_no_samples_have_no_share() -> None:
    with pytest.raises(ValueError, match="no samples"):
        share_of([(0, 0)])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (8, 1), (1, 8), (5, 5), (6, 0), (40, 22), (700, 650)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    num, least = gained + lost, min(gained, lost)
    tail = sum(Fraction(math.comb(num, k), 2**num) for k in range(least + 1))
    assert mcnemar(gained, lost) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(6, 0) == pytest.approx(2 / 64)


def test_unpaired_equals_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17:873, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    found = unpaired(share_of(alone(48, 80)), share_of(alone(56, 70)))
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=6e-5)
    found = unpaired(share_of(alone(3, 10)), share_of(alone(9, 10)))
    assert found.interval == pytest.approx((0.1705, 0.8090), abs=6e-5)
    assert not found.paired and found.p_value is None


def test_paired_answers() -> None:
    pairs = [(False, True)] * 8 + [(True, False)] + [(True, True)] * 11 + [(False, False)] * 20
    found = paired_answers(pairs)
    assert (found.gained, found.lost, found.num_problems) == (8, 1, 40)
    assert found.value == pytest.approx(7 / 40)
    assert found.p_value == pytest.approx(20 / 512)
    # By hand: (9 - 2) / 42 +- z sqrt((11 / 42 - (7 / 42)**2) / 42)
    half = Z * math.sqrt((11 / 42 - (7 / 42) ** 2) / 42)
    assert found.interval == pytest.approx((7 / 42 - half, 7 / 42 + half))


def test_pairing_is_surer_than_not_pairing() -> None:
    pairs = [(False, True)] * 10 + [(True, True)] * 100 + [(False, False)] * 90
    paired = paired_answers(pairs)
    loose = unpaired(share_of(alone(100, 200)), share_of(alone(110, 200)))
    assert paired.value == pytest.approx(loose.value)
    assert paired.interval.low > 0 > loose.interval.low


def test_paired_means() -> None:
    found = paired_means([(0.0, 0.5), (0.25, 0.5), (1.0, 1.0)])
    assert found.value == pytest.approx(0.25)
    # Over 0.5, 0.25, 0, 1 and -1: mean 0.75 / 5, mean of squares 2.3125 / 5.
    half = Z * math.sqrt((2.3125 / 5 - 0.15**2) / 5)
    assert found.interval == pytest.approx((0.15 - half, 0.15 + half))
    pairs = [(False, True)] * 8 + [(True, False)] + [(True, True)] * 11
    assert paired_means(pairs).interval == paired_answers(pairs).interval


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_problems_that_agree_are_not_sure(share: float) -> None:
    """A normal interval would have no width here, and call a difference of three problems certain."""
    found = paired_means([(0.0, share)] * 3)
    assert found.interval.low < 0 < found.interval.high and not found.beyond_chance
    assert paired_means([(0.0, share)] * 300).beyond_chance is (share > 0)


def test_beyond_chance_is_what_interval_and_test_both_say() -> None:
    same = [(True, True)] * 89
    found = paired_answers([*same, *[(False, True)] * 9, *[(True, False)] * 2])
    assert found.interval.low > 0 and found.p_value is not None and found.p_value > 0.05
    assert not found.beyond_chance
    assert paired_answers([*same, *[(False, True)] * 11]).beyond_chance
    assert paired_answers([*same, *[(True, False)] * 11]).beyond_chance


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="in common"):
        paired_answers([])
    with pytest.raises(ValueError, match="in common"):
        paired_means([])


def test_words() -> None:
    assert percents(Interval(0.2553, 0.3662)) == "[25.5, 36.6]"
    assert [p_text(p) for p in (0.0001, 0.0391, 0.52)] == ["p < 0.001", "p = 0.039", "p = 0.52"]
