from types import SimpleNamespace

import pytest
import torch
from loaded_twins import FAMILIES, MROPE_FAMILIES, ONE_IMAGE, TEXT, TWO_IMAGES, load_twin
from twins import TRANSFORMERS_5

from lcot_plugin.integration.media import batch_media
from lcot_plugin.vlm import VisionLanguageModel, cast_media, unwrap_base_model

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

BANNED_TOKENS = {
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    "llava": ["<image>"],
    "llava_onevision": ["<image>", "<video>"],
    "smolvlm": ["<image>", "<fake_token_around_image>", "<global-img>"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_are_banned_and_nothing_else(family, twin):
    loaded = load_twin(twin(family))
    expected = sorted(loaded.tokenizer.convert_tokens_to_ids(BANNED_TOKENS[family]))
    assert loaded.vlm.banned_token_ids == expected
    assert not set(loaded.end_token_ids) & set(expected)
    assert loaded.vlm.image_token_id in expected


def test_named_placeholders_and_rows_without_a_token_are_banned(twin):
    """Real embeddings have more rows than the tokenizer has tokens (Qwen2.5-VL: 151 936 for 151 665)."""
    loaded = load_twin(twin("qwen2_5_vl"))
    num_tokens = max(loaded.tokenizer.get_vocab().values()) + 1
    model = loaded.fresh_model()
    model.resize_token_embeddings(num_tokens + 3, mean_resizing=False)
    ends = loaded.tokenizer.convert_tokens_to_ids("<|box_end|>")
    vlm = VisionLanguageModel(model, loaded.tokenizer, ["<|box_end|>", None, "no such token"])
    extra = [ends, num_tokens, num_tokens + 1, num_tokens + 2]
    assert vlm.banned_token_ids == sorted([*loaded.vlm.banned_token_ids, *extra])


@pytest.mark.parametrize("family", FAMILIES)
def test_uses_mrope(family, twin):
    assert load_twin(twin(family)).vlm.uses_mrope is (family in MROPE_FAMILIES)


def test_a_peft_model_is_seen_through(twin):
    from peft import LoraConfig, get_peft_model

    loaded = load_twin(twin("qwen3_vl"))
    base = loaded.fresh_model()
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    assert unwrap_base_model(model) is base and unwrap_base_model(base) is base
    vlm = VisionLanguageModel(model, loaded.tokenizer)
    assert vlm.uses_mrope and vlm.banned_token_ids == loaded.vlm.banned_token_ids
    assert vlm.accepts("pixel_values") and not vlm.accepts("pixel_values_of_another_family")


def padded(loaded, which, left):
    """input_ids and attention_mask of some prompts, [batch, length]."""
    sequences = [loaded.prompts[i].record.input_ids for i in which]
    width, pad = max(map(len, sequences)) + 2, loaded.tokenizer.pad_token_id
    fill = [width - len(ids) for ids in sequences]
    ids = [[pad] * n + s if left else s + [pad] * n for s, n in zip(sequences, fill, strict=True)]
    mask = [[0] * n + [1] * len(s) if left else [1] * len(s) + [0] * n for s, n in zip(sequences, fill, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_do_not_depend_on_padding_or_company(family, left, twin):
    loaded = load_twin(twin(family))
    which = [ONE_IMAGE, TEXT, TWO_IMAGES]
    input_ids, mask = padded(loaded, which, left)
    media = batch_media([loaded.prompts[i] for i in which])
    positions = loaded.vlm.positions(input_ids, mask, media)
    mrope = family in MROPE_FAMILIES
    assert positions.shape == ((3, *input_ids.shape) if mrope else input_ids.shape)
    following = loaded.vlm.next_positions(positions)
    for row, index in enumerate(which):
        prompt = loaded.prompts[index]
        alone = torch.tensor([prompt.record.input_ids])
        expected = loaded.vlm.positions(alone, torch.ones_like(alone), prompt.media)
        found = positions[..., row, :][..., mask[row].bool()]
        assert torch.equal(found, expected[..., 0, :])
        assert following[row] == expected.max() + 1
        if not mrope:
            assert found.tolist() == list(range(alone.shape[1]))


@pytest.mark.parametrize("family", MROPE_FAMILIES)
def test_mrope_positions_of_a_prompt(family, twin):
    """Text counts up in all three rows; an image of h x w tokens takes max(h, w) positions, not h x w."""
    loaded = load_twin(twin(family))
    prompt = loaded.prompts[ONE_IMAGE]
    ids = torch.tensor([prompt.record.input_ids])
    positions = loaded.vlm.positions(ids, torch.ones_like(ids), prompt.media)[:, 0]
    is_image = ids[0] == loaded.vlm.image_token_id
    start, num_image_tokens = is_image.int().argmax().item(), is_image.sum().item()
    (_, height, width), merged = prompt.media["image_grid_thw"][0].tolist(), 2
    height, width = height // merged, width // merged
    assert num_image_tokens == height * width and height > 1 and width > 1
    assert positions[:, :start].tolist() == [list(range(start))] * 3
    expected = [[start] * (height * width)]
    expected += [[start + y for y in range(height) for _ in range(width)]]
    expected += [[start + x for _ in range(height) for x in range(width)]]
    assert positions[:, is_image].tolist() == expected
    num_after = ids.shape[1] - start - num_image_tokens
    first = start + max(height, width)
    assert positions[:, start + num_image_tokens :].tolist() == [list(range(first, first + num_after))] * 3
    assert loaded.vlm.next_positions(positions[:, None]).tolist() == [first + num_after]
    assert first + num_after < ids.shape[1]


def test_step_positions(twin):
    """Positions 7 and 9 of two rows."""
    following = torch.tensor([7, 9])
    assert load_twin(twin("llava")).vlm.step_positions(following).tolist() == [[7], [9]]
    assert load_twin(twin("qwen3_vl")).vlm.step_positions(following).tolist() == [[[7], [9]]] * 3


def test_token_types(twin):
    """Gemma3 finds images by token_type_ids, transformers 5's Qwen models by mm_token_type_ids."""
    for family in FAMILIES:
        loaded = load_twin(twin(family))
        ids = torch.tensor([loaded.prompts[TWO_IMAGES].record.input_ids])
        arguments = loaded.vlm.token_type_arguments(ids)
        if family == "gemma3":
            assert (arguments["token_type_ids"] == (ids == loaded.vlm.image_token_id)).all()
        else:
            assert "token_type_ids" not in arguments
        assert ("mm_token_type_ids" in arguments) is (TRANSFORMERS_5 and family in MROPE_FAMILIES)
    types = load_twin(twin("qwen2_5_vl")).vlm._media_types(torch.tensor([[3, 4]]))
    assert types.tolist() == [[0, 0]]


def test_video_tokens_are_told_from_images(twin):
    loaded = load_twin(twin("qwen2_5_vl"))
    ids = torch.tensor([[5, loaded.vlm.image_token_id, loaded.vlm.video_token_id, 6]])
    if TRANSFORMERS_5:
        assert loaded.vlm.token_type_arguments(ids)["mm_token_type_ids"].tolist() == [[0, 1, 2, 0]]
    assert loaded.vlm._media_types(ids).tolist() == [[0, 1, 2, 0]]


def test_cast_media():
    """Pixels take the model's dtype, grids stay integers."""
    media = {"pixel_values": torch.ones(2, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    cast = cast_media(media, SimpleNamespace(dtype=torch.bfloat16))
    assert cast["pixel_values"].dtype == torch.bfloat16
    assert cast["image_grid_thw"] is media["image_grid_thw"] or cast["image_grid_thw"].dtype == torch.int64
