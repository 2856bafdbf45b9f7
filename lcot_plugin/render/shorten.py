"""A response that is too long in, the same response with a shorter thought out; `overlong_policy: truncate` uses it.

Only the thought is cut: what follows it, with the answer, stays as it is. Example, 2 tokens too many:
`<think> a b c d e </think> \\boxed{5}` becomes `<think> a b c </think> \\boxed{5}`.
"""

from __future__ import annotations

from collections.abc import Callable

MIN_THOUGHT_TOKENS = 16
"""A thought cut below this argues for nothing: the record is left out instead."""


def shorten_thought(
    response: str,
    thought_words: tuple[str, str],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    surplus: int,
) -> str | None:
    """`response` with at least `surplus` tokens less in its thought, cut at a space; None where that is impossible.

    thought_words: what opens and closes the thought, for example `<think>` and `</think>`. The caller measures again:
    tokens merge differently at a cut.
    """
    opening, closing = (word.strip() for word in thought_words)
    # The first one: a conclusion may speak of the word, and nothing of it may be cut.
    end = response.find(closing)
    start = response.find(opening)
    # Where the prompt opens the thought, the response begins inside it.
    start = 0 if start < 0 or start > end else start + len(opening)
    thought = response[start:end].strip()
    if end < 0 or not thought:
        return None
    before, _, after = response[start:end].partition(thought)
    ids = encode(thought)
    num_kept = len(ids) - surplus
    if num_kept < MIN_THOUGHT_TOKENS:
        return None
    shorter = decode(ids[:num_kept]).rstrip("\ufffd")  # half of a character
    cut = max(shorter.rfind(" "), shorter.rfind("\n"))
    shorter = shorter[:cut] if cut > len(shorter) // 2 else shorter
    return response[:start] + before + shorter.rstrip() + after + response[end:]
