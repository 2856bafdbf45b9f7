"""Two expressions in, whether they are equal out. Imported by the worker process only.

Algebra and closed forms: `notation` reads them and `identities` decides whether they agree, numerically, at many digits
and many points. That is certain enough to pay for, bounded in time, and free of what simplification misses. Calculus
(sums, products, integrals, limits, derivatives) goes through math-verify, its LaTeX grammar and comparison only: its
extraction takes the `2` of a bare `2\\sqrt{3}`, and its reader of plain expressions evaluates Python.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify.grader import should_treat_as_complex
from sympy import Expr, Float

from lcot_plugin.rewards.kinds.dress import to_latex
from lcot_plugin.rewards.mathematics.identities import TooLarge, closed_value, same
from lcot_plugin.rewards.mathematics.notation import read_notation
from lcot_plugin.rewards.mathematics.syntax import Node, Unreadable, names_in, renamed

# It warns at every start that its timeouts are off; the deadline is the parent's.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NORMALISATION = NormalizationConfig(
    basic_latex=True,
    units=False,  # stripping units makes 5 m equal 5 cm
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
)
_CALCULUS = re.compile(
    r"\\(?:sum|prod|int|lim)(?![a-z])|\\frac\s*\{\s*(?:d|\\partial)[^{}]{0,8}\}\s*\{\s*(?:d|\\partial)"
)
_MISREAD = re.compile(
    r"\d\s*_|_\s*\{?[^{}]{0,3}\}?\s*\d\s*!|\^[^{}]{0,8}\^|\d{5,}|\d\s*!|\d\d\s*\^|([a-z])\s*\^\s*\{?\s*\1"
)
"""Numbers with a subscript, which the grammar drops, and what may keep sympy busy for hours."""
_MAX_CALCULUS_CHARS = 200
_UNIT_VECTORS = {f"{accent}:{letter}": letter for accent in ("vec", "hat") for letter in "ijk"}


@lru_cache(maxsize=512)
def read(expression: str) -> Node | None:
    """The tree of `expression`, None where it cannot be read as algebra."""
    try:
        return read_notation(expression)
    except Unreadable:
        return None


@lru_cache(maxsize=256)
def read_calculus(expression: str) -> Any:
    """`expression` as sympy's, None where it is no calculus, or the grammar refuses it."""
    if len(expression) > _MAX_CALCULUS_CHARS:
        return None
    latex = to_latex(expression)
    if _MISREAD.search(latex):
        return None
    return _sympy(expression) if _CALCULUS.search(latex) else None


def _sympy(expression: str) -> Any:
    if len(expression) > _MAX_CALCULUS_CHARS:
        return None
    latex = normalize_latex(to_latex(expression), _NORMALISATION)
    try:
        return latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:  # the grammar raises bare Exception for every text that is not LaTeX
        return None


def _with_unit_vectors(gold: Node, answer: Node) -> tuple[Node, Node]:
    r"""Where `\vec j` or `\hat{k}` stands on one side, i, j and k are unit vectors on both: `6\vec j` is `6j`."""
    sides = (gold, answer)
    if not any(_UNIT_VECTORS.keys() & names_in(side) for side in sides):
        return gold, answer
    if any({_UNIT_VECTORS[name] for name in _UNIT_VECTORS.keys() & names_in(side)} & names_in(side) for side in sides):
        return gold, answer  # j is something else than \vec j
    plain = {name: Node("name", value=letter) for name, letter in _UNIT_VECTORS.items()}
    left, right = (renamed(side, plain) for side in sides)
    unit = {"i": plain["vec:i"]}  # no imaginary unit then
    left, right = (renamed(side, unit) if names_in(side) & {"j", "k"} else side for side in (left, right))
    return left, right


class MathVerifySolver:
    """`kinds.Solver` over `identities` and math-verify."""

    def readable(self, expression: str) -> bool:
        """Whether `expression` can be read."""
        if _CALCULUS.search(expression):
            return read_calculus(expression) is not None
        return read(expression) is not None

    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether the two are equal; None where `answer` cannot be read, or both are too large to be told apart."""
        left, right = read(gold), read(answer)
        if left is not None and right is not None:
            # Sums that agree term by term are equal; others may be so all the same.
            calculus = _CALCULUS.search(gold) or _CALCULUS.search(answer)
            try:
                equal: bool | None = same(*_with_unit_vectors(left, right))
            except TooLarge:
                equal = True if left == right else None
            if equal or not calculus:
                return equal
        if any(_CALCULUS.search(text) and read_calculus(text) is None for text in (gold, answer)):
            return None
        if read_calculus(gold) is None and read_calculus(answer) is None:
            return None
        pair = [read_calculus(text) or _sympy(text) for text in (gold, answer)]
        if pair[0] is None or pair[1] is None:
            return None
        if any(isinstance(side, Expr) and side.has(Float) for side in pair):
            return None  # math-verify compares floats by six decimals
        return math_verify.verify(*pair, timeout_seconds=None)

    def value(self, expression: str) -> float | None:
        """The value of an expression without variables; None where it has some, is not real, or cannot be read."""
        node = read(expression)
        if node is None or _CALCULUS.search(expression):
            calculus = read_calculus(expression)
            if calculus is None or getattr(calculus, "free_symbols", True):
                return None
            try:
                return float(calculus.doit().evalf())
            except (TypeError, ValueError, AttributeError):
                return None
        if names_in(node):
            return None
        try:
            return closed_value(node)
        except TooLarge:
            return None
