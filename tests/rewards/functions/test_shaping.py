# ruff: noqa: RUF001 (Chinese punctuation)
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.functions.shaping import cosine_length, language_consistency, length, repetition, soft_overlong
from lcot_plugin.types import Outcome, Verdict

RIGHT, WRONG, NO_USE = (Verdict(outcome) for outcome in (Outcome.MATCHED, Outcome.MISMATCHED, Outcome.GOLD_UNPARSABLE))


def tokens(*lengths: int) -> list[list[int]]:
    return [[7] * count for count in lengths]


def lengths_of_one_prompt(ids: list[list[int]], verdicts: list[Verdict | None]) -> list[float | None]:
    count = len(ids)
    return length(ids, verdicts, source=["demo"] * count, records=[3] * count, prompts=["?"] * count)


def test_length_ranks_within_the_group_and_only_right_answers_gain() -> None:
    assert lengths_of_one_prompt(tokens(10, 20, 30, 10), [RIGHT, RIGHT, RIGHT, WRONG]) == [0.5, 0.0, -0.5, 0.0]
    assert lengths_of_one_prompt(tokens(10, 30), [WRONG, WRONG]) == [0.0, -0.5]
    assert lengths_of_one_prompt(tokens(10, 10), [RIGHT, WRONG]) == [0.0, 0.0]
    assert lengths_of_one_prompt(tokens(10, 30, 20), [NO_USE, None, RIGHT]) == [None, None, 0.0]


def test_length_keeps_prompts_apart() -> None:
    rewards = length(
        tokens(10, 20, 100, 400),
        [RIGHT] * 4,
        source=["a", "a", "a", "b"],
        records=[1, 1, 2, 2],
        prompts=["?"] * 4,
    )
    assert rewards == [0.5, -0.5, 0.0, 0.0]


def test_soft_overlong_is_equation_13() -> None:
    assert soft_overlong(tokens(0, 80, 90, 100, 101), max_length=100, cache=20) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert soft_overlong(tokens(79, 81, 90), max_length=100) == [0.0, -0.05, -0.5]
    assert soft_overlong(tokens(0, 1, 2), max_length=1) == [0.0, -1.0, -1.0]


@pytest.mark.parametrize("wrong", [{"max_length": 0}, {"max_length": 10, "cache": 11}, {"max_length": 10, "cache": 0}])
def test_soft_overlong_refuses(wrong: dict) -> None:
    with pytest.raises(RewardError, match="soft_overlong: "):
        soft_overlong([], **wrong)


def test_cosine_length_by_hand() -> None:
    ids, verdicts = tokens(0, 50, 100, 0, 50, 100, 50), [RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG, NO_USE]
    rewards = cosine_length(ids, verdicts, ["stopped"] * 7, max_length=100)
    assert rewards == pytest.approx([1.0, 0.75, 0.5, -1.0, -0.75, -0.5, None])
    quarter = cosine_length(tokens(25), [RIGHT], ["stopped"], max_length=100, min_correct=0.0, max_correct=2.0)
    assert quarter == pytest.approx([1 + math.sqrt(0.5)])


def test_cosine_length_beyond_the_end() -> None:
    """Past max_length the cosine would rise again."""
    verdicts, endings = [RIGHT, RIGHT, WRONG], ["stopped", "stopped", "truncated"]
    assert cosine_length(tokens(100, 200, 100), verdicts, endings, max_length=100) == [0.5, 0.5, -0.5]
    assert cosine_length(tokens(100, 200, 100), verdicts, endings, max_length=100, exceeded=-5.0) == [0.5, -5.0, -5.0]


@given(st.integers(0, 300), st.integers(0, 300))
def test_cosine_length_falls_for_right_answers_and_rises_for_wrong_ones(first: int, second: int) -> None:
    short, long = sorted((first, second))
    right = cosine_length(tokens(short, long), [RIGHT] * 2, ["stopped"] * 2, max_length=200)
    wrong = cosine_length(tokens(short, long), [WRONG] * 2, ["stopped"] * 2, max_length=200)
    assert 1.0 >= right[0] >= right[1] >= 0.5 > -0.5 >= wrong[1] >= wrong[0] >= -1.0


@pytest.mark.parametrize(
    "wrong", [{"max_length": 0}, {"max_length": 9, "min_correct": 2.0}, {"max_length": 9, "min_wrong": 0}]
)
def test_cosine_length_refuses(wrong: dict) -> None:
    with pytest.raises(RewardError, match="cosine_length: "):
        cosine_length([], [], [], **wrong)


def test_repetition_counts_ngrams() -> None:
    assert repetition(["a b c d e"]) == [0.0]
    assert repetition(["a b a b a b"]) == [pytest.approx(-0.5)]  # aba bab aba bab: 2 of 4 are different
    assert repetition(["A b a B a b"], max_penalty=-2.0) == [pytest.approx(-1.0)]
    assert repetition(["a a a"], ngram_size=1) == [pytest.approx(-2 / 3)]
    assert repetition(["", "a", "a b"]) == [0.0, 0.0, 0.0]


def test_repetition_splits_chinese_by_characters() -> None:
    assert repetition(["这是一个三角形的面积"]) == [0.0]
    assert repetition(["我想我想我想"]) == [pytest.approx(-0.5)]
    assert repetition(["等边abc三角形"], ngram_size=6) == [0.0]


@pytest.mark.parametrize("wrong", [{"ngram_size": 0}, {"max_penalty": 0.5}])
def test_repetition_refuses(wrong: dict) -> None:
    with pytest.raises(RewardError, match="repetition: "):
        repetition([], **wrong)


@pytest.mark.parametrize(
    ("question", "completion", "share"),
    [
        ("What is the area?", "<think>The area is five.</think> 答案是五", 1.0),
        ("What is the area?", "<think>面积是五</think> five", 0.0),
        ("What is it?", "<think>area 面积面积</think>", 0.5),
        ("三角形的面积是多少？", r"<think>设 AB = 5 cm, $\text{area} = 5$, \frac{x}{y}</think>", 1.0),
        ("三角形的面积是多少？", r"<think>所以 \(area = 5\)，\[ width \frac12 \] 得 `area`</think>", 1.0),
        ("三角形的面积是多少？", r"<think>\(area = 5\) 所以 area</think>", 1 / 3),
        ("三角形的面积是多少？", "<think>设边长为 AB，面积为五</think> the area", 1.0),
        ("三角形的面积是多少？", "<think>设 then 面积为</think>", 0.5),
        ("面積はいくらですか", "<think>三角形の面積を計算する</think>", 1.0),
        ("三角形的面积是多少？", "<think>これはひらがなです</think>", 0.0),
        ("넓이는 얼마입니까?", "<think>넓이는 오</think>", 1.0),
        ("Чему равна площадь?", "<think>The area</think>", 0.0),
        ("What is the area?", "no thought at all, in English", 1.0),
        ("What is the area?", "<think>never closed in English", 1.0),
        ("What is the area?", "<think>5 + 5 = 10</think>", None),
        ("$2 + 2$ = ?", "<think>The sum</think>", None),
        ("Où est l'élève?", "<think>L'élève est là-bas</think>", 1.0),
    ],
)
def test_language_consistency(question: str, completion: str, share: float | None) -> None:
    assert language_consistency([completion], [question]) == [share]


@pytest.mark.parametrize(
    ("piece", "consistency", "penalty"),
    [("$", None, 0.0), ("\\( ", None, -1.0), ("`", None, 0.0), ("<", None, 0.0), ("\\[ ", None, -1.0),
     ("word ", 1.0, -1.0), ("一", 0.0, -1.0), ("\\boxed", None, 0.0), ("<think>", None, 0.0)],
)  # fmt: skip
def test_a_megabyte(piece: str, consistency: float | None, penalty: float) -> None:
    """Work that is quadratic in the length would not end."""
    text = piece * (1_000_000 // len(piece))
    assert language_consistency([text], ["What?"]) == [consistency]
    assert repetition([text]) == [pytest.approx(penalty, abs=1e-4)]
