"""Blockwise attention against softmax over each row's own keys."""

import numpy as np
import pytest
import torch

from lcot_plugin.rollout.attention import blockwise_attention, joined
from lcot_plugin.rollout.block_store import BlockStore
from lcot_plugin.rollout.readers import Holding, find_readers, read_plan

HEADS, KEY_HEADS, HEAD_DIM = 6, 2, 8
PROMPT_LENGTHS = (13, 3, 30)
# Of each row: its prompt, and how many tokens its completion has, the one that is asked included.
ROWS = ((0, 5), (2, 1), (0, 9), (1, 4), (2, 23), (0, 8))
SIZES = (7, 4)
"""Tokens of a block of prompts, and of completions."""


@pytest.fixture
def world():
    """Keys and values of prompts and completions [tokens, key_heads, head_dim], a query [heads, head_dim] a row."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    prompts = [(draw(n, KEY_HEADS, HEAD_DIM), draw(n, KEY_HEADS, HEAD_DIM)) for n in PROMPT_LENGTHS]
    completions = [(draw(n, KEY_HEADS, HEAD_DIM), draw(n, KEY_HEADS, HEAD_DIM)) for _, n in ROWS]
    return prompts, completions, draw(len(ROWS), HEADS, HEAD_DIM)


def plain(world, window):
    """[rows, heads, head_dim]."""
    prompts, completions, queries = world
    outputs = []
    for (prompt, _), own, query in zip(ROWS, completions, queries, strict=True):
        keys, values = (torch.cat(pair) for pair in zip(prompts[prompt], own, strict=True))
        if window is not None:
            keys, values = keys[-window:], values[-window:]
        keys, values = (states.repeat_interleave(HEADS // KEY_HEADS, dim=1) for states in (keys, values))
        weights = torch.einsum("hd,khd->hk", query, keys).softmax(-1)
        outputs.append(torch.einsum("hk,khd->hd", weights, values))
    return torch.stack(outputs)


def stored(store, sequences, scattered):
    """Writes sequences one token at a time in turns, so that their blocks lie mixed; returns the blocks of each."""
    blocks = [[] for _ in sequences]
    for at in range(max(len(keys) for keys, _ in sequences)):
        for own, (keys, values) in zip(blocks, sequences, strict=True):
            if at < len(keys):
                if at % store.block_size == 0:
                    own += store.take(scattered + 1)[-1:]
                where = torch.tensor([own[-1]]), torch.tensor([at % store.block_size])
                store.write(0, *where, keys[at : at + 1], values[at : at + 1])
    return blocks


def computed(world, window, scattered=0, rows=ROWS):
    """`scattered`: blocks that lie unused before each one in use."""
    prompts, completions, queries = world
    stores = tuple(map(BlockStore, SIZES))
    prompt_blocks = stored(stores[0], prompts, scattered)
    blocks = stored(stores[1], completions, scattered)
    readers = (
        find_readers(
            [
                Holding(own, [row for row, (of, _) in enumerate(rows) if of == prompt], 0, PROMPT_LENGTHS[prompt])
                for prompt, own in enumerate(prompt_blocks)
            ],
            len(rows),
            SIZES[0],
        ),
        find_readers(
            [
                Holding(own, [row], PROMPT_LENGTHS[rows[row][0]], PROMPT_LENGTHS[rows[row][0]] + rows[row][1])
                for row, own in enumerate(blocks)
            ],
            len(rows),
            SIZES[1],
        ),
    )
    at = np.array([*(PROMPT_LENGTHS[prompt] + length - 1 for prompt, length in rows), -1])
    plans = [read_plan(r, at, window, size, torch.device("cpu")) for r, size in zip(readers, SIZES, strict=True)]
    grouped = queries.view(len(rows), KEY_HEADS, -1, HEAD_DIM)
    parts = [blockwise_attention(grouped, *store.read(0), plan, 1.0) for store, plan in zip(stores, plans, strict=True)]
    return joined(parts, [plan.targets for plan in plans], len(rows)).flatten(1, 2), plans


@pytest.mark.parametrize("scattered", [0, 3])
@pytest.mark.parametrize("window", [None, 100, 16, 6, 1])
def test_every_row_attends_to_its_prompt_and_to_itself(world, window, scattered):
    output, plans = computed(world, window, scattered)
    torch.testing.assert_close(output, plain(world, window), rtol=0, atol=1e-6)
    # What is scattered is picked out, and so is the little that lies within a window.
    assert (plans[1].blocks is not None) == (scattered > 0 or window == 1)


def test_a_window_that_is_forgotten_is_seen(world):
    assert (computed(world, None)[0] - plain(world, 16)).abs().max() > 0.01


def test_another_rows_completion_is_not_read(world):
    """The wrong control: rows 0 and 2 exchanged in the table attend to each other's completions."""
    wrong = list(ROWS)
    wrong[0], wrong[4] = (2, 5), (0, 23)
    output, _ = computed(world, None, rows=tuple(wrong))
    difference = (output - plain(world, None)).abs().amax((1, 2))
    assert (difference[[0, 4]] > 0.01).all() and (difference[[1, 2, 3, 5]] < 1e-6).all()


def test_large_scores_do_not_overflow(world):
    prompts, completions, queries = world
    large = ([(100 * keys, values) for keys, values in prompts], completions, queries)
    output, _ = computed(large, None)
    assert output.isfinite().all()
    torch.testing.assert_close(output, plain(large, None), rtol=0, atol=1e-3)  # scores of hundreds
