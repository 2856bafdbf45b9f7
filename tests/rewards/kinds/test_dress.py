"""Dress off, and only dress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.kinds.dress import inline, plain_characters, to_latex, undress

DRESSES = [
    "{}", "$${}$$", "${}$", r"\({}\)", r"\[ {} \]", r"\displaystyle {}", r"\mathbf{{{}}}", r"\textbf{{{}}}",
    r"\color{{red}}{{{}}}", r"\textcolor{{blue}}{{{}}}", r"\underline{{{}}}", r"\ensuremath{{{}}}", r"\boxed{{{}}}",
    r"\boxed{{\text{{{}}}}}", "**{}**", "***{}***", "`{}`", "```\n{}\n```", "```latex\n{}\n```", "{}.", "{}。", "{},",
    "{};", "\u200b{}\ufeff", "{}\\n", '"{}"', "“{}”", "<b>{}</b>", "#### {}", r"\,{}\,", "{}**", "**{}",
    r"\begin{{equation}}{}\end{{equation}}", " {} ", "$**{}**$", "{}\u00a0",
]  # fmt: skip


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("answer", ["5", "B", r"\frac{1}{2}", "(1, 2)", "red ball"])
def test_every_dress_comes_off(dress: str, answer: str) -> None:
    assert undress(dress.format(answer)) == answer


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("5 &lt; x", "5 < x"),
        ("x<sup>2</sup>", "x^{2}"),
        ("x²", "x^{2}"),
        ("x₁", "x_{1}"),
        ("H₂O", "H2O"),
        ("101₂", "101_{2}"),
        ("①②", "①②"),
        ("log₂8", "log_{2}8"),
        ("\N{MINUS SIGN}5", "-5"),
        ("3½", "3 1/2"),
        ("\N{FULLWIDTH DIGIT THREE}", "3"),
    ],
)
def test_look_alikes(written: str, plain: str) -> None:
    assert plain_characters(written) == plain


@pytest.mark.parametrize(
    "text", ["5!", "a & b", "x_1", "1 < 2", "a*b*c", "5'", "{1, 2}", "(B)", "x**2**3", "AT&T", "$5"]
)
def test_what_is_no_dress_stays(text: str) -> None:
    assert undress(text) == text


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (r"5\text{ cm}", "5 cm"),
        (r"1\,000", "1,000"),
        (r"30^\circ", "30°"),
        (r"1 & 2 \\ 3 & 4", r"1 & 2 \\ 3 & 4"),
        (r"\dfrac12", r"\frac12"),
        (r"\angle ABC", "∠ABC"),
        (r"1,\quadx_2", "1, x_2"),
        (r"11,\! 111,\! 100", "11,111,100"),
    ],
)
def test_one_line_of_mathematics(written: str, line: str) -> None:
    assert inline(written) == line


@pytest.mark.parametrize(
    ("written", "once"),
    [
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\{1, 2\\}", r"\{1, 2\}"),
        (r"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix} a \\bc \end{pmatrix}", r"\begin{pmatrix} a \\bc \end{pmatrix}"),
        (r"x=1 \\ y=2", r"x=1 \\ y=2"),
        ("185\\", "185"),
    ],
)
def test_backslashes_escaped_twice(written: str, once: str) -> None:
    assert undress(written) == once


def test_plain_notation_as_latex() -> None:
    assert to_latex("2*sqrt(3)") == r"2\cdot \sqrt{3}"
    assert to_latex("2√3") == r"2\sqrt{3}"


@given(st.text(max_size=80))
def test_no_text_makes_it_raise(text: str) -> None:
    inline(undress(text))
    to_latex(text)
