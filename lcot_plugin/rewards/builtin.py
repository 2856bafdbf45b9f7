"""The rewards that come with the package; each a batch function as `registry` describes."""

from __future__ import annotations

import re
from typing import Any

from lcot_plugin.rewards.extraction import last_boxed
from lcot_plugin.types import Outcome, Verdict

_TAGS = re.compile(r"</?(?:think|answer)>")


def accuracy(verdicts: list[Verdict | None], **kwargs: Any) -> list[float | None]:
    """1.0 for the gold answer, 0.0 for another, none or one that timed out; None where the gold answer is no use."""
    return [
        None if verdict is None or verdict.outcome is Outcome.GOLD_UNPARSABLE else float(verdict.matched)
        for verdict in verdicts
    ]


def format_think_boxed(completions: list[str], **kwargs: Any) -> list[float | None]:
    r"""1.0 for one `<think>...</think>` at the start and then text with a balanced `\boxed{}` that is not empty."""
    return [float(bool((last_boxed(_after_single_thought(text) or "") or "").strip())) for text in completions]


def format_think_answer(completions: list[str], **kwargs: Any) -> list[float | None]:
    """1.0 for one `<think>...</think>` followed by one `<answer>...</answer>` that is not empty, and nothing else."""
    return [float(_is_single_answer(_after_single_thought(text) or "")) for text in completions]


def _after_single_thought(text: str) -> str | None:
    """What follows the only thought, which starts the text; None where the form is another."""
    text = text.strip()
    tags = [tag.group() for tag in _TAGS.finditer(text) if "think" in tag.group()]
    if not text.startswith("<think>") or tags != ["<think>", "</think>"]:
        return None
    return text.partition("</think>")[2]


def _is_single_answer(text: str) -> bool:
    text = text.strip()
    if [tag.group() for tag in _TAGS.finditer(text)] != ["<answer>", "</answer>"]:
        return False
    return text.startswith("<answer>") and text.endswith("</answer>") and bool(text[8:-9].strip())
