"""Query pieces say of every query which keys it sees, exactly as the definition does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_reference import rows, seen_keys, windows

from lcot_plugin.packing.segments import Piece, query_pieces
from lcot_plugin.types import Segments

PROMPT_AND_TWO = Segments((5, 3, 2), (-1, 0, 0))


def seen_by_pieces(pieces: list[Piece], num_tokens: int) -> torch.Tensor:
    seen = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for piece in pieces:
        keys = torch.cat([torch.arange(*key_range) for key_range in piece.keys])
        for row, query in enumerate(range(*piece.queries)):
            distance = torch.arange(len(keys)) - (len(keys) - piece.num_queries + row)
            visible = torch.ones(len(keys), dtype=torch.bool)
            if piece.left >= 0:
                visible &= distance >= -piece.left
            if piece.right >= 0:
                visible &= distance <= piece.right
            seen[query, keys[visible]] = True
    return seen


@given(rows(), windows, st.none() | st.integers(1, 8))
def test_every_query_sees_what_the_definition_says(row, window, max_queries):
    pieces = query_pieces(row, window, max_queries)
    assert torch.equal(seen_by_pieces(pieces, row.num_tokens), seen_keys(row, window))
    assert [position for piece in pieces for position in range(*piece.queries)] == list(range(row.num_tokens))


def test_a_prompt_with_two_completions():
    assert query_pieces(PROMPT_AND_TWO) == [
        Piece((0, 5), ((0, 5),)),
        Piece((5, 8), ((0, 8),)),
        Piece((8, 10), ((0, 5), (8, 10))),
    ]


def test_a_window_is_counted_along_the_path():
    first, _, last = query_pieces(PROMPT_AND_TWO, window=3)
    assert first == Piece((0, 5), ((0, 5),), left=2)
    # Token 8 is the sixth of its path p p p p p b b: it sees 3, 4 and itself.
    assert last == Piece((8, 10), ((3, 5), (8, 10)), left=2)


def test_a_window_that_hides_nothing_is_no_window():
    assert query_pieces(PROMPT_AND_TWO, window=8) == query_pieces(PROMPT_AND_TWO)


def test_an_image_block_is_seen_whole_from_within():
    row = Segments((7,), image_blocks=((2, 5),))
    assert query_pieces(row) == [
        Piece((0, 2), ((0, 2),)),
        Piece((2, 5), ((0, 5),), right=-1),
        Piece((5, 7), ((0, 7),)),
    ]


def test_square_pieces_are_not_cut():
    assert query_pieces(Segments((100, 50)), max_queries=8) == [
        Piece((0, 100), ((0, 100),)),
        Piece((100, 150), ((100, 150),)),
    ]


def test_masked_pieces_stay_small():
    row = Segments((4096,))
    for piece in query_pieces(row, window=64, max_queries=64):
        assert piece.num_queries <= 64 and piece.num_keys < 2 * 64


@pytest.mark.parametrize(
    "row",
    [
        Segments((4, 4), image_blocks=((3, 5),)),
        Segments((8,), image_blocks=((1, 4), (3, 6))),
        Segments((4, 4), (-1, 1)),
        Segments((4, 4), (-1,)),
    ],
    ids=["block over two segments", "blocks overlap", "own parent", "too few parents"],
)
def test_impossible_rows_are_caught(row):
    with pytest.raises(AssertionError):
        query_pieces(row)
