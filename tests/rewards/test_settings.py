"""Settings of a comparison: checked, and the same again after a trip through a record."""

from __future__ import annotations

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.settings import match_settings, read_settings, settings_text
from lcot_plugin.types import MatchSettings

EVERY = {
    "options": ["red", "blue"],
    "aliases": ["crimson"],
    "relative_tolerance": 0.01,
    "absolute_tolerance": 2,
    "min_anls": 0.5,
    "min_iou": 0.75,
    "image_size": [640, 480],
    "include_thought": True,
}


def test_every_setting_survives_the_trip():
    settings = match_settings(**EVERY)
    assert settings.options == ("red", "blue") and settings.image_size == (640, 480)
    assert all(getattr(settings, name) != getattr(MatchSettings(), name) for name in EVERY)
    assert read_settings(settings_text(settings)) == settings
    assert read_settings(EVERY) == settings
    assert len({settings, read_settings(EVERY)}) == 1


@pytest.mark.parametrize("nothing", [None, "", "  ", {}, "{}"])
def test_nothing_said_is_the_default(nothing):
    assert read_settings(nothing) == MatchSettings()
    assert settings_text(MatchSettings()) == ""


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tolerance": 0.1}, "called tolerance; there are options, aliases, relative_tolerance"),
        ({"options": "red"}, "options is 'red'; write a list"),
        ({"aliases": [1]}, "aliases holds 1; write texts"),
        ({"relative_tolerance": -0.1}, "relative_tolerance is -0.1; write a number, 0 to 1"),
        ({"relative_tolerance": True}, "relative_tolerance is True"),
        ({"absolute_tolerance": float("nan")}, "absolute_tolerance is nan; write a number, 0 or more"),
        ({"min_iou": 0}, "min_iou is 0: every answer would be right"),
        ({"min_anls": 2}, "min_anls is 2; write a number, 0 to 1"),
        ({"image_size": [640]}, r"image_size is \[640\]; write width and height"),
        ({"image_size": [640, 0]}, "image_size"),
        ({"include_thought": "yes"}, "include_thought is 'yes'; write true or false"),
    ],
)
def test_a_wrong_setting_is_named(values, says):
    with pytest.raises(RewardError, match=says):
        match_settings(**values)


@pytest.mark.parametrize("text", ["{", "[1]", "5", "[" * 100_000])
def test_what_is_no_object_is_shown(text):
    with pytest.raises(RewardError, match="the settings of a comparison are"):
        read_settings(text)
