"""What the reader of mathematical notation takes, what it refuses, and that its reading is the usual one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.mathematics.identities import exact
from lcot_plugin.rewards.mathematics.notation import read_notation
from lcot_plugin.rewards.mathematics.syntax import Ambiguous, Unreadable, names_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("2^3^2", 512),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^{-1}", Fraction(1, 2)),
        ("2^-1", Fraction(1, 2)),
        ("6/2/3", 1),
        (r"6 \div 2", 3),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac1{2}", Fraction(1, 2)),
        (r"\frac{1}2", Fraction(1, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        (r"2\cdot\frac{1}{2}", 1),
        ("(2)(3)", 6),
        ("2(3)", 6),
        ("4!/3", 8),
        ("1,000", 1000),
        ("1{,}000", 1000),
        (".5", Fraction(1, 2)),
        ("1.5e3", 1500),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.333...", Fraction(1, 3)),
        ("0.1212...", Fraction(4, 33)),
        ("50%", Fraction(1, 2)),
        ("2**3", 8),
        ("3--2", 5),
        ("2*-3", -6),
        (r"\left(\frac{2}{3}\right)^2", Fraction(4, 9)),
        ("1/2 * 4", 2),
    ],
)
def test_arithmetic_is_read_as_it_is_meant(text: str, value: Fraction) -> None:
    assert exact(read_notation(text)) == value


@pytest.mark.parametrize("text", ["a/bc", "x/z(w)", r"\sin x/2", "x/2y", r"\pi/2x", r"1 + 7 \bmod 2", r"-7 \bmod 2"])
def test_two_readings_are_none(text: str) -> None:
    with pytest.raises(Ambiguous):
        read_notation(text)


@pytest.mark.parametrize(
    "text",
    ["", "1 2", "x 2", "1+", "(1", "1)", "1,2", "hello", "x and y", r"\foo{x}", "__import__('os')", "x=", "a[",
     "5 m/s@", "1..2", r"\frac{1}", "x^", "|x", "$", r"\begin{pmatrix}1&2\\3\end{pmatrix}", "A+", "C++",
     "3!!", "log_2(3,4)", "9" * 400, "(" * 100 + "1" + ")" * 100, "x" * 900, "1+" * 2000 + "1"],
)  # fmt: skip
def test_what_is_not_one_expression_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        read_notation(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("xy", {"x", "y"}),
        ("x_1 + x_{12}", {"x_1", "x_12"}),
        (r"\beta + θ", {"β", "θ"}),
        (r"\vec{a}", {"vec:a"}),
        ("f(x)", {"f", "x"}),
        ("I(t) = 2t", {"I", "t"}),
        (r"\Delta p", {"Δp"}),
        (r"v^2_0", {"v_0"}),
        (r"e^{i\pi}", set()),
        ("sin(x)cos(y)", {"x", "y"}),
        ("2sinx", {"x"}),
        ("X + x", {"X", "x"}),
        (r"\mathrm{e}^x", {"x"}),
        (r"\frac{dy}{dx}", {"dy/dx"}),
    ],
)
def test_variables(text: str, names: set[str]) -> None:
    assert names_in(read_notation(text)) == names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{2}", "sqrt(2)"),
        (r"\sqrt2", "√2"),
        (r"\sqrt[3]{x}", "cbrt(x)"),
        (r"\sin^2 x", "(sin x)^2"),
        (r"\sin^{-1} x", r"\arcsin x"),
        (r"\ln x", "ln(x)"),
        ("x²", "x^2"),
        (r"x \times y", "x*y"),
        (r"\left|x\right|", "|x|"),
        (r"\binom{5}{2}", "C(5,2)"),
        (r"{5 \choose 2}", r"\dbinom{5}{2}"),
        (r"\dfrac{a}{b}", "a/b"),
        (r"a \le b", "a <= b"),
        (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", "[[1,2],[3,4]]"),
    ],
)
def test_two_notations_of_one_thing(one: str, other: str) -> None:
    assert read_notation(one) == read_notation(other)


@given(st.text(alphabet="x12+-*/^_(){}[]|\\ &!%°<>=,.√πabfracsqtleginmx", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_notation(text)
    except Unreadable:
        return
