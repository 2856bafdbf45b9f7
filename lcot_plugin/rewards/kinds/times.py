"""The kinds `time` and `date`: a reading of a clock (`12:30`, `half past three`, `下午3点`) and a day of a calendar.

Which times are equal, by how they were written:

    gold        right                                     wrong
    15:00       15:00, 15:00:00, 3 pm, 下午3点            3:00, 3 am
    3:00 PM     3 p.m., 15:00                             3:00, 3:00 AM
    3:00        3:00, 3 o'clock, 三点, 3:00 AM, 3:00 PM   15:00, 3:30
    03:00       3:00, 3:00 AM                             3:00 PM, 15:00
    12:30       12:30, 12:30 pm                           0:30

An answer with am or pm says more than a gold answer of a 12-hour clock, as one with a unit does; one without does not
say what a gold answer with am or pm asks. A date equals another where both state the same of year, month and day.
`5/1/2020` is the fifth of January or the first of May, so that it only equals itself; durations are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.numerals import read_numeral
from lcot_plugin.rewards.kinds.statements import MAX_STATEMENT_CHARS, NEGATION
from lcot_plugin.types import MatchSettings


@dataclass(frozen=True)
class Clock:
    """A time of day."""

    hour: int
    """0 to 24, as on a 24-hour clock where `meridiem` is known."""
    minute: int = 0
    second: int = 0
    meridiem: bool = False
    """Whether am or pm was said, or a word like it."""
    padded: bool = False
    """Written like `03:00`, as on a 24-hour clock."""
    zone: str = ""

    @property
    def twelve_hours(self) -> bool:
        """Whether this may be the face of a 12-hour clock."""
        return not self.meridiem and not self.padded and 1 <= self.hour <= 12


@dataclass(frozen=True)
class Day:
    """What a text states of a date, and of the time on it."""

    year: int | None
    month: int | None
    day: int | None
    clock: Clock | None = None
    written: str = ""
    """Of `5/1/2020`: the numbers as written, which stand for two days."""


_MERIDIEM = r"(?P<meridiem>[ap])\.?\s?m\b\.?"
_ZONE = (
    r"(?:\s?(?P<zone>Z|UTC|GMT|EST|EDT|CST|CDT|MST|MDT|PST|PDT|CET|CEST|BST|IST|JST)"
    r"(?P<shift>[+-]\d{1,2}(?::?\d\d)?)?)?"
)
_DAY_PART = r"(?:\s(?:in\sthe\s(?P<part>morning|afternoon|evening)|at\s(?P<night>night|noon|midnight)))?"
_DIGITAL = re.compile(
    rf"(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.0+)?)?(?:\s?{_MERIDIEM})?{_DAY_PART}{_ZONE}",
    re.IGNORECASE,
)
_HOUR_ONLY = re.compile(rf"(?P<hour>\d{{1,2}})(?:[.](?P<minute>\d\d))?\s?{_MERIDIEM}{_ZONE}", re.IGNORECASE)
_O_CLOCK = re.compile(
    rf"(?P<hour>\d{{1,2}}|[a-z]+)\s?(?:o'?\s?clock|oclock)(?:\s?{_MERIDIEM})?{_DAY_PART}",
    re.IGNORECASE,
)
_SPOKEN = re.compile(
    r"(?:(?:a\s)?(?P<fraction>half|quarter)|(?P<minute>\d{1,2}|[a-z]+(?:[\s-](?!minutes?\b)[a-z]+)?)(?:\sminutes?)?)"
    r"\s(?P<side>past|after|to|till|before)\s(?P<hour>\d{1,2}|[a-z]+)"
    rf"(?:\s(?:o'clock|oclock))?(?:\s?{_MERIDIEM})?{_DAY_PART}",
    re.IGNORECASE,
)
_SPOKEN_DIGITS = re.compile(
    rf"(?P<hour>[a-z]+)\s(?P<minute>[a-z]+(?:[\s-][a-z]+)?)(?:\s?{_MERIDIEM})?{_DAY_PART}", re.IGNORECASE
)
_NOON = {
    "noon": 12, "12 noon": 12, "12:00 noon": 12, "midday": 12, "midnight": 0, "12 midnight": 0, "12:00 midnight": 0,
    "正午": 12, "中午": 12, "午夜": 0, "零点": 0,
}  # fmt: skip
_CHINESE_PARTS = {
    "凌晨": "am", "早上": "am", "早晨": "am", "上午": "am", "清晨": "am", "中午": "noon", "下午": "pm", "傍晚": "pm",
    "晚上": "pm", "夜里": "night", "夜晚": "pm",
}  # fmt: skip
_CHINESE_NUMBER = r"(?:\d{1,2}|[零〇一二两三四五六七八九十]{1,3})"
_CHINESE = re.compile(
    rf"(?P<part>{'|'.join(_CHINESE_PARTS)})?\s?(?P<hour>{_CHINESE_NUMBER})\s?(?:点钟?|时)\s?"
    rf"(?:(?P<half>半)|(?P<quarter>[一1三3])刻|整|(?:过)?(?P<minute>{_CHINESE_NUMBER})\s?分?"
    rf"(?:\s?(?P<second>{_CHINESE_NUMBER})\s?秒)?)?"
)
_CHINESE_TO = re.compile(
    rf"(?P<part>{'|'.join(_CHINESE_PARTS)})?差\s?(?:(?P<quarter>一)刻|(?P<minute>{_CHINESE_NUMBER})\s?分钟?)"
    rf"(?:到)?\s?(?P<hour>{_CHINESE_NUMBER})\s?点钟?"
)
_CHINESE_DIGITAL = re.compile(
    rf"(?P<part>{'|'.join(_CHINESE_PARTS)})\s?(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(?::(?P<second>\d\d))?"
)


def read_clock(text: str) -> Clock | None:
    """The time of day that all of `text` is; None where it is none, or none that exists: `25:10`."""
    line = re.sub(r"^(?:at|it's|it is|about|exactly)\s", "", _line(text), flags=re.IGNORECASE)
    if len(line) > 60:
        return None
    if line.lower() in _NOON:
        return Clock(_NOON[line.lower()], meridiem=True)
    for pattern in (_DIGITAL, _HOUR_ONLY, _O_CLOCK, _SPOKEN, _CHINESE_DIGITAL, _CHINESE_TO, _CHINESE, _SPOKEN_DIGITS):
        if match := pattern.fullmatch(line):
            return _clock(match, pattern)
    return None


def _line(text: str) -> str:
    line = inline(text[: MAX_STATEMENT_CHARS + 1]).replace("’", "'").strip()  # noqa: RUF001
    return re.sub(r"(?<=\d)\s?:\s?(?=\d)", ":", line)


def _clock(match: re.Match[str], pattern: re.Pattern[str]) -> Clock | None:
    groups = match.groupdict()
    hour, minute, second = (_small(groups.get(name)) for name in ("hour", "minute", "second"))
    if groups.get("hour") is None or hour is None or minute is None or second is None:
        return None
    if pattern is _SPOKEN_DIGITS and not (1 <= hour <= 12 and 10 <= minute < 60):
        return None
    if groups.get("half") or groups.get("fraction") == "half":
        minute = 30
    elif quarter := groups.get("quarter") or groups.get("fraction"):
        minute = 45 if quarter in "三3" else 15
    if (groups.get("side") or "").lower() in ("to", "till", "before") or pattern is _CHINESE_TO:
        if not 0 < minute < 60 or (groups.get("fraction") or "").lower() == "half":
            return None
        hour, minute = (hour - 1 or 12) if hour <= 12 else hour - 1, 60 - minute
    if minute > 59 or second > 59 or hour > 24 or (hour == 24 and (minute or second)):
        return None
    written_hour = groups["hour"] or ""
    zone = ((groups.get("zone") or "") + (groups.get("shift") or "")).upper()
    half = _half_of_day(groups, hour)
    if half == "":
        padded = written_hour.startswith("0") or (bool(zone) and hour > 12)
        return Clock(hour % 24, minute, second, padded=padded, zone=zone)
    if half is None or hour > 12 or (hour == 0 and half == "pm"):
        # 下午15点 is said, 15:00 am is not.
        if half != "pm" or hour <= 12 or hour == 24:
            return None
        return Clock(hour, minute, second, meridiem=True, zone=zone)
    return Clock(hour % 12 + (12 if half == "pm" else 0), minute, second, meridiem=True, zone=zone)


def _half_of_day(groups: dict[str, str | None], hour: int) -> str | None:
    """am or pm; empty where nothing says it, None where what says it does not fit the hour."""
    said = (groups.get("meridiem") or "").lower()
    part = (groups.get("part") or groups.get("night") or "").lower()
    part = _CHINESE_PARTS.get(part, part)
    found = {"morning": "am", "afternoon": "pm", "evening": "pm", "am": "am", "pm": "pm"}.get(part, "")
    if part == "noon":
        found = "am" if hour in (10, 11) else "pm" if hour in (12, 1, 2) else "none"
    elif part == "midnight":
        found = "am" if hour == 12 else "none"
    elif part == "night":
        found = "pm" if 6 <= hour <= 11 else "am" if hour == 12 or 1 <= hour <= 4 else "none"
    if groups.get("part") == "晚上" and hour == 12:
        found = "am"
    if found == "none" or (said and found and found[0] != said):
        return None
    return said + "m" if said else found


def _small(written: str | None) -> int | None:
    """A whole number below 100 in digits or words, 0 for None."""
    if written is None:
        return 0
    if written.isdecimal():
        return int(written)
    numeral = read_numeral(written)
    if numeral is None or numeral.end != len(written) or numeral.value.denominator != 1 or numeral.percent:
        return None
    return int(numeral.value)


def same_clock(gold: Clock, answer: Clock) -> bool:
    """Whether `answer` is the time `gold`, by the table above."""
    if (gold.minute, gold.second) != (answer.minute, answer.second) or (
        gold.zone and answer.zone and gold.zone != answer.zone
    ):
        return False
    if gold.hour == answer.hour:
        # 3:00 says neither 3:00 AM nor, of another day, 03:00 on the face of a 12-hour clock with am.
        return not (gold.meridiem and answer.twelve_hours)
    if gold.twelve_hours and answer.meridiem:
        return gold.hour % 12 == answer.hour % 12
    return False


_MONTHS = dict(
    zip(
        re.findall(r"\w+", "january february march april may june july august september october november december"),
        range(1, 13),
        strict=True,
    )
)
_MONTHS |= {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_WEEKDAYS = {
    name: number
    for number, names in enumerate(
        ("monday mon 一", "tuesday tue tues 二", "wednesday wed 三", "thursday thu thur thurs 四", "friday fri 五",
         "saturday sat 六", "sunday sun 日 天")
    )
    for name in names.split()
}  # fmt: skip
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?P<th>st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_GAP = r"(?:\s?,\s?|\s|\s?-\s?)"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_YEAR}(?P<sep>[-/.])(?P<month>\d{{1,2}})(?P=sep)(?P<day>\d{{1,2}})",
        rf"{_YEAR}[-/](?P<month>\d{{1,2}})",
        rf"(?P<month>0[1-9]|1[0-2])/{_YEAR}",
        rf"{_MONTH}{_GAP}(?:the\s)?{_DAY}(?:{_GAP}{_YEAR})?",
        rf"(?:the\s)?{_DAY}{_GAP}(?:of\s)?{_MONTH}(?:{_GAP}{_YEAR})?",
        rf"{_MONTH}(?:{_GAP}|\sof\s){_YEAR}",
        rf"{_YEAR}{_GAP}{_MONTH}(?:{_GAP}{_DAY})?",
        r"(?P<year>\d{4}|[零〇一二三四五六七八九]{4})\s?年\s?(?:(?P<month>\d{1,2}|[一二三四五六七八九十]{1,2})\s?月"
        r"(?:份|\s?(?P<day>\d{1,2}|[一二三四五六七八九十]{1,3})\s?[日号])?)?",
        r"(?P<month>\d{1,2}|[一二三四五六七八九十]{1,2})\s?月\s?(?P<day>\d{1,2}|[一二三四五六七八九十]{1,3})\s?[日号]",
    )
)
_LOOSE_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (rf"{_YEAR}", rf"{_MONTH}", r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)", r"(?P<month>\d{1,2})月")
)
_NUMERIC = re.compile(r"(?P<first>\d{1,2})(?P<sep>[-/.])(?P<second>\d{1,2})(?P=sep)(?P<year>\d{4}|\d\d)")
_WEEKDAY_NAMES = "|".join(sorted((name for name in _WEEKDAYS if name.isascii()), key=len, reverse=True))
_WEEKDAY = re.compile(
    rf"^(?P<name>{_WEEKDAY_NAMES})\.?,?\s(?:the\s)?(?=\S)"
    r"|[\s(,]*(?:星期|周)(?P<chinese>[一二三四五六日天])\)?$",
    re.IGNORECASE,
)
_TIME_OF_DATE = re.compile(r"^(?P<day>.{6,40}?)(?:T|,?\s(?:at\s)?)(?P<time>\d{1,2}:\d\d(?::\d\d(?:\.0+)?)?.{0,12})$")


def read_day(text: str, *, loose: bool = False) -> Day | None:
    """The date that all of `text` is, None where it is none or one that no calendar has: 31 February.

    `loose` reads a year, a month or eight digits for a date too.
    """
    line = re.sub(r"^on\s(?:the\s)?", "", _line(text), flags=re.IGNORECASE)
    if len(line) > 60:
        return None
    clock = None
    if timed := _TIME_OF_DATE.match(line):
        clock = read_clock(timed["time"])
        if clock is None:
            return None
        line = timed["day"].strip(" ,")
    weekday = None
    if named := _WEEKDAY.search(line):
        weekday = _WEEKDAYS[(named["name"] or named["chinese"]).lower()]
        line = (line[: named.start()] + line[named.end() :]).strip()
    day = _numeric_day(line)
    for pattern in (*_DATES, *(_LOOSE_DATES if loose else ())):
        if day is None and (match := pattern.fullmatch(line)):
            day = _day(match.groupdict())
            if day is None:
                return None
    if day is None or not _exists(day):
        return None
    if weekday is not None and (day.day is None or (day.year and not day.written and _weekday(day) != weekday)):
        return None
    return Day(day.year, day.month, day.day, clock, day.written)


def _numeric_day(line: str) -> Day | None:
    """`13/5/2020`, which is one day, or `5/1/2020` and `5/1/20`, which are two."""
    match = _NUMERIC.fullmatch(line)
    if match is None:
        return None
    first, second, year = int(match["first"]), int(match["second"]), int(match["year"])
    if len(match["year"]) == 2 or (first <= 12 and second <= 12 and first != second):
        plausible = 0 < first <= 31 and 0 < second <= 31 and min(first, second) <= 12
        return Day(year, None, None, written=f"{first}/{second}/{year}") if plausible else None
    day, month = (first, second) if second <= 12 else (second, first)
    return Day(year, month, day)


def _day(groups: dict[str, str | None]) -> Day | None:
    year = groups.get("year")
    if year is not None and not year.isdecimal():
        numeral = read_numeral(year)
        year = str(numeral.value) if numeral else None
    written_month = groups.get("month")
    month = _MONTHS.get(written_month.lower()) if written_month else None
    if written_month and month is None:
        month = _small(written_month)
    day = groups.get("day")
    number = _small(day) if day else None
    if groups.get("th") and number:
        ending = "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        if (groups["th"] or "").lower() != ending:
            return None
    return Day(int(year) if year else None, month, number)


def _exists(day: Day) -> bool:
    if day.written:
        return True
    try:
        # 29 February exists in some year.
        date(day.year if day.year is not None else 2000, day.month or 1, day.day if day.day is not None else 1)
    except ValueError:
        return False
    return day.month != 0


def _weekday(day: Day) -> int:
    return date(day.year or 1, day.month or 1, day.day or 1).weekday()


def same_day(gold: Day, answer: Day) -> bool:
    """Whether the two state the same day, month or year, and the same time on it."""
    if (gold.year, gold.month, gold.day, gold.written) != (answer.year, answer.month, answer.day, answer.written):
        return False
    if gold.clock is None or answer.clock is None:
        return gold.clock is answer.clock
    return same_clock(gold.clock, answer.clock)


_Reading = TypeVar("_Reading")


def _stated(found: Found, read: Callable[[str], _Reading | None]) -> _Reading | None:
    """What `found` states: all of it, or what stands behind "is", "at", "on" or an equals sign."""
    text = undress(found.answer)
    if len(text) > MAX_STATEMENT_CHARS:
        return None
    line = _line(text)
    reading = read(line)
    if reading is not None:
        return reading
    if NEGATION.search(line) or "?" in line:
        return None
    for cue in (
        r"\b(?:is|was|reads|shows|says|displays)\s(?:at\s|on\s)?(?:about\s|exactly\s)?",
        r"=",
        r"(?:时间是|时间为|日期是|日期为|[是为]|(?<!\d):)",
    ):
        matches = list(re.finditer(cue, line))
        for match in matches[:1] + matches[-1:]:
            reading = read(line[match.end() :].strip())
            if reading is not None:
                return reading
    return None


def _read_time(text: str, settings: MatchSettings) -> Gold | None:
    clock = read_clock(text)
    return None if clock is None else Gold("time", text, clock)


def _infer_time(text: str, settings: MatchSettings) -> Gold | None:
    # "ten thirty" may be two numbers, and "five to six" too.
    gold = _read_time(text, settings)
    if gold is None:
        return None
    line = _line(text)
    sure = re.search(r"\d:\d\d|o'?\s?clock|\bpast\b|[点时]", line) or re.search(r"[ap]\.?\s?m\b", line, re.IGNORECASE)
    named = line.lower() in _NOON or re.search(r"\bquarter to\b|\bminutes? to\b", line, re.IGNORECASE)
    return gold if sure or named else None


def _compare_time(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    answer = _stated(found, read_clock)
    return None if answer is None else same_clock(gold.value, answer)


def _read_date(text: str, settings: MatchSettings) -> Gold | None:
    day = read_day(text, loose=True)
    return None if day is None else Gold("date", text, day)


def _infer_date(text: str, settings: MatchSettings) -> Gold | None:
    day = read_day(text)
    # 2020年 is a number of years as well, and is read as one.
    return None if day is None or (day.month is None and not day.written) else Gold("date", text, day)


def _compare_date(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    answer = _stated(found, lambda text: read_day(text, loose=True))
    return None if answer is None else same_day(gold.value, answer)


TIME = Kind(_read_time, _compare_time, _infer_time)
DATE = Kind(_read_date, _compare_date, _infer_date)
