"""Several answers in one: order, brackets, names, signs, intervals; and texts that are no sequences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.sequences import split_sequence
from lcot_plugin.rewards.mathematics.expressions import MathVerifySolver
from lcot_plugin.types import Outcome

SOLVER = MathVerifySolver()
# Kind, gold answer, answer.
RIGHT = [
    ("auto", "(1,3)", "1<x<3"),
    ("auto", "1<x<3", "(1,3)"),
    ("auto", r"1<x\le 3", "(1,3]"),
    ("auto", r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    ("auto", r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    ("auto", "x > 2", r"(2,\infty)"),
    ("auto", r"(2,\infty)", "x>2"),
    ("auto", r"(2,\infty)", r"\{x \mid x>2\}"),
    ("auto", r"(2,\infty)", r"x \in (2, +\infty)"),
    ("auto", r"\mathbb{R}", r"(-\infty,\infty)"),
    ("auto", r"(-\infty,2)\cup(2,\infty)", r"x\neq 2"),
    ("auto", r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
    ("auto", r"[\frac{1}{2}, \sqrt{3})", r"\left[0.5, \sqrt3\right)"),
    ("auto", r"\pm 3", "3, -3"),
    ("auto", "3, -3", r"\pm 3"),
    ("auto", r"x = \pm 3", r"x=3 \text{ or } x=-3"),
    ("auto", "x = 3 or x = -3", "±3"),
    ("auto", r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    ("auto", "(2, 3)", "x=2, y=3"),
    ("auto", "(2, 3)", "(x,y)=(2,3)"),
    ("auto", "(2, 3)", "A(2,3)"),
    ("auto", "A(2, 3)", "(2,3)"),
    ("auto", "x=1, y=2", "y=2, x=1"),
    ("auto", "x=1, y=2", "1, 2"),
    ("auto", "x=1, y=2", "(1, 2)"),
    ("auto", "x=1, y=2", r"\begin{cases} x=1 \\ y=2 \end{cases}"),
    ("auto", r"\{1,2\}", r"\left\{2,1\right\}"),
    ("auto", r"\{1,2\}", r"\{1,1,2\}"),
    ("auto", "((1,2),(3,4))", "((1,2),(3,4))"),
    ("auto", "1, 2, 3", "1; 2; 3"),
    ("auto", "1, 2, 3", "1、2和3"),
    ("auto", "1, 2", r"1 \text{ and } 2"),
    ("auto", r"\langle 1, 2, 3\rangle", "(1,2,3)"),
    ("auto", "(1,2,3)", r"\begin{pmatrix}1\\2\\3\end{pmatrix}"),
    ("list", '["red","blue"]', "red, blue"),
    ("list", '["red","blue"]', '["red", "blue"]'),
    ("list", "['red','blue']", "[red, blue]"),
    ("set", "red, blue", "blue and red"),
    ("set", "1, 2", "{2, 1}"),
    ("tuple", "(2,3)", "2, 3"),
    ("coordinate", "(2,3)", "2, 3"),
    ("coordinate", "(2,3)", "A(2,3)"),
    ("coordinate", "(2,3)", "x = 2, y = 3"),
    ("coordinate", r"(0.5, \frac{\sqrt3}{2})", r"\left(\frac12, \frac{\sqrt3}{2}\right)"),
    ("interval", "(2,3)", "2<x<3"),
    ("interval", "[2,3]", r"2 \leq x \leq 3"),
    ("interval", "x<=5", r"(-\infty, 5]"),
    ("interval", "(2,3)", "]2,3["),
    ("expression", "(2,3)", r"\left(2,3\right)"),
    ("expression", r"\{1,2\}", r"\{2,1\}"),
    ("expression", r"[2,\infty)", r"[2,\infty)"),
    ("auto", "(1, 2), (3, 4)", "(1,2) and (3,4)"),
    ("auto", r"x \in [1, 2]", "[1,2]"),
    ("auto", r"-\frac{1}{2} < x < \frac{1}{2}", "(-0.5, 0.5)"),
    ("auto", "x > 5", "x - 5 > 0"),
    ("auto", "a=1, b=2, c=3", "a = 1, b = 2, c = 3"),
    ("auto", "2, 3, 5", "[2, 3, 5]"),
    ("auto", "x<2 or x>3", "x>3 or x<2"),
    ("auto", r"\frac{\pi}{4}, \frac{3\pi}{4}", r"\frac{3\pi}{4}, \frac{\pi}{4}"),
    ("auto", r"\frac{\pi}{4}, \frac{3\pi}{4}", "45°, 135°"),
    ("auto", "A(1,2), B(3,4)", "B(3,4), A(1,2)"),
    ("auto", "x=2 or x=3", "x_1=2, x_2=3"),
    ("auto", r"k\pi, k\in\mathbb{Z}", r"k\pi,\ k \in \mathbb{Z}"),
    ("auto", r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("auto", r"x \in \{1, 2\}", r"\{2, 1\}"),
    ("auto", r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)"),
    ("auto", r"(-\infty,-7)\cup(-7,3)\cup(3,\infty)", r"x \in (-\infty, -7) \cup (-7, 3) \cup (3, \infty)"),
    ("auto", r"[0, \infty)", r"\{x \mid x \geq 0\}"),
    ("auto", r"\{-3, 1\}", "x = -3, 1"),
    ("auto", "x = -3, 1", r"\{-3, 1\}"),
    ("auto", "1, -2", r"x = 1 \text{ or } x = -2"),
    ("auto", r"\left\{\frac{1}{2}, 3\right\}", r"\{3, 0.5\}"),
    ("auto", "(0, 1], [2, 3)", "(0,1], [2,3)"),
    ("auto", r"\frac{7}{2}, -\frac{1}{3}", r"x=\frac{7}{2}, x=-\frac{1}{3}"),
    ("auto", r"\vec{v} = (1, 2)", "(1,2)"),
    ("auto", r"x \leq -2 \text{ or } x \geq 5", r"(-\infty, -2] \cup [5, \infty)"),
    ("auto", r"1 \leq x < 4", "[1, 4)"),
    ("auto", r"\\left(\\frac{1}{5},\\frac{1}{6}\\right)", r"\left(\frac15, \frac16\right)"),
    ("auto", r"-2 \\le x \\le 7", r"x \in [-2,7]"),
    ("auto", r"x \in [-2,7]", r"-2 \\le x \\le 7"),
    ("auto", "(11,7)or(7,11)", r"(7,11),\ (11,7)"),
    ("auto", "p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    ("auto", "(5,2),(7,2)", "p=5, q=2; p=7, q=2"),
    ("auto", "x=1,y=2;x=3,y=4", r"x=3, y=4 \text{ and } x=1, y=2"),
    ("auto", "x=1,y=2;x=3,y=4", "y=2, x=1 or y=4, x=3"),
    ("auto", r"x_{1}=\frac12+\sqrt5,\quadx_{2}=\frac12-\sqrt5", r"\frac12-\sqrt5, \frac12+\sqrt5"),
    ("auto", r"k \in \{1,2,3\}", r"\{1,2,3\}"),
    ("auto", r"\{2 \pm 1\}", r"\{1,3\}"),
    ("auto", r"\{1,3\}", r"\{2 \pm 1\}"),
    ("auto", r"(\frac{v^2_0}{5\pi g}, 2)", r"(\frac{v_0^2}{5g\pi}, 2)"),
    ("auto", "(2, 3)", "y=3, x=2"),
    ("auto", "(2, 3, 4)", "z=4, x=2, y=3"),
]
WRONG = [
    ("auto", "(2, 3)", "y=2, x=3"),
    ("auto", "(2, 3)", "b=3, a=2"),
    ("auto", "(y, x) = (2, 3)", "y=3, x=2"),
    ("auto", "1<x<3", "[1,3)"),
    ("auto", r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2]\cup(3,\infty)"),
    ("auto", r"(2,\infty)", r"x\ge 2"),
    ("auto", r"(2,\infty)", "2"),
    ("auto", r"\pm 3", "3"),
    ("auto", "(2, 3)", "x=3, y=2"),
    ("auto", "(2, 3)", "(y,x)=(2,3)"),
    ("auto", "A(2, 3)", "B(2,3)"),
    ("auto", "x=1, y=2", "x=2, y=1"),
    ("auto", "x=1, y=2", "2, 1"),
    ("auto", "x=1, y=2", "(2, 1)"),
    ("auto", r"\{1,2\}", "(1,2)"),
    ("auto", "3, 3", "3"),
    ("auto", "3, 2", "3, 3"),
    ("auto", "((1,2),(3,4))", "((1,2),(4,3))"),
    ("list", '["red","blue"]', "blue, red"),
    ("list", '["red","blue"]', "red"),
    ("set", "red, blue", "blue, green"),
    ("set", "1, 2", "1, 2, 3"),
    ("tuple", "(2,3)", "3, 2"),
    ("tuple", "(2,3)", "[2,3]"),
    ("coordinate", "(2,3)", "2"),
    ("coordinate", "(2,3)", "(2, -3)"),
    ("interval", "[2,3]", "(2,3)"),
    ("interval", "[2,3]", "2, 3"),
    ("expression", r"[2,\infty)", r"(2,\infty)"),
    ("auto", "(1, 2), (3, 4)", "(1,2)"),
    ("auto", "x > 5", "y > 5"),
    ("auto", "a=1, b=2, c=3", "a = 1, b = 3, c = 2"),
    ("auto", "[2, 3, 5]", "[3, 2, 5]"),
    ("auto", r"\{1,2,3\}", r"\{1,2\}"),
    ("auto", "[1,2]", "(1,2)"),
    ("auto", "(1,2)", "(2,1)"),
    ("auto", "(1,2)", r"1<x\le 2"),
    ("auto", "-2<x<3", "x>-2"),
    ("auto", "x<2 or x>3", "2<x<3"),
    ("auto", "x<2 or x>3", "x<2"),
    ("auto", "x<2 or x>3", "x>3 or x<1"),
    ("auto", r"\pm 3", "-3"),
    ("auto", r"\pm 3", r"\pm 9"),
    ("auto", "x=1, y=2", "x=1"),
    ("auto", "3, 2", "5"),
    ("auto", r"\frac{\pi}{4}, \frac{3\pi}{4}", r"\frac{\pi}{4}"),
    ("auto", "A(1,2), B(3,4)", "A(3,4), B(1,2)"),
    ("coordinate", "(2,3)", "2 or 3"),
    ("coordinate", "(2,3)", "x_1=2, x_2=3"),
    ("auto", r"k\pi, k\in\mathbb{Z}", r"2k\pi, k\in\mathbb{Z}"),
    ("auto", "x=2 or x=3, or x=4", "(2,3,4)"),
    ("auto", r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi)"),
    ("auto", "x=-1, x=4", "[-1, 4)"),
    ("auto", "x=-1, x=4", "-1 <= x < 4"),
    ("auto", "x=-1, x=4", "-1 < x < 4"),
    ("auto", "-1, 4", "(-1, 4]"),
    ("auto", "-1, 4", r"x \in [-1, 4]"),
    ("auto", r"\{-1, 4\}", "-1 < x < 4"),
    ("auto", "x=1,y=2;x=3,y=4", "x=1,y=4;x=3,y=2"),
    ("auto", "x=1, y=2 or x=3, y=4", "x=1, y=4 or x=3, y=2"),
    ("auto", "x=1,y=2;x=3,y=4", "(1,2)"),
    ("auto", "(11,7)or(7,11)", "(7,11)"),
    ("auto", "(11,7)", "(7,11)"),
    ("auto", r"\{1,3\}", r"\{1 \pm 2\}"),
]


def outcome(answer: str, gold: str, answer_type: str = "auto") -> Outcome:
    reading = read_gold(gold, answer_type)
    assert reading is not None
    return judge(reading, Found(answer, Place.BOXED), solver=SOLVER)


@pytest.mark.parametrize(("answer_type", "gold", "answer"), RIGHT)
def test_right_answers_match(answer_type: str, gold: str, answer: str) -> None:
    assert outcome(answer, gold, answer_type) is Outcome.MATCHED


@pytest.mark.parametrize(("answer_type", "gold", "answer"), WRONG)
def test_wrong_answers_do_not(answer_type: str, gold: str, answer: str) -> None:
    assert outcome(answer, gold, answer_type) in (Outcome.MISMATCHED, Outcome.UNPARSABLE)


@pytest.mark.parametrize(("answer_type", "gold"), sorted({(row[0], row[1]) for row in RIGHT + WRONG}))
def test_every_gold_answer_matches_itself(answer_type: str, gold: str) -> None:
    assert outcome(gold, gold, answer_type) is Outcome.MATCHED


@pytest.mark.parametrize(
    "text", ["5", "1,000", "12,345,678", "x+1", "red", "", "(", "1,", ",", "f(x, y)", "(1, 2", "1, 2)"]
)
def test_what_is_no_sequence(text: str) -> None:
    assert split_sequence(text) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1, 2", ("", ["1", "2"])),
        ("1,000, 2,000", ("", ["1,000", "2,000"])),
        ("(1, 2)", ("()", ["1", "2"])),
        (r"\{1, 2\}", ("{}", ["1", "2"])),
        ("(1, 2), (3, 4)", ("", ["(1, 2)", "(3, 4)"])),
        ("1, 2, and 3", ("", ["1", "2", "3"])),
        ("1和2", ("", ["1", "2"])),
        (r"x = 1 \pm \sqrt{2}", ("", [r"x = 1 +\sqrt{2}", r"x = 1 -\sqrt{2}"])),
    ],
)
def test_brackets_and_elements(text: str, parts: tuple[str, list[str]]) -> None:
    assert split_sequence(text) == parts


def test_answers_on_lines_of_their_own() -> None:
    assert outcome("- red\n- blue", "red, blue", "list") is Outcome.MATCHED
    assert outcome("1. red\n2. blue", "red, blue", "list") is Outcome.MATCHED
    assert outcome("- blue\n- red", "red, blue", "list") is Outcome.MISMATCHED
    assert outcome("3\n2", "2, 3") is Outcome.MATCHED


def test_a_guess_between_texts_is_no_list_of_them() -> None:
    assert outcome("red or blue", "red, blue", "set") is Outcome.MISMATCHED


NUMBERS = st.lists(st.integers(-99, 99), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(NUMBERS.flatmap(lambda numbers: st.tuples(st.just(numbers), st.permutations(numbers))))
def test_order_matters_where_the_kind_says_so(pair: tuple[list[int], list[int]]) -> None:
    numbers, shuffled = pair
    gold, answer = (", ".join(map(str, some)) for some in pair)
    assert outcome(answer, gold, "set") is Outcome.MATCHED
    assert outcome(answer, gold, "sequence") is Outcome.MATCHED
    assert (outcome(f"[{answer}]", f"[{gold}]", "list") is Outcome.MATCHED) == (shuffled == numbers)
    assert (outcome(f"({answer})", f"({gold})", "tuple") is Outcome.MATCHED) == (shuffled == numbers)


@settings(max_examples=60, deadline=None)
@given(st.integers(-9, 9), st.integers(10, 20), st.booleans(), st.booleans())
def test_brackets_and_inequalities_say_the_same(low: int, high: int, left: bool, right: bool) -> None:
    bracketed = f"{'[' if left else '('}{low}, {high}{']' if right else ')'}"
    inequality = f"{low} {'<=' if left else '<'} x {'<=' if right else '<'} {high}"
    assert outcome(inequality, bracketed, "interval") is Outcome.MATCHED
    assert outcome(bracketed, inequality) is Outcome.MATCHED
    other = f"{'(' if left else '['}{low}, {high}{']' if right else ')'}"
    assert outcome(other, inequality) is Outcome.MISMATCHED


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=r"x12,;()[]{}<>=\ pmcupinfty±或and ", max_size=60))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    split_sequence(text)
    gold = read_gold(text, "sequence")
    assert gold is None or outcome(text, text, "sequence") is Outcome.MATCHED
