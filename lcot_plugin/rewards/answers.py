"""A gold answer and a stated answer in, an outcome out; the verifier and its worker process consume it.

The same code runs in two places. In the training process there is no solver, and whatever needs symbolic algebra
raises NeedsSolver; the worker process then repeats the comparison with one. Each kind of answer has a reader for the
gold answer and a comparison, both in one table, KINDS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Protocol

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.choices import read_choice
from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.quantities import UNITS, Quantity, Unit, read_quantity, read_unit, same_quantity
from lcot_plugin.rewards.texts import normalise_text, same_text
from lcot_plugin.types import Outcome


class Solver(Protocol):
    """Symbolic algebra, at home in the worker process only."""

    def readable(self, expression: str) -> bool:
        """Whether `expression`, plain or LaTeX, can be parsed."""
        ...

    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether the two are equal; None where `answer` cannot be parsed."""
        ...


class NeedsSolver(Exception):
    """This comparison needs a solver and there is none in this process."""


@dataclass(frozen=True)
class Gold:
    """A gold answer, read."""

    kind: str
    """number, choice, text, expression or sequence."""
    text: str
    """The answer without its dress."""
    quantity: Quantity | None = None
    """The value, for a number."""
    name: str = ""
    """`x` of `x = 5`."""
    items: tuple[Gold, ...] = ()
    """The elements of a sequence."""
    brackets: str = ""
    """`()`, `[)` and the like around a sequence; `{}` or nothing where its order does not matter."""
    unit: Unit | None = None
    """The unit behind an expression."""
    written: str = ""
    """The whole answer as written, without spaces and outer dress: an answer identical to it needs no comparison."""

    @property
    def expressions(self) -> list[str]:
        """What a solver has to parse."""
        if self.kind == "expression":
            return [self.text]
        return [expression for item in self.items for expression in item.expressions]


MAX_SEQUENCE_ITEMS = 64
MAX_EXPRESSION_CHARS = 1000
MAX_NESTING = 40
"""Brackets deeper than this only keep the parser busy until its deadline."""
_MAX_DEPTH = 3
_ASSIGNMENT = re.compile(r"^([A-Za-z](?:_\{?\w{1,8}\}?|\([A-Za-z]\))?|\\[a-z]{2,8}|[\u03b1-\u03c9])\s*=(?!=)\s*(\S.*)$")
_FUNCTION_NAMES = frozenset(
    re.findall(r"\w+", "sin cos tan cot sec csc arcsin arccos arctan log ln exp sqrt pi theta alpha beta")
)
_GREEK = "αβγδεθλμπρστφω"
_WORD = re.compile(r"[^\W\d_]+")


def looks_like_expression(text: str) -> bool:
    r"""Whether `text` is mathematics: `2\sqrt{3}`, `x+1`; not `12:30`, `2020-01-05`, `10-12`, `B2`, `red ball`."""
    if len(text) > MAX_EXPRESSION_CHARS or max(_depths(text), default=0) > MAX_NESTING:
        return False
    line = re.sub(r"\\(?:begin|end)\{[a-z]+\}", r"\\matrix ", inline(text))
    bare = re.sub(r"\\[A-Za-z]+", " ", line)
    if not re.search(r"[\d+\-*/^=<>√≤≥±∞|!" + _GREEK + r"]", bare) and "\\" not in line:
        return bare == "pi" or re.fullmatch(r"(?:sin|cos|tan|log|ln|exp|sqrt)\s*\(\s*[a-z]\s*\)", bare) is not None
    if re.search(r"[:?\"'#@&]", bare.replace("&", "") if "\\matrix" in line else bare):
        return False
    if re.fullmatch(r"\d[\d.,\s]*[-/][\d\s.,/-]*", bare) or re.search(r"\d+\.\d+\.", bare):
        return False
    for word in _WORD.findall(bare):
        if word.lower() not in _FUNCTION_NAMES and (len(word) > 2 or not (word.isascii() or word in _GREEK)):
            return False
    return re.search(r"(?<![\\A-Za-z])[A-Za-z]\d", bare) is None


def split_assignment(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x = 5`; an empty name where there is none."""
    match = _ASSIGNMENT.match(text)
    if match is None or re.search(r"[=<>]", match[2]):
        return "", text
    return match[1].replace(" ", ""), match[2].strip()


def split_sequence(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of `(2, 3)`, `{1, 2}` or `3, 2`; None where `text` is no sequence."""
    brackets = ""
    text = inline(text)
    body = re.sub(r"\\([{}])", r"\1", text)
    if body[:1] in "([{" and body[-1:] in ")]}" and len(body) > 2:
        depths = _depths(body)
        if depths[-1] == 0 and min(depths[:-1]) > 0:
            brackets, body = body[0] + body[-1], body[1:-1]
    depths = _depths(body)
    if not depths or depths[-1] != 0 or min(depths) < 0:
        return None
    # "1,000, 2,000": with spaced commas, those inside a number group thousands.
    comma = re.compile(r",\s" if re.search(r"\d,\d{3}(?!\d)", body) and re.search(r",\s", body) else r",")
    cuts = [match.start() for match in comma.finditer(body) if depths[match.start()] == 0]
    if brackets == "" and re.fullmatch(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", body):
        return None
    if not cuts or len(cuts) >= MAX_SEQUENCE_ITEMS:
        return None
    edges = [-1, *cuts, len(body)]
    items = [body[left + 1 : right].strip() for left, right in pairwise(edges)]
    items[-1] = re.sub(r"^(?:and|or)\s+", "", items[-1])
    return (brackets, items) if all(items) else None


def _depths(text: str) -> list[int]:
    """Bracket depth after each character; kinds of bracket are not told apart, because of `[2, 3)`."""
    return list(accumulate((char in "([{") - (char in ")]}") for char in text))


def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""An expression and the known unit behind it: (`2\sqrt{3}`, cm) of `2\sqrt{3} cm`."""
    line = inline(text)
    match = re.match(r"^(.*(?:[\d})\]!|π]|\\pi))(\s+|(?=°))([A-Za-z°Ω$€%/ ]{1,24}(?:\^\s?\{?[23]\}?)?)$", line)
    if match is not None and match[3].split("/")[0].split("^")[0].strip().removesuffix("s") in UNITS:
        known, unit = read_unit(" " + match[3])
        if known:
            return match[1].strip(), unit
    return line, None


# Readers of gold answers.


def _read_number(text: str, depth: int) -> Gold | None:
    name, value = split_assignment(inline(text))
    quantity = read_quantity(value)
    return None if quantity is None else Gold("number", text, quantity=quantity, name=name)


def _read_choice(text: str, depth: int) -> Gold | None:
    letter = read_choice(text)
    return None if letter is None else Gold("choice", letter)


def _read_text(text: str, depth: int) -> Gold | None:
    return Gold("text", text) if normalise_text(text) else None


def _read_expression(text: str, depth: int) -> Gold | None:
    body, unit = split_unit(text)
    sequence = _read_sequence(text, depth)
    return sequence or (Gold("expression", body, unit=unit) if body else None)


def _read_sequence(text: str, depth: int) -> Gold | None:
    if depth >= _MAX_DEPTH:
        return None
    name, body = split_assignment(inline(text))
    parts = split_sequence(body)
    if parts is None:
        return None
    items = [_infer(undress(item), depth + 1) for item in parts[1]]
    if any(item is None or item.kind == "text" for item in items):
        return None
    return Gold("sequence", text, name=name, items=tuple(item for item in items if item), brackets=parts[0])


def _infer(text: str, depth: int = 0) -> Gold | None:
    """The gold answer under `answer_type: auto`."""
    if re.fullmatch(r"\(?[A-J]\)?[.:)]?|\([a-j]\)", text):
        return _read_choice(text, depth)
    if found := _read_number(text, depth) or _read_sequence(text, depth):
        return found
    return _read_expression(text, depth) if looks_like_expression(split_unit(text)[0]) else _read_text(text, depth)


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are read and compared."""

    read: Callable[[str, int], Gold | None]
    compare: Callable[[Gold, Found, Solver | None], bool | None]
    """True or False; None where the found text states no answer of this kind."""


@lru_cache(maxsize=8192)
def read_gold(gold: str, answer_type: str = "auto") -> Gold | None:
    """The gold answer as its kind; None where it cannot be read as one.

    Raises RewardError for an unknown `answer_type`.
    """
    check_answer_type(answer_type)
    text = undress(gold)
    if not text:
        return None
    found = _infer(text) if answer_type == "auto" else KINDS[answer_type].read(text, 0)
    return replace(found, written=_squeeze(text)) if found else None


def check_answer_type(answer_type: str) -> None:
    """RewardError unless `answer_type` is one that the verifier knows."""
    if answer_type not in ANSWER_TYPES:
        raise RewardError(f"answer_type {answer_type!r} is unknown; write one of {', '.join(ANSWER_TYPES)}")


def judge(gold: Gold, found: Found | None, solver: Solver | None = None) -> Outcome:
    """What `found` is worth against `gold`.

    Raises NeedsSolver where algebra decides and `solver` is None.
    """
    if found is not None and gold.written and _squeeze(undress(found.answer)) == gold.written:
        return Outcome.MATCHED
    if gold.expressions:
        if solver is None:
            raise NeedsSolver
        if not all(solver.readable(expression) for expression in gold.expressions):
            return Outcome.GOLD_UNPARSABLE
    if found is None:
        return Outcome.UNPARSABLE
    try:
        same = KINDS[gold.kind].compare(gold, found, solver)
    except NeedsSolver:
        raise
    except Exception:
        # The one catch of this room: the gold answer has been read, so whatever fails here fails on what a model
        # wrote, and that may never end a training run.
        return Outcome.UNPARSABLE
    if same is None:
        return Outcome.MISMATCHED if found.explicit else Outcome.UNPARSABLE
    return Outcome.MATCHED if same else Outcome.MISMATCHED


# Comparisons.


def _compare_number(gold: Gold, found: Found, solver: Solver | None) -> bool | None:
    text = undress(found.answer)
    assert gold.quantity is not None
    best: bool | None = None
    for candidate in _number_candidates(gold, text, found):
        quantity = read_quantity(candidate, glued_letter=gold.quantity.unit is not None)
        if quantity is not None:
            return same_quantity(gold.quantity, quantity)
        if looks_like_expression(split_unit(candidate)[0]) and split_sequence(candidate) is None:
            best = _equal_to_number(gold.quantity, candidate, solver)
    return best


def _number_candidates(gold: Gold, text: str, found: Found) -> list[str]:
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


def _compare_choice(gold: Gold, found: Found, solver: Solver | None) -> bool | None:
    letter = read_choice(undress(found.answer))
    return None if letter is None else letter == gold.text


def _compare_text(gold: Gold, found: Found, solver: Solver | None) -> bool | None:
    return same_text(gold.text, undress(found.answer))


def _compare_expression(gold: Gold, found: Found, solver: Solver | None) -> bool | None:
    body, unit = split_unit(undress(found.answer))
    if _squeeze(body) == _squeeze(gold.text) and (unit is None or gold.unit is None or unit == gold.unit):
        return True
    quantity = read_quantity(body)
    if quantity is None and not looks_like_expression(body):
        return None
    if split_sequence(body) is not None or (unit and gold.unit and unit != gold.unit):
        return False
    if solver is None:
        raise NeedsSolver
    if unit == UNITS["°"] and gold.unit is None and re.search(r"\\pi|π|\bpi\b", gold.text):
        body = rf"({body}) \cdot \frac{{\pi}}{{180}}"
    return solver.equal(gold.text, body)


def _compare_sequence(gold: Gold, found: Found, solver: Solver | None) -> bool | None:
    name, body = split_assignment(inline(undress(found.answer)))
    body = re.sub(r"\s+(?:and|or|和|或)\s+", ", ", body)
    parts = split_sequence(body)
    if parts is None:
        return None
    brackets, items = parts
    if len(items) != len(gold.items) or (name and gold.name and name != gold.name):
        return False
    loose = ("", "{}")
    if gold.brackets not in loose and brackets != gold.brackets:
        return False
    answers = [Found(item, found.place) for item in items]
    if gold.brackets in loose and brackets in loose:
        # Equality is transitive, so that the first free match is as good as any.
        for item in gold.items:
            match = next((answer for answer in answers if judge(item, answer, solver) is Outcome.MATCHED), None)
            if match is None:
                return False
            answers.remove(match)
        return True
    return all(judge(item, answer, solver) is Outcome.MATCHED for item, answer in zip(gold.items, answers, strict=True))


def _squeeze(text: str) -> str:
    """Without the spaces that say nothing: `p - q` is `p-q`, but `1 2` is not `12`."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


KINDS: dict[str, Kind] = {
    "number": Kind(_read_number, _compare_number),
    "choice": Kind(_read_choice, _compare_choice),
    "text": Kind(_read_text, _compare_text),
    "expression": Kind(_read_expression, _compare_expression),
    "sequence": Kind(_read_sequence, _compare_sequence),
}
ANSWER_TYPES = ("auto", *KINDS)
