"""Two texts in, whether they say the same out: equality after normalisation, and yes or no."""

from __future__ import annotations

import re

from lcot_plugin.rewards.dress import inline, undress
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds import Gold, Kind, Solver
from lcot_plugin.types import MatchSettings

_TRUTH = {"yes": True, "no": False, "true": True, "false": False}


def normalise_text(text: str) -> str:
    """Case, quotes, edge punctuation, a leading article and extra spaces removed."""
    text = inline(undress(text)).casefold()
    text = re.sub(r"[\"'`“”‘’]", "", text)  # noqa: RUF001
    text = text.strip(" .,;:!?。！，；")  # noqa: RUF001
    text = re.sub(r"^(?:the|an|a)\s+(?=\S)", "", text)
    return re.sub(r"\s+", " ", text)


def same_text(gold: str, answer: str) -> bool:
    """Whether the two are one text, or one truth: `yes` is `Yes, it is.`, and is not `yes and no`."""
    gold, answer = normalise_text(gold), normalise_text(answer)
    if gold == answer:
        return True
    if gold not in _TRUTH:
        return False
    words = re.findall(r"\w+", answer)
    stated = {_TRUTH[word] for word in words if word in _TRUTH}
    return bool(words) and words[0] in _TRUTH and stated == {_TRUTH[gold]}


def read(text: str, settings: MatchSettings) -> Gold | None:
    """Any text that is not blank once normalised."""
    return Gold("text", text) if normalise_text(text) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` says the same."""
    return same_text(gold.text, undress(found.answer))


KIND = Kind(read, compare)
