"""How sure a share is, and a difference of two: counts in, 95% intervals and p-values out.

    share of n independent verdicts             Wilson's score interval
    share of several samples of each problem    the same at the effective number of samples, by problem
    two shares of other problems                Newcombe's hybrid of two score intervals
    two shares of the same problems             Bonett and Price's adjusted interval, McNemar's exact test
    two means of samples of the same problems   Bonett and Price's, carried over to differences between -1 and 1

A plain p +- 2 standard errors is not used: near 0 and 1, where small models are, it has no width or leaves [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

CONFIDENCE = 0.95
Z = 1.959963984540054
"""Of the normal distribution: 95% lie within so many standard deviations."""


class Interval(NamedTuple):
    """95% confidence; in the unit of what it is about."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A share of 1 with what stands behind it."""

    value: float
    interval: Interval
    num_samples: int
    num_problems: int
    effective: float
    """Independent samples that would be as sure."""

    @property
    def clustered(self) -> bool:
        """Whether there are several samples of a problem, so that the interval is taken over problems."""
        return self.num_samples > self.num_problems


@dataclass(frozen=True)
class Difference:
    """After minus before, in shares of 1."""

    value: float
    interval: Interval
    p_value: float | None
    """Two-sided; None where only an interval is given."""
    num_problems: int
    """That both were asked, where paired; else the smaller number."""
    paired: bool
    gained: int = 0
    """Problems that were wrong before and are right after; of pairs with one answer each."""
    lost: int = 0
    method: str = ""

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out 0 and, where there is a test, that agrees: of few pairs they may not."""
        outside = self.interval.low > 0 or self.interval.high < 0
        return outside and (self.p_value is None or self.p_value < 1 - CONFIDENCE)


def wilson(share: float, num: float) -> Interval:
    """Wilson's score interval of `share` over `num` samples, which need not be whole. [0, 1] for none."""
    if num <= 0:
        return Interval(0.0, 1.0)
    centre = (share + Z * Z / (2 * num)) / (1 + Z * Z / num)
    half = Z / (1 + Z * Z / num) * math.sqrt(share * (1 - share) / num + Z * Z / (4 * num * num))
    # Rounding may leave 1e-17 where the limit is exactly 0 or 1.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if share == 1 else min(1.0, centre + half))


def share_of(rights: Sequence[tuple[int, int]]) -> Share:
    """The share of right samples. rights: per problem, (right, all); raises ValueError where there are no samples.

    With n samples of m problems, r_i right of n_i, and p = sum r / n, the variance of p over problems is
    V = m / (m - 1) * sum (r_i - p n_i)^2 / n^2, and the effective number of samples is p (1 - p) / V, between 1 and n.
    Where V cannot tell (p is 0 or 1, or a single problem) it is the number of problems. Example: 4 problems with 10
    samples each, all alike within a problem, 2 right: V = 4/3 * 4 * 25 / 1600 = 1/12, effective 0.25 * 12 = 3.
    """
    num = sum(count for _, count in rights)
    if not num:
        raise ValueError("There are no samples to take a share of.")
    asked = [(right, count) for right, count in rights if count]
    share = sum(right for right, _ in asked) / num
    effective = float(len(asked))
    if num > len(asked) and len(asked) > 1 and 0 < share < 1:
        squares = sum((right - share * count) ** 2 for right, count in asked)
        variance = len(asked) / (len(asked) - 1) * squares / num**2
        effective = min(float(num), share * (1 - share) / variance) if variance else float(num)
        effective = max(1.0, effective)
    return Share(share, wilson(share, effective), num, len(asked), effective)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value that as many problems are gained as lost: 2 P(X <= min) with X ~ Bin(gained + lost,
    1/2), at most 1. Example: 8 gained, 1 lost: 2 * (1 + 9) / 512 = 0.039."""
    num, least = gained + lost, min(gained, lost)
    if num == 0:
        return 1.0
    logs = [
        math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) - num * math.log(2)
        for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in logs))


def unpaired(before: Share, after: Share) -> Difference:
    """The difference of two shares of problems that are not the same."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.interval.low, before.interval.high - before.value)
    high = value + math.hypot(after.interval.high - after.value, before.value - before.interval.low)
    num = min(before.num_problems, after.num_problems)
    interval = Interval(max(-1.0, low), min(1.0, high))
    return Difference(value, interval, None, num, paired=False, method="unpaired, Newcombe's hybrid score interval")


def paired_answers(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """The difference over the same problems, one answer each. pairs: (right before, right after) per problem."""
    num = len(pairs)
    if not num:
        raise ValueError("There are no problems in common to compare over.")
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    return Difference(
        (gained - lost) / num,
        _of_pairs([float(after) - float(before) for before, after in pairs]),
        mcnemar(gained, lost),
        num,
        paired=True,
        gained=gained,
        lost=lost,
        method="paired by problem, Bonett and Price's interval, McNemar's exact test",
    )


def paired_means(pairs: Sequence[tuple[float, float]]) -> Difference:
    """The same where each problem has several samples. pairs: (share right before, after) per problem.

    Unlike a normal interval this one has a width where all problems differ by the same, as where none was ever right: a
    few problems that agree do not make a difference sure.
    """
    num = len(pairs)
    if not num:
        raise ValueError("There are no problems in common to compare over.")
    differences = [after - before for before, after in pairs]
    method = "paired by problem, Bonett and Price's interval of the problems' differences"
    return Difference(math.fsum(differences) / num, _of_pairs(differences), None, num, paired=True, method=method)


def _of_pairs(differences: Sequence[float]) -> Interval:
    """Bonett and Price's adjusted interval of the mean of differences in [-1, 1]: that of a mean, over the pairs and
    two more, one that rose by 1 and one that fell by 1.

    Where every difference is -1, 0 or 1 these are their formula: 8 gained and 1 lost of 20 make (9 - 2) / 22 +- 1.96 *
    sqrt((11/22 - (7/22)^2) / 22) = [0.054, 0.582].
    """
    num = len(differences) + 2
    mean = math.fsum(differences) / num
    squares = (math.fsum(d * d for d in differences) + 2) / num
    half = Z * math.sqrt((squares - mean * mean) / num)
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def percent(share: float, digits: int = 1) -> str:
    """`41.2%`, from a share of 1."""
    return f"{100 * share:.{digits}f}%"


def percents(interval: Interval, digits: int = 1) -> str:
    """`[38.0, 44.5]`, in percent, from shares of 1."""
    return f"[{100 * interval.low:.{digits}f}, {100 * interval.high:.{digits}f}]"


def p_text(p_value: float) -> str:
    """`p = 0.039`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"
