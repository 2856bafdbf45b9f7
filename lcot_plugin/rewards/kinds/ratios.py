r"""The kind `ratio`: `3:4`, `1:2:3`, `3 to 4`, `3比4`, `1:\sqrt{3}`. Proportional ratios are equal; 3:4 is 3/4 too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds.algebra import looks_like_expression, split_assignment
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.quantities import read_quantity
from lcot_plugin.types import MatchSettings

MAX_PARTS = 6
MAX_RATIO_CHARS = 400
_CLOCK = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?")


_OF_NAMES = re.compile(
    r"(?P<name>[A-Z][A-Z]{0,3}'?(?:_\{?\w{1,6}\}?)?(?:\s?:\s?[A-Z][A-Z]{0,3}'?(?:_\{?\w{1,6}\}?)?){1,5})\s?=(?P<body>[^=]+)"
)
"""`V_1:V_2 = 11:21`."""


@dataclass(frozen=True)
class Ratio:
    """A gold ratio."""

    parts: tuple[str, ...]
    values: tuple[Fraction, ...]
    """Empty where a part is no plain number."""
    name: str


def split_ratio(text: str, *, words: bool) -> tuple[str, ...] | None:
    """The parts of a ratio; `words` takes `3 to 4` for one too."""
    line = inline(text).replace("∶", ":").replace(r"\colon", ":").replace(r"\ratio", ":").replace(r"{:}", ":")  # noqa: RUF001
    separator = r"\s*(?::|比|\sto\s)\s*" if words else r"\s*(?::|比)\s*"
    parts = tuple(part.strip() for part in re.split(separator, line))
    return parts if 2 <= len(parts) <= MAX_PARTS and all(parts) else None


def _plain_name(name: str) -> str:
    return re.sub(r"[{}\s]", "", name)


def _values(parts: tuple[str, ...]) -> tuple[Fraction, ...]:
    read = [read_quantity(part) for part in parts]
    plain = [quantity.value for quantity in read if quantity and not quantity.unit and not quantity.percent]
    return tuple(plain) if len(plain) == len(parts) and all(value >= 0 for value in plain) and any(plain) else ()


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The ratio that `text` is, in words too."""
    return _read(text, words=True)


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The ratio that `text` is, where it cannot be a time."""
    clock = len(text) < 40 and _CLOCK.fullmatch(inline(text).replace(" ", ""))
    return None if clock else _read(text, words=False)


def _read(text: str, *, words: bool) -> Gold | None:
    if len(text) > MAX_RATIO_CHARS:
        return None
    name, body = split_assignment(inline(text))
    if (named := _OF_NAMES.fullmatch(body)) is not None:
        name, body = named["name"], named["body"]
    parts = split_ratio(body, words=words)
    if parts is None:
        return None
    values = _values(parts)
    if not values and not all(_is_term(part) for part in parts):
        return None
    return Gold("ratio", text, Ratio(parts, values, _plain_name(name)), () if values else parts)


def _is_term(part: str) -> bool:
    quantity = read_quantity(part)
    return (quantity is not None and quantity.unit is None) or looks_like_expression(part)


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` is a proportional ratio; of two parts, or their quotient."""
    ratio: Ratio = gold.value
    text = undress(found.answer)
    if len(text) > MAX_RATIO_CHARS:
        return None
    line = inline(text)
    if line.count("=") == 1 and (right := line.partition("=")[2].strip()):
        if ":" in ratio.name and _plain_name(line.partition("=")[0]) != ratio.name:
            return False  # 3:4 of b:a, where a:b was asked for
        line = right
    if not found.explicit and " is " in line:
        line = line.rpartition(" is ")[2]
    parts = split_ratio(line, words=True)
    if parts is None:
        quotient = read_quantity(line)
        if quotient is None or len(ratio.values) != 2 or quotient.unit or quotient.percent:
            return None
        return quotient.value * ratio.values[1] == ratio.values[0] and ratio.values[1] != 0 and "/" in _fraction(line)
    if len(parts) != len(ratio.parts):
        return False
    values = _values(parts)
    if ratio.values and values:
        return _proportional(ratio.values, values)
    if not all(_is_term(part) for part in parts):
        return None
    if solver is None:
        raise NeedsSolver
    products = (
        (f"({ratio.parts[0]})*({other})", f"({parts[0]})*({one})")
        for one, other in zip(ratio.parts[1:], parts[1:], strict=True)
    )
    return all(solver.equal(one, other) is True for one, other in products)


def _fraction(line: str) -> str:
    # A decimal is rather a result than a ratio.
    return line.replace(r"\frac", "/")


def _proportional(gold: tuple[Fraction, ...], answer: tuple[Fraction, ...]) -> bool:
    sums = sum(gold), sum(answer)
    return all(one * sums[1] == other * sums[0] for one, other in zip(gold, answer, strict=True))


KIND = Kind(read, compare, infer)
