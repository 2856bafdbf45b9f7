"""The kind `json`: an object, an array, a number or a constant as JSON. `{"a": 1, "b": [2]}` is `{"b": [2.0], "a": 1}`.

Keys have no order, array elements have one; numbers count by value and within the tolerances of numbers; texts are
equal without outer spaces and with their case. A key too many is another answer; a key written twice is unreadable.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, Solver
from lcot_plugin.rewards.kinds.dress import plain_characters, undress
from lcot_plugin.rewards.kinds.quantities import allowed_error
from lcot_plugin.types import MatchSettings

MAX_NESTING = 32
"""Brackets inside brackets; Python's own reader would meet its recursion limit at about a thousand."""
_EXPONENT = re.compile(r"[eE][+-]?0*(\d+)$")
_MAX_EXPONENT_DIGITS = 3
"""1e999 is a number of a thousand digits; 1e999999999 would fill the memory."""
_FENCE_LANGUAGE = re.compile(r"^\s?[A-Za-z]+(?=[\s\[{<(])")
_LEAD_IN = re.compile(r"[^\[\]{}]*:\s*(?=[\[{])")
NEGATION = re.compile(
    r"\b(?:no(?!\.)|not|nor|never|neither|either|or|wrong|incorrect|instead|without|maybe|perhaps|possibly)\b|n't\b"
    r"|[不或没无非]|可能",
    re.IGNORECASE,
)
"""Words around an answer that take it back or offer another."""
_LATEX_ESCAPE = re.compile(r"\\([{}_%&#$])")


@dataclass(frozen=True)
class JsonObject:
    """A JSON object; JSON arrays are tuples, numbers are Fractions."""

    items: tuple[tuple[str, Any], ...]
    """(key, value), sorted by key; no key twice."""

    def get(self, key: str) -> Any:
        """The value of `key`, None where there is none."""
        return dict(self.items).get(key)


def parse_json(text: str) -> Any:
    """`text` as None, bool, Fraction, str, tuple or JsonObject.

    Raises ValueError where it is no JSON, or is longer, deeper or of larger numbers than an answer may be, or has a key
    twice.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise ValueError(f"{len(text)} characters")
    depth = 0
    for char in text:
        # Brackets in strings count too: no honest answer has so many.
        depth += (char in "[{") - (char in "]}")
        if depth > MAX_NESTING:
            raise ValueError(f"nested deeper than {MAX_NESTING}")
    value = json.loads(
        text, object_pairs_hook=_object, parse_int=Fraction, parse_float=_fraction, parse_constant=_refuse_constant
    )
    return _frozen(value)


def _fraction(digits: str) -> Fraction:
    exponent = _EXPONENT.search(digits)
    if exponent is not None and len(exponent[1]) > _MAX_EXPONENT_DIGITS:
        raise ValueError(f"{digits:.40} is too large or too small a number")
    return Fraction(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    items = {_plain(key): _frozen(value) for key, value in pairs}
    if len(items) != len(pairs):
        raise ValueError("a key is there twice")
    return JsonObject(tuple(sorted(items.items())))


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    """Look-alike characters and spaces as in every answer; case counts."""
    return " ".join(plain_characters(text).split())


def without_fence(text: str) -> str | None:
    """The content of the one code fence in `text`, `text` where there is none, None where there are several."""
    if "```" not in text:
        return text
    parts = text.split("```")
    if len(parts) != 3 or NEGATION.search(parts[0]) or NEGATION.search(parts[2]):
        return None
    return _FENCE_LANGUAGE.sub("", parts[1], count=1).strip()


def read_json(text: str) -> tuple[Any] | None:
    r"""(value,) of the JSON that `text` is, in a code fence, behind a colon or with LaTeX's `\{` or not; else None."""
    content = without_fence(undress(text))
    if content is None:
        return None
    lead_in = _LEAD_IN.match(content)
    if lead_in is not None and not NEGATION.search(lead_in.group()):
        content = content[lead_in.end() :]
    for candidate in (content, _LATEX_ESCAPE.sub(r"\1", content)):
        try:
            return (parse_json(candidate),)
        except ValueError:
            continue
    return None


def same_json(gold: Any, answer: Any, settings: MatchSettings) -> bool:
    """Whether two values of `parse_json` are equal; numbers within the tolerances of `settings`."""
    if isinstance(gold, Fraction) and isinstance(answer, Fraction):
        return abs(gold - answer) <= allowed_error(gold, settings.relative_tolerance, settings.absolute_tolerance)
    if type(gold) is not type(answer):  # true is not 1
        return False
    if isinstance(gold, JsonObject):
        pairs = zip(gold.items, answer.items, strict=False)
        return len(gold.items) == len(answer.items) and all(
            key == other and same_json(value, stated, settings) for (key, value), (other, stated) in pairs
        )
    if isinstance(gold, tuple):
        return len(gold) == len(answer) and all(
            same_json(value, stated, settings) for value, stated in zip(gold, answer, strict=True)
        )
    return bool(gold == answer)


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The JSON that `text` is."""
    value = read_json(text)
    return None if value is None else Gold("json", text, value[0])


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The JSON that `text` is, where it is an object or an array of objects: `[1, 2]` and `{1, 2}` are sequences."""
    if text[:1] not in ("{", "[", "`"):
        return None
    gold = read(text, settings)
    if gold is None:
        return None
    objects = gold.value if isinstance(gold.value, tuple) else (gold.value,)
    return gold if objects and all(isinstance(item, JsonObject) and item.items for item in objects) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` is the same JSON."""
    value = read_json(found.answer)
    return None if value is None else same_json(gold.value, value[0], settings)


KIND = Kind(read, compare, infer)
