"""Folding runs of placeholders changes how fast a text is tokenised, and nothing else."""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer
from twins import TWIN_TEMPLATES

from lcot_plugin.render.folding import FoldingTokenizer

PLACEHOLDERS = {
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<image_soft_token>",
    "llava": "<image>",
    "smolvlm": "<image>",
    "llava_onevision": "<image>",
}


@lru_cache
def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_every_twin_is_here() -> None:
    assert set(PLACEHOLDERS) == set(TWIN_TEMPLATES)


# The twin is built once and only read.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(st.text(max_size=12), st.integers(1, 40), st.sampled_from([" ", "\n", "  a", "<|im_end|>", "</s>"])),
        max_size=12,
    )
)
@pytest.mark.parametrize("family", sorted(PLACEHOLDERS))
def test_the_ids_are_the_tokenizers_own(family: str, pieces: list[str | int], twin: Any) -> None:
    tokenizer, placeholder = tokenizer_of(twin(family)), PLACEHOLDERS[family]
    text = "".join(piece if isinstance(piece, str) else placeholder * piece for piece in pieces)
    folding = FoldingTokenizer(tokenizer, {placeholder, None, "no such token"})
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert folding.encode(text, add_special_tokens=False) == expected
    assert expected.count(tokenizer.convert_tokens_to_ids(placeholder)) == text.count(placeholder)


def test_a_token_that_swallows_spaces_is_left_alone(twin: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(twin("qwen2_5_vl"))
    tokenizer.add_tokens([AddedToken("<greedy>", lstrip=True, rstrip=True)])
    text = "a <greedy> <greedy> <greedy>b"
    folding = FoldingTokenizer(tokenizer, ["<greedy>"])
    assert folding.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)


def test_a_tokenizer_that_splits_special_tokens(twin: Any) -> None:
    """LLaMA-Factory's `split_special_tokens`: a placeholder is text then, and a run of them is longer text."""
    tokenizer = AutoTokenizer.from_pretrained(twin("qwen2_5_vl"), split_special_tokens=True)
    text = "a" + "<|image_pad|>" * 3 + "b"
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") not in expected
    assert FoldingTokenizer(tokenizer, ["<|image_pad|>"]).encode(text, add_special_tokens=False) == expected


def test_it_is_the_tokenizer_otherwise_and_travels_to_workers(twin: Any) -> None:
    tokenizer = tokenizer_of(twin("qwen2_5_vl"))
    folding = pickle.loads(pickle.dumps(FoldingTokenizer(tokenizer, ["<|image_pad|>"])))
    assert folding.eos_token_id == tokenizer.eos_token_id
    text = "a" + "<|image_pad|>" * 700
    assert folding.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
