"""Attention within the segments of a packed row, inside any transformers model that calls `AttentionInterface`.

    with segment_attention(model, batch.segments):
        loss = ...
        loss.backward()

In: the model and the row's `Segments`. Within the context the text model's layers attend as the segments say; the
vision tower is as before. No mask of the row by the row is built: transformers builds none for an attention that is
registered without a mask function, and the backends compute from ranges of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from lcot_plugin.packing.families import check_packable as check_packable
from lcot_plugin.packing.families import text_model_of
from lcot_plugin.packing.sdpa import Masks, max_queries, sdpa_attention
from lcot_plugin.packing.segments import Piece, query_pieces
from lcot_plugin.packing.varlen import VarlenLayout, choose_kernel, varlen_attention, varlen_layout
from lcot_plugin.types import Segments
from lcot_plugin.vlm import unwrap_base_model

IMPLEMENTATION = "lcot_segments"
"""Name of this attention in `AttentionInterface` and `config._attn_implementation`."""


class PackedRow:
    """What the layers share while one row is computed; built lazily, because windows and devices are known to the
    layers only."""

    def __init__(self, segments: Segments, implementation: str | None) -> None:
        """`implementation`: the attention that the model was loaded with."""
        self.segments = segments
        self.implementation = implementation
        self._pieces: dict[int | None, tuple[list[Piece], Masks]] = {}
        self._layouts: dict[tuple[int | None, torch.device], VarlenLayout] = {}

    def pieces(self, window: int | None) -> tuple[list[Piece], Masks]:
        if window not in self._pieces:
            pieces = query_pieces(self.segments, window, max_queries(window))
            self._pieces[window] = pieces, Masks(pieces)
        return self._pieces[window]

    def layout(self, window: int | None, device: torch.device) -> VarlenLayout:
        key = (window, device)
        if key not in self._layouts:
            self._layouts[key] = varlen_layout(query_pieces(self.segments, window), device)
        return self._layouts[key]


_row: PackedRow | None = None
"""The row of the innermost context. Gradient checkpointing recomputes layers in the backward, on CUDA in threads of
autograd's own, so this is neither thread-local nor a context variable."""


@contextmanager
def segment_attention(model: Any, segments: Segments) -> Iterator[None]:
    """Makes `model` attend within `segments`, for the forward pass *and* the backward pass.

    model: a transformers model, or a PEFT model around one; not DDP's or another parallel wrapper. It must be called
    with one row of exactly `segments.num_tokens` tokens, without attention mask and past keys. Check it once with
    `check_packable`. Afterwards its configuration is as before, whatever happened.
    """
    global _row
    outer = _row
    with text_attention(model, IMPLEMENTATION) as previous:
        nested = outer if previous == IMPLEMENTATION else None
        _row = PackedRow(segments, previous if nested is None else nested.implementation)
        try:
            yield
        finally:
            _row = outer


@contextmanager
def text_attention(model: Any, implementation: str) -> Iterator[str | None]:
    """Has the text layers of `model` (transformers' or PEFT's) attend by an implementation that is registered with
    `AttentionInterface`; yields the one of before, which is back afterwards, whatever happened."""
    # The configurations that the text layers and the functions that build their masks read; usually one object.
    configs = [unwrap_base_model(model).config.get_text_config()]
    configs += [module.config for module in text_model_of(model).modules() if hasattr(module, "config")]
    configs = list({id(config): config for config in configs}.values())
    previous = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = implementation
        yield previous[0]
    finally:
        for config, before in zip(configs, previous, strict=True):
            config._attn_implementation = before


def segment_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Registered with `AttentionInterface`, whose signature it has.

    query: [1, heads, N, head_dim]; key, value: [1, key_heads, N, head_dim]. Returns [1, N, heads, head_dim] and None
    in place of the attention weights. ValueError where the row is not the one that `segment_attention` was given, or
    where the layer wants something that is not computed here.
    """
    row = _row
    if row is None:
        raise ValueError(
            f"{IMPLEMENTATION} works within segment_attention(model, segments) only, the backward included"
        )
    num_tokens = row.segments.num_tokens
    if query.shape[0] != 1 or query.shape[2] != num_tokens or key.shape[2] != num_tokens:
        raise ValueError(
            f"the segments have {num_tokens} tokens together, but the model computes {query.shape[0]} row(s) of "
            f"{query.shape[2]} tokens with {key.shape[2]} keys; pass one row, use_cache=False and no past keys"
        )
    if attention_mask is not None:
        raise ValueError("a packed row has no attention mask: leave attention_mask out, the segments say who sees whom")
    if softcap is not None or s_aux is not None:
        raise ValueError(
            f"{type(module).__name__} caps its attention logits or has attention sinks, which packed rows do not "
            "support; set length_aware_packing: false"
        )
    if torch.is_autocast_enabled(query.device.type):
        # Norms of query and key may have left float32, as in Qwen3; what autocast does for SDPA.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    kernel = choose_kernel(row.implementation, query)
    if kernel is None:
        pieces, masks = row.pieces(sliding_window)
        output = sdpa_attention(query, key, value, pieces, masks, scaling, dropout)
        return output.transpose(1, 2).contiguous(), None
    if dropout > 0:
        raise ValueError(
            "variable-length attention kernels have no dropout; set attention_dropout: 0 in the model's configuration"
        )
    layout = row.layout(sliding_window, query.device)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return varlen_attention(query, key, value, layout, kernel, scaling)[None], None


AttentionInterface.register(IMPLEMENTATION, segment_attention_forward)
