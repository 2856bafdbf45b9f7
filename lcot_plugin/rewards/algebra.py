r"""The kind `expression`: mathematics, LaTeX or plain, that only a solver can compare: `2\sqrt{3}`, `x+1`, `y = 2x`."""

from __future__ import annotations

import re
from itertools import accumulate

from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.quantities import UNITS, Unit, read_quantity, read_unit
from lcot_plugin.types import MatchSettings

MAX_EXPRESSION_CHARS = 1000
MAX_NESTING = 40
"""Brackets deeper than this only keep the parser busy until its deadline."""
_ASSIGNMENT = re.compile(r"^([A-Za-z](?:_\{?\w{1,8}\}?|\([A-Za-z]\))?|\\[a-z]{2,8}|[\u03b1-\u03c9])\s*=(?!=)\s*(\S.*)$")
_FUNCTION_NAMES = frozenset(
    re.findall(r"\w+", "sin cos tan cot sec csc arcsin arccos arctan log ln exp sqrt pi theta alpha beta")
)
_GREEK = "αβγδεθλμπρστφω"
_WORD = re.compile(r"[^\W\d_]+")


def looks_like_expression(text: str) -> bool:
    r"""Whether `text` is mathematics: `2\sqrt{3}`, `x+1`; not `12:30`, `2020-01-05`, `10-12`, `B2`, `red ball`."""
    if len(text) > MAX_EXPRESSION_CHARS or max(bracket_depths(text), default=0) > MAX_NESTING:
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


def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""An expression and the known unit behind it: (`2\sqrt{3}`, cm) of `2\sqrt{3} cm`."""
    line = inline(text)
    match = re.match(r"^(.*(?:[\d})\]!|π]|\\pi))(\s+|(?=°))([A-Za-z°Ω$€%/ ]{1,24}(?:\^\s?\{?[23]\}?)?)$", line)
    if match is not None and match[3].split("/")[0].split("^")[0].strip().removesuffix("s") in UNITS:
        known, unit = read_unit(" " + match[3])
        if known:
            return match[1].strip(), unit
    return line, None


def bracket_depths(text: str) -> list[int]:
    """Bracket depth after each character; kinds of bracket are not told apart, because of `[2, 3)`."""
    return list(accumulate((char in "([{") - (char in ")]}") for char in text))


def squeeze(text: str) -> str:
    """Without the spaces that say nothing: `p - q` is `p-q`, but `1 2` is not `12`."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The expression that `text` is, its unit as the value."""
    body, unit = split_unit(text)
    return Gold("expression", body, unit, expressions=(body,)) if body else None


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The expression that `text` is, where it looks like one."""
    return read(text, settings) if looks_like_expression(split_unit(text)[0]) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` is an equal expression."""
    from lcot_plugin.rewards.sequences import split_sequence

    gold_unit: Unit | None = gold.value
    body, unit = split_unit(undress(found.answer))
    if squeeze(body) == squeeze(gold.text) and (unit is None or gold_unit is None or unit == gold_unit):
        return True
    if read_quantity(body) is None and not looks_like_expression(body):
        return None
    if split_sequence(body) is not None or (unit and gold_unit and unit != gold_unit):
        return False
    if solver is None:
        raise NeedsSolver
    if unit == UNITS["°"] and gold_unit is None and re.search(r"\\pi|π|\bpi\b", gold.text):
        body = rf"({body}) \cdot \frac{{\pi}}{{180}}"
    return solver.equal(gold.text, body)


KIND = Kind(read, compare, infer)
