"""Two expressions in, whether they are equal out, over math-verify. Imported by the worker process only.

math-verify's own extraction is not used: it takes the `2` of a bare `2\\sqrt{3}`, and its reader of plain
expressions evaluates Python. Everything goes through its LaTeX grammar, whole or not at all.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify.grader import should_treat_as_complex

from lcot_plugin.rewards.dress import to_latex

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


@lru_cache(maxsize=256)
def parse(expression: str) -> Any:
    """`expression` as sympy's, None where the grammar refuses it."""
    latex = normalize_latex(to_latex(expression), _NORMALISATION)
    try:
        return latex2sympy(
            latex, is_real=not should_treat_as_complex(latex), convert_degrees=False, normalization_config=None
        )
    except Exception:  # the grammar raises bare Exception for every text that is not LaTeX
        return None


class MathVerifySolver:
    """`answers.Solver` over math-verify."""

    def readable(self, expression: str) -> bool:
        return parse(expression) is not None

    def equal(self, gold: str, answer: str) -> bool | None:
        parsed = parse(answer)
        if parsed is None:
            return None
        return math_verify.verify(parse(gold), parsed, timeout_seconds=None)
