"""The kind `number`: a value with or without a unit, or an expression that comes to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lcot_plugin.rewards.algebra import looks_like_expression, split_assignment, split_unit
from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.quantities import UNITS, Quantity, read_quantity, same_quantity
from lcot_plugin.rewards.sequences import split_sequence
from lcot_plugin.types import MatchSettings


@dataclass(frozen=True)
class Number:
    """The value of a gold answer of this kind."""

    quantity: Quantity
    name: str
    """`x` of `x = 5`."""


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The number that `text` is."""
    name, value = split_assignment(inline(text))
    quantity = read_quantity(value)
    return None if quantity is None else Gold("number", text, Number(quantity, name))


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` states the gold number."""
    text = undress(found.answer)
    number: Number = gold.value
    best: bool | None = None
    for candidate in _candidates(number, text, found):
        quantity = read_quantity(candidate, glued_letter=number.quantity.unit is not None)
        if quantity is not None:
            return same_quantity(number.quantity, quantity)
        if looks_like_expression(split_unit(candidate)[0]) and split_sequence(candidate) is None:
            best = _equal_to_number(number.quantity, candidate, solver)
    return best


def _candidates(gold: Number, text: str, found: Found) -> list[str]:
    """`text`, or the right-hand side of its only equation, or what a last line says that something is."""
    line = inline(text)
    if line.count("=") + line.count("≈") + line.count(r"\approx") == 1:
        left, right = re.split(r"=|≈|\\approx", line)
        name = left.strip().replace(" ", "")
        if re.search(r",|\b(?:or|and)\b", line) or (gold.name and name and name != gold.name):
            return []
        return [right.strip()]
    if not found.explicit:
        _, says, rest = line.rpartition(" is ")
        if says and read_quantity(rest) is not None:
            return [rest]
    return [text]


def _equal_to_number(gold: Quantity, candidate: str, solver: Solver | None) -> bool | None:
    if solver is None:
        raise NeedsSolver
    body, unit = split_unit(candidate)
    if unit and (gold.percent or (gold.unit and gold.unit != unit)):
        return False
    value = rf"\frac{{{gold.value.numerator}}}{{{gold.value.denominator}}}"
    if gold.unit == UNITS["°"] and unit is None and re.search(r"\\pi|π|\bpi\b", body):
        return solver.equal(rf"{value} \cdot \frac{{\pi}}{{180}}", body)
    return solver.equal(value, body)


KIND = Kind(read, compare)
