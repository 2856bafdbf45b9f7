"""What a pack of groups is made of, on the CPU, with models of one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_reference import seen_keys

from lcot_plugin.errors import DataError
from lcot_plugin.packing.groups import pack_groups
from lcot_plugin.types import PackedBatch, PackGroup
from lcot_plugin.vlm import VisionLanguageModel

IMAGE = 9
P, Q, R, S, T = range(101, 106)
A, B, C, D, E, F, G, H = range(1, 9)


def text_positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1])[None]


def vlm_of(model_type: str = "llava", mrope: bool = False) -> VisionLanguageModel:
    """A family by its forward pass and configuration; of mrope, three rows that differ where there is an image."""

    class Model:
        config = SimpleNamespace(
            model_type=model_type, image_token_id=IMAGE, vision_config=SimpleNamespace(patch_size=14)
        )

        def get_output_embeddings(self) -> Any:
            return SimpleNamespace(weight=torch.zeros(10, 2))

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> None: ...

    class MropeModel(Model):
        def get_rope_index(self, input_ids: torch.Tensor, image_grid_thw: torch.Tensor | None = None) -> Any:
            rows = text_positions(input_ids)[None].repeat(3, 1, 1)
            if image_grid_thw is not None:
                rows[2] += image_grid_thw[0, 2]
            return rows, None

    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 9})
    return VisionLanguageModel((MropeModel if mrope else Model)(), tokenizer)  # type: ignore[arg-type]


def check_types(batch: PackedBatch) -> None:
    integers = (batch.input_ids, batch.position_ids, batch.target_columns, batch.target_ids)
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert batch.target_weights.dtype == torch.float32
    assert batch.input_ids.shape == (1, batch.segments.num_tokens)


def test_the_example_of_the_module():
    """A completion of one token, and a second group, whose completion's parent is segment 3 and not group 1."""
    groups = [PackGroup([P, Q, R], [[A, B, C], [D, E], [F]]), PackGroup([S, T], [[G, H]])]
    batch = pack_groups(groups, vlm_of())
    assert batch.input_ids.tolist() == [[P, Q, R, A, B, D, S, T, G]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert batch.segments.lengths == (3, 2, 1, 2, 1)
    assert batch.segments.parents == (-1, 0, 0, -1, 3)
    assert batch.target_columns.tolist() == [2, 3, 4, 2, 5, 2, 7, 8]
    assert batch.target_ids.tolist() == [A, B, C, D, E, F, G, H]
    assert batch.target_weights.tolist() == [1.0] * 8
    assert (batch.num_examples, batch.num_patches, batch.media) == (4, 0, {})
    check_types(batch)


def test_mrope_goes_on_from_the_largest_coordinate():
    """The prompt's three rows differ, its completions' are alike and begin after the largest number of any row."""
    media = {"image_grid_thw": torch.tensor([[1, 2, 4]])}
    batch = pack_groups([PackGroup([P, Q], [[C, D, E], [F]], media), PackGroup([S], [[G, H]])], vlm_of(mrope=True))
    assert batch.position_ids.tolist() == [[[0, 1, 6, 7, 0, 1]], [[0, 1, 6, 7, 0, 1]], [[4, 5, 6, 7, 0, 1]]]
    assert batch.segments.parents == (-1, 0, -1, 2)
    assert batch.num_patches == 8
    check_types(batch)


def test_a_group_without_completions_has_no_targets():
    """Also where there is no other: what a rank computes that has nothing to train on."""
    alone = pack_groups([PackGroup([P, Q], [])], vlm_of())
    assert alone.target_columns.shape == alone.target_ids.shape == alone.target_weights.shape == (0,)
    assert (alone.segments.lengths, alone.segments.parents, alone.num_examples) == ((2,), (-1,), 0)
    check_types(alone)
    beside = pack_groups([PackGroup([P, Q], []), PackGroup([S], [[A, B]])], vlm_of())
    assert beside.target_columns.tolist() == [2, 3] and beside.segments.parents == (-1, -1, 1)


def test_gemma3_images_are_blocks_of_their_prompts():
    groups = [PackGroup([P, IMAGE, IMAGE], [[A, B]]), PackGroup([IMAGE, IMAGE, Q, IMAGE], [[C], [D, E]])]
    batch = pack_groups(groups, vlm_of("gemma3"))
    assert batch.segments.image_blocks == ((1, 3), (4, 6), (7, 8))
    assert batch.token_types["token_type_ids"].tolist() == [[0, 1, 1, 0, 1, 1, 0, 1, 0]]
    assert pack_groups(groups, vlm_of()).segments.image_blocks == ()


def test_media_stand_once_per_prompt():
    one, two = torch.ones(1, 3, 28, 28), torch.zeros(2, 3, 28, 28)
    groups = [
        PackGroup([IMAGE], [[A], [B]], {"pixel_values": one}),
        PackGroup([P], [[A, B]]),
        PackGroup([IMAGE, IMAGE], [[A], [B], [C]], {"pixel_values": two}),
    ]
    batch = pack_groups(groups, vlm_of())
    assert torch.equal(batch.media["pixel_values"], torch.cat([one, two]))
    assert batch.num_patches == 3 * 4
    groups[0].media["pixel_values"] = torch.ones(1, 3, 28, 56)
    with pytest.raises(DataError, match="lower grpo_micro_batch_tokens"):
        pack_groups(groups, vlm_of())


completion_lists = st.lists(st.integers(1, 6), max_size=4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), completion_lists), min_size=1, max_size=5))
def test_each_target_has_seen_its_prompt_and_its_own_past(shapes: list[tuple[int, list[int]]]):
    """Whatever the lengths: what a target's column sees is exactly the text before the target, at its positions."""
    counter = iter(range(10, 10_000))
    groups = [
        PackGroup([next(counter) for _ in range(prompt)], [[next(counter) for _ in range(n)] for n in completions])
        for prompt, completions in shapes
    ]
    batch = pack_groups(groups, vlm_of())
    check_types(batch)
    seen, row, positions = seen_keys(batch.segments), batch.input_ids[0], batch.position_ids[0]
    texts = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
    expected = [(prompt + tokens[:i], token) for prompt, tokens in texts for i, token in enumerate(tokens)]
    assert batch.target_ids.tolist() == [token for _, token in expected]
    for column, (before, _) in zip(batch.target_columns, expected, strict=True):
        assert row[seen[column]].tolist() == before
        assert positions[seen[column]].tolist() == list(range(len(before)))
    assert batch.num_examples == len(texts)
    assert len(row) == sum(len(g.prompt_ids) + sum(len(c) - 1 for c in g.completions) for g in groups)
