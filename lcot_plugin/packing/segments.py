"""Who sees whom in a packed row, as ranges: what the attention backends compute from.

In: `Segments`. Out: query pieces, runs of queries that one attention call can serve. Consumed by `packing.sdpa` and
`packing.varlen`. Pure Python; no mask is built here.

Example, a prompt of 5 tokens and two completions of 3 and 2, `lengths (5, 3, 2)`, `parents (-1, 0, 0)`:

    queries [0, 5)    keys [0, 5)             causal
    queries [5, 8)    keys [0, 8)             causal: the first of the three sees keys 0..5
    queries [8, 10)   keys [0, 5) [8, 10)     causal: the first of the two sees 0..4 and 8
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcot_plugin.types import Segments

Range = tuple[int, int]
"""[start, end) in the flat row."""

UNLIMITED = -1


@dataclass(frozen=True)
class Piece:
    """A run of queries and the keys they see.

    Number the keys 0..K-1 in the order of `keys` and the queries 0..Q-1. Query q stands at key d = K - Q + q (aligned
    at the end, "bottom right") and sees the keys from d - left to d + right, as flash attention's `window_size` has it.
    Causal without a window is left -1, right 0.
    """

    queries: Range
    keys: tuple[Range, ...]
    left: int = UNLIMITED
    right: int = 0

    @property
    def num_queries(self) -> int:
        return self.queries[1] - self.queries[0]

    @property
    def num_keys(self) -> int:
        return _num_tokens(self.keys)

    @property
    def is_square_causal(self) -> bool:
        return self.left == UNLIMITED and self.right == 0 and self.num_queries == self.num_keys

    @property
    def is_full(self) -> bool:
        """Every query sees every key."""
        return self.left == UNLIMITED and self.right == UNLIMITED


def query_pieces(segments: Segments, window: int | None = None, max_queries: int | None = None) -> list[Piece]:
    """The pieces of a row; their queries cover it in order, without gap or overlap.

    `window`: of a sliding-window layer; a query sees the last `window` tokens of its path (ancestors, then its own
    segment) up to itself, and the whole image block that it is in. `max_queries`: pieces that need a mask (neither
    square and causal nor fully visible) are cut into pieces of at most so many queries.
    """
    parents = segments.parents or (UNLIMITED,) * len(segments.lengths)
    assert len(parents) == len(segments.lengths), (parents, segments.lengths)
    starts = [0, *accumulate(segments.lengths)]
    blocks = sorted(segments.image_blocks)
    paths: list[tuple[Range, ...]] = []
    pieces: list[Piece] = []
    for index, parent in enumerate(parents):
        assert parent < index, f"segment {index} names {parent} as its parent, which is not an earlier one"
        start, end = starts[index], starts[index + 1]
        ancestors = paths[parent] if parent >= 0 else ()
        paths.append((*ancestors, (start, end)))
        for run, is_image in _runs(start, end, blocks):
            cutter = _image_pieces if is_image else _text_pieces
            pieces += cutter(run, ancestors, start, window, max_queries)
    assert sum(end - start for start, end in blocks) == sum(
        piece.num_queries for piece in pieces if piece.right == UNLIMITED
    ), f"image blocks {blocks} do not lie each within one of the segments {segments.lengths}"
    return pieces


def _runs(start: int, end: int, blocks: Sequence[Range]) -> Iterator[tuple[Range, bool]]:
    """The segment [start, end) as alternating runs of text and image."""
    position = start
    for block_start, block_end in blocks:
        if start <= block_start and block_end <= end:
            assert position <= block_start, f"image blocks {blocks} overlap"
            if position < block_start:
                yield (position, block_start), False
            yield (block_start, block_end), True
            position = block_end
    if position < end:
        yield (position, end), False


def _text_pieces(
    run: Range, ancestors: tuple[Range, ...], start: int, window: int | None, max_queries: int | None
) -> Iterator[Piece]:
    """Causal pieces of a run of the segment that begins at `start`."""
    before = _num_tokens(ancestors) - start  # token t of this segment stands at before + t in its path
    windowed = window is not None and before + run[1] > window
    square = not ancestors and run[0] == start
    for first, last in [run] if square and not windowed else _cuts(run, max_queries):
        keys = (*ancestors, (start, last))
        if window is None or before + last <= window:
            yield Piece((first, last), _joined(keys))
        else:
            hidden = max(0, before + first - (window - 1))  # before the first query's window, so unseen by all
            yield Piece((first, last), _joined(_without_first(keys, hidden)), left=window - 1)


def _image_pieces(
    block: Range, ancestors: tuple[Range, ...], start: int, window: int | None, max_queries: int | None
) -> Iterator[Piece]:
    """Pieces of an image block: everything before it in its path as far as the window reaches, and all of the block."""
    keys = (*ancestors, (start, block[1]))
    before = _num_tokens(ancestors) - start
    if window is None or before + block[1] <= window:
        yield Piece(block, _joined(keys), right=UNLIMITED)
        return
    # Queries further than the window from the block's start see the block and nothing else.
    reaching = min(block[1], block[0] + window)
    for first, last in _cuts((block[0], reaching), max_queries):
        hidden = max(0, before + first - (window - 1))
        # The keys go on past the last query; counted from the end, every query's window is longer by that.
        left = window - 1 + block[1] - last
        yield Piece((first, last), _joined(_without_first(keys, hidden)), left, UNLIMITED)
    if reaching < block[1]:
        yield Piece((reaching, block[1]), (block,), right=UNLIMITED)


def _cuts(run: Range, max_queries: int | None) -> Iterator[Range]:
    step = max_queries or run[1] - run[0]
    for first in range(run[0], run[1], step):
        yield first, min(first + step, run[1])


def _num_tokens(ranges: Sequence[Range]) -> int:
    return sum(end - start for start, end in ranges)


def _without_first(ranges: Sequence[Range], num_tokens: int) -> Iterator[Range]:
    for start, end in ranges:
        skipped = min(num_tokens, end - start)
        num_tokens -= skipped
        if start + skipped < end:
            yield start + skipped, end


def _joined(ranges: Sequence[Range] | Iterator[Range]) -> tuple[Range, ...]:
    """Without empty ranges, neighbours as one."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return tuple(joined)
