"""What a pack is made of, on the CPU, with models of one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.packing.batch import IGNORE_INDEX, join_media, num_patches, pack_examples, two_way_blocks
from lcot_plugin.types import PackedBatch, PackExample
from lcot_plugin.vlm import VisionLanguageModel

IMAGE = 9


def text_positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1])[None]


def vlm_of(model_type: str = "llava", mrope: bool = False, **vision: Any) -> VisionLanguageModel:
    """A family by its forward pass and configuration; its rope index, where it has one, starts where an image would."""

    class Model:
        config = SimpleNamespace(
            model_type=model_type, image_token_id=IMAGE, vision_config=SimpleNamespace(**{"patch_size": 14, **vision})
        )

        def get_output_embeddings(self) -> Any:
            return SimpleNamespace(weight=torch.zeros(10, 2))

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> None: ...

    class MropeModel(Model):
        def get_rope_index(self, input_ids: torch.Tensor, image_grid_thw: torch.Tensor | None = None) -> Any:
            shift = 0 if image_grid_thw is None else int(image_grid_thw.sum())
            return (text_positions(input_ids) + shift)[None].expand(3, -1, -1), None

    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 9})
    return VisionLanguageModel((MropeModel if mrope else Model)(), tokenizer)  # type: ignore[arg-type]


def example(ids: list[int], trained: list[int], **media: torch.Tensor) -> PackExample:
    """`trained`: the columns with a label."""
    return PackExample(ids, [t if i in trained else IGNORE_INDEX for i, t in enumerate(ids)], media)


def test_the_example_of_the_module():
    """`a b` (b trained), `I I c d` (c and d trained), `e f` (both trained)."""
    examples = [example([1, 2], [1]), example([IMAGE, IMAGE, 3, 4], [2, 3]), example([5, 6], [0, 1])]
    batch = pack_examples(examples, vlm_of())
    assert batch.input_ids.tolist() == [[1, 2, IMAGE, IMAGE, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]]
    assert batch.segments.lengths == (2, 4, 2) and batch.segments.parents == ()
    assert batch.target_columns.tolist() == [0, 3, 4, 6]
    assert batch.target_ids.tolist() == [2, 3, 4, 6]
    assert batch.target_weights.tolist() == [1.0] * 4 and batch.target_weights.dtype == torch.float32
    assert batch.media == {} and batch.num_patches == 0
    assert batch.target_ids.dtype == batch.target_columns.dtype == batch.input_ids.dtype == torch.int64


def test_weights():
    examples = [example([1, 2], [1]), example([1, 2, 3, 4, 5], [1, 2, 3, 4]), example([1, 2], [])]
    assert pack_examples(examples, vlm_of(), example_weighting=True).target_weights.tolist() == [1.0] + [0.25] * 4
    # The first token of an example has a label but is no target, so that it must not share the weight.
    assert pack_examples([example([1, 2, 3], [0, 1])], vlm_of(), example_weighting=True).target_weights.tolist() == [1]
    for weighting in (False, True):
        idle = pack_examples(examples, vlm_of(), example_weighting=weighting, idle=True)
        assert idle.target_weights.tolist() == [0.0] * 5


def test_a_pack_without_targets():
    batch = pack_examples([example([1, 2], [0]), example([3], [0])], vlm_of())
    assert batch.target_columns.shape == batch.target_ids.shape == batch.target_weights.shape == (0,)
    assert batch.target_ids.dtype == torch.int64


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=8))
def test_targets_are_the_labels_without_first_tokens(trained: list[list[bool]]):
    """Whatever is trained, each target column stands in the example and right before its token."""
    examples, start = [], 10
    for flags in trained:
        ids = list(range(start, start + len(flags)))
        start += len(flags)
        examples.append(example(ids, [i for i, flag in enumerate(flags) if flag]))
    batch = pack_examples(examples, vlm_of())
    row = batch.input_ids[0]
    assert row.tolist() == list(range(10, start))
    assert torch.equal(row[batch.target_columns + 1], batch.target_ids)
    expected = [label for e in examples for label in e.labels[1:] if label != IGNORE_INDEX]
    assert batch.target_ids.tolist() == expected
    assert batch.segments.num_tokens == len(row) == batch.position_ids.shape[1]


def test_mrope_positions_are_those_of_each_example():
    grid = torch.tensor([[1, 4, 6]])
    batch = pack_examples([example([1, 2], []), example([3, 4, 5], [], image_grid_thw=grid)], vlm_of(mrope=True))
    assert batch.position_ids.tolist() == [[[0, 1, 11, 12, 13]]] * 3
    assert batch.num_patches == 24


def test_gemma3_blocks_end_with_their_example():
    """The last token of one example and the first of the next are images: two blocks, not one."""
    examples = [example([1, IMAGE, IMAGE, 2, IMAGE], []), example([IMAGE, IMAGE, 3], []), example([4], [])]
    batch = pack_examples(examples, vlm_of("gemma3"))
    assert batch.segments.image_blocks == ((1, 3), (4, 5), (5, 7))
    assert batch.token_types["token_type_ids"].tolist() == [[0, 1, 1, 0, 1, 1, 1, 0, 0]]
    assert pack_examples(examples, vlm_of()).segments.image_blocks == ()
    assert list(two_way_blocks({}, 0)) == []


def test_media_follow_the_order_of_the_examples_and_are_not_copied_needlessly():
    one, two = torch.ones(1, 3), torch.zeros(2, 3)
    assert join_media([{"a": one}, {}, {"a": two, "b": two}], "")["a"].tolist() == [[1] * 3, [0] * 3, [0] * 3]
    assert join_media([{"a": one}, {}, {"a": two, "b": two}], "")["b"] is two
    assert join_media([{}, {}], "") == {}
    with pytest.raises(DataError, match=r"\(1, 3\), \(1, 4\).*Do this\."):
        join_media([{"a": one}, {"a": torch.ones(1, 4)}], "Do this.")


@pytest.mark.parametrize(
    ("media", "patch_size", "expected"),
    [
        ({"image_grid_thw": torch.tensor([[1, 6, 8], [1, 2, 2]]), "pixel_values": torch.zeros(52, 7)}, 14, 52),
        ({"image_grid_thw": torch.tensor([[1, 2, 2]]), "video_grid_thw": torch.tensor([[3, 4, 2]])}, 14, 28),
        ({"pixel_values": torch.zeros(5, 3, 56, 56)}, 14, 80),
        ({"pixel_values": torch.zeros(5, 1, 3, 56, 28)}, [14, 7], 80),
        ({}, 14, 0),
    ],
)
def test_num_patches(media, patch_size, expected):
    assert num_patches(media, SimpleNamespace(vision_config=SimpleNamespace(patch_size=patch_size))) == expected


def test_a_batch_moves_whole():
    pixels = torch.zeros(1, 3, 28, 28, dtype=torch.float64)
    batch = pack_examples([example([IMAGE, 1, 2], [1], pixel_values=pixels)], vlm_of("gemma3"))
    moved = batch.to("meta")
    for tensor in (moved.input_ids, moved.position_ids, moved.target_columns, moved.target_ids, moved.target_weights):
        assert tensor.is_meta
    assert moved.media["pixel_values"].is_meta and moved.token_types["token_type_ids"].is_meta
    assert (moved.segments, moved.num_patches) == (batch.segments, 4) and not batch.input_ids.is_meta


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    batch = pack_examples([example([1, 2], [1], pixel_values=torch.zeros(1, 3, 28, 28))], vlm_of("gemma3"))
    pinned = batch.pin_memory()
    assert isinstance(pinned, PackedBatch) and pinned.input_ids.tolist() == [[2, 3]]
    assert pinned.media["pixel_values"].min() == 1 and pinned.token_types["token_type_ids"].tolist() == [[1, 1]]
