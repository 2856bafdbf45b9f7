"""A RawRecord of any format in, a Sample out: images found, placeholders right, response read, gold answer as text.

`policy` and the report consume samples; `integration` writes them as LLaMA-Factory's messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from lcot_plugin.data.gold import (
    LETTERS,
    check_answer_type,
    gold_text,
    infer_answer_type,
    option_letter,
    options_in,
    without_letters,
)
from lcot_plugin.data.images import resolve_image
from lcot_plugin.data.placeholders import neutralise, place_media
from lcot_plugin.data.traces import read_trace
from lcot_plugin.errors import RecordError, RewardError
from lcot_plugin.rewards.settings import read_settings
from lcot_plugin.types import RawRecord, RecordFault, Sample, Turn

Resolve = Callable[[Any, Path | None], str | bytes]
"""(medium as written in the record, media_dir) -> absolute path, or bytes."""


def to_sample(raw: RawRecord, media_dir: Path | None, resolve: Resolve = resolve_image) -> Sample:
    """The record in the one form that everything after this sees.

    Raises RecordError: MALFORMED for turns that do not alternate, PLACEHOLDERS, and what `resolve` raises for images.
    A blank response without a thought is none: `trace` is None, as in an RL record.
    """
    roles = [turn.role for turn in raw.turns]
    if not roles or any(role != due for role, due in zip(roles, cycle(("user", "assistant")), strict=False)):
        raise RecordError(
            RecordFault.MALFORMED,
            f"turns are {', '.join(roles) or 'empty'}: they must alternate from user to assistant",
        )
    response = raw.turns[-1].content if roles[-1] == "assistant" else ""
    images = [resolve(image, media_dir) for image in raw.images]
    videos = [
        [resolve(frame, media_dir) for frame in video] if isinstance(video, list) else resolve(video, media_dir)
        for video in raw.videos
    ]

    texts = [turn.content for turn in raw.turns if turn.role == "user"]
    options, listed = without_letters(raw.options), options_in(texts[-1])
    if options and len(listed) != len(options):
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        texts[-1] = "\n".join([texts[-1].rstrip(), *lines])
    texts = place_media(texts, len(images), len(videos))

    gold = gold_text(raw.gold)
    gold = neutralise(gold) if gold is not None else None  # it may be appended to a response
    options = options or listed
    answer_type = check_answer_type(raw.answer_type)
    if gold is not None and answer_type in ("auto", "choice"):
        gold = option_letter(gold, options) or gold
    if answer_type == "auto":
        answer_type = infer_answer_type(gold, texts[-1], options)
    if answer_type not in ("auto", "choice") and not raw.options:
        options = []  # `A.` and `B.` of the text name something else

    try:
        match = read_settings(raw.match)
    except RewardError as error:
        raise RecordError(RecordFault.MALFORMED, str(error)) from None

    users = iter(texts)
    turns = [Turn(turn.role, next(users) if turn.role == "user" else neutralise(turn.content)) for turn in raw.turns]
    thought = neutralise(raw.thought) if raw.thought is not None else None
    return Sample(
        question=texts[-1],
        images=images,
        videos=videos,
        trace=read_trace(neutralise(response), thought) if response.strip() or (thought or "").strip() else None,
        gold=gold,
        answer_type=answer_type,
        options=options,
        history=turns[:-2] if roles[-1] == "assistant" else turns[:-1],
        system=neutralise(raw.system) if raw.system is not None else None,
        subset=raw.subset,
        match=replace(match, options=tuple(options)) if answer_type == "choice" else match,
    )


def verifiable_answer(sample: Sample) -> str | None:
    """What GRPO verifies against: the gold answer, else the final answer of the response; None where neither is."""
    if sample.gold is not None or sample.trace is None:
        return sample.gold
    return sample.trace.answer
