r"""The text behind a number in, the unit of measure it names out: `cm`, `m/s^2`, `kg m s^{-1}`, `sq ft`, `平方米`.

A unit is a product of powers of base dimensions with a factor, so that `N` is `kg m/s^2` and `50 mm` is `5 cm`.
Factors are exact; the few that are not rational (the radian) are rounded to 30 digits and convert under a tolerance
only. Consumed by `quantities` and `algebra`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from lcot_plugin.rewards.kinds.unit_table import DEFINITIONS, PREFIXES

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unit:
    """A unit of measure."""

    dimension: Dimension
    """What it measures, as (base, power) sorted by base; two units are comparable when their dimensions are equal."""
    factor: Fraction = Fraction(1)
    """Size in the dimension's base unit."""
    offset: Fraction = Fraction(0)
    """Of temperatures: what zero is in the base unit, 273.15 for degrees Celsius."""
    otherwise: tuple[Unit, ...] = field(default=(), compare=False)
    """What the same name may mean as well: `C` is coulomb or degree Celsius."""

    @property
    def readings(self) -> tuple[Unit, ...]:
        """This unit and what its name may mean otherwise."""
        return (self, *self.otherwise)

    def __str__(self) -> str:
        """`1/100 length`, `length time^-2`."""
        bases = " ".join(base if power == 1 else f"{base}^{power}" for base, power in self.dimension)
        return bases if self.factor == 1 else f"{self.factor} {bases}"


def convert(value: Fraction, unit: Unit, into: Unit) -> Fraction:
    """What `value` in `unit` is in `into`, of the same dimension: 212 °F are 100 °C."""
    return (value * unit.factor + unit.offset - into.offset) / into.factor


_MAX_UNIT_CHARS = 80
_MAX_POWER = 9
# Words behind a number that change it, so that they never are a unit of their own.
NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "and or to plus minus over by of than less more fewer squared cubed half halves third quarter dozen hundred "
        "thousand million billion trillion quadrillion lakh crore pi sqrt root log ln sin cos tan exp factorial inf "
        "infinity not mod choose per is are was equals point divided one two three four five six "
        "seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety zero each percent "
        "thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths quarters dozens hundreds "
        "thousands millions billions trillions maybe perhaps approximately about infinite but either fold "
        "if unless except only almost nearly wrong incorrect false gross january february march april may june july "
        "august september october november december",
    )
)
COUNTERS = "个只条名位本张辆颗朵棵匹头件枚支把架艘座栋盏幅束片粒"
"""Measure words between a Chinese number and what it counts."""
_GENERIC: dict[str, Unit | None] = {
    **dict.fromkeys((*COUNTERS, "人", "u", "unit", "units", "单位", "个单位")),
    **{
        name: Unit((("unit", power),))
        for power, sign in ((2, "□"), (3, "◇"))
        for name in (
            *(f"{sign}{unit}" for unit in ("u", "unit", "units", "单位")),
            *(f"{unit}^{power}" for unit in ("u", "unit", "units", "单位")),
            f"个{sign}单位",
        )
    },
}
"""Units that say nothing but their power."""
_PHRASES = tuple(
    (re.compile(pattern, re.IGNORECASE), token)
    for pattern, token in (
        (r"(?<![a-z])(?:degrees?|deg|°)\s*(?:celsius|centigrade|C)(?![a-z])", "°C"),
        (r"(?<![a-z])(?:degrees?|deg|°)\s*(?:fahrenheit|F)(?![a-z])", "°F"),
        (r"\b(?:degrees?|deg)\s*(?:kelvins?|K)\b", "K"),
        (r"\bnautical\s?miles?\b", "nmi"),
        (r"\blight[\s-]?years?\b", "ly"),
        (r"\bastronomical\sunits?\b", "AU"),
        (r"\bfluid\sounces?\b|\bfl\.?\s?oz\b", "floz"),
        (r"\bmetric\ston(?:ne)?s?\b", "tonne"),
        (r"\b(?:US|U\.S\.|American)\sdollars?\b", "USD"),
        (r"\bpounds?\ssterling\b", "GBP"),
        (r"\barc[\s-]min(?:ute)?s?\b", "arcmin"),
        (r"\barc[\s-]sec(?:ond)?s?\b", "arcsec"),
        (r"\bmm\sHg\b", "mmHg"),
        (r"\bhorse\spower\b", "hp"),
        (r"\bkm/h\b", "km/h"),
        (r"\bsq\.\s?|\bsq\s|\bsquare\s|平方\s?", "□"),
        (r"\bcu\.\s?|\bcubic\s|立方\s?", "◇"),
        (r"(?<=[a-z])\s(?:squared|square)\b", "^2"),
        (r"(?<=[a-z])\s(?:cubed|cube)\b", "^3"),
        (r"(?:\s|^)per\s", "/"),
    )
)
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_POWER = re.compile(r"\s*\^\s*(?:\{\s*([+-]?\d)\s*\}|\(\s*([+-]?\d)\s*\)|([+-]?\d))")
_TOKEN = re.compile(
    r"(?P<modifier>[□◇]?)(?P<name>(?:US|HK|NT|[ACS])?\$|°[CF]?|[A-Za-zμΩÅ]+|[\u4e00-\u9fff]+|[\"'‰€£¥₹₩₽₿฿¢])"
    r"(?:\^(?P<power>[+-]?\d)|(?P<glued>-?[1-3])(?!\d))?"
    r"|(?P<sign>[/()·]|-(?=[A-Za-zμΩ]))|(?P<space>\s+)"
)


def _power(unit: Unit, exponent: int) -> Unit:
    # Zero of a temperature scale plays no part in a compound: 5 J/(kg °C) is 5 J/(kg K).
    return Unit(tuple((base, power * exponent) for base, power in unit.dimension if exponent), unit.factor**exponent)


def _product(units: list[Unit]) -> Unit:
    powers: dict[str, int] = {}
    factor = Fraction(1)
    for unit in units:
        factor *= unit.factor
        for base, power in unit.dimension:
            powers[base] = powers.get(base, 0) + power
    return Unit(tuple(sorted((base, power) for base, power in powers.items() if power)), factor)


def _build() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for line in DEFINITIONS.strip().splitlines():
        names, _, definition = line.partition(" = ")
        definition, _, prefixes = definition.partition(" | ")
        factor, _, of = definition.partition(" ")
        if factor == "base":
            base, slash, below = of.partition("/")
            unit = Unit(((base, 1),))
            if slash:
                unit = _product([unit, _power(table[below], -1)])
        else:
            parsed = parse_unit(of, table)
            assert parsed is not None, line
            unit = replace(parsed, factor=parsed.factor * Fraction(factor))
        symbol = names.split()[0]
        for name in names.split():
            table[name] = unit
            for prefix in prefixes.split():
                word, exponent = PREFIXES[prefix]
                scaled = replace(unit, factor=unit.factor * Fraction(10) ** exponent)
                if name == symbol or name == "l":
                    table.setdefault(prefix + name, scaled)
                    if prefix == "μ":
                        table.setdefault("u" + name, scaled)
                elif name.isascii() and len(name) >= 4:
                    table.setdefault(word + name, scaled)
    table["gram"] = table["g"]
    for name, (offset, size) in {"°C": ("273.15", "1"), "°F": ("45967/180", "5/9")}.items():
        table[name] = Unit(table["K"].dimension, Fraction(size), Fraction(offset))
    table |= {"celsius": table["°C"], "centigrade": table["°C"], "摄氏度": table["°C"], "华氏度": table["°F"]}
    table["fahrenheit"] = table["°F"]
    table["C"] = replace(table["C"], otherwise=(table["°C"],))
    table["F"] = replace(table["F"], otherwise=(table["°F"],))
    table["'"] = replace(table["ft"], otherwise=(table["arcmin"],))
    table['"'] = replace(table["in"], otherwise=(table["arcsec"],))
    table["¥"] = replace(table["yuan"], otherwise=(table["yen"],))
    euro_cent = replace(table["€"], factor=Fraction(1, 100))
    table["cent"] = table["¢"] = replace(table["cent"], otherwise=(euro_cent,))
    table["分"] = replace(
        table["分钟"],
        otherwise=(Unit((("point", 1),)), replace(table["yuan"], factor=Fraction(1, 100)), table["arcmin"]),
    )
    table["pound"] = replace(table["pound"], otherwise=(table["£"],))
    table["ton"] = replace(table["ton"], otherwise=(replace(table["lb"], factor=table["lb"].factor * 2000),))
    table["ounce"] = table["oz"] = replace(table["oz"], otherwise=(table["floz"],))
    for letter, exponent in (("K", 1), ("M", 2), ("G", 3), ("T", 4), ("P", 5)):
        binary = replace(table["B"], factor=Fraction(8 * 1024**exponent))
        unit = replace(binary, factor=Fraction(8 * 1000**exponent), otherwise=(binary,))
        word = {"K": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta"}[letter]
        table |= {letter + "B": unit, word + "byte": unit}
    table["kB"] = table["KB"]
    return table


def parse_unit(name: str, table: dict[str, Unit]) -> Unit | None:
    """The unit of measure that `name`, already plain, is in `table`; a unit alone keeps its offset and readings."""
    units: list[Unit] = []
    direction = [1]
    pending = False
    position = 0
    plain = True
    while position < len(name):
        token = _TOKEN.match(name, position)
        if token is None:
            return None
        position = token.end()
        if token["space"]:
            continue
        if token["sign"]:
            plain = False
            if token["sign"] == "(":
                direction.append(direction[-1])
                if len(direction) > 3:
                    return None
            elif token["sign"] == ")":
                if len(direction) == 1 or pending:
                    return None
                direction.pop()
            elif pending or (not units and token["sign"] != "/"):
                return None
            else:
                if token["sign"] == "/":
                    # J/kg K is J/(kg K) wherever people write it: what follows a stroke stands below it.
                    direction[-1] = -abs(direction[-1]) if len(direction) == 1 else -direction[0]
                pending = True
            continue
        unit = find_unit(token["name"], table)
        if unit is None:
            return None
        power = int(token["power"] or token["glued"] or 1)
        if token["modifier"]:
            if token["power"] or token["glued"]:
                return None
            power = 2 if token["modifier"] == "□" else 3
        if not 0 < abs(power) <= _MAX_POWER:
            return None
        power *= direction[-1]
        plain = plain and power == 1 and not units
        units.append(unit if plain else _power(unit, power))
        pending = False
    if not units or pending or len(direction) > 1:
        return None
    return units[0] if plain and len(units) == 1 else _product(units)


def find_unit(name: str, table: dict[str, Unit]) -> Unit | None:
    """A unit by its bare name: as written, in the singular, in lower case where that says the same."""
    if name in table:
        return table[name]
    if not name.isascii() or len(name) < 2:
        return None
    stems = [name]
    # "Ns" and "kWs" are products, not plurals.
    if name.endswith("s") and len(name) > 2 and not name[-2].isupper():
        stems += [name[:-1], *([name[:-2]] if name.endswith("es") and len(name) > 4 else [])]
        stems += [name[:-3] + "y"] if name.endswith("ies") else []
    for stem in stems:
        if stem in table:
            return table[stem]
    # 5 MA are no milliamperes, and 5 mHz no megahertz.
    if table is UNITS and (name.islower() or name.istitle() or (name.isupper() and (name[0] != "M" or name == "MM"))):
        return next((_LOWER[stem.lower()] for stem in stems if stem.lower() in _LOWER), None)
    return None


UNITS: dict[str, Unit] = {}
UNITS |= _build()
"""Every name of a unit that is neither a plural nor a compound."""


def _lower() -> dict[str, Unit]:
    """Names in lower case, without those that name two units: `mw` is `mW` and `MW`; for `KM` and `Metres`."""
    table: dict[str, Unit | None] = {}
    for name, unit in UNITS.items():
        if len(name) >= 2 and name.isascii():
            key = name.lower()
            table[key] = unit if key not in table or table[key] == unit else None
    return {key: unit for key, unit in table.items() if unit is not None}


_LOWER = _lower()


def plain_unit(written: str) -> str:
    """`written` without LaTeX, braces and words for operators, as `parse_unit` reads it."""
    name = _FRACTION.sub(r"(\1)/(\2)", written)
    for latex, symbol in (
        (r"\mu", "μ"),
        (r"\micro", "μ"),
        (r"\Omega", "Ω"),
        (r"\ohm", "Ω"),
        (r"\AA", "Å"),
        (r"\mathring{A}", "Å"),
        (r"\prime", "'"),
        (r"\rm", ""),
        (r"\cdot", "·"),
        (r"\times", "·"),
        ("⋅", "·"),
        ("∙", "·"),
        ("•", "·"),
        ("×", "·"),  # noqa: RUF001
        ("**", "^"),
        ("*", "·"),
        ("µ", "μ"),
        ("每", "/"),
        ("′", "'"),  # noqa: RUF001
        ("″", '"'),
    ):
        name = name.replace(latex, symbol)
    name = re.sub(r"''|\^\{''\}", '"', re.sub(r"\^\s*\{?\s*('{1,2})\s*\}?", r"\1", name))
    # \text{k}\Omega and \mu\mathrm{m} are one name each.
    name = re.sub(r"(?<![A-Za-z])([kMm])\s+(?=Ω)|(?<![A-Za-z])(μ)\s+(?=[A-Za-z])", r"\1\2", name)
    for phrase, token in _PHRASES:
        name = phrase.sub(token, name)
    name = _POWER.sub(lambda power: f"^{power[1] or power[2] or power[3]}", name)
    return re.sub(r"\s*([/·])\s*", r"\1", re.sub(r"[{}]", "", name)).strip(" .")


def read_unit(written: str, *, glued_letter: bool = False) -> tuple[bool, Unit | None]:
    """Whether `written`, which follows a number, is a unit, and which; "units" is a unit that says nothing.

    One unknown word is taken as a unit of its own (`5 apples`), unless it changes the number (`5 million`).
    """
    if len(written) > _MAX_UNIT_CHARS:
        return False, None
    glued = not written.startswith((" ", "\\", "{"))
    name = plain_unit(written)
    bare = name.strip("() ")
    if glued and len(bare) == 1 and bare.isascii() and bare.isalpha() and not glued_letter:
        return False, None
    if bare.lower() in _GENERIC:
        return True, _GENERIC[bare.lower()]
    unit = parse_unit(name, UNITS)
    if unit is not None:
        return True, unit
    if len(bare) > 1 and bare[0] in COUNTERS:
        unit = parse_unit(bare[1:], UNITS)
        if unit is not None:
            return True, unit
        bare = bare[1:]
    top, slash, bottom = name.partition("/")
    if slash:
        above, below = (parse_unit(part, UNITS) or _own_unit(part.strip(), False) for part in (top, bottom))
        return (True, _product([above, _power(below, -1)])) if above and below else (False, None)
    own = _own_unit(bare, glued)
    return own is not None, own


def _own_unit(word: str, glued: bool) -> Unit | None:
    """An unknown word as a unit that only equals itself."""
    latin = re.fullmatch(r"[A-Za-z]{3,20}", word) and not glued and word.lower() not in NOT_UNITS
    chinese = re.fullmatch(r"[\u4e00-\u9fff]{1,4}", word) and not re.search(
        "[一二两三四五六七八九十百千万亿半几多余分和或到至不没约左右上下内外每第少许]", word
    )
    return Unit(((singular(word.lower()), 1),)) if latin or chinese else None


_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse"}


def singular(word: str) -> str:
    """`apple` of `apples`, `box` of `boxes`; only good for telling whether two words are the same."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:x|ch|sh|ss)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
