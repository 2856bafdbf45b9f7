from __future__ import annotations

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.functions.formats import boxed_position, format_think_answer, format_think_boxed, tag_count


@pytest.mark.parametrize(
    ("completion", "boxed", "answer"),
    [
        (r"<think>a</think> so \boxed{5}", 1.0, 0.0),
        (r"<think>a \boxed{1}</think> \boxed{\frac{1}{2}}", 1.0, 0.0),
        ("<think>\na\n</think>\n<answer>5</answer>\n", 0.0, 1.0),
        (r"<think>a</think><answer>\boxed{5}</answer>", 1.0, 1.0),
        (r"<think>a \boxed{5}</think> five", 0.0, 0.0),
        (r"<think>a</think> \boxed{5", 0.0, 0.0),
        (r"<think>a</think> \boxed{ }", 0.0, 0.0),
        (r"a</think> \boxed{5}", 0.0, 0.0),
        (r"so <think>a</think> \boxed{5}", 0.0, 0.0),
        (r"<think>a</think><think>b</think> \boxed{5}", 0.0, 0.0),
        ("<think>a</think><answer></answer>", 0.0, 0.0),
        ("<think>a</think><answer>5</answer> or 6", 0.0, 0.0),
        ("<think>a</think><answer>5</answer><answer>6</answer>", 0.0, 0.0),
        ("<think>a <answer>5</answer></think>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_formats(completion: str, boxed: float, answer: float) -> None:
    assert format_think_boxed([completion]) == [boxed]
    assert format_think_answer([completion]) == [answer]


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        ("<think>a</think><answer>5</answer>", 1.0),
        ("<think>a</think><answer>5", 0.75),
        ("<think>a<think>b</think>\n5", 0.25),
        ("<answer>5</answer> <answer>6</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tags_that_stand_once_are_counted(completion: str, share: float) -> None:
    assert tag_count([completion]) == [share]


def test_the_tags_may_be_others() -> None:
    text = "<think>a</think> 5"
    assert tag_count([text, text], tags="think") == [1.0, 1.0]
    assert tag_count([text], tags=("<think>", "summary", "answer")) == [pytest.approx(2 / 6)]
    for wrong in ((), "", "</>"):
        with pytest.raises(RewardError, match="names no tags"):
            tag_count([text], tags=wrong)


def test_the_later_the_only_box_the_better() -> None:
    at_the_end = "x" * 90 + r"\boxed{5}"
    early = r"\boxed{5}" + "x" * 91
    assert boxed_position([at_the_end, early, "none", "", r"\boxed"]) == [96 / 99, 6 / 100, 0.0, 0.0, 1.0]
    assert boxed_position([at_the_end + "\n" * 50]) == [96 / 99]
    assert boxed_position([early + r"\boxed{5}"]) < boxed_position([early])
