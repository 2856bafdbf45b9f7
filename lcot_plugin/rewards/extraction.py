r"""A completion in, the answer it states out; `answers` compares it with the gold answer.

Places are tried in this order, all outside the thought: the last `<answer>...</answer>`, the last balanced
`\boxed{...}`, the last "the answer is ...", the last line that is not blank. Every scan is linear in the length of
the completion: a model may write a megabyte of open tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_ANSWER_CHARS = 4000
"""A longer "answer" is a completion that never stated one."""


class Place(StrEnum):
    """Where in the completion an answer was found."""

    TAG = "answer tag"
    BOXED = "boxed"
    CUE = "cue"
    LAST_LINE = "last line"


@dataclass(frozen=True)
class Found:
    """The answer that a completion states."""

    answer: str
    place: Place

    @property
    def explicit(self) -> bool:
        """Whether the model marked it as its answer; a last line is only a guess."""
        return self.place is not Place.LAST_LINE


_THOUGHT_TAG = re.compile(
    r"(?P<opens><think(?:ing)?>|◁think▷|<\|channel>thought)|(?P<closes></think(?:ing)?>|◁/think▷|<channel\|>)",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOXED = re.compile(r"\\f?boxed\s*(?=\{)")
_CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))\b[*_ ]{0,4}(?:(?:is|are)\b|[:=])[*_ :]{0,4}"
    r"|(?:答案|正确选项)(?:应该|应当)?[是为:]{1,2}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<![\s(*][A-Ja-j])(?<!^[A-Ja-j])\.(?:\*\*)?\s+(?=[A-Z])|。|\.\s*$")


def outside_thought(text: str) -> str:
    """The part of `text` after the last closed thought and before one that never closes."""
    start, end = 0, len(text)
    for tag in _THOUGHT_TAG.finditer(text):
        if tag["closes"]:
            start, end = tag.end(), len(text)
        elif end == len(text):
            end = tag.start()
    return text[start:end]


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`; None where there is none.

    `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`; escaped braces do not count.
    """
    content, box_starts = None, {match.end() for match in _BOXED.finditer(text)}
    if not box_starts:
        return None
    # One pass with a stack finds every balanced group; the one that opens last among the boxes wins.
    open_groups: list[int] = []
    last_start = -1
    escaped = False
    for index, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "{":
            open_groups.append(index)
        elif char == "}" and open_groups:
            start = open_groups.pop()
            # A box inside a box closes first; the outer one then replaces it.
            if start in box_starts and (start > last_start or (content is not None and start < last_start)):
                content, last_start = text[start + 1 : index], start
    return content


def extract_answer(completion: str) -> Found | None:
    """The answer stated in `completion`, outside its thought; None where there is none.

    An `<answer>` tag that never closes states no answer: its content may have been cut off.
    """
    text = outside_thought(completion)
    tagged, opened = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag.group(1):
            opened = tag.end()
        elif opened is not None:
            tagged, opened = text[opened : tag.start()], None
    if opened is not None:
        return None
    place = Place.LAST_LINE
    if tagged is not None:
        text, place = tagged, Place.TAG
    boxed = last_boxed(text)
    if boxed is not None:
        text = boxed
        place = Place.TAG if place is Place.TAG else Place.BOXED
    else:
        cued = _after_cue(text)
        if cued is not None:
            text = cued
            place = Place.TAG if place is Place.TAG else Place.CUE
    if place is Place.LAST_LINE:
        text = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARS:
        return None
    return Found(text, place)


def _after_cue(text: str) -> str | None:
    """What follows the last "the answer is", up to the end of its sentence or line."""
    cue = None
    for cue in _CUE.finditer(text.replace("：", ":")):  # noqa: B007, RUF001 (the last match is wanted)
        pass
    if cue is None:
        return None
    line = next((line for line in text[cue.end() :].splitlines() if line.strip()), "")[: MAX_ANSWER_CHARS + 1].strip()
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip() or None
