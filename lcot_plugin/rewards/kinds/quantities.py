r"""Text in, an exact number with its unit out; comparison of two such quantities. No sympy, no floats, no eval.

`3 1/2`, `1{,}000`, `1.5 x 10^3`, `5 million`, `twenty-one`, `三分之二`, `50%`, `145°`, `5 cm`, `5厘米`, `1 h 30 min`,
`5' 11"` and `\SI{5}{\cm}` are quantities; `2x` and `3, 2` are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.numerals import read_numeral, scale_after
from lcot_plugin.rewards.kinds.units import COUNTERS, UNITS, Unit, convert, find_unit, parse_unit, plain_unit, read_unit


@dataclass(frozen=True)
class Quantity:
    """An exact number and its unit."""

    value: Fraction
    unit: Unit | None = None
    percent: bool = False
    decimals: int | None = None
    """Digits written after the decimal point, None where the number was written as a fraction or a power."""
    margin: Fraction | None = None
    """0.1 of `5.0 ± 0.1`."""
    letter: str = ""
    """The letter behind the number where it may be a scale or a unit: `300K` is 300000 or 300 kelvin, `5 M` 5 mol/L
    or five million."""

    def __str__(self) -> str:
        """`5 of 1/100 length` for 5 cm."""
        margin = f" ± {self.margin}" if self.margin else ""
        return f"{self.value}{'%' * self.percent}{margin}{f' of {self.unit}' if self.unit else ''}"


# Three decimals behind one comma are thousands; Indian, Swiss and continental groups only where nothing else fits.
_DIGITS = (
    r"[1-9]\d{0,2}(?:\.\d{3})++,\d++(?![\d,.])"
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}+(?![\d,.])"
    r"|(?:[1-9]\d{0,2}(?:,\d{3})++(?!\d)|[1-9]\d?(?:,\d{2}(?!\d))++,\d{3}(?!\d)|[1-9]\d{0,2}(?:['_]\d{3})++(?![\d'])"
    r"|[1-9]\d{0,2}(?: \d{3})++(?![\d/])|\d++)(?:\.\d*+)?|\.\d++"
)
_CONTINENTAL = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}")
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<%s>[+-]?\s?\d{1,3})(?!\d)\s*[})]?"
_CURRENCY = r"(?:US|HK|NT|[ACS])?\$|[€£¥₹₩₽₿฿]|(?:USD|EUR|GBP|CNY|RMB|JPY|INR|KRW|HKD|AUD|CAD|Rs\.?)(?=[\s\d.-])"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<currency>{_CURRENCY}|)\s*(?P<sign2>(?:(?<=[^\s+-])-|(?<=[^\s+-]\s)-)?)(?:"
    r"(?:(?P<whole>\d++)\s*(?:and\s)?\s*)?\\frac\s*\{\s*(?P<top>[+-]?\d++)\s*\}\s*\{\s*(?P<bottom>[+-]?\d++)\s*\}"
    r"|(?:(?P<whole1>\d++)\s*)?\\frac\s?(?P<top1>\d)\s?(?P<bottom1>\d)(?!\d)"
    r"|(?P<whole2>\d++)\s(?:and\s|&\s)?(?P<top2>\d++)\s?/\s?(?P<bottom2>\d++)(?![\d/])"
    r"|(?P<top3>\d++(?:,\d{3})*+)\s?/\s?(?P<bottom3>\d++(?:,\d{3})*+)(?![\d/,.])"
    rf"|{_POWER_OF_TEN % 'power'}"
    rf"|(?P<decimal>{_DIGITS})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?![\w.])"
    rf"|\s*(?:\\times|\\cdot|×|·|⋅|∙|\*|[xX])\s*{_POWER_OF_TEN % 'exponent2'})?"  # noqa: RUF001
    r")"
)
_APPROXIMATELY = re.compile(
    r"^(?:\\approx|\\simeq|\\sim|≈|≃|~|(?:about|approximately|approx\.?|roughly|around|circa|ca\.|exactly|precisely)\s"
    r"|大约是?|约为|约等于|约是?|近似为|恰好|正好|=)\s*",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r"\s(?:(?:long|wide|tall|high|deep|thick|old|away|of age)$"
    r"|in (?:total|all|length|height|width|depth|area|volume|size)$"
    r"|altogether$|total$)",
    re.IGNORECASE,
)
_SIGN_WORD = re.compile(r"^(?:(?:minus|negative)\s+|负\s?|零下\s?)(?=[\d.$\\])", re.IGNORECASE)
_CHINESE_PARTS = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([百千万亿]{1,2})")
_CHINESE_FRACTION = re.compile(r"(?<![\d.])([1-9]\d{0,8})分之(\d{1,9})(?![\d.])")
_CHINESE_WHOLE = re.compile(r"(?<![\d.])(\d{1,9})又(?=\d{1,9}/\d)")
_MARGIN = re.compile(r"\s*(?:±|\\pm|\+/-|\+-)\s*(\d++(?:\.\d++)?)")
_PERCENT = re.compile(r"\s*(?:%|per\s?cent|pct|percentage\spoints?|个?百分点)(?:age)?\s*$", re.IGNORECASE)
_LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PART = re.compile(
    r"\s*(?:,\s?|and\s|&\s)?\s*(?P<value>\d{1,15}(?:\.\d{1,15})?(?:\s\d{1,4}/\d{1,4})?)\s?"
    r"(?P<name>[A-Za-z]{1,12}|[°'\"]|[\u4e00-\u9fff]{1,3})\.?"
)
_MAX_PARTS = 4
MAX_DIGITS = 300
"""Longer digit strings are not read as numbers: int() itself refuses the very long ones."""
_MAX_CHARS = 2 * MAX_DIGITS

_SIUNITX = re.compile(
    r"\\(SI|qty|num|ang|si|unit)\s*(?:\[[^\]{}]{0,80}\])?\s*\{([^{}]{1,80})\}(?:\s*\{((?:[^{}]|\{[^{}]{0,8}\}){0,80})\})?"
)
_SI_POWERS = {"squared": "^2", "cubed": "^3", "square": "□", "cubic": "◇", "per": "/", "percent": "%", "degree": "°"}
_SI_PREFIXES = frozenset(re.findall(r"\w+", "tera giga mega kilo hecto deca deci centi milli micro nano pico"))


def _siunitx(text: str) -> str:
    r"""`\SI{5}{\cm}`, `\qty{5}{\metre\per\second}`, `\num{1e3}`, `\ang{30}` in plain notation."""

    def plain(match: re.Match[str]) -> str:
        command, first, second = match.groups()
        if command == "ang":
            return first + "°"
        if command == "num":
            return first + (f"{{{second}}}" if second else "")
        number, unit = (first, second or "") if command in ("SI", "qty") else ("", first)

        def macro(found: re.Match[str]) -> str:
            name = found[1]
            return name if name in _SI_PREFIXES else _SI_POWERS.get(name, name + " ")

        unit = re.sub(r"\\([A-Za-z]+)\s*", macro, unit.replace("~", " "))
        unit = unit.replace("□", "square ").replace("◇", "cubic ").replace(" ^", "^").replace(" /", "/")
        return f"{number} {re.sub('(?<=[a-z])[.](?=[a-z])', ' ', unit).strip()} "

    return _SIUNITX.sub(plain, text) if "\\" in text else text


def read_quantity(text: str, *, glued_letter: bool = False, scale_letter: bool = False) -> Quantity | None:
    """The quantity that `text` is, None where it is none.

    `glued_letter` reads `5m` as five metres; without it that is five times m. `scale_letter` reads `5k` as 5000.
    """
    if len(text) > 4 * _MAX_CHARS:
        return None
    line = _APPROXIMATELY.sub("", inline(_siunitx(undress(text))))
    line = _SIGN_WORD.sub("-", _TRAILING.sub("", line))
    if len(line) > _MAX_CHARS or not line:
        return None
    line = _CHINESE_WHOLE.sub(r"\1 ", _CHINESE_FRACTION.sub(r"\2/\1", line))
    mixed = _read_mixed(line)
    if mixed is not None:
        return mixed
    head = _read_head(line)
    if head is None:
        return None
    quantity, currency, end = head
    margin = _MARGIN.match(line, end)
    if margin:
        quantity, end = replace(quantity, margin=Fraction(margin[1])), margin.end()
    written = line[end:]
    if quantity.percent:
        return None if written.strip() else quantity
    if not margin:
        scale, scale_end = scale_after(written)
        # 3千克 are three kilograms, not three thousand grams: a missing unit then leaves 3.
        if scale > 1 and find_unit(written.strip(), UNITS) is None:
            quantity, written = replace(quantity, value=quantity.value * scale, decimals=None), written[scale_end:]
        letter = re.match(r"\s?([kKMBT])(?![A-Za-z/^])\s*", written)
        if letter and (currency is not None or (scale_letter and not written.startswith(" "))):
            value = quantity.value * _LETTERS[letter[1]]
            quantity = replace(quantity, value=value, decimals=None, letter=letter[1] if currency is None else "")
            written = written[letter.end() :]
        elif letter and letter[1] in "MB" and letter.end() == len(written):
            quantity = replace(quantity, letter=letter[1])
    if currency is not None:
        rest = written.strip()
        known, unit = read_unit(written) if rest else (True, currency)
        if rest.startswith("/") or rest.lower().startswith("per "):
            known, unit = read_unit(" $" + rest if rest[0] == "/" else " $ " + rest)
            return replace(quantity, unit=unit) if known else None
        same = known and unit is not None and any(r.dimension == currency.dimension for r in unit.readings)
        return replace(quantity, unit=currency) if not rest or same else None
    if not written.strip():
        return quantity
    if _PERCENT.match(written):
        return replace(quantity, percent=True)
    known, unit = read_unit(written, glued_letter=glued_letter)
    if known and not line[end - 1].isascii() and not counts(written):
        return None
    return replace(quantity, unit=unit) if known else None


def counts(written: str) -> bool:
    """Whether a Chinese numeral before `written` says how many: 三角形, 半径 and 三月 are words, 三厘米 is a number."""
    name = written.strip()
    return name not in ("角", "月") and (
        name[:1] in COUNTERS or name[:1] == "人" or parse_unit(plain_unit(name), UNITS) is not None
    )


def _read_head(line: str) -> tuple[Quantity, Unit | None, int] | None:
    """The number that `line` begins with, the currency before it, and where the number ends."""
    match = _NUMBER.match(line)
    if match is None:
        numeral = read_numeral(line)
        if numeral is None:
            return None
        if line[numeral.end - 1] in "百千" and find_unit(line[numeral.end - 1 :].strip(), UNITS):
            numeral = read_numeral(line[: numeral.end - 1]) or numeral  # 三千克: as 3千克
        return Quantity(numeral.value, percent=numeral.percent), None, numeral.end
    parts = _chinese_parts(line)
    if parts is not None:
        return Quantity(parts[0]), None, parts[1]
    if any(len(run) > MAX_DIGITS for run in re.findall(r"\d+", match.group())):
        return None
    value, decimals = _value(match)
    if value is None:
        return None
    if (match["sign"] == "-") != (match["sign2"] == "-"):
        value = -value
    elif match["sign2"]:
        return None
    currency = find_unit(match["currency"].rstrip("."), UNITS) if match["currency"] else None
    return Quantity(value, decimals=decimals), currency, match.end()


def _chinese_parts(line: str) -> tuple[Fraction, int] | None:
    """`3亿5千万`: numbers with falling scales, at least two, and where they end."""
    total, last, position, num_parts = Fraction(), 0, 0, 0
    while match := _CHINESE_PARTS.match(line, position):
        scale = scale_after(match[2])[0]
        if num_parts and scale >= last:
            return None
        total, last, position, num_parts = total + Fraction(match[1]) * scale, scale, match.end(), num_parts + 1
    if num_parts and line[position : position + 1].isdigit():
        return None
    return (total, position) if num_parts > 1 else None


def _value(match: re.Match[str]) -> tuple[Fraction | None, int | None]:
    """The unsigned number that the match wrote, and its decimals."""
    for whole, top, bottom in (
        (match["whole"], match["top"], match["bottom"]),
        (match["whole1"], match["top1"], match["bottom1"]),
        (match["whole2"], match["top2"], match["bottom2"]),
        (None, match["top3"], match["bottom3"]),
    ):
        if top is not None:
            numerator, denominator = int(top.replace(",", "")), int(bottom.replace(",", ""))
            if denominator == 0 or (whole and (numerator < 0 or denominator < 0)):
                return None, None
            return int(whole or 0) + Fraction(numerator, denominator), None
    if match["power"] is not None:
        return Fraction(10) ** int(match["power"].replace(" ", "")), None
    digits = match["decimal"]
    if _CONTINENTAL.fullmatch(digits):
        digits = digits.replace(".", "").replace(",", ".")
    digits = re.sub("[, '_]", "", digits).rstrip(".")
    exponent = match["exponent"] or match["exponent2"]
    if exponent is not None:
        return Fraction(digits) * Fraction(10) ** int(exponent.replace(" ", "")), None
    return Fraction(digits), len(digits.partition(".")[2])


def _read_mixed(line: str) -> Quantity | None:
    r"""`1 h 30 min`, `5' 11"`, `30° 15'`, `3元5角`: several numbers with units of one dimension, the larger first."""
    sign, position = (-1, 1) if line.startswith("-") else (1, 0)
    line = line.replace("''", '"').replace("′", "'").replace("″", '"')  # noqa: RUF001
    line = (
        re.sub(r"\s*\^?\s*(?:\{\s*)?\\prime(?![a-z])(?:\s*\})?", "'", line).replace("''", '"')
        if "'" not in line
        else line
    )
    parts: list[tuple[str, tuple[Unit, ...]]] = []
    while position < len(line):
        match = _PART.match(line, position)
        if match is None or len(parts) == _MAX_PARTS:
            return None
        unit = find_unit(match["name"], UNITS)
        if unit is None:
            return None
        # 2h30m: next to hours or seconds, m is a minute.
        readings = (*unit.readings, UNITS["min"]) if match["name"] == "m" else unit.readings
        parts.append((match["value"], readings))
        position = match.end()
    if len(parts) < 2 or any(re.search("[./]", value) for value, _ in parts[:-1]):
        return None
    for first in parts[0][1]:
        units = [next((u for u in readings if u.dimension == first.dimension), None) for _, readings in parts]
        known = [unit for unit in units if unit is not None and not unit.offset]
        falling = all(larger.factor > smaller.factor for larger, smaller in pairwise(known))
        if len(known) == len(parts) and falling:
            total = sum(
                (_part_value(value) * unit.factor for (value, _), unit in zip(parts, known, strict=True)), Fraction()
            )
            return Quantity(sign * total / first.factor, first)
    return None


def _part_value(written: str) -> Fraction:
    whole, _, fraction = written.partition(" ")
    top, _, bottom = fraction.partition("/")
    return Fraction(whole) + (Fraction(int(top), int(bottom)) if fraction and int(bottom) else 0)


def allowed_error(gold: Fraction, relative_tolerance: float, absolute_tolerance: float) -> Fraction:
    """How far an answer may be off: the larger of `relative_tolerance * |gold|` and `absolute_tolerance`."""
    # Through str, so that 0.1 is a tenth and 5.1 is within it of 5.
    return max(Fraction(str(relative_tolerance)) * abs(gold), Fraction(str(absolute_tolerance)))


def same_quantity(
    gold: Quantity, answer: Quantity, *, relative_tolerance: float = 0.0, absolute_tolerance: float = 0.0
) -> bool:
    """Whether `answer` states `gold`: 50% is 50 and 0.5, 5 cm is 5 and 50 mm but neither 5 m nor 6 cm.

    With a tolerance, answers count whose distance, in the gold answer's unit, is at most the `allowed_error`.
    """
    near = allowed_error(gold.value, relative_tolerance, absolute_tolerance)
    if gold.margin != answer.margin and not (gold.margin is not None and near):
        return False
    if gold.percent or answer.percent:
        if gold.unit or answer.unit:
            return False
        # 50 may leave out the sign of 50%, but 0.5 is not 0.5%.
        as_written = gold.percent or abs(gold.value) >= 1 or not gold.value
        if as_written and _same_value(gold.value, gold, answer.value, answer, near):
            return True
        if gold.percent == answer.percent:
            return False
        in_gold_scale = answer.value * 100 if gold.percent else answer.value / 100
        return abs(gold.value - in_gold_scale) <= near
    if gold.unit and answer.unit:
        pairs = comparable_readings(gold.unit, answer.unit)
        return any(_same_converted(one, other, gold, answer, near) for one, other in pairs)
    if gold.letter and gold.unit is None and answer.unit:
        return answer.unit == UNITS.get(gold.letter) and gold.value / _LETTERS[gold.letter] == answer.value
    if gold.unit is None and answer.unit and answer.letter:
        return False
    if gold.unit is None and answer.unit and answer.unit.dimension in (UNITS["‰"].dimension, UNITS["ppm"].dimension):
        return False
    if gold.unit is None and answer.unit == UNITS["rad"] and abs(gold.value) > 7:
        return False  # more than a turn: those are degrees
    return _same_value(gold.value, gold, answer.value, answer, near)


def comparable_readings(gold: Unit, answer: Unit) -> list[tuple[Unit, Unit]]:
    """(reading of `gold`, reading of `answer`) that measure the same; none where the two measure different things.

    A name that leaves the unit open is read as the gold answer's: the degrees of 25 degrees for 25 °C.
    """
    pairs = [(one, other) for one in gold.readings for other in answer.readings if one.dimension == other.dimension]
    if not pairs and (_names_degrees(gold, answer) or _names_power(gold, answer)):
        return [(gold, gold)]
    return pairs


def _names_degrees(gold: Unit, answer: Unit) -> bool:
    """25 degrees for 25 °C."""
    return answer == UNITS["°"] and any(reading.offset for reading in gold.readings)


def _names_power(one: Unit, other: Unit) -> bool:
    """25 square units for 25 cm^2, or the other way round."""
    bases = {base for unit in (one, other) for base, _ in unit.dimension}
    powers = [power for unit in (one, other) for _, power in unit.dimension]
    return bases == {"unit", "length"} and len(powers) == 2 and powers[0] == powers[1]


def _same_converted(unit: Unit, other: Unit, gold: Quantity, answer: Quantity, near: Fraction) -> bool:
    if unit == other:
        return _same_value(gold.value, gold, answer.value, answer, near)
    return abs(gold.value - convert(answer.value, other, unit)) <= near


def _same_value(value: Fraction, gold: Quantity, other: Fraction, answer: Quantity, near: Fraction) -> bool:
    """Equal or near, or one is a long decimal (six significant digits, four of them decimals) that rounds the other."""
    if abs(value - other) <= near:
        return True
    for short, decimals, long, long_decimals in (
        (value, gold.decimals, other, answer.decimals),
        (other, answer.decimals, value, gold.decimals),
    ):
        if decimals is None or decimals < 4 or (long_decimals is not None and long_decimals <= decimals):
            continue
        step = Fraction(1, 10**decimals)
        if abs(short) >= step * 10**5 and abs(short - long) <= step / 2:
            return True
    return False
