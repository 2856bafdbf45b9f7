"""Verdicts and gold answers in, rewards that tell a near miss from a wild one out.

Each abstains (None) where the gold answer is not of its kind, so that records of several kinds may stand in one data
set; an answer that cannot be read is given the least, never None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.answers import read_gold
from lcot_plugin.rewards.kinds import overlap
from lcot_plugin.rewards.kinds.algebra import split_assignment
from lcot_plugin.rewards.kinds.base import Gold
from lcot_plugin.rewards.kinds.boxes import in_one_scale, read_boxes
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.overlap import Box
from lcot_plugin.rewards.kinds.quantities import Quantity, comparable_readings, read_quantity
from lcot_plugin.rewards.kinds.units import convert
from lcot_plugin.types import MatchSettings, Verdict

Case = tuple[Gold, Verdict, MatchSettings]


def iou(
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
    **kwargs: Any,
) -> list[float | None]:
    """Mean intersection over union of the best one-to-one pairing, 0.0 to 1.0; of gold answers that are boxes.

    The sum over the pairs is divided by the greater number of boxes: one too many costs as much as one too few. Boxes
    whose labels differ are no pair.
    """
    return [_mean(case, overlap.iou, 0.0) for case in _cases("boxes", gold, answer_type, verdicts, settings)]


def giou(
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
    **kwargs: Any,
) -> list[float | None]:
    """As `iou`, with the generalised IoU (Rezatofighi et al. 2019), -1.0 to 1.0, which tells near from far where boxes
    do not overlap. A box without a partner, and an answer that states no boxes, counts -1.0."""
    return [_mean(case, overlap.giou, -1.0) for case in _cases("boxes", gold, answer_type, verdicts, settings)]


def anls(
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
    *,
    threshold: float = 0.5,
    **kwargs: Any,
) -> list[float | None]:
    """Normalised Levenshtein similarity to the nearest of the gold answer and its aliases, 0.0 to 1.0; of texts.

    It is 0.0 where the normalised distance is `threshold` or more. Under `answer_type: auto` a number is no text: data
    sets of document questions say `answer_type: text`. Biten et al. 2019 (arXiv 1905.13648), eq. 1.
    """
    from lcot_plugin.rewards.kinds import texts

    if not 0.0 <= threshold <= 1.0:
        raise RewardError(f"anls: threshold={threshold} must lie between 0 and 1")
    rewards: list[float | None] = []
    for case in _cases("text", gold, answer_type, verdicts, settings):
        if case is None:
            rewards.append(None)
            continue
        read, verdict, setting = case
        golds = [read.text, *setting.aliases]
        stated = verdict.extracted
        rewards.append(0.0 if stated is None else texts.anls(undress(stated), golds, threshold=threshold))
    return rewards


def choice(
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
    **kwargs: Any,
) -> list[float | None]:
    """1.0 for the right option in any dress, else 0.0; of multiple-choice questions only, unlike `accuracy`."""
    cases = _cases("choice", gold, answer_type, verdicts, settings)
    return [None if case is None else float(case[1].matched) for case in cases]


def gaussian_number(
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
    *,
    sigma: float = 0.1,
    relative: bool = True,
    **kwargs: Any,
) -> list[float | None]:
    """exp(-(error / sigma)^2 / 2), 0.0 to 1.0; of gold answers that are numbers.

    relative: the error is |answer - gold| / |gold|, at sigma 0.1 0.61 for 10% off and 0.14 for 20%; a gold answer of 0
    has no relative error, and the absolute one is taken. `relative=False, sigma=1.0` is the form in the training code
    of arXiv 2509.03321. A right answer is given 1.0, one in a unit of another dimension 0.0.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise RewardError(f"gaussian_number: sigma={sigma} must be above 0")
    rewards: list[float | None] = []
    for case in _cases("number", gold, answer_type, verdicts, settings):
        if case is None:
            rewards.append(None)
            continue
        read, verdict, _ = case
        if verdict.matched:
            rewards.append(1.0)
            continue
        error = _error(read, verdict.extracted)
        if error is not None and relative and (size := abs(read.value.quantity.value)):
            error /= size
        # Beyond 40 sigma it is 0.0 in floats; a larger error may be no float at all.
        near = error is not None and error <= 40 * Fraction(sigma)
        rewards.append(math.exp(-((float(error) / sigma) ** 2) / 2) if error is not None and near else 0.0)
    return rewards


def _cases(
    kind: str,
    gold: list[str],
    answer_type: list[str],
    verdicts: list[Verdict | None],
    settings: list[MatchSettings],
) -> Iterator[Case | None]:
    """Each gold answer of this kind with its verdict and settings; None for one of another kind or none."""
    for text, named, verdict, setting in zip(gold, answer_type, verdicts, settings, strict=True):
        read = read_gold(text, named, setting) if verdict is not None else None
        yield (read, verdict, setting) if read is not None and verdict is not None and read.kind == kind else None


def _mean(case: Case | None, measure: Callable[[Box, Box], float], least: float) -> float | None:
    if case is None:
        return None
    read, verdict, setting = case
    answer = read_boxes(verdict.extracted or "")
    sides = None if answer is None else in_one_scale(read.value, answer, setting.image_size)
    return least if sides is None else overlap.mean_overlap(*sides, measure, least)


def _error(read: Gold, stated: str | None) -> Fraction | None:
    """How far off `stated` is, in the gold answer's unit; None where it states no comparable number."""
    name, body = split_assignment(inline(undress(stated or "")))
    gold: Quantity = read.value.quantity
    answer = read_quantity(body, glued_letter=gold.unit is not None)
    if answer is None and not name:  # the last line of a completion: "The area is 5."
        answer = read_quantity(body.rpartition(" is ")[2])
    if answer is None or (name and read.value.name and name != read.value.name):
        return None
    if gold.unit and answer.unit:
        pairs = comparable_readings(gold.unit, answer.unit)
        return min((abs(convert(answer.value, other, one) - gold.value) for one, other in pairs), default=None)
    if (gold.percent and answer.unit) or (answer.percent and gold.unit):
        return None
    values = [answer.value]
    if gold.percent != answer.percent:  # 0.5 and 50 may both mean 50%
        values.append(answer.value * 100 if gold.percent else answer.value / 100)
    return min(abs(value - gold.value) for value in values)
