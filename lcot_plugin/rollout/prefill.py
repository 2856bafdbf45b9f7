"""Prompts computed once, several in one packed row, their keys and values kept for the rows that decode.

In: encoded prompts. Out: one Prefix each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.batch import IGNORE_INDEX, pack_examples
from lcot_plugin.rollout.attention import PrefillPass, rollout_attention
from lcot_plugin.rollout.block_store import BlockStore
from lcot_plugin.types import EncodedPrompt, PackExample
from lcot_plugin.vlm import VisionLanguageModel, cast_media, unwrap_base_model


@dataclass(frozen=True)
class Prefix:
    """A prompt that has been computed."""

    blocks: list[int]
    """Where its keys and values are."""
    length: int
    next_position: int
    """Position id of the token after it."""
    logits: torch.Tensor
    """[vocabulary], of that token."""


def prefill(
    model: Any, vlm: VisionLanguageModel, prompts: Sequence[EncodedPrompt], store: BlockStore, max_tokens: int
) -> list[Prefix]:
    """One Prefix per prompt. `model` is in eval mode. A forward pass has at most `max_tokens` tokens, or one prompt."""
    return [
        prefix for some in passes(prompts, max_tokens) for prefix in _prefill_together(model, vlm, list(some), store)
    ]


def passes(prompts: Sequence[EncodedPrompt], max_tokens: int) -> Iterator[list[EncodedPrompt]]:
    """Neighbouring prompts whose images' tensors can be joined."""
    some: list[EncodedPrompt] = []
    num_tokens = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for prompt in prompts:
        length = len(prompt.record.input_ids)
        own = {key: tuple(tensor.shape[1:]) for key, tensor in prompt.media.items()}
        joinable = all(shapes.get(key, shape) == shape for key, shape in own.items())
        if some and not (joinable and num_tokens + length <= max_tokens):
            yield some
            some, num_tokens, shapes = [], 0, {}
        some.append(prompt)
        num_tokens += length
        shapes |= own
    yield some


def _prefill_together(
    model: Any, vlm: VisionLanguageModel, prompts: list[EncodedPrompt], store: BlockStore
) -> list[Prefix]:
    base = unwrap_base_model(model)
    device = next(model.parameters()).device
    sequences = [prompt.record.input_ids for prompt in prompts]
    batch = pack_examples(
        [
            PackExample(ids, [IGNORE_INDEX] * len(ids), prompt.media)
            for ids, prompt in zip(sequences, prompts, strict=True)
        ],
        vlm,
    ).to(device)
    ends = torch.tensor(list(accumulate(map(len, sequences))))
    positions = [part.cpu() for part in batch.position_ids.split(list(map(len, sequences)), dim=-1)]
    blocks = [store.take(-(-len(ids) // store.block_size)) for ids in sequences]
    offsets = [torch.arange(len(ids)) for ids in sequences]
    of_tokens = torch.cat(
        [torch.tensor(own)[at // store.block_size] for own, at in zip(blocks, offsets, strict=True)]
    ).to(device)
    columns = (torch.cat(offsets) % store.block_size).to(device)
    last = (ends - 1).to(device)
    keeps = vlm.accepts("logits_to_keep")
    attention_pass = PrefillPass(store, of_tokens, columns)
    with segment_attention(model, batch.segments), rollout_attention(model, attention_pass):
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **({"logits_to_keep": last} if keeps else {}),
            **cast_media(batch.media, base),
            **batch.token_types,
        ).logits[0]
    logits = logits if keeps else logits[last]
    return [
        Prefix(own, len(ids), int(vlm.next_positions(at)), row)
        for own, ids, at, row in zip(blocks, sequences, positions, logits, strict=True)
    ]
