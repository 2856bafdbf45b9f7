"""One scoring request in, its verdict in words, step by step, out; `lcot reward explain` prints them."""

from __future__ import annotations

import time
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lcot_plugin.rewards.answers import judge, read_gold, written_alike
from lcot_plugin.rewards.extraction import Found, Place, extract_answer, outside_thought
from lcot_plugin.rewards.kinds.base import Gold, NeedsSolver
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import MatchSettings, Outcome, ScoringRequest, Verdict

MAX_SHOWN_CHARS = 300
MEANINGS = {
    Outcome.MATCHED: "the answer equals the gold answer",
    Outcome.MISMATCHED: "an answer was found, and it is another one",
    Outcome.UNPARSABLE: "no answer could be read from the completion",
    Outcome.GOLD_UNPARSABLE: "the gold answer itself cannot be read: the data's fault, no reward is given",
    Outcome.TIMED_OUT: "the worker was killed at its deadline",
}


def explain(request: ScoringRequest, verifier: Verifier) -> tuple[Verdict, list[str]]:
    """The verdict, and the steps that led to it, one line each."""
    lines = [*_extraction_lines(request)]
    settings = replace(request.settings, aliases=(), include_thought=False)
    found = _found(request)
    for name, text in [("gold answer", request.gold), *(("alias", alias) for alias in request.settings.aliases)]:
        lines += _comparison_lines(name, text, found, request.answer_type, settings)
    if given := _changed(request.settings):
        lines.append(f"settings: {given}")
    start = time.perf_counter()
    verdict = verifier.verify_batch([request])[0]
    milliseconds = 1000 * (time.perf_counter() - start)
    lines.append(f"outcome: {verdict.outcome}: {MEANINGS[verdict.outcome]}")
    lines.append(f"time: {milliseconds:.1f} ms{_started(lines)}")
    return verdict, lines


IN_SOLVER = "compared by the solver in a worker process, which algebra needs"


def _started(lines: list[str]) -> str:
    return ", with the start of the worker process" if any(IN_SOLVER in line for line in lines) else ""


def _found(request: ScoringRequest) -> Found | None:
    return extract_answer(request.completion, include_thought=request.settings.include_thought)


def _extraction_lines(request: ScoringRequest) -> list[str]:
    num_chars, outside = len(request.completion), outside_thought(request.completion)
    lines = [f"completion: {num_chars:,} characters"]
    if request.settings.include_thought:
        lines[0] += "; the thought is searched too, as include_thought says"
    elif len(outside) < num_chars:
        lines[0] += f", of which {num_chars - len(outside):,} are the thought, which is not searched"
        if not outside.strip():
            lines.append("nothing stands outside the thought: it never closed, or the completion ends with it")
    found = _found(request)
    places = list(Place)
    if found is None:
        order = ", ".join(str(place) for place in places)
        lines.append(f"no answer found; looked for, in this order: {order}")
        return lines
    before = ", ".join(str(place) for place in places[: places.index(found.place)])
    lines.append(f"answer found in: {found.place}{f' (looked for before, and not found: {before})' if before else ''}")
    lines.append(f"answer as written: {_shown(found.answer)}")
    return lines


def _comparison_lines(
    name: str, text: str, found: Found | None, answer_type: str, settings: MatchSettings
) -> list[str]:
    gold = read_gold(text, answer_type, settings)
    if gold is None:
        what = "an answer" if answer_type == "auto" else f"an answer of type {answer_type}"
        return [f"{name}: {_shown(text)} cannot be read as {what}"]
    how = "inferred from it" if answer_type == "auto" else "as told"
    lines = [f"{name}: {_shown(text)}, read as {gold.kind} ({how}){_value(gold)}"]
    if found is None:
        return lines
    if written_alike(gold, found):
        return [*lines, "the two are written alike: no further comparison"]
    answer = read_gold(found.answer, gold.kind, settings)
    if answer is None:
        lines.append(f"the answer by itself cannot be read as {gold.kind}")
    else:
        lines.append(f"answer: {_shown(found.answer)}, read as {answer.kind}{_value(answer)}")
    try:
        outcome = judge(gold, found, settings)
    except NeedsSolver:
        return [*lines, IN_SOLVER]
    return [*lines, f"compared in this process: {outcome}"]


def _value(gold: Gold) -> str:
    parts = [] if gold.value is None else [_shortened(_plain(gold.value))]
    if gold.expressions:
        parts.append("expressions " + ", ".join(_shown(expression) for expression in gold.expressions))
    return f": {'; '.join(parts)}" if parts else ""


def _plain(value: Any) -> str:
    """A reading in its own words, or without what is empty: `Clock(hour=12, minute=30)`."""
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        parts = ((item.name, getattr(value, item.name)) for item in fields(value))
        return f"{type(value).__name__}({', '.join(f'{name}={_plain(part)}' for name, part in parts if part)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_plain, value))})"
    return repr(value) if isinstance(value, str) else str(value)


def _changed(settings: MatchSettings) -> str:
    usual = MatchSettings()
    values = {name: getattr(settings, name) for name in MatchSettings.__dataclass_fields__}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value != getattr(usual, name))


def _shown(text: str) -> str:
    return _shortened(repr(text))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text):,} characters)"
