"""Text in, the option letter it chooses out: `(B)`, `B.`, `B) 5 cm`, `Option B` choose B; `A triangle` none."""

from __future__ import annotations

import re

from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, Solver
from lcot_plugin.types import MatchSettings

_LETTER = r"(?:\(\s*([A-Ja-j])\s*\)|\[\s*([A-Ja-j])\s*\]|【\s*([A-J])\s*】|\{\s*([A-J])\s*\}|([A-J])(?![A-Za-z0-9]))"
_ALONE = re.compile(rf"{_LETTER}\s*[.:)\],]?|([a-j])\s*[.:)]?")
_WITH_OPTION = re.compile(
    r"(?:\(\s*([A-Ja-j])\s*\)|\[\s*([A-J])\s*\]|([A-Ja-j])\s*[.:)\]]|([A-J])\s+-)\s*(?![.)])(\S.*)"
)
_NAMED = re.compile(
    rf"(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|answer|选项)\s*:?\s*{_LETTER}", re.IGNORECASE
)
_CHOSEN = re.compile(rf"{_LETTER}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b")
_ANOTHER = re.compile(r"^(?:or|and|,|/|&|或|和)(?![A-Za-z])|[(\[]\s*[A-J]\s*[)\]]|(?<![A-Za-z])[A-J][.:)](?:\s|$)")


def read_choice(text: str) -> str | None:
    """The one letter, A to J, that `text` chooses; None where it chooses none or hedges."""
    line = undress(inline(undress(text))).replace("*", "")
    if alone := _ALONE.fullmatch(line):
        return _group(alone)
    option = _WITH_OPTION.fullmatch(line)
    if option is not None:
        rest = option[option.re.groups]
        return None if _ANOTHER.search(rest) else _group(option)
    for pattern in (_NAMED, _CHOSEN):
        named = pattern.match(line)
        if named is not None:
            return None if _ANOTHER.search(line[named.end() :].lstrip(" .:)-")) else _group(named)
    return None


def _group(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).upper()


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The option that `text` chooses, its letter as the text."""
    letter = read_choice(text)
    return None if letter is None else Gold("choice", letter)


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The option that `text` chooses, where it is hardly anything else."""
    return read(text, settings) if re.fullmatch(r"\(?[A-J]\)?[.:)]?|\([a-j]\)", text) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` chooses the same option."""
    letter = read_choice(undress(found.answer))
    return None if letter is None else letter == gold.text


KIND = Kind(read, compare, infer)
