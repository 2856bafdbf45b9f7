"""Attention of a rollout, inside any transformers model that calls `AttentionInterface`.

    with rollout_attention(model, PrefillPass(...)): model(...)     prompts in one row, keys and values kept
    with rollout_attention(model, DecodePass(...)): model(...)      one token per row

A decoding row attends to its prompt's blocks, which the rows of a group share, and to its own. Every block gives a
softmax of its own for each of its readers; these are joined as flash-decoding joins them (Dao et al., 2023), so that
neither blocks of unequal sequences nor shared ones are ever copied or padded to a common length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface

from lcot_plugin.packing.attention import segment_attention_forward, text_attention
from lcot_plugin.rollout.block_store import BlockStore
from lcot_plugin.rollout.readers import Readers, ReadPlan, read_plan

IMPLEMENTATION = "lcot_rollout"
"""Name of this attention in `AttentionInterface` and `config._attn_implementation`."""

LOWEST = torch.finfo(torch.float32).min
"""Maximum of a block of which a row sees nothing; minus infinity would make NaN of its difference to itself."""


class AttentionPass(Protocol):
    """What the layers of one forward pass share."""

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, None]:
        """As the functions of `AttentionInterface`."""
        ...


_pass: AttentionPass | None = None
"""That of the innermost context."""


@contextmanager
def rollout_attention(model: Any, attention_pass: AttentionPass) -> Iterator[None]:
    """Makes the text layers of `model` attend as `attention_pass` says; the vision tower is as before.

    model: a transformers model, or a PEFT model around one. Afterwards its configuration is as before.
    """
    with text_attention(model, IMPLEMENTATION), attending(attention_pass):
        yield


@contextmanager
def attending(attention_pass: AttentionPass) -> Iterator[None]:
    """For a model that attends by this module already; finding its text layers takes milliseconds."""
    global _pass
    outer, _pass = _pass, attention_pass
    try:
        yield
    finally:
        _pass = outer


def rollout_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Registered with `AttentionInterface`, whose signature it has."""
    assert _pass is not None, f"{IMPLEMENTATION} works within rollout_attention(...) only"
    assert attention_mask is None, "the rows of a rollout have no padding"
    if torch.is_autocast_enabled(query.device.type):
        # Norms of query and key may have left float32, as in Qwen3; what autocast does for SDPA.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _pass.attend(module, query, key, value, **kwargs)


AttentionInterface.register(IMPLEMENTATION, rollout_attention_forward)


class PrefillPass:
    """Prompts in one packed row; within `segment_attention`."""

    def __init__(self, store: BlockStore, blocks: torch.Tensor, columns: torch.Tensor) -> None:
        """blocks, columns: [N] int64, where the keys and values of each token go."""
        self.store, self.blocks, self.columns = store, blocks, columns

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any
    ) -> tuple[torch.Tensor, None]:
        states = (tensor[0].transpose(0, 1) for tensor in (key, value))
        self.store.write(module.layer_idx, self.blocks, self.columns, *states)
        return segment_attention_forward(module, query, key, value, None, **arguments)


class DecodePass:
    """One token per row, with its prompt and completion in the stores."""

    def __init__(
        self,
        stores: tuple[BlockStore, BlockStore],
        readers: tuple[Readers, Readers],
        queries: np.ndarray,
        blocks: torch.Tensor,
        columns: torch.Tensor,
    ) -> None:
        """`stores`, `readers`: of prompts and of completions. queries: [num_rows + 1] int64, the position of each
        row's token along its path, then -1. blocks, columns: [num_rows] int64, where the tokens' own keys and values go
        in the completions' store."""
        self.stores, self.readers, self.queries = stores, readers, queries
        self.blocks, self.columns = blocks, columns
        self._plans: dict[int | None, list[ReadPlan]] = {}

    def _plans_of(self, window: int | None) -> list[ReadPlan]:
        if window not in self._plans:
            self._plans[window] = [
                read_plan(readers, self.queries, window, store.block_size, self.blocks.device)
                for store, readers in zip(self.stores, self.readers, strict=True)
            ]
        return self._plans[window]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        """query: [num_rows, heads, 1, head_dim]; key, value: [num_rows, key_heads, 1, head_dim]. Returns
        [num_rows, 1, heads, head_dim]."""
        num_rows, heads, _, head_dim = query.shape
        self.stores[1].write(module.layer_idx, self.blocks, self.columns, key[:, :, 0], value[:, :, 0])
        scale = head_dim**-0.5 if scaling is None else scaling
        query = query.view(num_rows, key.shape[1], heads // key.shape[1], head_dim)
        plans = self._plans_of(sliding_window)
        parts = [
            blockwise_attention(query, *store.read(module.layer_idx), plan, scale)
            for store, plan in zip(self.stores, plans, strict=True)
        ]
        output = joined(parts, [plan.targets for plan in plans], num_rows)
        return output.to(value.dtype).reshape(num_rows, 1, heads, head_dim), None


Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of every (block, reader): the maximum of its scores [n, key_heads, heads of each], the sum of exp(score - maximum) of
the same shape, and the values weighted by these, [n, key_heads, heads of each, head_dim]; float32."""


def blockwise_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: ReadPlan, scale: float
) -> Part:
    """query: [num_rows, key_heads, heads of each, head_dim]; keys, values as `BlockStore.read` gives them."""
    num_blocks, num_readers, block_size = plan.bias.shape
    if plan.blocks is None:
        keys, values = keys[:num_blocks], values[:num_blocks]
    else:
        keys, values = keys.index_select(0, plan.blocks), values.index_select(0, plan.blocks)
    _, key_heads, per_head, head_dim = query.shape
    # All readers of a block in one matrix: its keys are read once.
    queries = query[plan.queries].transpose(1, 2).reshape(num_blocks, key_heads, num_readers * per_head, head_dim)
    scores = float_product(queries, keys.transpose(-1, -2)).mul_(scale)
    scores = scores.view(num_blocks, key_heads, num_readers, per_head, block_size)
    scores = scores + plan.bias[:, None, :, None]
    maxima = scores.amax(-1).clamp_(min=LOWEST)
    weights = (scores - maxima[..., None]).exp_()
    outputs = (weights.to(values.dtype).view(*queries.shape[:-1], block_size) @ values).float()
    outputs = outputs.view(num_blocks, key_heads, num_readers, per_head, head_dim)
    maxima, sums, outputs = (part.transpose(1, 2).flatten(0, 1) for part in (maxima, weights.sum(-1), outputs))
    return maxima, sums, outputs


def float_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right in float32: scores rounded to half precision would be off by tenths where keys have large biases,
    as those of the Qwen families do. [blocks, heads, n, k] by [blocks, heads, k, m]."""
    if left.dtype == torch.float32 or left.dtype == torch.float64:
        return left @ right
    if not left.is_cuda:
        return left.float() @ right.float()
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return product.view(*left.shape[:2], *product.shape[1:])


def joined(parts: list[Part], targets: list[torch.Tensor], num_rows: int) -> torch.Tensor:
    """One softmax over everything that a row read: [num_rows, key_heads, heads of each, head_dim] float32.

    targets: [n] int64 for each part, the row of every (block, reader), num_rows for nobody.
    """
    shape = (num_rows + 1, *parts[0][0].shape[1:])  # the last row collects what nobody reads
    highest = parts[0][0].new_full(shape, LOWEST)
    for (maxima, _, _), rows in zip(parts, targets, strict=True):
        highest.scatter_reduce_(0, rows[:, None, None].expand_as(maxima), maxima, "amax")
    total = highest.new_zeros(shape)
    output = highest.new_zeros(*shape, parts[0][2].shape[-1])
    for (maxima, sums, outputs), rows in zip(parts, targets, strict=True):
        share = (maxima - highest[rows]).exp_()
        total.index_add_(0, rows, sums * share)
        output.index_add_(0, rows, outputs * share[..., None])
    return output[:num_rows] / total[:num_rows, ..., None]
