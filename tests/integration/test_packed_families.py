"""Packed equals standalone, for every family: log-probabilities and the gradients of all parameters.

The reference is transformers alone: its image processor, its positions, its masks, its attention (sdpa), one example
per call. What is packed comes through the collator, as in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer
from loaded_twins import MROPE_FAMILIES, load_model
from PIL import Image
from twins import TRANSFORMERS_5, TWIN_TEMPLATES

from lcot_plugin.integration.packing_collator import PackCollator
from lcot_plugin.integration.tokenising import RecordTokeniser
from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.types import PackedBatch
from lcot_plugin.vlm import VisionLanguageModel

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

FAMILIES = sorted([*TWIN_TEMPLATES, "qwen2_vl"])
MROPE = (*MROPE_FAMILIES, "qwen2_vl")
TOLERANCE = 1e-5
FAR = 1e-2
"""What a wrong alternative must exceed."""

SHORT_TEXT, ONE_IMAGE, TEXT, TWO_IMAGES, OTHER_IMAGE, THREE_IMAGES, LONG_TEXT, VIDEO = range(8)
# (question, sizes of the images, response); lengths and image sizes all differ.
PROBLEMS = (
    ("Why?", [], "Because 3."),
    ("How many circles are in the picture?", [(112, 84)], "<think>\nOne, two.\n</think>\n\n\\boxed{2}"),
    ("What is 2 plus 3? Think step by step.", [], "<think>\n2 plus 3 equals 5.\n</think>\n\n\\boxed{5}"),
    ("Which picture has more circles?", [(56, 140), (84, 56)], "The first, since 4 is more than 2."),
    ("What is the area of the triangle?", [(140, 70)], "<think>\nHalf of 3 times 4.\n</think>\n\n\\boxed{6}"),
    ("Count the sides.", [(60, 120), (112, 112), (56, 56)], "3, 4 and 5: the sum is 12."),
    ("Go on.", [], "so the length of the line is 1, then the next is 2, and the third is 3. " * 2),
    ("What moves?", [], "A square, from left to right."),
)
PACKS = {
    "mixed": [SHORT_TEXT, ONE_IMAGE, TEXT, TWO_IMAGES, OTHER_IMAGE],
    "several images first": [THREE_IMAGES, SHORT_TEXT, OTHER_IMAGE, LONG_TEXT, ONE_IMAGE, TWO_IMAGES],
    "one image beside one image": [ONE_IMAGE, OTHER_IMAGE, ONE_IMAGE],
    "text only": [TEXT, SHORT_TEXT, LONG_TEXT],
    "one example": [TWO_IMAGES],
}


@dataclass(frozen=True)
class Family:
    """A twin, its processor and the tokenised rows of PROBLEMS."""

    name: str
    model: Any
    processor: Any
    collator: PackCollator
    rows: list[dict[str, Any]]

    def packed(self, which: Iterable[int]) -> PackedBatch:
        return self.collator([[self.rows[index] for index in which]])["packed"]


@lru_cache
def load_family(name: str, directory: Path) -> Family:
    model = qwen2_vl(directory) if name == "qwen2_vl" else load_model(directory)
    module = load_tokenizer(ModelArguments(model_name_or_path=str(directory)))
    tokenizer, processor = module["tokenizer"], module["processor"]
    data_args = DataArguments(template=TWIN_TEMPLATES.get(name, "qwen2_vl"), cutoff_len=2048)
    data_args.overlong_policy = "error"
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    tokenised = RecordTokeniser("sft", template, tokenizer, processor, data_args)(aligned(name))
    rows = [dict(zip(tokenised, values, strict=True)) for values in zip(*tokenised.values(), strict=True)]
    assert all(row["input_ids"] for row in rows), [row["_findings"] for row in rows]
    collator = PackCollator(template, processor, VisionLanguageModel(model, tokenizer))
    return Family(name, model, processor, collator, rows)


@pytest.fixture
def family(request, twin) -> Family:
    return load_family(request.param, twin("qwen2_5_vl" if request.param == "qwen2_vl" else request.param))


def qwen2_vl(directory: Path) -> Any:
    """A Qwen2-VL model for the tokenizer and processor of the Qwen2.5-VL twin."""
    from twins import sharpen

    like = transformers.AutoConfig.from_pretrained(directory).to_dict()
    vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14, "hidden_size": 128}
    text = {key: value for key, value in like["text_config"].items() if key not in ("model_type", "layer_types")}
    tokens = {key: like[key] for key in like if key.endswith("_token_id")}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen2VLForConditionalGeneration(config).float()
        sharpen(model)
    return model.eval()


def aligned(name: str) -> dict[str, list[Any]]:
    """PROBLEMS as a batch of LLaMA-Factory's aligned records; the last has a video where the family takes one."""
    generator = random.Random(0)

    def noise(size: tuple[int, int]) -> Image.Image:
        return Image.frombytes("RGB", size, generator.randbytes(3 * size[0] * size[1]))

    num = len(PROBLEMS)
    images = [[noise(size) for size in sizes] for _, sizes, _ in PROBLEMS]
    videos: list[list[Any]] = [[] for _ in PROBLEMS]
    if name in MROPE:
        videos[VIDEO] = [[noise((84, 56)) for _ in range(6)]]
    tags = ["<image>" * len(i) + "<video>" * len(v) for i, v in zip(images, videos, strict=True)]
    texts = [tag + question for tag, (question, _, _) in zip(tags, PROBLEMS, strict=True)]
    return {
        "_prompt": [[{"role": "user", "content": text}] for text in texts],
        "_response": [[{"role": "assistant", "content": response}] for _, _, response in PROBLEMS],
        "_system": [""] * num,
        "_tools": [""] * num,
        "_images": images,
        "_videos": videos,
        "_audios": [[]] * num,
        "_source": ["problems"] * num,
        "_file": ["problems.json"] * num,
        "_findings": [""] * num,
        "_record": list(range(num)),
    }


def own_media(family: Family, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the model's own image and video processors make of one example's media."""
    media: dict[str, Any] = {}
    if row["images"]:
        nested = family.name in ("smolvlm", "llava_onevision")
        media |= family.processor.image_processor([row["images"]] if nested else row["images"], return_tensors="pt")
    if row["videos"]:
        media |= family.processor.video_processor(row["videos"], do_sample_frames=False, return_tensors="pt")
    if family.name == "llava_onevision" and row["images"]:
        media["batch_num_images"] = torch.tensor([len(row["images"])])
    return {key: value for key, value in media.items() if key not in ("num_crops", "num_patches", "video_metadata")}


def standalone(family: Family, row: dict[str, Any]) -> torch.Tensor:
    """[targets of the example] log-probabilities by transformers' own forward pass of this example alone."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    config = family.model.config
    image_token_id = getattr(config, "image_token_id", None) or config.image_token_index
    inputs = own_media(family, row)
    is_image = (ids == image_token_id).long()
    if family.name == "gemma3":
        inputs["token_type_ids"] = is_image
    elif family.name in MROPE and TRANSFORMERS_5:
        inputs["mm_token_type_ids"] = is_image + 2 * (ids == config.video_token_id).long()
    logits = family.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
    trained = labels[1:] != -100
    return logits[:-1][trained].log_softmax(-1).gather(-1, labels[1:][trained][:, None])[:, 0]


def inputs_of(batch: PackedBatch) -> dict[str, Any]:
    ids = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    return {**ids, **batch.media, **batch.token_types}


def at_targets(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    log_probs = logits[0, batch.target_columns].log_softmax(-1)
    return log_probs.gather(-1, batch.target_ids[:, None])[:, 0]


def packed(family: Family, batch: PackedBatch, **changes: Any) -> torch.Tensor:
    """[targets] log-probabilities of the packed pass."""
    with segment_attention(family.model, batch.segments):
        return at_targets(family.model(**{**inputs_of(batch), **changes}).logits, batch)


def weighted(log_probs: torch.Tensor) -> torch.Tensor:
    """A loss in which every target has another weight, so that no two gradients can be exchanged unseen."""
    return (log_probs * torch.linspace(-1.0, 2.0, len(log_probs))).sum()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """By parameter, |found - expected| / |expected|; of the keys' biases over the norm of all gradients instead.

    Softmax takes no notice of what all keys share, so the true gradient of their bias is 0 and its norm is rounding.
    """
    assert found.keys() == expected.keys()
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return {
        name: ((found[name] - gradient).norm() / (total if "k_proj.bias" in name else gradient.norm())).item()
        for name, gradient in expected.items()
        if gradient.any() or found[name].any()
    }


def check_equal(family: Family, which: list[int]) -> None:
    batch = family.packed(which)
    expected = torch.cat([standalone(family, family.rows[index]) for index in which])
    weighted(expected).backward()
    expected_gradients = gradients(family.model)
    with segment_attention(family.model, batch.segments):
        found = at_targets(family.model(**inputs_of(batch)).logits, batch)
        weighted(found).backward()
    torch.testing.assert_close(found.detach(), expected.detach(), atol=TOLERANCE, rtol=0)
    worst = differences(gradients(family.model), expected_gradients)
    assert max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_packed_equals_standalone(family, pack):
    check_equal(family, PACKS[pack])


@pytest.mark.parametrize("which", [[VIDEO], [TEXT, VIDEO, ONE_IMAGE, VIDEO, TWO_IMAGES]])
@pytest.mark.parametrize("family", MROPE, indirect=True)
def test_videos_too(family, which):
    assert family.packed(which).media["video_grid_thw"][0, 0] > 1
    check_equal(family, which)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two targets' log-probabilities, in nats."""
    return (found - expected).abs().max().item()


def sequential(batch: PackedBatch) -> torch.Tensor:
    """Positions as of one text."""
    return torch.arange(batch.input_ids.shape[1]).expand_as(batch.position_ids)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@torch.no_grad()
def test_wrong_alternatives_are_far_off(family):
    """A causal mask over the row; positions over the row, from which transformers sees one text.

    With the right mask, positions over the row harm mrope only: a rope of one dimension sees differences of positions,
    and those within an example are the same.
    """
    which = PACKS["mixed"]
    batch = family.packed(which)
    expected = torch.cat([standalone(family, family.rows[index]) for index in which])
    causal = family.model(**inputs_of(batch), attention_mask=torch.ones_like(batch.input_ids))
    assert distance(at_targets(causal.logits, batch), expected) > FAR
    one_text = family.model(**{**inputs_of(batch), "position_ids": sequential(batch)})
    assert distance(at_targets(one_text.logits, batch), expected) > FAR
    moved = distance(packed(family, batch, position_ids=sequential(batch)), expected)
    assert moved > FAR if family.name in MROPE else moved < 1e-3


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
@torch.no_grad()
def test_gemma3_needs_its_window_and_its_blocks(family, monkeypatch):
    """The examples are longer than the window, and both it and the images' two-way attention show in the result."""
    which = PACKS["mixed"]
    batch = family.packed(which)
    text_config = family.model.config.text_config
    assert min(batch.segments.lengths) > text_config.sliding_window
    assert len(batch.segments.image_blocks) == 4
    assert {end - start for start, end in batch.segments.image_blocks} == {family.model.config.mm_tokens_per_image}
    expected = torch.cat([standalone(family, family.rows[index]) for index in which])
    without = replace(batch, segments=replace(batch.segments, image_blocks=()))
    assert distance(packed(family, without), expected) > FAR
    monkeypatch.setattr(text_config, "sliding_window", 4096)
    unlimited = torch.cat([standalone(family, family.rows[index]) for index in which])
    assert distance(unlimited, expected) > FAR
