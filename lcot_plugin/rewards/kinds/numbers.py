"""The kind `number`: a value with or without a unit, an expression that comes to it, a place (`3rd`), `XIV`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import ratios
from lcot_plugin.rewards.kinds.algebra import looks_like_expression, split_assignment, split_unit
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.numerals import read_ordinal
from lcot_plugin.rewards.kinds.quantities import Quantity, read_quantity, same_quantity
from lcot_plugin.rewards.kinds.sequences import split_sequence
from lcot_plugin.rewards.kinds.statements import NEGATION, NOT_A_NOUN, calculate, denies, stated_quantity
from lcot_plugin.rewards.kinds.units import UNITS, Unit
from lcot_plugin.types import MatchSettings

MAX_NUMBER_CHARS = 1000
"""A longer answer is no number."""


class Form(StrEnum):
    """How a gold number is written."""

    CARDINAL = "cardinal"
    ORDINAL = "ordinal"
    """`3rd`, `third`, `第三`."""
    ROMAN = "roman"


@dataclass(frozen=True)
class Number:
    """The value of a gold answer of this kind."""

    quantity: Quantity
    name: str
    """`x` of `x = 5`."""
    form: Form = Form.CARDINAL
    unit_needed: bool = False
    """`0.64N` may be a multiple of N: 0.64 alone does not state it."""

    def __str__(self) -> str:
        return f"{f'{self.name} = ' * bool(self.name)}{self.quantity}"


_ROMAN = re.compile(r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_RELATION = re.compile(r"=|(?<![不相])等于|≈|≃|\\approx(?![a-z])|\\simeq(?![a-z])")
_NAME = re.compile(
    r"(?:\\(?:angle|measuredangle|triangle|Delta)\s?|[∠△ΔmS]\s?)*[^\W\d_]{1,2}(?:_\{?\w{1,8}\}?|'{1,3})*(?:\([^()]{1,12}\))?"
)
_MEASURE = re.compile(
    r"((?:m?\s?(?:∠|\\(?:measured)?angle)\s?)?[A-Z]{1,4}(?:_\{?\w\}?)?(?:\s?:\s?[A-Z]{1,4})?)\s?=\s?([^=<>]+)"
)
"""`∠ABC = 50°`, `AB = 5 cm`, `A:B = 1`."""
_CALCULATION = re.compile(
    r"(?P<left>[^=]{0,120}?)(?:(?<=\s)|=\s?)(?P<sum>\d[\d.\s]{0,20}(?:[-+*/×÷]\s?\d[\d.\s]{0,20}){1,8})=\s?(?P<result>[^=]{1,40})"  # noqa: RUF001
)
_TWO_STATEMENTS = re.compile(
    r"\b(?:is|are|was|were|or|either|if|when|whether|than|except|exclud\w+|eliminat\w+|ruled|guess)\b|=|:\s?\d|或|和",
    re.IGNORECASE,
)
"""What would make of "... is 5" another statement than that the answer is 5."""
_CHECKS = re.compile(r"\b(?:check|verif)|验|检", re.IGNORECASE)
_BECAUSE = re.compile(r"\s?[,;]?\s(?:because|since)\s|,\sas\s(?=(?:there|it)\s)", re.IGNORECASE)
_TAKEN_BACK = re.compile(r"\b(?:or|but|actually|however|wait|rather|instead)\b|[?？]", re.IGNORECASE)  # noqa: RUF001
_SUBSCRIPT = re.compile(r"_\s?\{[^{}]{0,40}\}")
"""The `k=1` below a sum is no equation."""
_CIRCLED = re.compile("[①-⑳]")
"""Numbers of statements: ①③ are two, not 13."""
_GLUED_SCALE = re.compile(r"[+-]?(?:\d+\.\d+\s?[kKMB]|\d[\d,]*[KM])")
_GLUED_UNIT = re.compile(r"[+-]?(?:\d{1,9}\.\d{1,9}|\d{3,9})[NJWVL]")
"""Hardly a multiple of something: `0.64N`, `1600W`."""
_TIMES_UNIT = re.compile(r"\s?(?:\*|·|×|\\cdot|\\times)\s?(?=[NJWVL]$)")  # noqa: RUF001
_WITH_WORDS = re.compile(
    r"(?P<number>[-+]?\d[\d.,{}!\\]*)\s?\\text\s?\{(?P<words>\s?[A-Za-z]{3,15}(?:\s[A-Za-z]{3,15}){1,3}\s?)\}"
)
"""`17\\text{ red apples}`."""
_TITLE = re.compile(r"(?:[A-Z][a-z]+[ -]){1,4}[A-Z][a-z]{2,}")
"""`Six Flags`, `One Direction`: names, even where the second word is a unit."""
_DECIMAL_COMMA = re.compile(r"([+-]?\s?(?:0,\d+|\d+,(?!\d{3}(?!\d))\d+))(?!,)(\D.*)?")


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The number that `text` is; `5m` is five metres, `5k` five thousand."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    line = inline(text)
    return _read(text, line, glued=True, scaled=re.search(r"\d\s?[kKMB]$", line) is not None) or ratios.read(
        text, settings
    )


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The number that `text` is, where it is hardly anything else."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    line = inline(text)
    gold = _read(text, line, glued=False, scaled=_GLUED_SCALE.fullmatch(line) is not None)
    if gold is None and _GLUED_UNIT.fullmatch(line) and (gold := _read(text, line, glued=True, scaled=False)):
        gold = replace(gold, value=replace(gold.value, unit_needed=True))
    if gold is None and (noted := _WITH_WORDS.fullmatch(text)) and not NOT_A_NOUN.search(noted["words"]):
        quantity = read_quantity(noted["number"])
        if quantity is not None and quantity.unit is None:
            own = Unit(((noted["words"].strip().lower(), 1),))
            gold = Gold("number", text, Number(replace(quantity, unit=own), ""))
    return None if gold and gold.value.quantity.unit and _TITLE.fullmatch(line) else gold


def _read(text: str, line: str, *, glued: bool, scaled: bool) -> Gold | None:
    name, value = split_assignment(line)
    if not name and (measure := _MEASURE.fullmatch(line)):
        name, value = _squeezed(measure[1]), measure[2]
    quantity = read_quantity(value, glued_letter=glued, scale_letter=scaled)
    if quantity is not None:
        return Gold("number", text, Number(quantity, name))
    place = read_ordinal(line)
    if place is not None:
        return Gold("number", text, Number(Quantity(Fraction(place)), "", Form.ORDINAL))
    roman = read_roman(line)
    # CIVIL reads as none, but MIX and DIM do, and one letter is rather a choice or a name.
    if roman is not None and (glued or (len(line) > 1 and re.fullmatch("[XVI]+", line))):
        return Gold("number", text, Number(Quantity(Fraction(roman)), "", Form.ROMAN))
    return None


def read_roman(text: str) -> int | None:
    """The value of a roman numeral in capitals up to 3999."""
    if not _ROMAN.fullmatch(text):
        return None
    values = [_ROMAN_VALUES[char] for char in text]
    return sum(-value if value < max(values[at:]) else value for at, value in enumerate(values))


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` states the gold number."""
    number: Number = gold.value
    text = undress(found.answer)
    if len(text) > MAX_NUMBER_CHARS or len(_CIRCLED.findall(found.answer)) > 1:
        return None
    line = inline(text)
    if number.form is not Form.CARDINAL and (same := _same_form(number, line)) is not None:
        return same
    if number.form is Form.ORDINAL:
        return None
    unit = number.quantity.unit
    reason = _BECAUSE.search(text)
    if reason is not None and read_quantity(text[: reason.start()]) is not None:
        tail = text[reason.end() :]
        if NEGATION.search(tail) or _TAKEN_BACK.search(tail):
            return None
        text = text[: reason.start()]
        line = inline(text)
    for candidate in _candidates(number, line, text, found):
        candidate = _TIMES_UNIT.sub(" ", candidate) if number.unit_needed else candidate
        quantity = read_quantity(candidate, glued_letter=unit is not None, scale_letter=number.quantity.letter != "")
        if quantity is None and number.quantity.decimals and (comma := _DECIMAL_COMMA.fullmatch(candidate)):
            quantity = read_quantity(comma[1].replace(",", ".") + (comma[2] or ""), glued_letter=unit is not None)
            if quantity is not None and quantity.value != number.quantity.value:
                return False
        if quantity is not None and number.unit_needed and quantity.unit is None:
            return False
        if quantity is not None:
            return _same(number.quantity, quantity, settings)
        if number.unit_needed and split_unit(candidate)[1] is None:
            return False
        if looks_like_expression(split_unit(candidate)[0]) and split_sequence(candidate) is None:
            return _equal_to_number(number.quantity, candidate, settings, solver)
    if not _RELATION.search(line):
        stated = stated_quantity(text, unit, marked=found.explicit)
        if stated is not None and not (number.unit_needed and stated.unit is None):
            return _same(number.quantity, stated, settings)
    return None


def _squeezed(name: str) -> str:
    name = re.sub(r"\\(?:measured)?angle(?![a-z])", "∠", name).replace(" ", "")
    return name.removeprefix("m") if name.startswith("m∠") else name


def _same(gold: Quantity, answer: Quantity, settings: MatchSettings) -> bool:
    return same_quantity(
        gold,
        answer,
        relative_tolerance=settings.relative_tolerance,
        absolute_tolerance=settings.absolute_tolerance,
    )


def _same_form(number: Number, line: str) -> bool | None:
    """Whether `line` names the gold place or roman numeral; None where it is neither."""
    if number.form is Form.ROMAN:
        value = read_roman(line.strip("(). "))
    else:
        line = re.sub(r"^the\s|\s(?:one|place|position)$", "", line, flags=re.IGNORECASE)
        value = int(line) if re.fullmatch(r"\d{1,9}", line) else read_ordinal(line)
    return None if value is None else number.quantity.value == value


def _candidates(gold: Number, line: str, text: str, found: Found) -> list[str]:
    """`text`, or the right-hand side of its only equation, or what a last line says that something is."""
    relations = list(_RELATION.finditer(_SUBSCRIPT.sub(lambda bounds: "_" * len(bounds[0]), line)))
    if len(relations) == 1:
        left, right = line[: relations[0].start()].strip(), line[relations[0].end() :].strip()
        name = _squeezed(left)
        named = not (gold.name and name and name != gold.name)
        if _NAME.fullmatch(right) and read_quantity(left) is not None:
            left, right, name = right, left, _squeezed(right)  # 3 = x
            named = not (gold.name and name != gold.name)
        holds = _holds(left, right)
        if holds is not None:
            return [right] if holds else []
        return [right] if named and _names_a_value(left) and not re.match("[<>=]", right) else []
    if len(relations) == 2 and (end := _end_of_calculation(line)) is not None:
        return [end]
    left, says, rest = line.rpartition(" is ")
    if says and not _TWO_STATEMENTS.search(left) and not NEGATION.search(left) and read_quantity(rest) is not None:
        return [rest]
    return [text]


def _holds(left: str, right: str) -> bool | None:
    """Whether an equation between numbers holds: `13 = 12` does not, `2/3 = 0.67` does, rounded; None for any other."""
    one, other = read_quantity(left), read_quantity(right)
    if one is None and (value := calculate(left)) is not None:
        one = Quantity(value)
    if one is None or (other is None and looks_like_expression(right)):
        return None
    if other is None:
        return False
    first, second = (quantity.value / (100 if quantity.percent else 1) for quantity in (one, other))
    rounded = first.denominator != 1 and abs(first - second) <= abs(first) / 50
    return same_quantity(one, other) or (one.unit == other.unit and rounded)


def _end_of_calculation(line: str) -> str | None:
    """`4000千克` of `面积 = 72000 / 18 = 4000千克`, where the calculation is right."""
    match = _CALCULATION.fullmatch(re.split(r"[.。]\s", line)[-1])
    if match is None or _TWO_STATEMENTS.search(match["left"]) or denies(match["left"]) or _CHECKS.search(match["left"]):
        return None
    result = read_quantity(match["result"])
    return match["result"] if result is not None and calculate(match["sum"]) == result.value else None


def _names_a_value(left: str) -> bool:
    """Whether an equation with this left-hand side says what something is: not `2x = 5`, `x != 5`, `x, y = 5`."""
    if re.search(r"[<>!~≠≤≥≢/\\:]$", left.removesuffix(":")) or re.search(r",(?!\d{3})|\b(?:or|and)\b", left):
        return False
    if denies(left) or _CHECKS.search(left):
        return False
    letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", left))
    words = re.search(
        r"(?<![\\A-Za-z])[A-Za-z]{2,}|\\(?:a?sin|cos|tan|cot|sec|csc|sum|prod|int|lim|overline|vec|bar|triangle|odot|Delta|widehat)",
        left,
    )
    return words is not None or len(letters) != 1 or _NAME.fullmatch(left) is not None


def _equal_to_number(gold: Quantity, candidate: str, settings: MatchSettings, solver: Solver | None) -> bool | None:
    if solver is None:
        raise NeedsSolver
    body, unit = split_unit(candidate)
    value = gold.value
    radians = unit == UNITS["rad"] or (unit is None and re.search(r"\\pi|π|\bpi\b", body) is not None)
    if gold.unit == UNITS["°"] and radians:
        return solver.equal(rf"\frac{{{value.numerator}}}{{{value.denominator}}} \cdot \frac{{\pi}}{{180}}", body)
    if unit and unit != gold.unit:
        if gold.percent or (gold.unit and (gold.unit.dimension != unit.dimension or unit.offset or gold.unit.offset)):
            return False
        if gold.unit:
            value = value * gold.unit.factor / unit.factor
    same = solver.equal(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", body)
    if same is False and gold.percent:
        share = value / 100
        same = solver.equal(rf"\frac{{{share.numerator}}}{{{share.denominator}}}", body)
    if same is False and (settings.relative_tolerance or settings.absolute_tolerance):
        number = solver.value(body)
        if number is not None and abs(number) < float("inf"):
            return _same(replace(gold, decimals=None), Quantity(Fraction(number), unit), settings)
    return same


KIND = Kind(read, compare, infer)
