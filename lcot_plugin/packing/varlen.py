"""Attention of a packed row by a variable-length flash kernel: torch's own, flash-attention 2 or 3.

Such a kernel takes the queries of all pieces end to end, their keys end to end, and the boundaries (`cu_seqlens`).
Pieces that share a window go into one call: usually one call per layer, two where images are seen both ways.

Example, a prompt of 5 tokens and completions of 3 and 2: queries 0..9 with boundaries `0 5 8 10`, keys
`0..4 | 0..7 | 0..4 8 9` with boundaries `0 5 13 20`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from lcot_plugin.packing.segments import UNLIMITED, Piece, Range


@dataclass(frozen=True)
class VarlenCall:
    """One call of the kernel; built once per row and window, used by every layer."""

    cu_queries: torch.Tensor
    """[pieces + 1] int32."""
    cu_keys: torch.Tensor
    """[pieces + 1] int32."""
    max_queries: int
    max_keys: int
    window: tuple[int, int]
    """(left, right) as in `Piece`."""
    query_rows: torch.Tensor | None
    """[queries] int64, flat positions; None where they are the row as it is."""
    key_rows: torch.Tensor | None
    """[keys] int64, flat positions; None where they are the row as it is."""


VarlenKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, VarlenCall, "float | None"], torch.Tensor]
"""(query [Q, heads, head_dim], key and value [K, key_heads, head_dim], call, scale) to [Q, heads, head_dim]."""


@dataclass(frozen=True)
class VarlenLayout:
    calls: list[VarlenCall]
    order: torch.Tensor | None
    """[N] int64: where in the calls' joined outputs each token's stands; None where that is the row's order."""


def varlen_layout(pieces: Sequence[Piece], device: torch.device) -> VarlenLayout:
    """`pieces` cover the row in order."""
    groups: dict[tuple[int, int], list[Piece]] = {}
    windows = {(piece.left, piece.right) for piece in pieces}
    for piece in pieces:
        # A piece that is shorter than another's window can be computed under it.
        wider = (
            [(left, right) for left, right in windows if right == piece.right and left != UNLIMITED]
            if piece.left == UNLIMITED
            else []
        )
        fitting = [window for window in wider if piece.num_keys <= window[0] + 1]
        groups.setdefault(min(fitting) if fitting else (piece.left, piece.right), []).append(piece)
    num_tokens = pieces[-1].queries[1]
    calls = [_call(window, group, num_tokens, device) for window, group in groups.items()]
    if len(calls) == 1:
        return VarlenLayout(calls, None)
    return VarlenLayout(calls, torch.cat([call.query_rows for call in calls if call.query_rows is not None]).argsort())


def _call(window: tuple[int, int], pieces: Sequence[Piece], num_tokens: int, device: torch.device) -> VarlenCall:
    num_queries = [piece.num_queries for piece in pieces]
    num_keys = [piece.num_keys for piece in pieces]
    return VarlenCall(
        _boundaries(num_queries, device),
        _boundaries(num_keys, device),
        max(num_queries),
        max(num_keys),
        window,
        _rows([piece.queries for piece in pieces], num_tokens, device),
        _rows([key_range for piece in pieces for key_range in piece.keys], num_tokens, device),
    )


def _boundaries(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    boundaries = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    boundaries[1:] = torch.tensor(lengths).cumsum(0)
    return boundaries.to(device)


def _rows(ranges: Sequence[Range], num_tokens: int, device: torch.device) -> torch.Tensor | None:
    rows = torch.cat([torch.arange(start, end) for start, end in ranges])
    return None if torch.equal(rows, torch.arange(num_tokens)) else rows.to(device)


class _TakeRows(torch.autograd.Function):
    """index_select whose gradient is summed in float32: a prompt's keys collect one from each of its completions."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = values.shape[0]
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:], dtype=torch.float32)
        return total.index_add_(0, rows, gradient.float()).to(gradient.dtype), None


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: VarlenLayout,
    kernel: VarlenKernel,
    scale: float | None,
) -> torch.Tensor:
    """query: [N, heads, head_dim]; key, value: [N, key_heads, head_dim]. Returns [N, heads, head_dim]."""
    outputs = []
    for call in layout.calls:
        queries = query if call.query_rows is None else query.index_select(0, call.query_rows)
        keys, values = (row if call.key_rows is None else _TakeRows.apply(row, call.key_rows) for row in (key, value))
        outputs.append(kernel(queries, keys, values, call, scale))
    return outputs[0] if layout.order is None else torch.cat(outputs).index_select(0, layout.order)


def choose_kernel(implementation: str | None, query: torch.Tensor) -> VarlenKernel | None:
    """The kernel for a model that was loaded with `implementation`; None where there is none for this tensor."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if implementation == "flash_attention_2":
        return flash_attention_2
    if implementation == "flash_attention_3":
        return flash_attention_3
    if query.shape[-1] > 256 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    return torch_varlen


def torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: VarlenCall, scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        # Only where heads are grouped: torch 2.14 takes another backend in the backward than in the forward when told
        # so of equal heads.
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return varlen_attn(
        query,
        key,
        value,
        call.cu_queries,
        call.cu_keys,
        call.max_queries,
        call.max_keys,
        scale=scale,
        window_size=call.window,
        **options,
    )


def flash_attention_2(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: VarlenCall, scale: float | None
) -> torch.Tensor:
    return _flash_attention("flash_attn", query, key, value, call, scale)


def flash_attention_3(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: VarlenCall, scale: float | None
) -> torch.Tensor:
    return _flash_attention("flash_attn_interface", query, key, value, call, scale)


def _flash_attention(
    package: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    call: VarlenCall,
    scale: float | None,
) -> torch.Tensor:
    output = import_module(package).flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=call.cu_queries,
        cu_seqlens_k=call.cu_keys,
        max_seqlen_q=call.max_queries,
        max_seqlen_k=call.max_keys,
        softmax_scale=scale,
        causal=call.window[1] == 0,
        window_size=call.window,
    )
    # Early releases of flash-attention 3 return the log-sum-exp beside the output.
    return output[0] if isinstance(output, tuple) else output
