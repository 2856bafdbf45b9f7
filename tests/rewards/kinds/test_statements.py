# ruff: noqa: RUF001 (Chinese punctuation)
"""Sentences with one number in them: which state it, and which take it back."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.statements import calculate
from lcot_plugin.types import Outcome

STATED = [
    ("12", "Die Antwort ist 12."),
    ("12", "La réponse est 12."),
    ("12", "Respuesta: 12 manzanas"),
    ("12", "答えは12です"),
    ("12", "정답은 12입니다"),
    ("12", "Tom bought 12 apples"),
    ("12", "There are a total of 12 apples"),
    ("12", "It has a length of about 12"),
    ("12", "The list has a mean of 12"),
    ("12", "The box is made up of 12 parts"),
    ("3", "Jane started growing Sphere 3 hours ago."),
    ("5 Ω", "The resistance is 5 Ω."),
    ("2024", "in the year 2024"),
    ("13/28", "计划的比例为13/28"),
    ("2/5", r"每份应该是 (\frac{2}{5}) 吨"),
    ("42", "42 because geometry proves it"),
    ("2", "2, as there are two stores where items sold less than 5 units."),
    ("19", "The maximum number of points that could be in the domain is 19"),
    ("70", "100 - 30 = 70"),
    ("70", "30 $. Le coût final est donc de 100 * 0.3 = 30. Il reste 100 - 30 = 70"),
    ("4000", "地块面积 = 72000 / 18 = 4000千克"),
    ("3.33", "10/3 = 3.33"),
    ("30 min", "1/2 h = 30 min"),
    ("3", "3 = x"),
]
NOT_STATED = [
    ("12", "Die Antwort ist nicht 12."),
    ("12", "La réponse n'est pas 12."),
    ("12", "La risposta non è 12."),
    ("12", "A resposta não é 12."),
    ("12", "答えは12ではありません。"),
    ("12", "정답은 12가 아닙니다."),
    ("12", "не 12"),
    ("12", "12 неверно"),
    ("12", "12 ist falsch"),
    ("12", "Jawaban: bukan 12"),
    ("12", "Tulos ei ole 12"),
    ("12", "Cevap 12 değil"),
    ("12", "Η απάντηση δεν είναι 12"),
    ("12", "Đáp án không phải là 12"),
    ("12", "13 = 12"),
    ("12", "5 + 8 = 12"),
    ("12", "11 = 12"),
    ("3", "22/7 = 3"),
    ("2024", "before the year 2024"),
    ("13", "计划的比例为13/28"),
    ("28", "计划的比例为13/28"),
    ("2", r"每份应该是 (\frac{2}{5}) 吨"),
    ("2/5", r"每份不应该是 (\frac{2}{5}) 吨"),
    ("42", "42 because it is wrong"),
    ("42", "42 because I guess, or 43"),
    ("6", "The slope is 5 and the intercept is 6."),
    ("6", "girls: 5, boys is 6"),
    ("5", "the number that can be excluded is 5"),
    ("5", "I wonder whether the answer is 5"),
    ("5", "I doubt the answer is 5"),
    ("5", "x = 3. Check: 3 + 2 = 5"),
    ("70", "Le coût n'est pas de 100 - 30 = 70"),
    ("4000", "地块面积 = 72000 / 17 = 4000千克"),
    ("7", "3 + 4 = 7. So 7 * 2 = 14"),
    ("3", "x不等于3"),
    ("3", "The answer is the square of 3."),
    ("3", "The answer is the reciprocal of the 3"),
    ("3", "It is a multiple of 3."),
    ("3", "It is the mean of 3"),
]


@pytest.mark.parametrize(("gold", "sentence"), STATED)
def test_sentences_that_state_their_number(gold: str, sentence: str) -> None:
    wanted = read_gold(gold)
    assert wanted is not None
    assert judge(wanted, Found(sentence, Place.TAG)) is Outcome.MATCHED


@pytest.mark.parametrize("place", [Place.TAG, Place.LAST_LINE])
@pytest.mark.parametrize(("gold", "sentence"), NOT_STATED)
def test_sentences_that_do_not(gold: str, sentence: str, place: Place) -> None:
    wanted = read_gold(gold)
    assert wanted is not None
    assert judge(wanted, Found(sentence, place)) is not Outcome.MATCHED


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("100 - 30", Fraction(70)),
        ("72000 / 18", Fraction(4000)),
        ("2 + 3 × 4 - 6 ÷ 4", Fraction(25, 2)),
        ("5 - 2 * 3", Fraction(-1)),
        ("7", Fraction(7)),
        ("1 / 0", None),
        ("2 + x", None),
        ("2 +", None),
        ("", None),
        ("2 ** 3", None),
    ],
)
def test_calculations(written: str, value: Fraction | None) -> None:
    assert calculate(written) == value
