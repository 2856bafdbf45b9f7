"""Times of day and dates: the table of times.py, dates in all their orders, and what must not be guessed."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found, Place
from lcot_plugin.rewards.kinds.times import DATE, TIME, read_clock, read_day
from lcot_plugin.types import MatchSettings, Outcome

TIMES: list[tuple[str, list[str], list[str]]] = [
    ("15:00", ["15:00", "15:00:00", "3 pm", "3:00 p.m.", "3pm", "下午3点", "下午三点整", "15时"], ["3:00", "3 am",
        "15:01", "15", "18:15点", "3:15点"]),
    ("3:00 PM", ["3 p.m.", "15:00", "3:00pm", "three o'clock in the afternoon"], ["3:00", "3:00 AM", "3 o'clock"]),
    ("3:00", ["3 o'clock", "three o'clock", "3:00:00", "三点", "3点整", "3:00 AM", "3:00 PM", "03:00"], ["15:00",
        "3:30", "3:0", "300"]),
    ("03:00", ["3:00", "3 am"], ["3 pm", "15:00"]),
    ("12:30", ["12:30 pm", "The time is 12:30.", "half past twelve", "12点半"], ["0:30", "12:45", "12", "not 12:30",
        "12:30 or 12:45", "12:03"]),
    ("3:30", ["half past three", "half past 3", "三点半", "3点30分", "three thirty"], ["half to three", "3:03",
        "quarter past three"]),
    ("4:45", ["quarter to five", "a quarter to 5", "4点三刻", "差一刻五点", "fifteen minutes to five"],
        ["quarter past four", "5:45", "quarter to four"]),
    ("12:50", ["ten to one", "ten minutes to one"], ["1:50", "1:50 am"]),
    ("7:05", ["five past seven", "7点5分", "07:05", "七点零五分"], ["7:50", "five to seven"]),
    ("12:30:45", ["12:30:45"], ["12:30", "12:30:46"]),
    ("20:00", ["8 pm", "晚上8点", "晚上八点", "8 o'clock in the evening"], ["早上8点", "8 o'clock", "8:00"]),
    ("noon", ["12:00 pm", "12 noon", "正午"], ["midnight", "12:00 am"]),
    ("midnight", ["0:00", "12 am", "午夜"], ["noon", "12 pm"]),
    ("10:15 UTC", ["10:15", "10:15 UTC"], ["10:15 EST"]),
]  # fmt: skip
DATES: list[tuple[str, list[str], list[str]]] = [
    (
        "2020-01-05",
        ["January 5, 2020", "Jan 5 2020", "Jan. 5th, 2020", "5 January 2020", "5th of January, 2020", "2020/1/5",
            "2020年1月5日",
         "2020.01.05", "Sunday, January 5, 2020", "2020年1月5日星期日", "二〇二〇年一月五日",
         "the date is January 5, 2020", "5-Jan-2020"],
        ["5/1/2020", "1/5/2020", "2020-05-01", "2020-01", "January 5", "2020", "Monday, January 5, 2020",
            "January 6, 2020",
         "not January 5, 2020", "January 5th or 6th, 2020", "January 5, 2021"],
    ),
    ("5/1/2020", ["05/01/2020"], ["1/5/2020", "2020-01-05", "2020-05-01", "5/1/2021"]),
    ("13/5/2020", ["May 13, 2020", "2020-05-13", "5/13/2020"], ["5/12/2020"]),
    ("1/5/20", ["01/05/20"], ["1/5/2020", "5/1/20"]),
    ("January 2020", ["2020-01", "Jan 2020", "2020年1月", "01/2020"], ["January 5, 2020", "2020", "January 2021",
        "February 2020"]),
    ("July 4", ["4 July", "July 4th", "7月4日"], ["July 5", "4/7", "July"]),
    ("2020-01-05T12:30:00Z", ["2020-01-05 12:30", "January 5, 2020 at 12:30 pm"], ["2020-01-05", "2020-01-05 12:31"]),
]  # fmt: skip


def outcome(gold: str, answer: str, answer_type: str = "auto") -> Outcome:
    read = read_gold(gold, answer_type)
    assert read is not None
    assert read.kind in ("time", "date")
    return judge(read, Found(answer, Place.BOXED))


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, right, _ in TIMES + DATES for answer in right])
def test_right_answers_match(gold: str, answer: str) -> None:
    assert outcome(gold, answer) is Outcome.MATCHED


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, _, wrong in TIMES + DATES for answer in wrong])
def test_wrong_answers_do_not(gold: str, answer: str) -> None:
    assert outcome(gold, answer) is not Outcome.MATCHED


@pytest.mark.parametrize(
    "text", ["25:10", "12:60", "3:4", "0 pm", "half past", "five", "15:00 am", "12:30:75", "24:01"]
)
def test_no_time(text: str) -> None:
    assert read_clock(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "2020-02-30",
        "February 31",
        "2019-02-29",
        "2020-13-01",
        "January 32, 2020",
        "31/31/2020",
        "May 1th",
        "2020-00-01",
        "0/0/20",
    ],
)
def test_no_date(text: str) -> None:
    assert read_day(text, loose=True) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("12:30", "time"), ("3 pm", "time"), ("3:4", "ratio"), ("16:9", "ratio"), ("25:10", "ratio"), ("1:2:3",
            "ratio"),
        ("90 min", "number"), ("5", "number"), ("2020", "number"), ("May", "text"), ("Sunday", "text"),
            ("ten thirty", "text"),
        ("1990s", "text"), ("10-12", "text"), ("5 to 6", "text"), ("5/6", "number"), ("John 3:16", "text"),
            ("2020-21", "text"),
        ("May 5", "date"), ("2020-01-05", "date"), ("3点半", "time"),
    ],
)  # fmt: skip
def test_auto_takes_for_a_time_or_a_date_only_what_is_one(text: str, kind: str) -> None:
    assert read_gold(text).kind == kind  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("gold", "answer"), [("2020", "2020年"), ("May", "may"), ("20200105", "2020-01-05"), ("5月", "May")]
)
def test_a_stated_type_reads_years_and_months(gold: str, answer: str) -> None:
    assert outcome(gold, answer, "date") is Outcome.MATCHED


@given(st.dates(min_value=date(1000, 1, 1)), st.dates(min_value=date(1000, 1, 1)))
def test_every_way_to_write_a_date_is_that_date_only(day: date, other: date) -> None:
    forms = ["%Y-%m-%d", "%B %d, %Y", "%d %b %Y", "%A, %d %B %Y", "%Y/%m/%d"]
    written = [day.strftime(form).replace("%Y", f"{day.year:04}") for form in forms] + [
        f"{day.year}年{day.month}月{day.day}日"
    ]
    gold = DATE.read(written[0], MatchSettings())
    assert gold is not None
    for text in written:
        assert DATE.compare(gold, Found(text, Place.BOXED), MatchSettings(), None) is True
    wrong = other if other != day else (day + timedelta(1) if day.year < 9999 else day - timedelta(1))
    assert DATE.compare(gold, Found(wrong.isoformat(), Place.BOXED), MatchSettings(), None) is False


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 23), st.integers(0, 59))
def test_a_time_with_am_or_pm_is_one_minute_of_the_day(
    hour: int, minute: int, other_hour: int, other_minute: int
) -> None:
    def twelve(hour: int, minute: int) -> str:
        return f"{hour % 12 or 12}:{minute:02} {'PM' if hour >= 12 else 'AM'}"

    gold = TIME.read(f"{hour:02}:{minute:02}", MatchSettings())
    assert gold is not None
    same = (hour, minute) == (other_hour, other_minute)
    face = 10 <= hour <= 12 and (hour % 12, minute) == (other_hour % 12, other_minute)  # 10:00 may be any clock's
    answer = Found(twelve(other_hour, other_minute), Place.BOXED)
    assert TIME.compare(gold, answer, MatchSettings(), None) is (same or face)
    exact = TIME.read(twelve(hour, minute), MatchSettings())
    assert exact is not None
    assert TIME.compare(exact, answer, MatchSettings(), None) is same


@pytest.mark.parametrize(
    "atom",
    [
        "1",
        "1:",
        "12:30 ",
        "a.m.",
        "Jan ",
        "Jan 5 ",
        "2020-",
        "5/",
        "年",
        "5月",
        "点",
        "at ",
        "is ",
        "T12:00",
        "星期",
        "half past ",
    ],
)
def test_long_answers_are_judged_like_any_other(atom: str) -> None:
    answer = (atom * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS]
    for gold in ("12:30", "2020-01-05"):
        assert outcome(gold, answer) is not Outcome.MATCHED
