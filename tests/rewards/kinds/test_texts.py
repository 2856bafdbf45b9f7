# ruff: noqa: RUF001 (Chinese punctuation)
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.answers import check_answer_type, judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.texts import anls, levenshtein, normalise_text, same_text
from lcot_plugin.types import MatchSettings, Outcome


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("red ball", 'The "Red  Ball."'),
        ("red", r"**\text{red}**"),
        ("red", "It is red."),
        ("red", "It\N{RIGHT SINGLE QUOTATION MARK}s red"),
        ("cats", "They are cats"),
        ("dog on mat", "a dog on the mat"),
        ("U.S.A.", "USA"),
        ("J. K. Rowling", "J.K. Rowling"),
        ("St. Louis", "St Louis"),
        ("T-shirt", "t shirt"),
        ("Smith, John", "Smith John"),
        ("R & D", "r and d"),
        ("(red)", "red"),
        ("Route 66", '"Route 66"'),
        ("2 dogs", "two dogs"),
        ("21 dogs", "twenty-one dogs"),
        ("红色", "是红色。"),
        ("红色", "红 色"),
        ("ｃａｆé", "café"),
        ("12:30 train", "the 12:30 train"),
    ],
)
def test_same_texts(gold: str, answer: str) -> None:
    assert same_text(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("red", "blue"),
        ("red", "not red"),
        ("red", "It is not red."),
        ("red", "redder"),
        ("red", "red or blue"),
        ("dog", "dogs"),
        ("vitamin A", "vitamin"),
        ("vitamin A deficiency", "vitamin deficiency"),
        ("C++", "C"),
        ("-5", "5"),
        ("5", ".5"),
        ("12:30", "1230"),
        ("12 30", "12:30"),
        ("5'10\"", "510"),
        ("5'", '5"'),
        ("we're", "were"),
        ("(2,3)", "2,3"),
        ("first place", "1 place"),
        ("2 dogs", "three dogs"),
        ("红色", "不是红色"),
        ("b", "a b"),
        ("", "red"),
        ("?", "!"),
        ("x", "x!"),
        ("tail", "its tail"),
    ],
)
def test_different_texts(gold: str, answer: str) -> None:
    assert not same_text(gold, answer)


@pytest.mark.parametrize(
    ("prediction", "golds", "score"),
    [
        ("Coca Cola", ["coca  cola"], 1.0),
        ("coca cula", ["coca cola"], 1 - 1 / 9),
        ("pepsi", ["coca cola", "pepsy"], 1 - 1 / 5),
        ("abcd", ["abxy"], 0.0),  # half of it is wrong: the threshold itself scores nothing
        ("abcd", ["abcx"], 0.75),
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("a", [], 0.0),
        ("a" * 5000, ["a" * 5000], 0.0),
    ],
)
def test_anls(prediction: str, golds: list[str], score: float) -> None:
    assert anls(prediction, golds) == pytest.approx(score, abs=1e-12)


def test_anls_with_another_threshold() -> None:
    assert anls("abcd", ["abxy"], threshold=0.6) == 0.5
    assert anls("abcd", ["abcx"], threshold=0.2) == 0.0


def plain_levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for index, char in enumerate(first, 1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(second, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (char != other))
    return row[-1]


@given(st.text("abc", max_size=70), st.text("abcé", max_size=70))
def test_levenshtein_is_that_of_the_table(first: str, second: str) -> None:
    assert levenshtein(first, second) == plain_levenshtein(first, second) == levenshtein(second, first)


def test_min_anls_decides_how_similar_a_text_must_be() -> None:
    def matches(answer: str, min_anls: float) -> bool:
        settings = MatchSettings(min_anls=min_anls)
        gold = read_gold("coca cola", "text", settings)
        assert gold is not None
        return judge(gold, Found(answer, Place.BOXED), settings) is Outcome.MATCHED

    assert matches("coca cola", 1.0)
    assert not matches("coca cula", 1.0)
    assert matches("coca cula", 0.8)
    assert not matches("coca cula", 0.95)
    assert not matches("pepsi", 0.5)
    assert not matches("pepsi", 0.01)


YES = [
    "Yes",
    "yes.",
    "**Yes**",
    "YES!",
    "True",
    "Yes, it is.",
    "Yes it is",
    "Yes because it is red",
    "Yes, that is correct.",
    "It is true.",
    "That's correct",
    "The statement is true.",
    "true, not false",
    "So, yes.",
    "Yeah",
    "Yes - there is",
    "Yes, because there are no dogs.",
    "Yes. There is no dog but a cat.",
    "(Yes)",
    '"Yes"',
    "Right.",
    "是",
    "是的，它是红色的。",
    "对，因为两边相等",
    "正确",
]
NO = [
    "No",
    "no.",
    "False",
    "No, there isn't",
    "No because the sign says stop",
    "not true",
    "The statement is false.",
    "No, that is not true.",
    "No, this is incorrect",
    "No. It is a dog.",
    "No; yes would need two dogs.",
    "nope",
    "否",
    "不是",
    "错误。",
    "不对，它是红色",
]
NEITHER = [
    "yes and no",
    "yes or no",
    "yes/no",
    "True or False",
    "Yes. No.",
    "Yes, no",
    "No, yes",
    "No; yes it is",
    "maybe yes",
    "No one is there",
    "No dogs",
    "Yesterday",
    "not false",
    "Yes, actually no",
    "Yes, or no",
    "Yes, it isn't.",
    "Yes, it is not.",
    "No, it is.",
    "Yes, it's false",
    "Yes, the answer is no",
    "not sure",
    "",
    "是或否",
    "不对称",
    "是红色的",
    "正确，不对",
]


@pytest.mark.parametrize("answer_type", ["auto", "yes_no", "text"])
@pytest.mark.parametrize(
    ("gold", "opposite"), [("yes", "No"), ("True", "false"), ("是", "否"), ("正确", "错误"), ("√", "×")]
)
def test_yes_and_no(gold: str, opposite: str, answer_type: str) -> None:
    for wanted, right, wrong in ((gold, YES, NO), (opposite, NO, YES)):
        reading = read_gold(wanted, answer_type)
        assert reading is not None
        assert reading.kind == ("text" if answer_type == "text" else "yes_no")
        matched = [
            text for text in [*YES, *NO, *NEITHER] if judge(reading, Found(text, Place.BOXED)) is Outcome.MATCHED
        ]
        assert matched == [text for text in [*YES, *NO] if text in right]
        assert not set(matched) & set(wrong)


@pytest.mark.parametrize("gold", ["right", "wrong", "no dogs", "No, it is a dog", "correct"])
def test_what_auto_leaves_to_text(gold: str) -> None:
    reading = read_gold(gold)
    assert reading is not None
    assert reading.kind == "text"


@pytest.mark.parametrize(
    ("gold", "value"), [("correct", True), ("Wrong", False), ("Yes, it is.", True), ("No, it is a dog", False)]
)
def test_what_yes_no_reads_when_it_is_told_so(gold: str, value: bool) -> None:
    reading = read_gold(gold, "yes_no")
    assert reading is not None
    assert reading.value is value
    assert read_gold("a dog", "yes_no") is None


@pytest.mark.parametrize("name", ["yes/no", "boolean", "bool", "tf", "judge", "Yes_No"])
def test_other_words_for_yes_no(name: str) -> None:
    assert check_answer_type(name) == "yes_no"


ANYTHING = st.text(max_size=60) | st.lists(
    st.sampled_from(["yes", "no", "not", "true", ",", ".", "it is", "the", "a", '"', "-", "U.S.", "5", "是", "不"]),
    max_size=8,
).map(" ".join)


@given(ANYTHING)
def test_a_text_is_itself_whatever_it_says(text: str) -> None:
    for answer_type in ("text", "yes_no"):
        gold = read_gold(text, answer_type)
        if gold is not None:
            assert judge(gold, Found(text, Place.BOXED)) is Outcome.MATCHED


@given(ANYTHING)
def test_normalised_text_is_normal(text: str) -> None:
    once = normalise_text(text)
    assert once == once.strip()
    assert "  " not in once


@given(ANYTHING)
def test_nothing_is_both_yes_and_no(text: str) -> None:
    yes, no = read_gold("yes", "yes_no"), read_gold("no", "yes_no")
    assert yes is not None
    assert no is not None
    found = Found(text, Place.BOXED)
    assert [judge(gold, found) for gold in (yes, no)].count(Outcome.MATCHED) <= 1
