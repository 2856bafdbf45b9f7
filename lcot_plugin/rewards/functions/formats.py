r"""Completions in, rewards for their outer form out: thought, then answer. Nothing here looks at whether it is right.

A completion begins with what its template opened for it, so a `<think>` that stands in the prompt is seen here too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.extraction import last_boxed

_TAGS = re.compile(r"</?(?:think|answer)>")
_BOX = "\\boxed"


def format_think_boxed(completions: list[str], **kwargs: Any) -> list[float | None]:
    r"""1.0 for one `<think>...</think>` first and then text with a balanced `\boxed{}` that is not empty, else 0.

    The form of the long-CoT data of arXiv 2509.03321 and of DeepSeek-R1's successors.
    """
    return [float(bool((last_boxed(_after_single_thought(text) or "") or "").strip())) for text in completions]


def format_think_answer(completions: list[str], **kwargs: Any) -> list[float | None]:
    """1.0 for one `<think>...</think>`, then one `<answer>...</answer>` that is not empty, and nothing else; else 0.

    The format reward of DeepSeek-R1 (arXiv 2501.12948).
    """
    return [float(_is_single_answer(_after_single_thought(text) or "")) for text in completions]


def tag_count(
    completions: list[str], *, tags: str | Sequence[str] = ("think", "answer"), **kwargs: Any
) -> list[float | None]:
    """Share of the expected tags that stand in the completion exactly once: 0 to 1, in steps of 1 / (2 * len(tags)).

    tags: names without brackets; each stands for an opening and a closing tag. A smoother slope towards a form than
    the all-or-nothing rewards, after open-r1's tag_count reward, which counts each of four tags 0.25.
    """
    names = [tags] if isinstance(tags, str) else list(tags)
    if not names or any(not isinstance(name, str) or not name.strip("</> ") for name in names):
        raise RewardError(f"tag_count: tags={tags!r} names no tags; write for example tags=('think', 'answer')")
    expected = [f"<{slash}{name.strip('</> ')}>" for name in names for slash in ("", "/")]
    return [sum(text.count(tag) == 1 for tag in expected) / len(expected) for text in completions]


def boxed_position(completions: list[str], **kwargs: Any) -> list[float | None]:
    r"""How late the first `\boxed` stands: (its first character + 6) / characters of the completion; 0 without one.

    In (0, 1], near 1 where the completion ends with its only box, low where a box is thrown in early. After the
    boxed-position reward in the code of arXiv 2509.03321; spaces at the end do not count here.
    """
    rewards: list[float | None] = []
    for text in completions:
        text = text.rstrip()
        position = text.find(_BOX)
        rewards.append((position + len(_BOX)) / len(text) if position >= 0 else 0.0)
    return rewards


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
