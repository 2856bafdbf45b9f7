"""Attention of a packed row by torch's scaled_dot_product_attention, piece by piece: for the CPU, and for float32.

A segment without parent and images is square and causal, which needs no mask. Other pieces need one of their own
queries by their own keys; all masks of a row are sub-blocks of one or two small ones (see `Masks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional

from lcot_plugin.packing.segments import UNLIMITED, Piece

MAX_QUERIES = 512
"""A masked piece without a window has at most so many queries: 512 x 16384 float32 are 32 MiB, held once per row."""


def max_queries(window: int | None) -> int:
    """Cut for `query_pieces`. Under a window w, c queries together read c + w - 1 keys and see w each: shorter pieces
    waste less, but their overhead grows."""
    return MAX_QUERIES if window is None else min(max(window, 128), 256)


class Masks:
    """Additive masks of the pieces of one row.

    Which keys a query sees depends on its distance to them alone, and is counted from the end. So the mask of a piece
    of Q queries and K keys is the lower right Q x K corner of the mask of any larger piece with the same `left` and
    `right`, and one mask as large as the longest serves all: every layer's backward holds a view of the same storage.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for piece in pieces:
            if not (piece.is_square_causal or piece.is_full):
                key = (piece.left, piece.right)
                rows, columns = self._sizes.get(key, (0, 0))
                self._sizes[key] = (max(rows, piece.num_queries), max(columns, piece.num_keys))
        self._largest: dict[tuple[int, int, torch.dtype, torch.device], torch.Tensor] = {}

    def mask(self, piece: Piece, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[num_queries, num_keys]: 0 where the key is seen, minus infinity where not."""
        key = (piece.left, piece.right, dtype, device)
        if key not in self._largest:
            self._largest[key] = self._build(*key)
        largest = self._largest[key]
        corner = largest[largest.shape[0] - piece.num_queries :, largest.shape[1] - piece.num_keys :]
        # The kernels of CUDA want rows that begin at aligned addresses.
        return corner if device.type == "cpu" else corner.contiguous()

    def _build(self, left: int, right: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        rows, columns = self._sizes[left, right]
        seen = torch.ones(rows, columns, dtype=torch.bool, device=device)
        if right != UNLIMITED:
            seen = seen.tril(columns - rows + right)
        if left != UNLIMITED:
            seen = seen.triu(columns - rows - left)
        return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))


def sdpa_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pieces: Sequence[Piece],
    masks: Masks,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    """query: [1, heads, N, head_dim]; key, value: [1, key_heads, N, head_dim]. Returns [1, heads, N, head_dim].

    `pieces` cover the row in order. `scale` None: 1 / sqrt(head_dim).
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        # Grouped heads go to the CPU's flash kernel as they are, but to CUDA's slow one in float32.
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    outputs = []
    for piece, queries, keys, values in zip(
        pieces,
        query.split([piece.num_queries for piece in pieces], 2),
        take_keys(key, pieces),
        take_keys(value, pieces),
        strict=True,
    ):
        unmasked = piece.is_square_causal or piece.is_full
        outputs.append(
            functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if unmasked else masks.mask(piece, query.dtype, query.device),
                dropout_p=dropout,
                is_causal=piece.is_square_causal,
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, 2)


def take_keys(row: torch.Tensor, pieces: Sequence[Piece]) -> list[torch.Tensor]:
    """Every piece's keys (or values) out of a row [1, heads, N, head_dim], without a copy where they are one stretch
    that no other piece cuts.

    The row is split once at every boundary and pieces are joined from the parts: the backward of a slice would fill
    a gradient of the whole row for every piece.
    """
    boundaries = sorted(
        {0, row.shape[2], *(edge for piece in pieces for key_range in piece.keys for edge in key_range)}
    )
    parts = row.split([end - start for start, end in pairwise(boundaries)], 2)
    index = {boundary: position for position, boundary in enumerate(boundaries)}
    taken = []
    for piece in pieces:
        own = [part for start, end in piece.keys for part in parts[index[start] : index[end]]]
        taken.append(own[0] if len(own) == 1 else torch.cat(own, 2))
    return taken
