r"""The kind `expression`: mathematics, LaTeX or plain, that only a solver can compare: `2\sqrt{3}`, `x+1`, `y = 2x`."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import accumulate

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.quantities import read_quantity
from lcot_plugin.rewards.kinds.units import UNITS, Unit, read_unit
from lcot_plugin.rewards.mathematics.notation import read_notation
from lcot_plugin.rewards.mathematics.syntax import Ambiguous, Unreadable
from lcot_plugin.types import MatchSettings

MAX_EXPRESSION_CHARS = 1000
MAX_NESTING = 40
"""Brackets deeper than this only keep the parser busy until its deadline."""
_NAME = (
    r"[A-Za-z](?:_\{?\w{1,8}\}?|\d)?'{0,2}(?:\([A-Za-z](?:,\s*[A-Za-z])?\))?|[fgh]\^\{?-1\}?\([a-z]\)|P\([^()]{1,24}\)|\\[a-z]{2,8}"
    r"|\\(?:vec|hat|bar|overline|overrightarrow)\s*\{\s*\w{1,3}\s*\}|[\u03b1-\u03c9Δ]|\([a-z](?:\s*,\s*[a-z]){1,3}\)"
)
_MEASURED = r"(?:\|[A-Z]{2}\||[A-Z]{1,2}(?:_\{?\w{1,8}\}?|'){0,2}|[a-z](?:_\{?\w{1,2}\}?)?)"
"""A length, an area, a volume: what a ratio has for its parts: `S_{MBCN}:S = 7:32`."""
_RATIO_NAME = rf"{_MEASURED}\s*:\s*{_MEASURED}(?:\s*:\s*{_MEASURED})?"
_ASSIGNMENT = re.compile(rf"^({_NAME}|{_RATIO_NAME})\s*=(?!=)\s*(\S.*)$")
_MATHEMATICAL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt cbrt abs gcd lcm max min pi theta "
        "alpha beta gamma delta lambda sigma omega phi inf infinity",
    )
)
_LEADING_SIGN = re.compile(r"^\s*(?:=(?!=)|≈|\\approx(?![a-z]))\s*")
_GREEK = "αβγδεθλμπρστφω"
_WORD = re.compile(r"[A-Za-z]+|[^\W\d_]")
_FUNCTION_OF_ONE = re.compile(
    r"(?:sin|cos|tan|log|ln|exp|sqrt)(?:\s*\(\s*(?:[a-z]|theta|alpha|beta|phi|omega)\s*\)|\s+[a-z])|[fgh]'{1,2}\(\s*[a-z]\s*\)"
)
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
_FAMILY = re.compile(r"[\s,;]*(?:\\quad)?\s*\(?\s*[kmn]\s*(?:\\in|∈)\s*(?:\\mathbb\s*\{?\s*Z\s*\}?|Z)\s*\)?$")
_ARROW = re.compile(r"\\(?:long)?rightarrow|\\to(?![a-z])|->|⟶|⇌|\\rightleftharpoons")
_GLUED = re.compile(r"[a-z]?(?:sin|cos|tan|ln|log|sqrt|exp)[xyn]?|[abcxyz]{3}")
# 3D, 4th, 5pm, 1990s, 1080p; B-52, COVID-19, He-3; 555-12-34; N/A, AC/DC, Wi-Fi
_CODE = re.compile(
    r"\d+(?:[BDGK]|st|nd|rd|th|am|pm|AM|PM)|\d+0s|\d{3,4}p|[A-Z]-\d{2,}[A-Za-z]?|(?:[A-Z]{2,}|[A-Z][a-z])-\d+"
    r"|\+?\d+(?:-\d+){2,8}|[NnT]/[AaF]|[A-Z]{2}/[A-Z]{2}|[A-Z][a-z]-[A-Z][a-z]"
)
_ELEMENT = (
    "A[cglmrstu]|B[aehikr]?|C[adeflmnorsu]?|D[bsy]|E[rsu]|F[elmr]?|G[ade]|H[efgos]?|I[nr]?|Kr?|L[airuv]|M[dgnot]|N[abdeip]?"
    "|Os?|P[abdmortu]?|R[abefghnu]|S[bcegimnr]?|T[abehilm]|U|V|W|Xe|Yb?|Z[nr]"
)
_FORMULA = re.compile(rf"\d?\d?(?:(?:{_ELEMENT}|\(|\))(?:[2-9]|1\d)?){{1,40}}(?:\^?[2-9]?[+-])?")


def looks_like_expression(text: str) -> bool:
    r"""Whether `text` is mathematics: `2\sqrt{3}`, `x+1`; not `12:30`, `2020-01-05`, `10-12`, `B2`, `red ball`."""
    if len(text) > MAX_EXPRESSION_CHARS or max(bracket_depths(text), default=0) > MAX_NESTING:
        return False
    line = re.sub(r"\\(?:begin|end)\{[a-z]+\}", r"\\matrix ", inline(text))
    bare = re.sub(r"\\[A-Za-z]+", " ", line)
    if not re.search(r"[\d+\-*/^=<>√≤≥±∞|!" + _GREEK + r"]", bare) and "\\" not in line:
        return bare == "pi" or bare in ("infinity", "Infinity") or _FUNCTION_OF_ONE.fullmatch(bare) is not None
    if re.search(r"[:?\"#@&]", bare.replace("&", "") if "\\matrix" in line else bare):
        return False
    range_or_date = "\\" not in line and re.fullmatch(r"\d[\d.,\s]*[-/][\d\s.,/-]*", bare)
    if range_or_date or re.search(r"\d+\.\d+\.(?!\.\.$)", bare) or _CODE.fullmatch(bare):
        return False
    formula_like = re.search(r"[\\^=/]", line)
    for word in _WORD.findall(bare):
        known = word.lower() in _MATHEMATICAL_WORDS or _GLUED.fullmatch(word) is not None
        if not known and formula_like and len(word) <= 4:
            known = re.search("[a-z][A-Z]|^[A-Z]{1,3}[a-rt-z]$", word) is not None  # kQq, nRT, GMm; not DVDs
        if not known and (len(word) > 2 or not (word.isascii() or word in _GREEK)):
            return False
    if re.search(r"(?<![\\A-Za-z_{])[A-Za-z]\d", bare) or "'" in re.sub(r"(?<=[A-Za-z])'{1,2}(?!\w)", "", bare):
        return False
    return "\\" in line or _readable(line)


def _readable(text: str) -> bool:
    """Whether plain `text` is mathematics from end to end; `A+` and `C++` are not."""
    try:
        read_notation(re.sub("[±,;]", "+", text))
    except Ambiguous:
        return True
    except Unreadable:
        from lcot_plugin.rewards.kinds.sequences import split_sequence

        return split_sequence(text) is not None
    return True


def split_assignment(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x = 5`; an empty name where there is none."""
    match = _ASSIGNMENT.match(text)
    if match is None or re.search(r"[=<>]", match[2]):
        return "", text
    return match[1].replace(" ", ""), match[2].strip()


def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""An expression and the unit behind it: (`2\sqrt{3}`, cm) of `2\sqrt{3} cm`."""
    line = inline(text)
    match = re.match(r"^(.*(?:[\d})\]!|πxyr]|\bpi))(\s+|(?=°))([A-Za-z°Ω$€%/ ]{1,24}(?:\^\s?\{?[23]\}?)?)$", line)
    if match is not None:
        first = re.split(r"[/^ ]", match[3].strip())[0]
        if len(first) == 1 and first.isalpha() and re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+|pi|sqrt", "", match[1])):
            return line, None  # the h of \pi r^2 h is a height, not an hour
        if first.removesuffix("s") in UNITS or first in UNITS or len(first) > 2:
            known, unit = read_unit(" " + match[3])
            if known and not (unit == UNITS["°"] and _TRIGONOMETRIC.search(match[1])):
                return match[1].strip(), unit
    return line, None


def bracket_depths(text: str) -> list[int]:
    """Bracket depth after each character; kinds of bracket are not told apart, because of `[2, 3)`."""
    return list(accumulate((char in "([{") - (char in ")]}") for char in text))


def squeeze(text: str) -> str:
    """Without the spaces that say nothing: `p - q` is `p-q`, but `1 2` is not `12`."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)


def without_condition(text: str) -> str:
    r"""`k\pi` of `k\pi, k \in \mathbb{Z}`."""
    line = inline(text)
    condition = _FAMILY.search(line)
    return line[: condition.start()] if condition else text


def formula(text: str) -> str | None:
    """The chemical formula that `text` is, without markup: `H2O` of `H_2O`; None where it is none, or one atom."""
    line = _ARROW.sub("→", inline(re.sub(r"\\ce\s*\{(.{1,60})\}", r"\1", text)))
    line = re.sub(r"[_{}\s]", "", line)
    if "→" in line and len(line) <= 120:
        sides = [sorted(side.split("+")) for side in line.split("→")]
        known = all(_FORMULA.fullmatch(term) for side in sides for term in side)
        return "→".join("+".join(side) for side in sides) if known else None
    if len(line) > 60 or _FORMULA.fullmatch(line) is None:
        return None
    compound = len(re.findall("[A-Z]", line)) > 1 and re.search(r"\d", line)
    return line.replace("^", "") if compound or "^" in line else None


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The expression that `text` is, its unit as the value; a chemical formula is one that only itself equals."""
    if formula(text) is not None:
        return Gold("expression", text)
    body, unit = split_unit(without_condition(text))
    return Gold("expression", body, unit, expressions=(body,)) if body else None


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The expression that `text` is, where it looks like one."""
    if formula(text) is not None:
        return read(text, settings)
    return read(text, settings) if looks_like_expression(split_unit(without_condition(text))[0]) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` is an equal expression."""
    from lcot_plugin.rewards.kinds.sequences import split_sequence

    text = undress(found.answer)
    if not gold.expressions:
        written, right = formula(text) or re.sub(r"[_{}^\s]", "", inline(text)), formula(gold.text) or ""
        return written == right or (written.islower() and written == right.lower())
    gold_unit: Unit | None = gold.value
    body, unit = split_unit(without_condition(_LEADING_SIGN.sub("", text)))
    if squeeze(body) == squeeze(gold.text) and (unit is None or gold_unit is None or unit == gold_unit):
        return True
    body = _as_column(body) if re.match(r"\\begin\{[bp]?matrix\}[^&]*$", gold.text) else body
    if read_quantity(body) is None and not looks_like_expression(body) and not _in_letters_of(gold.text, body):
        return None
    if not body.startswith(("[[", r"\begin")) and split_sequence(body) is not None:
        return False
    if solver is None:
        raise NeedsSolver
    if unit and gold_unit and unit != gold_unit:
        scale = _scale(unit, gold_unit)
        if scale is None or "=" in body:
            return False
        body = rf"({body}) \cdot \frac{{{scale.numerator}}}{{{scale.denominator}}}"
    if unit == UNITS["°"] and gold_unit is None and re.search(r"\\pi|π|\bpi\b", gold.text):
        body = rf"({body}) \cdot \frac{{\pi}}{{180}}"
    same = solver.equal(gold.text, body)
    if same is not True and gold_unit is None and unit is not None and re.search(r"\d\s[A-Za-z]$", inline(text)):
        same = solver.equal(gold.text, inline(text))  # 0.64N is read as a product, and so is 0.640 N then
    if same or (same is None and "=" not in body) or not (settings.relative_tolerance or settings.absolute_tolerance):
        return same
    return _near(solver.value(gold.text), solver.value(split_assignment(body)[1]), settings)


def _in_letters_of(gold: str, text: str) -> bool:
    """Whether a formula has the gold answer's letters: `mgk^{-1}` where that is `mg/k`, `ba` where it is `ab`."""
    if (
        re.search(r"[A-Za-z]\s+[A-Za-z]{2}|[^\w\s+\-*/^(){}=\\.·]", text)
        or max(bracket_depths(text), default=0) > MAX_NESTING
    ):
        return False
    letters, known = ("".join(_WORD.findall(re.sub(r"\\[A-Za-z]+", " ", some))) for some in (text, gold))
    return len(text) <= MAX_EXPRESSION_CHARS and set(letters) <= set(known)


def _near(gold: float | None, answer: float | None, settings: MatchSettings) -> bool:
    if gold is None or answer is None:
        return False
    return abs(gold - answer) <= max(settings.relative_tolerance * abs(gold), settings.absolute_tolerance)


def _scale(unit: Unit, gold: Unit) -> Fraction | None:
    """What makes `unit` the gold answer's; None where they measure different things."""
    for one in unit.readings:
        for other in gold.readings:
            if one.dimension == other.dimension and not one.offset and not other.offset:
                return one.factor / other.factor
    return None


def _as_column(text: str) -> str:
    """A vector written in a line as the column matrix that it is."""
    from lcot_plugin.rewards.kinds.sequences import split_sequence

    parts = split_sequence(text)
    if parts is None or parts[0] not in ("()", "[]") or text.startswith("[["):
        return text
    return r"\begin{pmatrix}" + r" \\ ".join(parts[1]) + r"\end{pmatrix}"


def expression_kind(*first: Kind) -> Kind:
    """The kind `expression`; a gold answer that one of `first` reads (a number, a sequence) is read as that."""

    def read_any(text: str, settings: MatchSettings) -> Gold | None:
        readings = (kind.read(text, settings) for kind in first)
        return next((reading for reading in readings if reading is not None), None) or read(text, settings)

    return Kind(read_any, compare, infer)
