"""Attention of a packed row as its definition says, with a dense mask; and random rows to compare on."""

from __future__ import annotations

from itertools import accumulate

import torch
from hypothesis import strategies as st

from lcot_plugin.types import Segments


def seen_keys(segments: Segments, window: int | None = None) -> torch.Tensor:
    """[N, N] bool, written down token by token: whether the query of the row sees the key of the column."""
    starts = [0, *accumulate(segments.lengths)]
    parents = segments.parents or (-1,) * len(segments.lengths)
    seen = torch.zeros(segments.num_tokens, segments.num_tokens, dtype=torch.bool)
    for index, length in enumerate(segments.lengths):
        path: list[int] = []
        ancestor = parents[index]
        while ancestor >= 0:
            path = [*range(starts[ancestor], starts[ancestor + 1]), *path]
            ancestor = parents[ancestor]
        for query in range(starts[index], starts[index] + length):
            path.append(query)
            seen[query, path if window is None else path[-window:]] = True
    for start, end in segments.image_blocks:
        seen[start:end, start:end] = True
    return seen


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """query: [1, heads, N, head_dim]; key, value may have fewer heads. Returns [1, heads, N, head_dim]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ value


@st.composite
def rows(draw: st.DrawFn) -> Segments:
    """Forests of up to 7 segments and depth 3, some with image blocks, the last block sometimes at a segment's end."""
    lengths = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=7)))
    parents: list[int] = []
    depths: list[int] = []
    for index in range(len(lengths)):
        candidates = [-1, *(earlier for earlier in range(index) if depths[earlier] < 3)]
        parent = draw(st.sampled_from(candidates))
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
    blocks = []
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        edges = sorted(draw(st.lists(st.integers(start, start + length), max_size=4, unique=True)))
        blocks += [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    return Segments(lengths, tuple(parents), tuple(blocks))


windows = st.none() | st.integers(1, 20)
