r"""Numbers, their units, number words and ratios: what a reader expects of each pair, in both directions."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from num2words import num2words

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found, Place
from lcot_plugin.rewards.kinds.base import NeedsSolver
from lcot_plugin.rewards.kinds.numbers import KIND, read_roman
from lcot_plugin.rewards.kinds.numerals import read_numeral, read_ordinal
from lcot_plugin.rewards.kinds.quantities import Quantity, read_quantity, same_quantity
from lcot_plugin.rewards.kinds.units import UNITS, parse_unit, read_unit
from lcot_plugin.types import MatchSettings, Outcome

# Gold answer, then answers that state it, then answers that do not. None of these needs a solver.
TABLE: list[tuple[str, list[str], list[str]]] = [
    # written forms
    ("1000", ["1,000", "1 000", r"1\,000", "1{,}000", "1'000", "1e3", "1.0\N{MULTIPLICATION SIGN}10^3",
        "\uff11\uff10\uff10\uff10", "1000."], ["1,0",
        "1.000", "10^4"]),
    ("1234567.5", ["1,234,567.5", "1.234.567,5", "12,34,567.5", "1 234 567.5"], ["1234567", "1,234,567,5"]),
    ("100000", ["1,00,000", "one hundred thousand", "1 lakh", "十万", "10万"], ["1,00,00", "ten thousand"]),
    ("3.5", ["3.50", "03.5", "3 1/2", "3½", r"3\frac12", "7/2", "three and a half", "3,5", "三点五"], ["3,500",
        "35", "-3.5", "3.49"]),
    ("0.125", ["0,125", "1/8", ".125", "one eighth", "12.5%"], ["125", "0,13"]),
    ("3.14", ["approximately 3.14", "≈3.14", r"\approx 3.14", "3.140", "约3.14", "3,14"], ["3.14159", "3.1",
        "3, 14", "314"]),
    ("-3", ["minus three", "negative 3", "\N{MINUS SIGN}3", "- 3", "负三", "零下3度"], ["3", "--3 dogs"]),
    ("1.5e-3", [r"1.5 \times 10^{-3}", "0.0015", "1.5*10**-3", "1.5·10⁻³"], ["1.5e3", "1.5 - 3"]),
    ("6.02e23", ["6.02 x 10^23", "602000000000000000000000"], ["6.02e22"]),
    ("5 ± 0.1 cm", [r"5.0 \pm 0.1 cm", "5±0.1 cm"], ["5 ± 0.2 cm", "5 cm"]),
    ("0.64N", ["0.6400 N", "0.64*N", "640 mN", r"F = 0.64\text{ N}", "The force is 0.64 N."], ["0.64", "0.65 N",
        "0.64n", "The force is 0.64."]),
    ("0.5L", ["500毫升", "500 mL"], ["0.5", "0.5 m", "50毫升"]),
    ("1600W", ["1.6kW", "1600 W"], ["1600", "16 kW"]),
    (r"17\text{ red apples}", ["17", "17 red apples", r"17\text{ red apples}"], ["18", "17 cm", "17 red cars"]),
    ("3/2", ["1又1/2", "2分之3"], ["1又1/3", "11/2", "3分之2"]),
    ("100%", ["百分之百", "100 %"], ["百分之一百二", "百分之十"]),
    ("x=3", ["x等于3", "3 = x", "3"], ["y等于3", "x不等于3", "3 = y", "x等于4"]),
    ("A:B=1", ["1", "A:B = 1"], ["B:A=1", "A:B=2", "2"]),
    ("V_{1}:V_{2}=11:21", ["11:21", "V_1:V_2=11:21", "22:42"], ["V_2:V_1=11:21", "21:11"]),
    ("185\\", ["185", "185\\"], ["184", "1850"]),
    # words
    ("21", ["twenty-one", "Twenty One", "二十一", "There are twenty-one birds."], ["twenty", "一二", "twenty-first",
        "20 one"]),
    ("105", ["one hundred and five", "a hundred and five", "一百零五"], ["一百五", "one hundred or five"]),
    ("2/3", ["two thirds", "two-thirds", "三分之二"], ["二分之三", "two third parts of it", "two"]),
    ("0.5", ["half", "a half", "one half", "一半", "50%", "百分之五十"], ["0.5%", "50", "one and a half"]),
    ("12", ["a dozen", "twelve", "dozen", "十二"], ["dozens", "十几"]),
    ("5 million", ["5,000,000", "five million", "500万"], ["5", "5 billion", "five"]),
    ("35000", ["3.5万", "三万五", "三万五千"], ["3.5"]),
    ("third", ["3rd", "the third", "Third", "3"], ["fourth", "1/3", "third of all", "13th"]),
    ("21st", ["twenty-first", "21st place"], ["21th", "twenty"]),
    ("XIV", ["14", "XIV", "(XIV)"], ["XVI", "15"]),
    # units
    ("5 cm", ["5", "50 mm", "0.05 m", "5 centimetres", "five centimeters", "五厘米", r"\SI{5}{\cm}",
        r"5\,\mathrm{cm}", "5 cm long"],
     ["5 m", "5 kg", "5 cm^2", "5 inches", "6"]),
    ("10 m/s", ["36 km/h", r"10 m s^{-1}", r"10\ \mathrm{m\,s^{-1}}", r"\SI{10}{\metre\per\second}",
        "10 metres per second", "10米/秒", "10米每秒"],
     ["10 m", "10 m/s^2", "10 km/h", "10 s/m"]),
    ("9.8 m/s^2", [r"9.8\text{ m/s}^2", "9.8 N/kg", r"9.8\frac{m}{s^2}", "9.8 metres per second squared"],
        ["9.8 m/s"]),
    ("100 J", ["100 N·m", "0.1 kJ", "100 N m", r"100 \text{ kg}\cdot\text{m}^2/\text{s}^2"], ["100 W", "100 cal"]),
    ("1 g/cm^3", ["1000 kg/m³", r"1\,\mathrm{g\,cm^{-3}}", "1克/立方厘米"], ["1 kg/cm^3", "1 g/cm^2"]),
    ("25 °C", ["77 °F", "298.15 K", "25", "25 degrees", "25 degrees Celsius", "25摄氏度", r"25^\circ\text{C}"],
        ["25 °F", "25 K", "25 cm"]),
    ("30.5°", ["30°30'", r"30^\circ 30'", "30.5 degrees", "1830 arcmin"], ["30.5 rad", "30°5'", "30.5%"]),
    ("71 inches", ["5'11\"", "5 ft 11 in", "5 feet 11 inches", "71 in"], ["5.11 ft", "5'1\""]),
    ("90 min", ["1 hour 30 minutes", "1.5 h", "1h30m", "5400 s", "1小时30分", "one and a half hours", "一个半小时",
        "1 h 30 min"],
     ["1.3 h", "90 s", "90 days"]),
    ("2.5 kg", ["2 kg 500 g", "2500 g", "5斤", "2500克"], ["2 kg 5 g", "2.5 g"]),
    ("$5", ["$5.00", "5 dollars", "US$5", "5 USD", "USD 5", "5美元", "500 cents", "5"], ["€5", "5 cents", "$50",
        "$5 million"]),
    ("$1.5 million", ["$1,500,000", "1.5 million dollars", "$1.5M"], ["$1.5", "$1.5 billion"]),
    ("30000元", ["3万元", "三万元", "30000"], ["3元", "30000美元"]),
    ("3千克", ["3", "3000克", "三千克", "3 kg"], ["3000千克"]),
    ("2 gallons", ["8 quarts", "16 pints"], ["2 litres"]),
    ("1 hectare", ["10000 m^2", "1 ha", "10,000 square metres", "0.01 km²", "15亩"], ["1 acre"]),
    ("1 GB", ["1000 MB", "1024 MB"], ["1 Gb", "1001 MB"]),
    ("2 kΩ", ["2000 ohms", "2 kilohms", r"2\text{ k}\Omega", "2 kohm"], ["2 Ω", "2 MΩ"]),
    ("4 MHz", ["4000 kHz", "4 megahertz"], ["4 mHz"]),
    ("300K", ["300 kelvin", "300,000", "300 K"], ["300"]),
    ("1.2k", ["1200", "1.2K", "1,200"], ["1.2"]),
    ("5 apples", ["5", "5 apple", "There are 5 red apples on the table.", "five apples"], ["5 oranges",
        "There are 5 oranges.", "5 cm"]),
    ("5个苹果", ["5", "五个苹果", "5 个苹果"], ["5个橙子", "6个苹果"]),
    ("24 square units", ["24", "24 sq units", "24 units²", "24 cm²", "24平方单位"],
     ["24 cubic units", "24 units^3", "24 cm"]),
    ("25 cm^2", ["25 square units"], ["25 cubic units"]),
    ("∠ABC = 50°", ["50°", "50", r"\angle ABC = 50^\circ", "m∠ABC = 50"], ["∠ACB = 50°", "130°"]),
    ("AB = 5 cm", ["5 cm", "AB = 50 mm"], ["CD = 5 cm", "AB = 5 m"]),
    ("1998", ["In 1998", "in the year 1998"], ["1999", "1998s", "Apollo 1998"]),
    # percent
    ("50%", ["50", "0.5", "1/2", "百分之五十", "fifty percent", "50 per cent"], ["50 cm", "0.5%", "5000%", "50‰"]),
    ("0.25", ["25%"], ["0.25%", "25"]),
    # sentences
    (
        "5",
        [
            "There are 5 apples in the picture.", "There are five apples.", "5 red apples", "图中有5个苹果。",
            "一共有五个",
            "x = 5", "x=5 cm", "Area = 25/5", "2+3=5", "f(2) = 5", r"\angle A = 5", "the time is = 5", "5 cm",
            "5 units",
        ],
        [
            "not 5", "5 or 6", "at least 5", "more than 5", "≥5", ">5", "5+", "5!", "up to 5", "between 5 and 6",
            "5-6", "5 to 6",
            "There might be 5", "There aren't 5 apples", "Is it 5?", "See figure 5", "Apollo 5", "5 million",
            "5 hundred",
            "5 thousand", "fifth", "5th", "5 M", "5M", "5 squared", "5 plus x", "5 of 6", "x != 5", "x >= 5",
            "x ≢ 5", "2x = 5",
            "x^2 = 5", "x + 1 = 5", "-x = 5", "not x = 5", "x, y = 5", "x = 5 or x = 6", "minus 5 degrees",
            "5 and a half",
            "不是5", "至少5个", "5个以上", "六 (5)", "5 January", "5 1/2", "5,0", "5%1", "5.5.5", "1e5", "5 e",
            "5_2", "0x5", "±5",
        ],
    ),
    ("3", ["三", "三个", "有三条边"], ["三角形", "三角函数", "三月", "三月份", "①②③"]),
    ("10", ["十", "十分"], ["十分多", "十字路口", "十几个"]),
    # ratios
    ("3:4", ["6:8", "3 : 4", "3 to 4", "3比4", "3/4", "1.5:2", "a : b = 3:4"], ["4:3", "3:4:5", "0.75", "3", "3:5",
        "3-4"]),
    ("1:2:3", ["2:4:6"], ["1:2", "3:2:1"]),
]  # fmt: skip
RIGHT = [(gold, answer) for gold, right, _ in TABLE for answer in right]
WRONG = [(gold, answer) for gold, _, wrong in TABLE for answer in wrong]


def outcome(
    gold: str, answer: str, answer_type: str = "auto", place: Place = Place.BOXED, **settings: float
) -> Outcome:
    matching = MatchSettings(**settings)  # type: ignore[arg-type]
    read = read_gold(gold, answer_type, matching)
    assert read is not None
    assert read.kind in ("number", "ratio")
    try:
        return judge(read, Found(answer, place), matching)
    except NeedsSolver:
        return Outcome.MISMATCHED


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers_match_without_a_solver(gold: str, answer: str) -> None:
    assert outcome(gold, answer) is Outcome.MATCHED


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers_do_not(gold: str, answer: str) -> None:
    assert outcome(gold, answer) is not Outcome.MATCHED
    assert outcome(gold, answer, place=Place.LAST_LINE) is not Outcome.MATCHED


@pytest.mark.parametrize(
    "text", ["三角形", "半径", "半圆", "一次函数", "One Direction", "Six Flags", "7 Eleven", "MIX", "3D", "5th Avenue"]
)
def test_words_that_only_begin_with_a_number_are_text(text: str) -> None:
    assert read_gold(text).kind == "text"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("There are 5 apples in the picture.", True),
        ("The total number of apples is 5.", True),
        ("So the answer should be: there are 5", False),
        ("Let me count the 5 apples again", False),
        ("If there are 5 apples", False),
        ("5 options remain to be looked at now", False),
        ("Step 5", False),
    ],
)
def test_last_lines(line: str, right: bool) -> None:
    assert (outcome("5", line, place=Place.LAST_LINE) is Outcome.MATCHED) is right


@pytest.mark.parametrize(
    ("gold", "answer", "settings", "right"),
    [
        ("3.14", "3.15", {"absolute_tolerance": 0.01}, True),
        ("3.14", "3.151", {"absolute_tolerance": 0.01}, False),
        ("100", "105", {"relative_tolerance": 0.05}, True),
        ("100", "105.1", {"relative_tolerance": 0.05}, False),
        ("-100", "-95", {"relative_tolerance": 0.05}, True),
        ("5 cm", "51 mm", {"absolute_tolerance": 0.1}, True),  # a tenth of the gold answer's centimetre
        ("5 cm", "52 mm", {"absolute_tolerance": 0.1}, False),
        ("25 °C", "78 °F", {"absolute_tolerance": 1.0}, True),
        ("25 °C", "80 °F", {"absolute_tolerance": 1.0}, False),
        ("50%", "0.51", {"relative_tolerance": 0.02}, True),
        ("90°", "1.5708 rad", {"relative_tolerance": 0.001}, True),
        ("5 cm", "5 m", {"relative_tolerance": 0.5}, False),
        ("3.14", "3.14159", {}, False),
    ],
)
def test_tolerance_is_in_the_units_of_the_gold_answer(
    gold: str, answer: str, settings: dict[str, float], right: bool
) -> None:
    assert (outcome(gold, answer, **settings) is Outcome.MATCHED) is right


class _Calculator:
    """A solver that knows one value."""

    def readable(self, expression: str) -> bool:
        return True

    def equal(self, gold: str, answer: str) -> bool | None:
        return False

    def value(self, expression: str) -> float | None:
        return 3.141592653589793 if expression == r"\pi" else None


@pytest.mark.parametrize(("tolerance", "right"), [(0.01, True), (0.001, False), (0.0, False)])
def test_an_expression_is_compared_by_its_value_under_a_tolerance(tolerance: float, right: bool) -> None:
    settings = MatchSettings(absolute_tolerance=tolerance)
    gold = read_gold("3.14", "number", settings)
    assert gold is not None
    assert (judge(gold, Found(r"\pi", Place.BOXED), settings, _Calculator()) is Outcome.MATCHED) is right


def test_numbers_as_words_read_as_num2words_writes_them() -> None:
    rng = random.Random(0)
    numbers = [*range(1100), *(rng.randrange(10**digits) for digits in range(4, 19) for _ in range(20))]
    for number in numbers:
        words = num2words(number)
        numeral = read_numeral(words)
        assert numeral is not None, words
        assert (numeral.value, numeral.end) == (number, len(words))
        assert read_ordinal(num2words(number, to="ordinal_num")) == number
        if number:
            assert read_ordinal(num2words(number, to="ordinal")) == number
    assert read_numeral(num2words(-17)).value == -17  # type: ignore[union-attr]
    assert read_numeral(num2words(2.75)).value == Fraction("2.75")  # type: ignore[union-attr]


_CHINESE = "零一二三四五六七八九"


def chinese(number: int) -> str:
    """A whole number below 10**12 in Chinese."""
    if number == 0:
        return "零"
    for scale, name in ((10**8, "亿"), (10**4, "万")):
        if number >= scale:
            high, low = divmod(number, scale)
            gap = "零" if low and low < scale // 10 else ""
            return chinese(high) + name + gap + (chinese(low) if low else "")
    text, zero = "", False
    for scale, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // scale % 10
        if digit:
            text += ("零" if zero else "") + _CHINESE[digit] + name
            zero = False
        elif text:
            zero = True
    return text


@given(st.integers(min_value=0, max_value=10**12 - 1))
def test_chinese_numerals_are_exact(number: int) -> None:
    numeral = read_numeral(chinese(number))
    assert numeral is not None
    assert (numeral.value, numeral.end) == (number, len(chinese(number)))


@pytest.mark.parametrize("text", ["三四", "两三个", "十几", "二十多", "three four", "one hundred and", "million"])
def test_what_names_no_one_number_is_none(text: str) -> None:
    numeral = read_numeral(text)
    assert numeral is None or numeral.end < len(text)


@given(st.integers(min_value=1, max_value=3999))
def test_roman_numerals(number: int) -> None:
    text, rest = "", number
    for value, letters in (
        (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
        (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
    ):  # fmt: skip
        text, rest = text + letters * (rest // value), rest % value
    assert read_roman(text) == number
    assert read_roman(text + "IIII") is None


@pytest.mark.parametrize("name", sorted(UNITS))
def test_every_unit_is_read_behind_a_number(name: str) -> None:
    assert read_unit(" " + name)[0]
    assert parse_unit(name, UNITS) == UNITS[name] or "$" in name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("N m", "J"), ("J/s", "W"), ("V A", "W"), ("W h", "Wh"), ("kg m/s^2", "N"), ("mi/h", "mph"), ("cm^3", "mL"),
            ("L", "dm^3"),
        ("C/s", "A"), ("Wb/m^2", "T"), ("J/(kg·K)", "J/kg °C"), ("1/s", "Hz"), ("mol/L", "M"), ("F V", "A s"),
            ("kg/(m s^2)", "Pa"),
    ],
)  # fmt: skip
def test_derived_units_are_products_of_base_units(one: str, other: str) -> None:
    units = [read_unit(" " + name.replace("1/", "/"))[1] for name in (one, other)]
    assert units[0] is not None
    assert units[0] == units[1]


_NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.decimals(-(10**6), 10**6, places=3, allow_nan=False).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.integers(0, 10**9).map(lambda number: f"{number:,}"),
)
_UNITS = st.sampled_from(
    ["", "", " cm", " mm", " kg", "%", "°", " m/s", " km/h", " °C", " °F", " h", " min", " apples", " USD"]
)


@given(_NUMBERS, _UNITS)
def test_a_gold_answer_matches_itself_through_the_comparison(number: str, unit: str) -> None:
    gold = KIND.read(number + unit, MatchSettings())
    assert gold is not None
    assert KIND.compare(gold, Found(number + unit, Place.BOXED), MatchSettings(), None) is True


_OTHER_UNITS = _UNITS.filter(lambda unit: unit != "°")  # 25 degrees state 25 °C, not the other way round


@given(_NUMBERS, _OTHER_UNITS, _NUMBERS, _OTHER_UNITS)
def test_equality_of_quantities_is_symmetric(one: str, unit: str, other: str, other_unit: str) -> None:
    first, second = read_quantity(one + unit), read_quantity(other + other_unit)
    assert first is not None
    assert second is not None
    percent = first.percent != second.percent  # 0.5% leaves 0.5 behind, 0.5 does not say 0.5%
    assert percent or same_quantity(first, second) == same_quantity(second, first)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), _UNITS)
def test_another_number_in_the_same_dress_never_matches(one: int, other: int, unit: str) -> None:
    assert (outcome(f"{one}{unit}", f"{other}{unit}", "number") is Outcome.MATCHED) is (one == other)


def test_giant_numbers_stay_small() -> None:
    assert read_quantity("9" * 301) is None
    assert read_quantity("1e1000") is None
    assert read_quantity("1" + ",000" * 900) is None
    assert read_quantity("1e999") == Quantity(Fraction(10) ** 999)
    assert outcome("1e999", "1e-999") is Outcome.MISMATCHED


@pytest.mark.parametrize(
    "atom",
    ["1", "1 ", "1,", "1.", "1,000", "-", "- ", "$", "one ", "a ", "hundred ", "十", "零", "1亿", "1 h ", "5'",
        "1:", r"\frac{1}{", "{", "^{",
     "m·", "m ", "°", "±", "is 5 ", r"\text{a}", r"\SI{5}{", "5 apples ", "I", "not ", "per ", "1/", r"\cdot ",
     "5 °C "],
)  # fmt: skip
def test_long_answers_are_judged_like_any_other(atom: str) -> None:
    answer = (atom * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS]
    for gold in ("5", "5 cm", "third", "3:4"):
        assert outcome(gold, answer) is not Outcome.MATCHED
