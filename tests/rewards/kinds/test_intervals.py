"""Intervals in their notations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.kinds.intervals import Piece, read_pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("[2, 3)", [Piece("2", "3", True, False)]),
        ("]2, 3[", [Piece("2", "3", False, False)]),
        (r"(-\infty, 1) \cup (2, 3]", [Piece("", "1", False, False), Piece("2", "3", False, True)]),
        (r"1 < x \le 3", [Piece("1", "3", False, True)]),
        ("3 >= x > 1", [Piece("1", "3", False, True)]),
        ("x > 2", [Piece("2", "", False, False)]),
        ("2 < x", [Piece("2", "", False, False)]),
        ("x > 1 and x < 3", [Piece("1", "3", False, False)]),
        ("x < 1 or x > 3", [Piece("", "1", False, False), Piece("3", "", False, False)]),
        (r"x \neq 2", [Piece("", "2", False, False), Piece("2", "", False, False)]),
        (r"\mathbb{R}", [Piece("", "", False, False)]),
        (r"\mathbb{R} \setminus \{2\}", [Piece("", "2", False, False), Piece("2", "", False, False)]),
        (r"\{x \mid x > 2\}", [Piece("2", "", False, False)]),
        (r"\{x \in \mathbb{R} : 1 < x < 3\}", [Piece("1", "3", False, False)]),
        (r"x \in [1, \sqrt{2}]", [Piece("1", r"\sqrt{2}", True, True)]),
    ],
)
def test_pieces(text: str, pieces: list[Piece]) -> None:
    read = read_pieces(text)
    assert read is not None
    assert list(read.pieces) == pieces


@pytest.mark.parametrize(
    "text",
    ["5", "x = 2", "(1, 2, 3)", "x + y", "x < y", "1 < 2", r"(2, -\infty)", "1 < x > 3", "x > x + 1", "red", "", "(,)",
     "a, b", "[1, 2", "x ><= 3", "(11, 7)", "(1, 2) or (7, 3)"],
)  # fmt: skip
def test_what_is_no_interval(text: str) -> None:
    assert read_pieces(text) is None


def test_a_pair_in_equal_brackets_may_be_a_point() -> None:
    readings = {text: read_pieces(text) for text in ("(2, 3)", "[2, 3)", "(2, ∞)", "x > 2", r"x \in (2, 3)")}
    assert [text for text, read in readings.items() if read and not read.only_interval] == ["(2, 3)"]


@given(st.text(alphabet="x12,;()[]{}<>=\\ cupinftymdR≤or", max_size=60))
def test_no_text_makes_it_raise(text: str) -> None:
    read_pieces(text)
