"""What the kinds of answers have in common: a reader of gold answers and a comparison, and the solver some need.

Each kind lives in a module of its own; `answers.KINDS` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.types import MatchSettings


class Solver(Protocol):
    """Symbolic algebra, at home in the worker process only."""

    def readable(self, expression: str) -> bool:
        """Whether `expression`, plain or LaTeX, can be parsed."""
        ...

    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether the two are equal; None where `answer` cannot be parsed."""
        ...

    def value(self, expression: str) -> float | None:
        """The value of `expression`; None where it has variables, is not real, or cannot be parsed."""
        ...


class NeedsSolver(Exception):
    """This comparison needs a solver and there is none in this process."""


@dataclass(frozen=True)
class Gold:
    """A gold answer, read."""

    kind: str
    """A key of `answers.KINDS`."""
    text: str
    """The answer without its dress."""
    value: Any = None
    """What the kind's reader made of it; the kind's own type, immutable."""
    expressions: tuple[str, ...] = ()
    """What a solver has to parse before anything can be compared."""
    written: str = ""
    """The whole answer as written, without spaces and outer dress: an answer identical to it needs no comparison."""


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are read and compared."""

    read: Callable[[str, MatchSettings], Gold | None]
    """The gold answer from its undressed text; None where the text states none of this kind."""
    compare: Callable[[Gold, Found, MatchSettings, Solver | None], bool | None]
    """True or False; None where the found text states no answer of this kind. Raises NeedsSolver where algebra decides
    and the solver is None."""
    infer: Callable[[str, MatchSettings], Gold | None] | None = None
    """A stricter `read`, for `answer_type: auto`; None where `read` is strict enough."""
