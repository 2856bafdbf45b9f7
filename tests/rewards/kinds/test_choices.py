# ruff: noqa: RUF001 (Chinese punctuation)
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards import verify
from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place, extract_answer
from lcot_plugin.rewards.kinds.base import NeedsSolver
from lcot_plugin.rewards.kinds.choices import bare_options, read_choice
from lcot_plugin.types import MatchSettings, Outcome

LENGTHS = ("5 cm", "6 cm", "7 cm", "8 cm")
COLOURS = ("red", "blue", "green", "none of these")
BOTH = ("red", "blue", "green", "A and B")

RIGHT: list[tuple[str, tuple[str, ...], list[str]]] = [
    (
        "B",
        (),
        [
            "B",
            "(B)",
            "B.",
            "B:",
            "B)",
            "B) 5 cm",
            "**B**",
            "[B]",
            "{B}",
            "【B】",
            "\N{FULLWIDTH LATIN CAPITAL LETTER B}",
            "b",
            "(b)",
            "b)",
            "'B'",
            '"B"',
            "`B`",
            "(B).",
            "B - 5 cm",
            "B. The third side",
            "$B$",
            "B、10 cm",
            r"\boxed{B}",
            r"\boxed{\text{B}}",
            r"\boxed{\mathbf{(B)}}",
            r"\textbf{(B)}\ 5",
            "<answer> (B) 5 cm </answer>",
            "Option B",
            "choice (b)",
            "option b",
            "Letter B",
            "Answer: (B)",
            "Answer - B",
            "Final answer: B",
            "The answer is **B**.",
            "The correct answer is B. Paris",
            "the correct option is (B), since x",
            "The correct choice is: B",
            "Answer is option (B).",
            "Therefore, the best choice is B",
            "It's B.",
            "B only",
            "I choose B",
            "I would go with B",
            "B is correct",
            "B is the correct answer",
            "B because of the angle",
            "The correct option is B because the sides are equal.",
            "After comparing the options, B is correct.",
            "The answer is B because A is wrong.",
            "A is incorrect, so B",
            "B, not A",
            "not A but B",
            "Option B is correct because option A is wrong",
            "A and C are incorrect, so the answer is B",
            "B is correct here",
            "B; energy is conserved",
            "B is correct per Newton",
            "B is correct, D is a distractor",
            "The answer is for sure B, it can't be A or C",
            "The answer: B, it doesn't make sense for it to be A or C",
            "B. it can't be A or C",
            "I think it's (B).",
            "It's not A because it doesn't fit, therefore I think it's B",
            "B是正确的，D是干扰项",
            "B。不是 A",
            "B不是 A",
            "我选的是B",
            "因此C不对，答案B",
            "정답은 B 입니다",
            "정답: B",
            "正解はB",
            "Respuesta: b",
            "选B",
            "故选：B",
            "选项B",
            "选项B正确",
            "B项正确",
            "B正确，因为A错误",
            "应选B",
            "答案：B",
            "正确选项是B",
            "因此答案为B",
            "所以选B",
            "我选择B",
            "排除A，选B",
        ],
    ),
    (
        "A, C",
        (),
        [
            "A, C",
            "C and A",
            "A,C",
            "A、C",
            "(A), (C)",
            "(A)(C)",
            "Options A and C",
            "A and C are correct",
            "A & C",
            r"\boxed{A}, \boxed{C}",
            r"\boxed{A,C}",
            "A和C",
            "Both A and C",
            "A. and C.",
            "A and C only",
        ],
    ),
    ("C", (), ["C. I", "C. I and II"]),
    ("AC", LENGTHS, ["AC", "CA", "A, C", "A and C", "C, A", "(A, C)", "A) 5 cm, C) 7 cm", r"\boxed{A}\boxed{C}"]),
    (
        "B",
        LENGTHS,
        [
            "6 cm",
            "0.06 m",
            "60 mm",
            "6",
            "B. 6 cm",
            "B: 6.0 cm",
            "B 6 cm",
            "B, 6 cm",
            "6 cm (B)",
            "B) 6",
            "B (6 cm)",
            "Option B: 6 cm",
            "Option B (6 cm)",
            "B. The second side",
            "The answer is 6 cm.",
            r"\boxed{6\text{ cm}}",
        ],
    ),
    ("6 cm", LENGTHS, ["B", "6 cm", "B. 6 cm", "0.06 m"]),
    ("blue", COLOURS, ["B", "blue", "It is blue.", "B. Blue", "(B) the blue"]),
    ("D", COLOURS, ["D", "None of these", "D. None of these"]),
    ("B", COLOURS, [r"\boxed{The answer is blue}"]),
    ("D", BOTH, ["D", "A and B", "D. A and B"]),
    ("no", ("yes", "no"), ["B", "No", "No, it isn't", "B. No"]),
    ("B", ("1/2", "0.25", "3"), ["1/4", "0.25", r"\frac{1}{4}", "B"]),
    ("A", ("b", "a", "c"), ["b", "A"]),
    ("A", ("A. 5 cm", "B. 6 cm"), ["5 cm", "A. 5 cm", "A"]),
    ("Q", tuple(f"word{n}" for n in range(20)), ["Q", "(Q)", "q", "Q. word16", "word16"]),
]
WRONG: list[tuple[str, tuple[str, ...], list[str]]] = [
    (
        "B",
        (),
        [
            "C",
            "A",
            "B or C",
            "(A) or (B)",
            "either B or C",
            "A. B or C",
            "B, C",
            "B and C",
            "A/B",
            "(A)(B)",
            "AB",
            "BC",
            "not B",
            "B is wrong",
            "B is incorrect",
            "B isn't right",
            "B is not correct",
            "The answer is not B",
            "Neither A nor B",
            "All except B",
            "eliminate B",
            "A, not B",
            "rather than B, choose A",
            "B错误",
            "不选B",
            "B: wrong",
            "(B) incorrect",
            "(B) maybe C",
            "(B) or both",
            "排除B",
            "A或B",
            "B和C",
            "Both",
            "Because",
            "Be",
            "Bob",
            "BB",
            "B2",
            "B^2",
            "B = 5",
            "A B",
            "A. x B. y",
            "The area B of the",
            "If B is true, then A is true",
            "I think A or B",
            r"\boxed{B} or \boxed{C}",
            "B?C",
        ],
    ),
    (
        "A",
        (),
        [
            "A triangle has area 5",
            "The answer is a triangle",
            "A big B",
            "A is the right angle",
            "Option A or B",
            "A. B",
            "It is a triangle",
            "A cat",
            "Apple",
            "A is wrong",
            "A. 5 or B. 6",
            "a cat",
            "A is incorrect, so B",
        ],
    ),
    ("I", (), ["I think it is B", "I am not sure", "I choose B", "I, too"]),
    ("E", (), ["e.g. red", "i.e. red"]),
    (
        "B",
        LENGTHS,
        [
            "A",
            "5 cm",
            "9 cm",
            "6 m",
            "6 kg",
            "F",
            "5 cm or 6 cm",
            "B or 5 cm",
            "A) 5 cm, B) 6 cm",
            # The letter says one thing, the text another.
            "B. 5 cm",
            "B. 9 cm",
            "B 5 cm",
            "5 cm (B)",
            "A. 6 cm",
            "Option B (5 cm)",
        ],
    ),
    ("blue", COLOURS, ["red", "A", "B. red", "A. blue", "red or blue", "not blue", "blue and red"]),
    ("D", BOTH, ["A", "B", "A and C"]),
    ("A, C", (), ["A", "A, D", "A, C, D", "A or C", "AB"]),
    ("AC", LENGTHS, ["A", "C", "A, B", "ABC", "A or C", "ACC"]),
    ("A", ("5", "5", "6"), ["5"]),
    ("B", ("2", "4", "6", "8"), ["2"]),
    ("B", ("b", "a", "c"), ["b"]),
]


def outcome(prediction: str, gold: str, options: tuple[str, ...], answer_type: str) -> Outcome:
    settings = MatchSettings(options=options)
    reading = read_gold(gold, answer_type, settings)
    assert reading is not None
    assert reading.kind == "choice"
    return judge(reading, extract_answer(prediction), settings)


@pytest.mark.parametrize("answer_type", ["auto", "choice"])
@pytest.mark.parametrize(
    ("gold", "options", "prediction"), [(gold, options, text) for gold, options, texts in RIGHT for text in texts]
)
def test_right_choices(gold: str, options: tuple[str, ...], prediction: str, answer_type: str) -> None:
    assert outcome(prediction, gold, options, answer_type) is Outcome.MATCHED


@pytest.mark.parametrize("answer_type", ["auto", "choice"])
@pytest.mark.parametrize(
    ("gold", "options", "prediction"), [(gold, options, text) for gold, options, texts in WRONG for text in texts]
)
def test_wrong_choices(gold: str, options: tuple[str, ...], prediction: str, answer_type: str) -> None:
    assert outcome(prediction, gold, options, answer_type) in (Outcome.MISMATCHED, Outcome.UNPARSABLE)


@pytest.mark.parametrize("options", [(), ("Frog", "Snake", "Grass", "Hawk")])
@pytest.mark.parametrize(
    "prediction",
    [
        "The answer is B. Wait, it is D.",
        "B. Wait, it is D.",
        "The answer is B. But wait, so C.",
        "<answer>B. Hmm, that cannot be right.</answer>",
        "If the snake ate grass, the answer is B. But it does not, so C.",
    ],
)
def test_a_choice_that_is_taken_back(prediction: str, options: tuple[str, ...]) -> None:
    assert not verify(prediction, "B", options=options or None).matched


@pytest.mark.parametrize("remark", ["No, it does not", "No other option fits.", "Wait", "It is not C, a plant."])
def test_a_remark_that_takes_nothing_back(remark: str) -> None:
    assert verify(f"The answer is B. {remark}", "B", options=("Yes", remark, "Go")).matched


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (
            "2",
            ["2", "(2)", "2.", "\N{CIRCLED DIGIT TWO}", "Option 2", "2) red", "The answer is 2."],
            ["2.5", "3", "12", "2 cm", "1 or 2", "2%", "2:30", "2/3", "-2"],
        ),
        ("\N{CIRCLED DIGIT TWO}", ["2", "(2)"], ["1"]),
        ("II", ["II", "(ii)", "ii", "Option II", "II. text", "\N{ROMAN NUMERAL TWO}"], ["I", "III", "I and II", "2"]),
        ("(1)(3)", ["(1)(3)", "(1), (3)", "(1)和(3)", "(3)(1)"], ["(1)", "(1)(2)", "(1)(2)(3)", "13", "(1)或(3)"]),
        ("I and III", ["I, III", "I and III only", "III and I"], ["I", "I and II", "II and III"]),
    ],
)
def test_digits_and_roman_numerals_where_the_gold_answer_is_one(gold: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if outcome(text, gold, (), "choice") is not Outcome.MATCHED] == []
    assert [text for text in wrong if outcome(text, gold, (), "choice") is Outcome.MATCHED] == []


@pytest.mark.parametrize(
    ("gold", "options", "kind"),
    [
        ("B", (), "choice"),
        ("(b)", (), "choice"),
        ("b", (), None),
        ("AC", (), None),
        ("AC", LENGTHS, "choice"),
        ("CA", LENGTHS, None),
        ("A and C", (), "choice"),
        ("6 cm", LENGTHS, "choice"),
        ("9 cm", LENGTHS, None),
        ("F", LENGTHS, None),
        ("F", (), "choice"),
        ("Z", (), None),
        ("5", ("5", "5", "6"), None),
        ("(1)(3)", (), "choice"),
        ("(1)", (), None),
    ],
)
def test_what_auto_takes_for_a_choice(gold: str, options: tuple[str, ...], kind: str | None) -> None:
    reading = read_gold(gold, "auto", MatchSettings(options=options))
    assert reading is not None
    assert (reading.kind == "choice") is (kind == "choice")


@pytest.mark.parametrize(
    ("gold", "options"), [("F", LENGTHS), ("9 cm", LENGTHS), ("6 cm", ()), ("B. 5 cm", LENGTHS), ("A or B", ())]
)
def test_gold_answers_that_choose_nothing(gold: str, options: tuple[str, ...]) -> None:
    assert read_gold(gold, "choice", MatchSettings(options=options)) is None


def test_letters_without_commas_are_several_where_the_answer_is_known_to_be_a_choice() -> None:
    assert outcome("AC", "A, C", (), "choice") is Outcome.MATCHED
    # Two points and a line, perhaps.
    assert outcome("AC", "A, C", (), "auto") is not Outcome.MATCHED


def test_options_that_only_algebra_can_compare_are_left_to_a_solver() -> None:
    options = (r"2\sqrt{3}", r"3\sqrt{2}")
    assert outcome(r"\boxed{2\sqrt{3}}", "A", options, "auto") is Outcome.MATCHED
    assert outcome("B", "A", options, "auto") is Outcome.MISMATCHED
    assert outcome("red", "A", options, "auto") in (Outcome.MISMATCHED, Outcome.UNPARSABLE)
    with pytest.raises(NeedsSolver):
        outcome(r"\boxed{\sqrt{12}}", "A", options, "auto")


def test_options_lose_their_letters_only_where_each_has_its_own() -> None:
    assert bare_options(("A. 5", "(B) 6")) == ("5", "6")
    assert bare_options(("A. 5", "6")) == ("A. 5", "6")
    assert bare_options(("B. 5", "A. 6")) == ("B. 5", "A. 6")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B. 5 cm", "B"),
        ("(c)", "C"),
        ("K", None),
        ("A and B", None),
        ("A or B", None),
        ("A triangle", None),
        ("", None),
    ],
)
def test_one_letter_without_options(text: str, letter: str | None) -> None:
    assert read_choice(text) == letter


LETTER = st.sampled_from("ABCDEFGH")
DRESS = st.sampled_from(
    ["{}", "({})", "{}.", "**{}**", "Option {}", "The answer is {}.", r"\boxed{{{}}}", "{} is correct"]
)
WORDS = st.sampled_from(
    [
        "A",
        "B",
        "C",
        "I",
        "a",
        "not",
        "or",
        "and",
        "is",
        "the",
        "wrong",
        "correct",
        "option",
        "because",
        "(",
        ")",
        ",",
        ".",
        "5",
        "cm",
        "answer",
        "选",
        "错误",
        "/",
    ]
)


@given(LETTER, DRESS, DRESS)
def test_a_dressed_letter_matches_itself_and_no_other(letter: str, dress: str, other_dress: str) -> None:
    prediction = dress.format(letter)
    assert outcome(prediction, letter, (), "choice") is Outcome.MATCHED
    other = "A" if letter != "A" else "B"
    assert outcome(other_dress.format(other), letter, (), "choice") is not Outcome.MATCHED


@given(st.lists(WORDS, max_size=10).map(" ".join))
def test_no_text_chooses_two_letters(text: str) -> None:
    for options in ((), LENGTHS):
        settings = MatchSettings(options=options)
        matched = []
        for letter in "ABC":
            gold = read_gold(letter, "choice", settings)
            assert gold is not None
            with contextlib.suppress(NeedsSolver):  # A / A may be what an option comes to
                matched += [letter] * (judge(gold, Found(text, Place.BOXED), settings) is Outcome.MATCHED)
        assert len(matched) <= 1


@given(LETTER, LETTER)
def test_a_hedge_chooses_none(first: str, second: str) -> None:
    for form in ("{} or {}", "({}) or ({})", "{} and {}", "{}, {}", "{}/{}", "Option {} or option {}", "{}. or {}."):
        if first != second:
            assert outcome(form.format(first, second), first, (), "choice") is not Outcome.MATCHED
