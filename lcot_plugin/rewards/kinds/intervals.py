r"""Intervals and their unions as text in, their pieces out: `[2, 3)`, `(-\infty, 1) \cup (2, 3]`, `1 < x \le 3`,
`x > 2`, `\{x \mid x > 2\}`, `\mathbb{R}`, `x \neq 2`. Endpoints stay text; `sequences` reads and compares them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from lcot_plugin.rewards.kinds.dress import inline

MAX_PIECES = 16
_INFINITE = re.compile(r"([+-]?)\s*(?:\\infty|∞|infinity|inf|oo)(?![A-Za-z])\s*", re.IGNORECASE)
_UNION = re.compile(r"\\cup(?![a-z])|\u222a|(?<=[)\]])\s*U\s*(?=[(\[])|(?<=[)\]])\s*(?:or|and|或|和)\s*(?=[(\[])")
_SET_BUILDER = re.compile(
    r"\\?\{\s*([a-zA-Z])\s*(?:(?:\\in|∈)\s*(?:\\mathbb\s*\{?\s*R\s*\}?|R)\s*)?(?:\\mid|\||:|\\vert|\\colon)\s*(.+?)\s*\\?\}"
)
_REALS = re.compile(
    r"(?:[a-z]\s*(?:\\in|∈)\s*)?(?:\\mathbb\s*\{?\s*R\s*\}?|\\Bbb\s*R|all real numbers|all reals)", re.IGNORECASE
)
_WITHOUT = re.compile(
    r"(?:[a-z]\s*(?:\\in|∈)\s*)?\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*\\?\{(.+?)\\?\}"
)
_SIGN = re.compile(r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne)(?![a-z])|<=|>=|!=|[<>≤≥⩽⩾≠]")
_SIGNS = {
    **dict.fromkeys(("<", r"\lt"), "<"),
    **dict.fromkeys((">", r"\gt"), ">"),
    **dict.fromkeys(("<=", "≤", "⩽", r"\le", r"\leq", r"\leqslant"), "<="),
    **dict.fromkeys((">=", "≥", "⩾", r"\ge", r"\geq", r"\geqslant"), ">="),
    **dict.fromkeys(("!=", "≠", r"\ne", r"\neq"), "!="),
}
_VARIABLE = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?|\\(?:theta|alpha|beta|lambda|mu|phi)|[θαβλμφ]|[fg]\(x\)")
_EVERYTHING = ("", "")


class Piece(NamedTuple):
    """One interval."""

    left: str
    r"""Text of the endpoint, empty for -\infty."""
    right: str
    r"""Empty for \infty."""
    left_closed: bool
    right_closed: bool


class Pieces(NamedTuple):
    """A union of intervals as written."""

    pieces: tuple[Piece, ...]
    name: str
    """The variable, empty where none is named."""
    bracketed: bool
    """Whether it is written with brackets; `(2, 3)` may then be a point as well."""

    @property
    def only_interval(self) -> bool:
        """Whether it can be nothing else: a union, an infinite end, brackets of two kinds, a condition."""
        first = self.pieces[0]
        return bool(self.name) or not self.bracketed or len(self.pieces) > 1 or not (first.left and first.right) or (
            first.left_closed != first.right_closed
        )  # fmt: skip


def read_pieces(text: str) -> Pieces | None:
    """The intervals that `text` is; None where it is none."""
    line = inline(text)
    name = ""
    builder = _SET_BUILDER.fullmatch(line)
    if builder:
        name, line = builder[1], builder[2]
    if _REALS.fullmatch(line):
        return Pieces((Piece(*_EVERYTHING, False, False),), name, False)
    if without := _WITHOUT.fullmatch(line):
        return _without(without[1].split(","), name)
    member = re.match(rf"({_VARIABLE.pattern})\s*(?:\\in(?![a-z])|∈)\s*", line)
    if member:
        name, line = member[1], line[member.end() :]
    bracketed = _bracketed(line)
    if bracketed is not None:
        return Pieces(bracketed, name, True)
    return None if member else _inequalities(line, name)


def _without(points: list[str], name: str) -> Pieces | None:
    points = [point.strip() for point in points]
    if not all(points) or len(points) >= MAX_PIECES:
        return None
    if len(points) > 1:
        try:
            points.sort(key=float)
        except ValueError:
            return None
    ends = ["", *points, ""]
    return Pieces(tuple(Piece(left, right, False, False) for left, right in pairwise(ends)), name, False)


def _end(text: str, side: str) -> str | None:
    """An endpoint: empty for infinity on its own side (`-` left, `+` right), None for nonsense."""
    text = text.strip()
    infinite = _INFINITE.fullmatch(text)
    if infinite is None:
        return text or None
    return "" if (infinite[1] or "+") == side else None


def _bracketed(line: str) -> tuple[Piece, ...] | None:
    parts = _UNION.split(line)
    if len(parts) > MAX_PIECES:
        return None
    pieces = []
    for part in parts:
        part = part.strip()
        if len(part) < 5 or part[0] not in "([]" or part[-1] not in ")][":
            return None
        left_closed, right_closed = part[0] == "[", part[-1] == "]"
        inside = part[1:-1]
        comma = _only_comma(inside)
        if comma is None or part[0] + part[-1] in ("([", "])"):
            return None
        left, right = _end(inside[:comma], "-"), _end(inside[comma + 1 :], "+")
        if left is None or right is None or _descends(left, right):
            return None
        pieces.append(Piece(left, right, left_closed and left != "", right_closed and right != ""))
    return tuple(pieces)


def _descends(left: str, right: str) -> bool:
    """Whether two plain numbers are no ends of an interval: (11, 7)."""
    plain = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?")
    return bool(plain.fullmatch(left) and plain.fullmatch(right)) and float(left) > float(right)


def _only_comma(inside: str) -> int | None:
    """Index of the one comma or semicolon outside brackets, in text whose brackets close."""
    depth, found = 0, None
    for index, char in enumerate(inside):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None
        if depth == 0 and char in ",;":
            if found is not None:
                return None
            found = index
    return found if depth == 0 else None


def _inequalities(line: str, name: str) -> Pieces | None:
    alternatives = re.split(r"\s(?:or|\\lor|\\vee)\s|或|\u2228", line)
    if len(alternatives) > MAX_PIECES:
        return None
    pieces: list[Piece] = []
    for alternative in alternatives:
        read = _conjunction(alternative)
        if read is None or (name and read[0] != name):
            return None
        name = read[0]
        pieces += read[1]
    return Pieces(tuple(pieces), name, False)


def _conjunction(text: str) -> tuple[str, list[Piece]] | None:
    """`1 < x < 3`, `x > 1 and x < 3`, `x \\neq 2`: the variable and the pieces."""
    halves = re.split(r"\s(?:and|\\land|\\wedge)\s|且|,", text)
    bounds = [_bounds(half.strip()) for half in halves]
    if len(bounds) > 2 or any(bound is None for bound in bounds):
        return None
    (name, pieces), *others = [bound for bound in bounds if bound]
    if not others:
        return name, pieces
    ((other_name, other_pieces),) = others
    if other_name != name or len(pieces) != 1 or len(other_pieces) != 1:
        return None
    low, high = sorted((pieces[0], other_pieces[0]), key=lambda piece: piece.left == "")
    if low.right or high.left or not low.left or not high.right:
        return None
    return name, [Piece(low.left, high.right, low.left_closed, high.right_closed)]


def _bounds(text: str) -> tuple[str, list[Piece]] | None:
    signs = [_SIGNS[sign.group()] for sign in _SIGN.finditer(text)]
    terms = [term.strip() for term in _SIGN.split(text)]
    if not all(terms) or "=" in "".join(terms) or len(signs) not in (1, 2):
        return None
    variables = [_VARIABLE.fullmatch(term) is not None for term in terms]
    if len(signs) == 2:
        if not variables[1] or "!=" in signs or signs[0][0] != signs[1][0]:
            return None
        if signs[0][0] == ">":
            terms, signs = terms[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
        left, right = _end(terms[0], "-"), _end(terms[2], "+")
        if left is None or right is None:
            return None
        return terms[1], [Piece(left, right, signs[0] == "<=" and left != "", signs[1] == "<=" and right != "")]
    if sum(variables) != 1:
        return None
    if variables[1]:
        terms, signs = terms[::-1], [signs[0].translate(str.maketrans("<>", "><"))]
    name, end = terms
    if re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", end):
        return None
    sign, closed = signs[0], signs[0] in ("<=", ">=")
    if sign == "!=":
        return name, [Piece("", end, False, False), Piece(end, "", False, False)]
    if _INFINITE.fullmatch(end):
        return None
    return name, [Piece(end, "", closed, False) if sign[0] == ">" else Piece("", end, False, closed)]
