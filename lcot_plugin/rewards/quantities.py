"""Text in, an exact number with its unit out; comparison of two such quantities. No sympy, no floats, no eval.

`3 1/2`, `1{,}000`, `1.5e3`, `1.5 x 10^3`, `50%`, `145°`, `5 cm`, `5厘米` are quantities; `2x` and `3, 2` are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from lcot_plugin.rewards.dress import inline, undress


@dataclass(frozen=True)
class Unit:
    """A unit of measure."""

    dimension: str
    """What it measures; two units are comparable when their dimensions are equal."""
    factor: Fraction = Fraction(1)
    """Size in the dimension's base unit."""


@dataclass(frozen=True)
class Quantity:
    """An exact number and its unit."""

    value: Fraction
    unit: Unit | None = None
    percent: bool = False
    decimals: int | None = None
    """Digits written after the decimal point, None where the number was written as a fraction or a power."""


def _units() -> dict[str, Unit]:
    table: dict[str, Unit] = {}

    def add(dimension: str, **factors: str) -> None:
        for names, factor in factors.items():
            for name in names.split("_"):
                table[name] = Unit(dimension, Fraction(factor))

    add("length", mm_millimeter_millimetre_毫米="1/1000", cm_centimeter_centimetre_厘米_公分="1/100")
    add("length", dm_decimeter_decimetre_分米="1/10", m_meter_metre_米="1", km_kilometer_kilometre_千米_公里="1000")
    add("length", in_inch_inche_英寸="0.0254", ft_foot_feet_英尺="0.3048", yd_yard="0.9144", mi_mile_英里="1609.344")
    add("volume", mL_ml_milliliter_millilitre_毫升="1/1000000", L_l_liter_litre_升="1/1000")
    add("mass", mg_milligram_毫克="1/1000000", g_gram_克="1/1000", kg_kilogram_千克_公斤="1", t_ton_tonne_吨="1000")
    add("mass", lb_lbs_pound_磅="0.45359237", oz_ounce="0.028349523125")
    add("time", ms_millisecond="1/1000", s_sec_second_秒="1", min_minute_分钟="60", h_hr_hour_小时="3600")
    add("time", day_天="86400", week_周="604800")
    add("years", year_yr_年="1", month_个月="1/12")
    add("degrees", deg_degree="1")
    table["°"] = table["度"] = table["deg"]
    add("radians", rad_radian_弧度="1")
    table["°C"] = table["℃"] = table["摄氏度"] = Unit("celsius")
    table["°F"] = Unit("fahrenheit")
    add("kelvin", K_kelvin="1")
    add("dollars", dollar_USD_美元="1", cent="1/100")
    table["$"] = table["dollar"]
    add("yuan", yuan_RMB_元="1")
    table["€"] = table["euro"] = Unit("euros")
    table["£"] = Unit("pounds sterling")
    add("force", N_newton="1", kN="1000")
    add("energy", J_joule="1", kJ="1000")
    add("power", W_watt="1", kW="1000")
    add("voltage", V_volt="1")
    add("current", A_amp_ampere="1", mA="1/1000")
    add("frequency", Hz="1", kHz="1000")
    add("pressure", Pa="1", kPa="1000")
    add("resistance", ohm_Ω="1")
    add("speed", mph="0.44704", kph="5/18")
    return table


UNITS = _units()
_NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "and or to plus minus times divided over by of than less more squared cubed half quarter third dozen hundred "
        "thousand million billion trillion lakh crore pi sqrt root log ln sin cos tan exp factorial inf infinity not "
        "mod choose per is are equals point",
    )
)
_GENERIC = frozenset({"unit", "square unit", "sq unit", "cubic unit", "unit^2", "unit^3"})

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})++(?![\d/])|\d++)(?:\.\d*+)?|\.\d++"
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*[{(]?\s*(?P<%s>[+-]?\d{1,3})(?!\d)\s*[})]?"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥]?)\s*(?:"
    r"(?:(?P<whole>\d++)\s*)?\\frac\s*\{\s*(?P<top>-?\d++)\s*\}\s*\{\s*(?P<bottom>-?\d++)\s*\}"
    r"|\\frac\s?(?P<top1>\d)(?P<bottom1>\d)(?!\d)"
    r"|(?P<whole2>\d++)\s(?P<top2>\d++)\s?/\s?(?P<bottom2>\d++)(?![\d/])"
    r"|(?P<top3>\d++)\s?/\s?(?P<bottom3>\d++)(?![\d/])"
    rf"|{_POWER_OF_TEN % 'power'}"
    rf"|(?P<decimal>{_DIGITS})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?![\w.])"
    rf"|\s*(?:\\times|\\cdot|×|·|\*|x)\s*{_POWER_OF_TEN % 'exponent2'})?"  # noqa: RUF001
    r")"
)
_APPROXIMATELY = re.compile(r"^(?:\\approx|≈|~|about|approximately|=)\s*", re.IGNORECASE)
MAX_DIGITS = 300
"""Longer digit strings are not read as numbers: int() itself refuses the very long ones."""


def read_quantity(text: str, *, glued_letter: bool = False) -> Quantity | None:
    """The quantity that `text` is, None where it is none.

    `glued_letter` reads `5m` as five metres; without it that is five times m.
    """
    line = _APPROXIMATELY.sub("", inline(undress(text)))
    match = _NUMBER.match(line)
    if match is None or any(len(run) > MAX_DIGITS for run in re.findall(r"\d+", match.group())):
        return None
    value, decimals = _value(match)
    if value is None:
        return None
    if match["sign"] == "-":
        value = -value
    written = line[match.end() :]
    if match["currency"]:
        return None if written.strip() else Quantity(value, UNITS.get(match["currency"]), decimals=decimals)
    if not written.strip():
        return Quantity(value, decimals=decimals)
    if written.strip().lower().rstrip("s") in ("%", "percent", "per cent", "percentage point"):
        return Quantity(value, percent=True, decimals=decimals)
    known, unit = read_unit(written, glued_letter=glued_letter)
    return Quantity(value, unit, decimals=decimals) if known else None


def _value(match: re.Match[str]) -> tuple[Fraction | None, int | None]:
    """The unsigned number that the match wrote, and its decimals."""
    for whole, top, bottom in (
        (match["whole"], match["top"], match["bottom"]),
        (None, match["top1"], match["bottom1"]),
        (match["whole2"], match["top2"], match["bottom2"]),
        (None, match["top3"], match["bottom3"]),
    ):
        if top is not None:
            if int(bottom) == 0:
                return None, None
            return int(whole or 0) + Fraction(int(top), int(bottom)), None
    if match["power"] is not None:
        return Fraction(10) ** int(match["power"]), None
    digits = match["decimal"].replace(",", "").replace(" ", "").rstrip(".")
    exponent = match["exponent"] or match["exponent2"]
    if exponent is not None:
        return Fraction(digits) * Fraction(10) ** int(exponent), None
    return Fraction(digits), len(digits.partition(".")[2])


def read_unit(written: str, *, glued_letter: bool = False) -> tuple[bool, Unit | None]:
    """Whether `written`, which follows a number, is a unit, and which; "units" is a unit that says nothing.

    One unknown word is taken as a unit of its own (`5 apples`), unless it changes the number (`5 million`).
    """
    glued = not written.startswith((" ", "\\"))
    name = re.sub(r"\s*\^\s*\{?\s*([23])\s*\}?", r"^\1", written.strip().rstrip(".")).strip()
    name = re.sub(r"\s*/\s*", "/", name).strip("{}() ")
    if glued and len(name) == 1 and name.isascii() and name.isalpha() and not glued_letter:
        return False, None
    if name.lower().rstrip("s") in _GENERIC or name.lower() in _GENERIC:
        return True, None
    top, slash, bottom = name.partition("/" if "/" in name else " per ")
    unit = _power_unit(top)
    if slash and unit is not None:
        below = _power_unit(bottom)
        if below is None:
            return False, None
        dimension = (
            "speed"
            if (unit.dimension, below.dimension) == ("length", "time")
            else f"{unit.dimension}/{below.dimension}"
        )
        return True, Unit(dimension, unit.factor / below.factor)
    if unit is not None:
        return True, unit
    latin = re.fullmatch(r"[A-Za-z]{3,20}", name) and not glued and name.lower() not in _NOT_UNITS
    chinese = re.fullmatch(r"[\u4e00-\u9fff]{1,3}", name) and not re.search("[百千万亿半分和或]", name)
    if latin or chinese:
        return True, Unit(name.lower().rstrip("s"))
    return False, None


def _power_unit(name: str) -> Unit | None:
    """A unit with its power: `cm^2`, `square cm`, `cubic metres`, `平方厘米`."""
    power = 1
    for prefix, prefix_power in (("square ", 2), ("sq ", 2), ("sq. ", 2), ("cubic ", 3), ("平方", 2), ("立方", 3)):
        if name.lower().startswith(prefix):
            name, power = name[len(prefix) :], prefix_power
    if name[-2:] in ("^2", "^3"):
        name, power = name[:-2], int(name[-1])
    name = name.strip()
    unit = next(
        (
            UNITS[key]
            for key in (name, name.lower(), name.removesuffix("s"), name.lower().removesuffix("s"))
            if key in UNITS
        ),
        None,
    )
    if unit is None or power == 1:
        return unit
    dimension = "volume" if (unit.dimension, power) == ("length", 3) else f"{unit.dimension}^{power}"
    return Unit(dimension, unit.factor**power)


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Whether `answer` states `gold`: 50% is 50 and 0.5, 5 cm is 5 and 50 mm but neither 5 m nor 6 cm."""
    if gold.percent or answer.percent:
        if gold.unit or answer.unit:
            return False
        if _same_value(gold.value, gold, answer.value, answer):
            return True
        if gold.percent == answer.percent:
            return False
        gold_value, answer_value = (q.value / 100 if q.percent else q.value for q in (gold, answer))
        return gold_value == answer_value
    if gold.unit and answer.unit:
        if gold.unit.dimension != answer.unit.dimension:
            return False
        if gold.unit.factor != answer.unit.factor:
            return gold.value * gold.unit.factor == answer.value * answer.unit.factor
    return _same_value(gold.value, gold, answer.value, answer)


def _same_value(value: Fraction, gold: Quantity, other: Fraction, answer: Quantity) -> bool:
    """Equal, or one is a long decimal (six significant digits, four of them decimals) that rounds the other."""
    if value == other:
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
