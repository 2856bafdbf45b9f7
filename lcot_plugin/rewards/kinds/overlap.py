"""Two boxes, or two sets of boxes, in, how much they overlap out; the kind `boxes`, rewards `iou` and `giou` use it.

    IoU(a, b)  = |a and b| / |a or b|                          0 apart, 1 identical
    GIoU(a, b) = IoU - (|hull| - |a or b|) / |hull|            -1 far apart, 1 identical

with the hull the smallest box around both (Rezatofighi et al. 2019, Generalized Intersection over Union, eq. 1 and
algorithm 1). Both are the same in pixels and in fractions of the picture: stretching an axis changes no ratio of areas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

MAX_COORDINATE = 1e6
"""No picture is wider; beyond it, areas are no longer exact, and at last infinite."""
MIN_SIDE = 1e-6
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")


@dataclass(frozen=True)
class Box:
    """A rectangle, y downwards, in any one scale."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    """What is in it, empty where that was not said."""

    @cached_property
    def valid(self) -> bool:
        """Whether it has an area: finite, and the first corner is the upper left one."""
        finite = all(abs(edge) <= MAX_COORDINATE for edge in (self.x1, self.y1, self.x2, self.y2))  # NaN is not
        return finite and self.x2 - self.x1 >= MIN_SIDE and self.y2 - self.y1 >= MIN_SIDE

    @cached_property
    def area(self) -> float:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0.0 to 1.0; 0.0 where a box is not valid."""
    if not (first.valid and second.valid):
        return 0.0
    shared = _shared_area(first, second)
    return shared / (first.area + second.area - shared)


def giou(first: Box, second: Box) -> float:
    """Generalised intersection over union, -1.0 to 1.0, at most the IoU; -1.0 where a box is not valid."""
    if not (first.valid and second.valid):
        return -1.0
    shared = _shared_area(first, second)
    union = first.area + second.area - shared
    width = max(first.x2, second.x2) - min(first.x1, second.x1)
    hull = width * (max(first.y2, second.y2) - min(first.y1, second.y1))
    # Rounding may leave the hull of two boxes side by side a little smaller than their union.
    return shared / union - max(0.0, hull - union) / hull


def _shared_area(first: Box, second: Box) -> float:
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    return max(0.0, width) * max(0.0, height)


def same_label(first: Box, second: Box) -> bool:
    """Whether nothing speaks against it: equal but for case, spaces and a leading article, or one of them not said."""
    if not first.label or not second.label:
        return True
    labels = {_ARTICLE.sub("", " ".join(box.label.casefold().replace("_", " ").split())) for box in (first, second)}
    return len(labels) == 1


def all_paired(gold: Sequence[Box], answers: Sequence[Box], min_iou: float) -> bool:
    """Whether every gold box has an answer of its own, and every answer a gold box, with `min_iou` or more and the
    same label."""
    if len(gold) != len(answers):
        return False

    def value(one: Box, other: Box) -> float:
        overlap = iou(one, other)
        # One pair more outweighs any gain of overlap in the others.
        return len(gold) + overlap if overlap > 0 and overlap >= min_iou and same_label(one, other) else 0.0

    return best_total(gold, answers, value) >= len(gold) ** 2


def mean_overlap(
    gold: Sequence[Box], answers: Sequence[Box], overlap: Callable[[Box, Box], float], least: float
) -> float:
    """The mean of `overlap` over the best one-to-one pairing; boxes without a partner, and pairs whose labels differ,
    count `least`: a box too many costs as much as one too few."""

    def value(one: Box, other: Box) -> float:
        return overlap(one, other) if same_label(one, other) else least

    alone = abs(len(gold) - len(answers))
    return (best_total(gold, answers, value) + least * alone) / max(len(gold), len(answers))


def best_total(gold: Sequence[Box], answers: Sequence[Box], value: Callable[[Box, Box], float]) -> float:
    """The greatest sum of `value` over one-to-one pairs of as many boxes as the shorter side has."""
    values = [[value(one, other) for other in answers] for one in gold]
    if not answers or not gold:
        return 0.0
    if min(len(gold), len(answers)) == 1:
        return max(max(row) for row in values)
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # heavy, and rarely needed

    rows, columns = linear_sum_assignment(values, maximize=True)
    return sum(values[row][column] for row, column in zip(rows, columns, strict=True))
