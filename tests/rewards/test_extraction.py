from __future__ import annotations

import pytest

from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found, Place, extract_answer


@pytest.mark.parametrize(
    ("completion", "answer", "place"),
    [
        ("<answer>5</answer>", "5", Place.TAG),
        ("<answer>\n5\n</answer>", "5", Place.TAG),
        ("<answer>1</answer> <answer>2</answer>", "2", Place.TAG),
        (r"\boxed{1} <answer>so \boxed{2}</answer> \boxed{3}", "2", Place.TAG),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}", Place.BOXED),
        (r"\boxed{1} and \boxed{2}", "2", Place.BOXED),
        (r"\boxed{\text{B}\boxed{2}}", r"\text{B}\boxed{2}", Place.BOXED),
        (r"\boxed{1}, then \boxed{\frac{1}{", "1", Place.BOXED),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", Place.BOXED),
        ("The answer is 5. I hope this helps.", "5", Place.CUE),
        ("The answer is 3.14.", "3.14", Place.CUE),
        ("The answer is 1. No: the answer is 2", "2", Place.CUE),
        ("**Final answer:** 7\nBye", "7", Place.CUE),
        ("Answer:\n\n42", "42", Place.CUE),
        ("The answer is B. Paris", "B. Paris", Place.CUE),
        ("答案是5厘米。", "5厘米", Place.CUE),
        ("first\n7 cm\n\n", "7 cm", Place.LAST_LINE),
        (r"<think>\boxed{1}</think>2", "2", Place.LAST_LINE),
        (r"\boxed{1}, from a thought opened in the prompt</think>\boxed{2}", "2", Place.BOXED),
    ],
)
def test_places(completion: str, answer: str, place: Place) -> None:
    assert extract_answer(completion) == Found(answer, place)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        r"<think>the answer is \boxed{5}",
        r"<think>\boxed{5}</think>",
        r"<think>a</think><think>\boxed{5}",
        "<thinking>5",
        r"<|channel>thought\boxed{5}",
        "so <answer>12",
        "1" * (MAX_ANSWER_CHARS + 1),
    ],
)
def test_no_answer(completion: str) -> None:
    assert extract_answer(completion) is None


@pytest.mark.parametrize(
    "completion", [r"<|channel>thought\boxed{1}<channel|>\boxed{2}", r"◁think▷\boxed{1}◁/think▷\boxed{2}"]
)
def test_thoughts_of_other_families(completion: str) -> None:
    assert extract_answer(completion) == Found("2", Place.BOXED)
