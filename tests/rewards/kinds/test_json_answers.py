"""JSON is compared by structure, and neither depth, numbers nor repeated keys get past the reader."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.json_answers import JsonObject, parse_json, read_json
from lcot_plugin.types import MatchSettings, Outcome

STRICT = MatchSettings()


def matches(gold: str, answer: str, settings: MatchSettings = STRICT) -> bool:
    read = read_gold(gold, "json", settings)
    assert read is not None
    return judge(read, Found(answer, Place.TAG), settings) is Outcome.MATCHED


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ('{"a": 1, "b": [2, 3]}', '{"b":[2.0,3e0],"a":1.00}'),
        ('{"a": 1}', '```json\n{\n  "a": 1\n}\n```'),
        ('{"a": 1}', 'Here it is: ```{"a": 1}```'),
        ('{"a": 1}', 'The result: {"a": 1}'),
        ('{"a": 1}', r"$\{\"a\": 1\}$".replace(r"\"", '"')),
        ('{"a b": "x y"}', '{"a  b": " x y "}'),
        ('{"a": "\N{MINUS SIGN}5"}', '{"a": "-5"}'),
        ('{"a": "\\u00e9"}', '{"a": "é"}'),
        ("[]", "[ ]"),
        ("[1, [2, {}]]", "[1.0, [2, {}]]"),
        ("3", "3.0"),
        ("null", "null"),
        ('["cat"]', '["cat"]'),
        ("1e-3", "0.001"),
        ("0.1", "0.10"),
        ("0", "-0.0"),
    ],
)
def test_same_json(gold: str, answer: str) -> None:
    assert matches(gold, answer)
    assert matches(gold, gold)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 0}', '{"a": false}'),
        ('{"a": 0}', '{"a": null}'),
        ('{"a": null}', "{}"),
        ('{"a": 1}', '{"A": 1}'),
        ('{"a": "Cat"}', '{"a": "cat"}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "b": 2}', '{"a": 1}'),
        ('{"a": 1}', '{"a": 2, "a": 1}'),
        ('{"a": 1}', '[{"a": 1}]'),
        ('{"a": 1}', '{"a": 1} or {"a": 2}'),
        ('{"a": 1}', 'not this: {"a": 1}'),
        ('{"a": 1}', '{"a": 1'),
        ('{"a": 1}', "{'a': 1}"),
        ('{"a": 1}', "a: 1"),
        ('{"a": 1}', '```json\n{"a": 1}\n``` or ```json\n{"a": 2}\n```'),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "[1, 2, 2]"),
        ("[1]", "1"),
        ("[[1]]", "[1]"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("9007199254740993", "9007199254740992"),
        ("1e400", "1e401"),
        ("1", "NaN"),
        ("1", "Infinity"),
        ('""', "null"),
    ],
)
def test_other_json(gold: str, answer: str) -> None:
    assert not matches(gold, answer)


def test_numbers_within_the_tolerances() -> None:
    assert matches('{"a": [100]}', '{"a": [101]}', MatchSettings(relative_tolerance=0.01))
    assert matches("0.1", "0.15", MatchSettings(absolute_tolerance=0.06))
    assert not matches('{"a": [100]}', '{"a": [101.1]}', MatchSettings(relative_tolerance=0.01))
    assert not matches('{"a": 1}', '{"a": true}', MatchSettings(relative_tolerance=0.5))


@pytest.mark.parametrize("settings", [MatchSettings(absolute_tolerance=0.3), MatchSettings(relative_tolerance=0.06)])
def test_a_tolerance_is_the_decimal_that_was_written(settings: MatchSettings) -> None:
    """The floats 0.3 and 0.06 lie below what they are written as."""
    assert matches('{"a": 5}', '{"a": 5.3}', settings)
    assert not matches('{"a": 5}', '{"a": 5.31}', settings)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 4000,
        "[" * 2000 + "]" * 2000,
        '{"a":' * 600 + "1" + "}" * 600,
        '[{"a":' * 400,
        "1e1000",
        "-1e999999999",
        "[1e-99999999999999999999]",
        "9" * 5000,
        '"' + "x" * 5000 + '"',
        '{"a": 1, "a ": 1}',
        '{"a": {"b": 1, "b": 1}}',
        "[NaN]",
        "[1,]",
        "01",
        "",
    ],
)
def test_what_is_no_json_of_an_answer(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert read_json(text) is None
    assert read_gold(text, "json") is None


def test_values_are_exact_and_travel_to_the_worker() -> None:
    value = parse_json('{"b": [0.1, true, null, "x"], "a": {}}')
    assert value == JsonObject((("a", JsonObject(())), ("b", (Fraction(1, 10), True, None, "x"))))
    assert value.get("b")[0] == Fraction("0.1")
    gold = read_gold('{"a": [1]}')
    assert gold is not None and pickle.loads(pickle.dumps(gold)) == gold


@pytest.mark.parametrize(
    ("gold", "is_json"),
    [
        ('{"a": 1}', True),
        ('{"a": [1, 2], "b": {"c": null}}', True),
        ('[{"a": 1}, {"a": 2}]', True),
        ('```json\n{"a": 1}\n```', True),
        ("{}", False),
        ("[]", False),
        ("[1, 2]", False),
        ('["a", "b"]', False),
        ("{1, 2}", False),
        (r"\{1, 2\}", False),
        ("[{}, 1]", False),
        ('{"a": 1', False),
        ("5", False),
        ("true", False),
        ("null", False),
    ],
)
def test_only_objects_are_inferred(gold: str, is_json: bool) -> None:
    read = read_gold(gold)
    assert (read is not None and read.kind == "json") is is_json


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text("ab é", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "key one"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def turned(value: Any) -> Any:
    """The same with its keys in reverse order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(list(value))}
    return [turned(item) for item in value] if isinstance(value, list) else value


@hypothesis_settings(deadline=None)
@given(JSON, JSON)
def test_equality_is_reflexive_and_symmetric(one: Any, other: Any) -> None:
    # In an array: a text alone loses its quotes with its dress, and is the kind text.
    first, second = json.dumps([one], ensure_ascii=False), json.dumps([other], ensure_ascii=False)
    assert matches(first, json.dumps([turned(one)], indent=1))
    assert matches(first, second) == matches(second, first)


@hypothesis_settings(deadline=None)
@given(st.text(alphabet='[]{}",:0123456789.eE-+ truefalsn`\\$', max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    value = read_json(text)
    assert value is None or len(value) == 1
