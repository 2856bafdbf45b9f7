"""Settings of a comparison as a record or a caller writes them in, MatchSettings out, checked; and back as text.

A record carries them as JSON of the fields that are not the default's: `{"aliases": ["NYC"]}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.types import MatchSettings

_NAMES = tuple(field.name for field in fields(MatchSettings))
_DEFAULT = MatchSettings()


def match_settings(**values: Any) -> MatchSettings:
    """The settings of these values, where None stands for the default.

    Raises RewardError that names the setting and what it may be.
    """
    if unknown := sorted(set(values) - set(_NAMES)):
        raise RewardError(f"no setting of a comparison is called {', '.join(unknown)}; there are {', '.join(_NAMES)}")
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("options", "aliases"):
        if name in given:
            given[name] = _texts(name, given[name])
    for name, lowest, highest in (
        ("relative_tolerance", 0.0, 1.0),
        ("absolute_tolerance", 0.0, math.inf),
        ("min_anls", 0.0, 1.0),
        ("min_iou", 0.0, 1.0),
    ):
        if name in given:
            given[name] = _number(name, given[name], lowest, highest)
    for name in ("min_anls", "min_iou"):
        if given.get(name) == 0.0:
            raise RewardError(f"{name} is 0: every answer would be right; write a number above 0 and at most 1")
    if "image_size" in given:
        given["image_size"] = _image_size(given["image_size"])
    if not isinstance(given.get("include_thought", False), bool):
        raise RewardError(f"include_thought is {given['include_thought']!r}; write true or false")
    return MatchSettings(**given)


def read_settings(value: Any) -> MatchSettings:
    """The settings that a record holds: an object, its JSON text, or nothing (None, "", {})."""
    if isinstance(value, str):
        return _parsed(value)
    if value is None:
        return _DEFAULT
    if not isinstance(value, Mapping):
        raise RewardError(f"the settings of a comparison are {value!r:.80}; write an object such as {_EXAMPLE}")
    return match_settings(**{str(name): item for name, item in value.items()})


def settings_text(settings: MatchSettings) -> str:
    """JSON of what is not the default, which `read_settings` reads; "" where everything is."""
    chosen = {name: getattr(settings, name) for name in _NAMES}
    chosen = {name: value for name, value in chosen.items() if value != getattr(_DEFAULT, name)}
    return json.dumps(chosen) if chosen else ""


_EXAMPLE = '{"relative_tolerance": 0.01}'


@lru_cache(maxsize=4096)
def _parsed(text: str) -> MatchSettings:
    if not text.strip():
        return _DEFAULT
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RewardError(f"the settings of a comparison are {text!r:.80}, which is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise RewardError(f"the settings of a comparison are {text!r:.80}; write an object such as {_EXAMPLE}")
    return match_settings(**value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise RewardError(f"{name} is {value!r:.80}; write a list of texts")
    if wrong := [item for item in value if not isinstance(item, str)]:
        raise RewardError(f"{name} holds {wrong[0]!r:.80}; write texts only")
    return tuple(value)


def _number(name: str, value: Any, lowest: float, highest: float) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not lowest <= value <= highest:
        limits = "0 or more" if highest == math.inf else f"{lowest:g} to {highest:g}"
        raise RewardError(f"{name} is {value!r:.80}; write a number, {limits}")
    return float(value)


def _image_size(value: Any) -> tuple[int, int]:
    pixels = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else []
    if len(pixels) != 2 or any(not isinstance(item, int) or isinstance(item, bool) or item < 1 for item in pixels):
        raise RewardError(f"image_size is {value!r:.80}; write width and height in pixels, such as [640, 480]")
    return pixels[0], pixels[1]
