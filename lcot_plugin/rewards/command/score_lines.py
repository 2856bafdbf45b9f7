"""A JSON lines file in, one scoring request or one fault per line out; the `lcot reward` commands consume them.

Any file will do that has a completion and a gold answer per line; the defaults are those of a run's completions.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcot_plugin.errors import ArgumentError, LcotError
from lcot_plugin.rewards.answers import check_answer_type
from lcot_plugin.rewards.settings import match_settings, read_settings
from lcot_plugin.types import Ending, MatchSettings, ScoringRequest

MAX_TOKENS = 10_000_000
MAX_QUOTED_CHARS = 200
"""Of a value, in a message."""


@dataclass(frozen=True)
class LineKeys:
    """Where a line's values stand; `reward_model.ground_truth` is a key of a key."""

    prediction: str = "completion"
    gold: str = "gold"
    answer_type: str = "answer_type"
    options: str = "options"
    match: str = "match"
    """An object of MatchSettings' fields, or its JSON."""


@dataclass(frozen=True)
class ScoredLine:
    """A line that can be judged."""

    number: int
    """From 1."""
    values: dict[str, Any]
    request: ScoringRequest = field(repr=False)


@dataclass(frozen=True)
class BadLine:
    """A line that cannot."""

    number: int
    text: str
    fault: str


def read_lines(path: Path, keys: LineKeys) -> Iterator[ScoredLine | BadLine]:
    """Every line of the file that is not blank, in order. Raises ArgumentError where there is no such file."""
    if not path.is_file():
        raise ArgumentError(f"There is no file {path}: give a JSON lines file, one object per line.")
    with path.open("rb") as file:  # bytes: one line that is no UTF-8 must not hide those behind it
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
                if not isinstance(values, dict):
                    raise ArgumentError(f"it holds {type(values).__name__}; write one JSON object per line")
                yield ScoredLine(number, values, request_of(values, keys, source=str(path), record=number))
            except (LcotError, UnicodeDecodeError) as error:
                yield BadLine(number, line.decode("utf-8", "replace").rstrip("\r\n"), str(error))
            except (ValueError, RecursionError) as error:
                fault = f"it is not JSON: {error}" if isinstance(error, ValueError) else "it is nested too deeply"
                yield BadLine(number, line.decode("utf-8", "replace").rstrip("\r\n"), fault)


def read_line(path: Path, number: int, keys: LineKeys) -> ScoredLine:
    """One line. Raises ArgumentError where it is missing, blank or cannot be judged."""
    for line in read_lines(path, keys):
        if line.number == number:
            if isinstance(line, BadLine):
                raise ArgumentError(f"{path}:{number}: {line.fault}")
            return line
    raise ArgumentError(f"{path} has no line {number} with something in it; lines are numbered from 1.")


def count_lines(path: Path) -> int:
    """Lines of the file, blank ones too; 0 where there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def request_of(values: Mapping[str, Any], keys: LineKeys, *, source: str, record: int) -> ScoringRequest:
    """What a line asks for. Raises ArgumentError, or RewardError for an answer type that there is not.

    source, record: for messages, where the line names none.
    """
    answer_type = value_at(values, keys.answer_type)
    ending = value_at(values, "ending")
    num_tokens = value_at(values, "num_tokens")
    return ScoringRequest(
        # A run's log has the opening of the thought apart, where the prompt ends with it.
        completion=_text(value_at(values, "opening")) + _completion(values, keys.prediction),
        gold=_gold(value_at(values, keys.gold, needed=True)),
        question=_text(value_at(values, "question")),
        answer_type=check_answer_type("auto" if answer_type is None else _text(answer_type)),
        source=_text(value_at(values, "source")) or source,
        record=own if isinstance(own := value_at(values, "record"), int) else record,
        ending=Ending(ending) if ending in [item.value for item in Ending] else Ending.STOPPED,
        # The file has no token ids; rewards of length ask only how many there are.
        completion_ids=_placeholder_ids(num_tokens),
        settings=_settings(value_at(values, keys.options), value_at(values, keys.match)),
    )


def value_at(values: Mapping[str, Any], key: str, *, needed: bool = False) -> Any:
    """The value of `key`, or of `outer.inner`; None where there is none. needed: ArgumentError then."""
    if key in values:
        return values[key]
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            if needed:
                raise ArgumentError(f"it has no key {key!r}; it has {', '.join(map(repr, values)) or 'none'}")
            return None
        found = found[part]
    return found


def _completion(values: Mapping[str, Any], key: str) -> str:
    """A text, or the last of a list of messages."""
    value = value_at(values, key, needed=True)
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise ArgumentError(f"its {key} is {_quoted(value)}; write a text, or a list of messages")
    return value


def _placeholder_ids(num_tokens: Any) -> list[int]:
    if not isinstance(num_tokens, int):
        return []
    if not 0 <= num_tokens <= MAX_TOKENS:
        raise ArgumentError(f"its num_tokens is {_quoted(num_tokens)}; write the number of tokens of the completion")
    return [0] * num_tokens


def _gold(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _settings(options: Any, match: Any) -> MatchSettings:
    settings = read_settings(match)
    return replace(settings, options=match_settings(options=options).options) if options else settings


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}..."
