"""A thought is cut, everything else stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.render.shorten import MIN_THOUGHT_TOKENS, shorten_thought

WORDS = ("<think>\n", "\n</think>\n\n")
THOUGHT = " ".join(f"word{index}" for index in range(100))
RESPONSE = f"<think>\n{THOUGHT}\n</think>\n\nThe area is \\boxed{{5}}."


def encode(text: str) -> list[int]:
    """One token per character."""
    return [ord(char) for char in text]


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def shorten(response: str, surplus: int, words: tuple[str, str] = WORDS) -> str | None:
    return shorten_thought(response, words, encode, decode, surplus)


@pytest.mark.parametrize("surplus", [1, 10, 300, 600])
def test_only_the_thought_is_shorter(surplus: int) -> None:
    shorter = shorten(RESPONSE, surplus)
    assert shorter is not None
    assert len(shorter) <= len(RESPONSE) - surplus
    assert shorter.endswith("\n</think>\n\nThe area is \\boxed{5}.")
    thought = shorter.removeprefix("<think>\n").split("\n</think>")[0]
    assert THOUGHT.startswith(thought)
    assert THOUGHT[len(thought)] == " ", "cut between two words"


def test_what_cannot_be_shortened_is_told() -> None:
    assert shorten(RESPONSE, len(THOUGHT) - MIN_THOUGHT_TOKENS + 3) is None
    assert shorten("The area is \\boxed{5}.", 1) is None
    assert shorten("<think>\nnever closes " * 30, 1) is None
    assert shorten("<think>\n\n</think>\n\nAn empty thought, a long answer.", 1) is None


def test_a_conclusion_that_speaks_of_thoughts_stays() -> None:
    ending = "\n</think>\n\n`</think>` ends it: \\boxed{5}."
    shorter = shorten(f"<think>\n{THOUGHT}{ending}", 20)
    assert shorter is not None and shorter.endswith(ending)


def test_a_response_that_begins_inside_its_thought() -> None:
    """Where the prompt opens the thought."""
    shorter = shorten(RESPONSE.removeprefix("<think>\n"), 20)
    assert shorter is not None and shorter.startswith("word0 word1") and "\n</think>\n\n" in shorter


def test_the_words_of_another_family() -> None:
    words = ("<|channel>thought\n", "<channel|>")
    shorter = shorten(f"<|channel>thought\n{THOUGHT}<channel|>5", 20, words)
    assert shorter is not None and shorter.startswith("<|channel>thought\nword0") and shorter.endswith("<channel|>5")


@given(st.text(min_size=30, max_size=200), st.text(max_size=50), st.integers(1, 100))
def test_nothing_else_is_touched(thought: str, conclusion: str, surplus: int) -> None:
    response = f"<think>\n{thought}\n</think>\n\n{conclusion}"
    shorter = shorten(response, surplus)
    if shorter is not None:
        assert len(shorter) <= len(response) - surplus
        assert shorter.endswith(f"</think>\n\n{conclusion}")
