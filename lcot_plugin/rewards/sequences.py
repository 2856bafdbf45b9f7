"""The kinds of several answers in one: a list, set, tuple, interval or coordinate. `(2, 3)`, `{1, 2}`, `3 and 2`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from lcot_plugin.rewards.algebra import bracket_depths, split_assignment
from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, Solver
from lcot_plugin.types import MatchSettings, Outcome

ReadItem = Callable[[str, MatchSettings], Gold | None]
JudgeItem = Callable[[Gold, Found, MatchSettings, Solver | None], Outcome]

MAX_SEQUENCE_ITEMS = 64
MAX_DEPTH = 3
"""Sequences inside sequences."""


@dataclass(frozen=True)
class Items:
    """The value of a gold answer of this kind."""

    items: tuple[Gold, ...]
    brackets: str
    """`()`, `[)` and the like; `{}` or nothing where the order does not matter."""
    name: str
    """`x` of `x = (1, 2)`."""

    @property
    def depth(self) -> int:
        """1 for a sequence of plain answers."""
        return 1 + max((item.value.depth for item in self.items if isinstance(item.value, Items)), default=0)


def split_sequence(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of `(2, 3)`, `{1, 2}` or `3, 2`; None where `text` is no sequence."""
    brackets = ""
    text = inline(text)
    body = re.sub(r"\\([{}])", r"\1", text)
    if body[:1] in "([{" and body[-1:] in ")]}" and len(body) > 2:
        depths = bracket_depths(body)
        if depths[-1] == 0 and min(depths[:-1]) > 0:
            brackets, body = body[0] + body[-1], body[1:-1]
    depths = bracket_depths(body)
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


def sequence_kind(read_item: ReadItem, judge_item: JudgeItem) -> Kind:
    """The kind `sequence`, whose elements are read and judged by these."""

    def read(text: str, settings: MatchSettings) -> Gold | None:
        name, body = split_assignment(inline(text))
        parts = split_sequence(body)
        if parts is None or max(bracket_depths(body)) > MAX_DEPTH + 8:
            return None
        items = [read_item(undress(item), settings) for item in parts[1]]
        if any(item is None or item.kind == "text" for item in items):
            return None
        value = Items(tuple(item for item in items if item), parts[0], name)
        if value.depth > MAX_DEPTH:
            return None
        expressions = tuple(expression for item in value.items for expression in item.expressions)
        return Gold("sequence", text, value, expressions)

    def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
        value: Items = gold.value
        name, body = split_assignment(inline(undress(found.answer)))
        body = re.sub(r"\s+(?:and|or|和|或)\s+", ", ", body)
        parts = split_sequence(body)
        if parts is None:
            return None
        brackets, items = parts
        if len(items) != len(value.items) or (name and value.name and name != value.name):
            return False
        loose = ("", "{}")
        if value.brackets not in loose and brackets != value.brackets:
            return False
        answers = [Found(item, found.place) for item in items]
        if value.brackets in loose and brackets in loose:
            # Equality is transitive, so that the first free match is as good as any.
            for item in value.items:
                judged = (answer for answer in answers if _same(judge_item(item, answer, settings, solver)))
                match = next(judged, None)
                if match is None:
                    return False
                answers.remove(match)
            return True
        pairs = zip(value.items, answers, strict=True)
        return all(_same(judge_item(item, answer, settings, solver)) for item, answer in pairs)

    return Kind(read, compare)


def _same(outcome: Outcome) -> bool:
    return outcome is Outcome.MATCHED
