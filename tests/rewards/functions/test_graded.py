"""Graded rewards pay a near miss more than a wild one, and abstain where the gold answer is of another kind."""

from __future__ import annotations

import math

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.functions import graded
from lcot_plugin.rewards.functions.registry import RewardFunction
from lcot_plugin.rewards.kinds import texts
from lcot_plugin.types import MatchSettings, Outcome, Verdict

BOXES = '[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [20, 0, 30, 10]}]'


def reward(
    function: RewardFunction,
    gold: str,
    stated: str | None,
    answer_type: str = "auto",
    *,
    matched: bool = False,
    settings: MatchSettings = MatchSettings(),  # noqa: B008 (immutable)
    **parameters: float,
) -> float | None:
    outcome = Outcome.MATCHED if matched else Outcome.UNPARSABLE if stated is None else Outcome.MISMATCHED
    rewards = function(
        completions=[stated],
        gold=[gold],
        answer_type=[answer_type],
        verdicts=[Verdict(outcome, stated, gold)],
        settings=[settings],
        **parameters,
    )
    assert len(rewards) == 1
    return rewards[0]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (graded.iou, "boxes"),
        (graded.giou, "boxes"),
        (graded.anls, "text"),
        (graded.choice, "choice"),
        (graded.gaussian_number, "number"),
    ],
)
def test_each_judges_its_own_kind_only(function: RewardFunction, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "anls", lambda prediction, golds, threshold: 0.5, raising=False)
    golds = {"boxes": BOXES, "text": "red ball", "choice": "B", "number": "5 cm", "": r"2\sqrt{3}"}
    rewards = function(
        completions=["none"] * 6,
        gold=[*golds.values(), ""],
        answer_type=["auto"] * 6,
        verdicts=[Verdict(Outcome.MISMATCHED, "none", gold) for gold in golds.values()] + [None],
        settings=[MatchSettings()] * 6,
        prompts=["?"] * 6,
    )
    assert [value is not None for value in rewards] == [name == kind for name in golds] + [False]


def test_a_declared_type_counts() -> None:
    assert reward(graded.iou, "[0, 0, 10, 10]", "[0, 0, 10, 10]") is None
    assert reward(graded.iou, "[0, 0, 10, 10]", "[0, 0, 10, 10]", "bbox") == 1.0
    assert reward(graded.gaussian_number, "5", "5", "text") is None
    assert reward(graded.iou, "[10, 10, 0, 0]", "[10, 10, 0, 0]", "boxes") is None


@pytest.mark.parametrize(
    ("stated", "expected_iou", "expected_giou"),
    [
        (BOXES, 1.0, 1.0),
        ("[[20, 0, 30, 10], [0, 0, 10, 10]]", 1.0, 1.0),
        ("[[0, 0, 10, 10]]", 0.5, 0.0),
        ("[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]", 2 / 3, 1 / 3),
        ("[[0, 0, 10, 10], [0, 0, 10, 10]]", 0.5, (1 - 1 / 3) / 2),
        ("[[5, 0, 15, 10], [20, 0, 30, 10]]", (1 / 3 + 1) / 2, (1 / 3 + 1) / 2),
        ("[[10, 10, 0, 0], [20, 0, 30, 10]]", 0.5, 0.0),
        ("[[0, 0, 10, 1e400], [20, 0, 30, 10]]", 0.5, 0.0),
        ("[0, 0, 10]", 0.0, -1.0),
        ("[0, 0, 10, 10] or [20, 0, 30, 10]", 0.0, -1.0),
        ("", 0.0, -1.0),
        (None, 0.0, -1.0),
        ("[[0.1, 0, 0.2, 0.1], [0.5, 0, 0.6, 0.1]]", 0.0, -1.0),
        ("[" * 4000, 0.0, -1.0),
    ],
)
def test_boxes(stated: str | None, expected_iou: float, expected_giou: float) -> None:
    assert reward(graded.iou, BOXES, stated) == pytest.approx(expected_iou)
    assert reward(graded.giou, BOXES, stated) == pytest.approx(expected_giou)


def test_the_nearer_of_two_wrong_boxes_has_the_greater_giou() -> None:
    near, far = (reward(graded.giou, "[0, 0, 10, 10]", text, "boxes") for text in ("[11,0,21,10]", "[90,0,99,10]"))
    assert near is not None and far is not None
    assert -1.0 < far < near < 0.0
    assert reward(graded.iou, "[0, 0, 10, 10]", "[11,0,21,10]", "boxes") == 0.0


def test_scales_are_converted_with_the_size_of_the_picture() -> None:
    picture = MatchSettings(image_size=(200, 100))
    assert reward(graded.iou, "[20, 10, 100, 50]", "[0.1, 0.1, 0.5, 0.5]", "boxes", settings=picture) == pytest.approx(
        1
    )
    assert reward(graded.iou, "[20, 10, 100, 50]", "[0.1, 0.1, 0.5, 0.5]", "boxes") == 0.0


@pytest.mark.parametrize(
    ("gold", "stated", "errors"),
    [
        ("100", "110", 0.1),
        ("100", "x = 90", 0.1),
        ("100", "The area is 95", 0.05),
        ("-2", "-2.2", 0.1),
        ("5 cm", "5.5 cm", 0.1),
        ("5 cm", "55 mm", 0.1),
        ("5 cm", "5.5", 0.1),
        ("100 °C", "212 °F", 0.0),
        ("212 °F", "100 °C", 0.0),
        ("100 °C", "230 °F", 0.1),
        ("100 °C", "180 °F", 8 / 45),
        ("100 C", "110 °C", 0.1),
        ("100 °C", "383.15 K", 0.1),
        ("100 °C", "110 degrees", 0.1),
        ("50%", "0.55", 0.1),
        ("50%", "55", 0.1),
        ("0.5", "55%", 0.1),
        ("0", "0.05", 0.05),
        ("x = 10", "y = 10", None),
        ("5 cm", "5 kg", None),
        ("5 cm", "5%", None),
        ("5", "5 or 6", None),
        ("5", "five hundred cats", None),
        ("5", "1e999", None),
        ("5", "-5", None),
        ("5", "9" * 3000, None),
        ("5", "", None),
        ("5", None, None),
    ],
)
def test_gaussian(gold: str, stated: str | None, errors: float | None) -> None:
    expected = 0.0 if errors is None else math.exp(-((errors / 0.1) ** 2) / 2)
    assert reward(graded.gaussian_number, gold, stated) == pytest.approx(expected, abs=1e-12)


def test_gaussian_parameters() -> None:
    assert reward(graded.gaussian_number, "100", "101", relative=False, sigma=1.0) == pytest.approx(math.exp(-0.5))
    assert reward(graded.gaussian_number, "100", "101", sigma=0.01) == pytest.approx(math.exp(-0.5))
    assert reward(graded.gaussian_number, "2", r"\sqrt{4}", matched=True) == 1.0
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RewardError, match="sigma"):
            reward(graded.gaussian_number, "100", "101", sigma=sigma)


def test_choice_follows_the_verdict() -> None:
    assert reward(graded.choice, "B", "(B)", matched=True) == 1.0
    assert reward(graded.choice, "B", "C") == 0.0
    assert reward(graded.choice, "B", None) == 0.0
    assert reward(graded.choice, "5", "5", matched=True) is None


def test_anls_is_asked_with_every_right_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str], float]] = []

    def anls(prediction: str, golds: list[str], threshold: float = 0.5) -> float:
        asked.append((prediction, golds, threshold))
        return 0.75

    monkeypatch.setattr(texts, "anls", anls, raising=False)
    settings = MatchSettings(aliases=("NYC",))
    assert reward(graded.anls, "New York", "New Yorck", settings=settings) == 0.75
    assert reward(graded.anls, "New York", "**New Yorck**", settings=settings, threshold=0.8) == 0.75
    assert reward(graded.anls, "New York", None) == 0.0
    assert asked == [("New Yorck", ["New York", "NYC"], 0.5), ("New Yorck", ["New York", "NYC"], 0.8)]
    with pytest.raises(RewardError, match="threshold"):
        reward(graded.anls, "New York", "x", threshold=2.0)
