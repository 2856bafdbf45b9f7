"""The plugins of SmolVLM and LLaVA-OneVision against the models' own processors, on their tiny twins."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_twins import load_model
from PIL import Image
from transformers import AutoProcessor
from twins import TRANSFORMERS_5, TWIN_TEMPLATES, named_tokenizer

from lcot_plugin.integration import plugins
from lcot_plugin.integration.token_counting import without_pixels
from lcot_plugin.render.headers import read_header

FAMILIES = ("llava_onevision", "smolvlm")
SIZES = [(56, 56), (57, 40), (320, 240), (240, 320), (700, 40), (40, 700), (33, 33), (113, 112), (112, 56), (500, 499)]
SYSTEM, QUESTION = "Be brief.", "How many circles?"


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def parts(family: str, twin: Any) -> tuple[Any, Any, Any]:
    """(template, tokenizer, processor) as LLaMA-Factory has them."""
    from llamafactory.data.template import TEMPLATES

    processor = AutoProcessor.from_pretrained(twin(family))
    return copy.deepcopy(TEMPLATES[TWIN_TEMPLATES[family]]), processor.tokenizer, processor


def prompt_ids(parts: tuple[Any, Any, Any], images: list[Image.Image]) -> list[int]:
    template, tokenizer, processor = parts
    turns = [
        {"role": "user", "content": "<image>" * len(images) + QUESTION},
        {"role": "assistant", "content": ""},
    ]
    turns = template.mm_plugin.process_messages(turns, images, [], [], processor)
    return template.encode_oneturn(tokenizer, turns, SYSTEM)[0]


def upstream(processor: Any, images: list[Image.Image]) -> Any:
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": QUESTION}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": content},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[text], images=[images], return_tensors="pt")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_image_equals_the_processor(parts: Any, size: tuple[int, int]) -> None:
    assert prompt_ids(parts, [picture(size)]) == upstream(parts[2], [picture(size)])["input_ids"][0].tolist()


def test_several_images_equal_the_processor(parts: Any) -> None:
    images = [picture(size) for size in SIZES[:4]]
    assert prompt_ids(parts, images) == upstream(parts[2], images)["input_ids"][0].tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_counts_need_no_pixels(parts: Any, size: tuple[int, int], tmp_path: Path) -> None:
    template, tokenizer, processor = parts
    picture(size).save(tmp_path / "image.png")
    header = read_header(str(tmp_path / "image.png"))
    counted = prompt_ids((template, tokenizer, without_pixels(processor)), [header])
    assert counted == prompt_ids(parts, [picture(size)])


@torch.no_grad()
def test_the_model_sees_what_the_processor_would_give_it(parts: Any, family: str, twin: Any) -> None:
    """Two sequences of two and one image, through get_mm_inputs, against one processor call each."""
    template, tokenizer, processor = parts
    model = load_model(twin(family))
    batch = [[picture((320, 240)), picture((60, 60))], [picture((112, 56))]]
    sequences = [prompt_ids(parts, images) for images in batch]
    length = max(map(len, sequences))
    padded = [[tokenizer.pad_token_id] * (length - len(ids)) + ids for ids in sequences]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences]
    media = template.mm_plugin.get_mm_inputs(
        [image for images in batch for image in images], [], [], [2, 1], [0, 0], [0, 0], sequences, processor
    )
    joint = model(input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask), **media).logits[:, -1]
    for index, images in enumerate(batch):
        alone = model(**upstream(processor, images)).logits[0, -1]
        torch.testing.assert_close(joint[index], alone, atol=2e-4, rtol=1e-4)


def test_media_of_several_prompts_are_joined_along_the_first_axis(parts: Any) -> None:
    """As stage grpo does, prompts with one and two images and of other sizes together."""
    template, _, processor = parts
    images = [picture((320, 240)), picture((60, 60)), picture((112, 56))]

    def tensors(chosen: list[Image.Image], imglens: list[int]) -> dict[str, torch.Tensor]:
        return template.mm_plugin.get_mm_inputs(chosen, [], [], imglens, [], [], [], processor)

    first, second, joint = tensors(images[:2], [2]), tensors(images[2:], [1]), tensors(images, [2, 1])
    assert joint.keys() == first.keys() == second.keys()
    for name, value in joint.items():
        torch.testing.assert_close(value, torch.cat([first[name], second[name]]), msg=name)


def test_a_text_only_sequence_between_images_has_none(parts: Any) -> None:
    template, _, processor = parts
    images = [picture((320, 240)), picture((60, 60))]

    def inputs(imglens: list[int]) -> dict[str, torch.Tensor]:
        return template.mm_plugin.get_mm_inputs(images, [], [], imglens, [], [], [], processor)

    assert all(torch.equal(value, inputs([1, 1])[name]) for name, value in inputs([1, 0, 1]).items())
    assert template.mm_plugin.get_mm_inputs([], [], [], [0], [0], [0], [[1]], processor) == {}


def test_wrong_counts_and_videos_are_refused(parts: Any, tmp_path: Path) -> None:
    template, _, processor = parts
    turns = [{"role": "user", "content": "<image>Why?"}, {"role": "assistant", "content": ""}]
    with pytest.raises(ValueError, match="number of images does not match"):
        template.mm_plugin.process_messages(turns, [], [], [], processor)
    with pytest.raises(ValueError, match="does not support video"):
        template.mm_plugin.process_messages(turns, [picture((60, 60))], [str(tmp_path)], [], processor)


def test_files_are_closed_and_given_images_stay_open(parts: Any, tmp_path: Path) -> None:
    """An open file would be a ResourceWarning, which is an error here."""
    picture((60, 60)).save(tmp_path / "image.png")
    given = picture((60, 60))
    turns = [{"role": "user", "content": "<image><image>Why?"}]
    parts[0].mm_plugin.process_messages(turns, [str(tmp_path / "image.png"), given], [], [], parts[2])
    assert given.getpixel((0, 0))
    assert turns[0]["content"] == "<image><image>Why?", "the caller's conversation was changed"


def test_an_image_that_is_not_split_has_no_rows() -> None:
    class Processor:
        fake_image_token, global_image_tag, image_token, image_seq_len = "~", "[all]", ".", 2

    assert plugins.smolvlm_block(0, 0, Processor()) == "~[all]..~"
    assert plugins.smolvlm_block(2, 1, Processor()) == "~<row_1_col_1>..\n~<row_2_col_1>..\n\n~[all]..~"


@pytest.mark.skipif(not TRANSFORMERS_5, reason="LLaMA-Factory takes LFM2-VL with transformers 5 only")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lfm2_vl_equals_the_processor(size: tuple[int, int]) -> None:
    """LLaMA-Factory's own plugin counts one tile and writes no delimiters."""
    import transformers
    from llamafactory.data.mm_plugin import get_mm_plugin

    cells = [f"<|img_row_{row + 1}_col_{col + 1}|>" for row in range(4) for col in range(4)]
    special = [
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<|image_start|>",
        "<|image_end|>",
        "<|img_thumbnail|>",
    ]
    tokenizer = named_tokenizer(
        [*special, *cells], {"image_token": "<image>"}, eos_token="<|im_end|>", pad_token="<pad>"
    )
    image_processor = transformers.Lfm2VlImageProcessor(
        tile_size=64, min_image_tokens=1, max_image_tokens=16, max_tiles=4, encoder_patch_size=16
    )
    processor = transformers.Lfm2VlProcessor(image_processor=image_processor, tokenizer=tokenizer)
    plugin = get_mm_plugin("lfm2_vl_tiles", image_token="<image>")
    images = [picture(size), picture((90, 60))]
    turns = plugin.process_messages([{"role": "user", "content": "<image><image>Why?"}], images, [], [], processor)
    expected = processor(text=["<image><image>Why?"], images=[images], return_tensors="pt")
    assert tokenizer.encode(turns[0]["content"]) == expected["input_ids"][0].tolist()
    media = plugin.get_mm_inputs(images, [], [], [2], [0], [0], [], processor)
    assert all(torch.equal(media[name], expected[name]) for name in ("pixel_values", "spatial_shapes"))


@pytest.mark.parametrize(
    ("arrange", "content", "expected"),
    [
        (plugins.line_after_media, "<image>Why?", "<image>\nWhy?"),
        (plugins.line_after_media, "<image>\n<image>\nWhy?", "<image>\n<image>\nWhy?"),
        (plugins.line_after_media, "Why?", "Why?"),
        (plugins.trimmed, " <image>\nWhy <image> not? ", "<image>Why<image>not?"),
        (plugins.media_on_first_line, "<image> <image>\nWhy?", "<image><image>\nWhy?"),
        (plugins.media_on_first_line, "<image>Is <image> it?", "<image>\nIs <image> it?"),
        (plugins.media_on_first_line, "Why?", "\nWhy?"),
        (plugins.space_before_text, "Why?", " Why?"),
        (plugins.space_before_text, " <image>Why?", "<image>Why?"),
    ],
)
def test_text_around_media_is_arranged(arrange: Any, content: str, expected: str) -> None:
    assert arrange(content) == expected


def test_only_the_users_turns_are_arranged(parts: Any) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Why not?"}]
    user, assistant = parts[0].mm_plugin.process_messages(turns, [], [], [], parts[2])
    assert assistant["content"] == "Why not?"
    assert user["content"].strip() == "Why?" and user["content"] != "Why?"


def test_plugins_reach_worker_processes() -> None:
    from llamafactory.data.mm_plugin import PLUGINS, get_mm_plugin

    for name in [*plugins.NEW, *(f"{base}_lcot" for base in plugins.ARRANGED)]:
        plugin = get_mm_plugin(name, image_token="<image>")
        assert isinstance(plugin, PLUGINS[name])
        assert pickle.loads(pickle.dumps(plugin)) == plugin
