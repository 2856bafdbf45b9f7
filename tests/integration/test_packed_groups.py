"""Groups packed with their prompts shared, for every family: each completion's log-probabilities, its entropies and
the gradients of all parameters are those of a plain forward pass of prompt and completion alone.

The reference is transformers alone, which finds positions and masks itself, one completion per call. The images come
through the prompt encoder, as in training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loaded_twins import ONE_IMAGE, TEXT, TWO_IMAGES, load_model, load_twin
from peft import LoraConfig, get_peft_model
from twins import TEXT as TEXT_SIZES
from twins import TRANSFORMERS_5, TWIN_TEMPLATES, sharpen

from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.batch import num_patches
from lcot_plugin.packing.families import trains_vision
from lcot_plugin.packing.groups import pack_groups
from lcot_plugin.packing.vision_memo import VisionMemo
from lcot_plugin.policy.head import packed_log_probs
from lcot_plugin.types import PackedBatch, PackGroup
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

# transformers' InternVL code calls np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

COUSINS = {"qwen2_vl": "qwen2_5_vl", "idefics3": "smolvlm"}
"""Families without a twin, and the twin whose tokenizer, images and prompts they can take."""
TEXT_FAMILIES = {
    "qwen3": {},
    "mistral": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}
VISION_FAMILIES = sorted([*TWIN_TEMPLATES, *COUSINS])
FAMILIES = [*VISION_FAMILIES, *TEXT_FAMILIES]
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

LENGTHS = {ONE_IMAGE: (7, 1, 12, 3), TEXT: (1, 20, 5), TWO_IMAGES: (9, 1, 1, 24)}
"""Tokens of the completions of each prompt, in the order of the pack. Some are longer than any sliding window."""
TOLERANCE = 1e-5
ROUNDING = 1e-6
"""Of a value's size, beside TOLERANCE: eight units in the last place of float32. The largest log-probabilities are
about -25, and of those Qwen2-VL's differ by 1.001e-5 on transformers 4.57, where the reference itself is 1.6e-5 from
what float64 gives. That this is rounding and not the layout is what the test in float64 shows."""
EXACT = 1e-8
"""In float64; the norms round to float32, which Gemma 3 shows most (2e-9), the other families below 1e-14."""
FAR = 1e-2
"""What a wrong alternative must exceed."""
TEMPERATURE = 0.7
CHUNK_SIZE = 8


@dataclass(frozen=True)
class Family:
    """A model and three groups for it: of one image, of text only, of two images."""

    name: str
    model: Any
    vlm: VisionLanguageModel
    groups: list[PackGroup]

    def texts(self) -> Iterator[tuple[PackGroup, list[int]]]:
        return ((group, completion) for group in self.groups for completion in group.completions)


@lru_cache
def load_family(name: str, directory: Path) -> Family:
    twin = load_twin(directory)
    model = model_of(name, directory)
    vlm = VisionLanguageModel(model, twin.tokenizer)
    generator = random.Random(0)
    allowed = sorted(set(range(vlm.vocab_size)) - set(vlm.banned_token_ids))
    groups = []
    for index, lengths in LENGTHS.items():
        prompt = twin.prompts[index]
        ids, media = prompt.record.input_ids, prompt.media
        if name in TEXT_FAMILIES:
            ids, media = generator.choices(allowed, k=len(ids)), {}
        groups.append(PackGroup(ids, [generator.choices(allowed, k=length) for length in lengths], media))
    return Family(name, model, vlm, groups)


def model_of(name: str, directory: Path) -> Any:
    """A fresh model in eval mode; `directory`: the twin whose tokenizer it takes."""
    if name in TWIN_TEMPLATES:
        return load_model(directory)
    like = transformers.AutoConfig.from_pretrained(directory).to_dict()
    text = {key: value for key, value in like["text_config"].items() if key != "layer_types"}
    if name == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14, "hidden_size": 128}
        del text["model_type"]
        tokens = {key: like[key] for key in like if key.endswith("_token_id")}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
        make = transformers.Qwen2VLForConditionalGeneration
    elif name == "idefics3":
        vision = {key: value for key, value in like["vision_config"].items() if key != "model_type"}
        keys = ("image_token_id", "pad_token_id", "scale_factor")
        config = transformers.Idefics3Config(
            text_config=text, vision_config=vision, tie_word_embeddings=False, **{key: like[key] for key in keys}
        )
        make = transformers.Idefics3ForConditionalGeneration
    else:
        sizes = {**TEXT_SIZES, **TEXT_FAMILIES[name]}
        config = transformers.AutoConfig.for_model(name, vocab_size=text["vocab_size"], pad_token_id=0, **sizes)
        make = transformers.AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(config).float()
        sharpen(model)
    return model.eval()


def directory_of(name: str, twin: Any) -> Path:
    return twin(COUSINS.get(name, "internvl" if name in TEXT_FAMILIES else name))


@pytest.fixture
def family(request, twin) -> Family:
    return load_family(request.param, directory_of(request.param, twin))


def standalone(family: Family, model: Any, group: PackGroup, completion: list[int]) -> tuple[torch.Tensor, ...]:
    """[T] log-probabilities and entropies by transformers' own forward pass of prompt and completion alone."""
    ids = torch.tensor([group.prompt_ids + completion])
    inputs = dict(group.media)
    config = family.model.config
    image_token_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if family.name == "gemma3":
        inputs["token_type_ids"] = (ids == image_token_id).long()
    elif family.name in MROPE and TRANSFORMERS_5:
        inputs["mm_token_type_ids"] = (ids == image_token_id).long()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
    return distribution(logits[len(group.prompt_ids) - 1 : -1], torch.tensor(completion), family.vlm)


def distribution(logits: torch.Tensor, token_ids: torch.Tensor, vlm: VisionLanguageModel) -> tuple[torch.Tensor, ...]:
    """Log-probabilities and entropies over the tokens that can be drawn, at the temperature."""
    keep = torch.ones(vlm.vocab_size, dtype=torch.bool)
    keep[vlm.banned_token_ids] = False
    normaliser = (logits / TEMPERATURE)[:, keep].logsumexp(-1)
    log_probs = (logits / TEMPERATURE)[:, keep] - normaliser[:, None]
    chosen = logits.gather(-1, token_ids[:, None])[:, 0] / TEMPERATURE - normaliser
    return chosen, -(log_probs.exp() * log_probs).sum(-1)


def all_standalone(family: Family, model: Any) -> tuple[torch.Tensor, ...]:
    found = [standalone(family, model, group, completion) for group, completion in family.texts()]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def packed(family: Family, model: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """[targets] log-probabilities and entropies of the packed pass; its backward belongs into segment_attention too."""
    return packed_log_probs(
        model,
        model,
        batch,
        banned=torch.tensor(family.vlm.banned_token_ids),
        temperature=TEMPERATURE,
        chunk_size=CHUNK_SIZE,
        entropy_gradient=True,
    )


def loss_of(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Every target has another weight, so that no two gradients can be exchanged unseen."""
    log_probs, entropies = values
    return (log_probs * torch.linspace(-1.0, 2.0, len(log_probs)) + 0.3 * entropies).sum()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def packed_step(family: Family, model: Any, batch: PackedBatch) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    with segment_attention(model, batch.segments):
        values = packed(family, model, batch)
        loss_of(values).backward()
    return [value.detach() for value in values], gradients(model)


def standalone_step(family: Family, model: Any) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    values = all_standalone(family, model)
    loss_of(values).backward()
    return [value.detach() for value in values], gradients(model)


def gradient_distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest |found - expected| / |expected| of a parameter; of the keys' biases over the norm of all gradients.

    Softmax takes no notice of what all keys share, so the true gradient of their bias is 0 and its norm is rounding.
    """
    assert found.keys() == expected.keys() and expected
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return max(
        ((found[name] - gradient).norm() / (total if "k_proj.bias" in name else gradient.norm())).item()
        for name, gradient in expected.items()
        if gradient.any() or found[name].any()
    )


def check_equal(found: Any, expected: Any) -> None:
    """Both of a step: values and gradients."""
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=ROUNDING)
    assert gradient_distance(found[1], expected[1]) < TOLERANCE


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two targets' values, in nats."""
    assert found.shape == expected.shape and len(found)
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_packed_equals_standalone(family):
    batch = pack_groups(family.groups, family.vlm)
    assert 1 in map(len, family.groups[0].completions) and len(batch.segments.lengths) == 3 + 7
    assert bool(batch.media) == (family.name in VISION_FAMILIES)
    check_equal(packed_step(family, family.model, batch), standalone_step(family, family.model))


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@torch.no_grad()
def test_in_float64_nothing_is_left_but_what_the_norms_round(family, twin):
    """By plain logits, since the policy's head computes in float32."""
    model = model_of(family.name, directory_of(family.name, twin)).double()
    groups = [replace(group, media=in_float64(group.media)) for group in family.groups]
    batch = pack_groups(groups, family.vlm)
    with segment_attention(model, batch.segments):
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **batch.media, **batch.token_types}
        logits = model(**inputs, use_cache=False).logits[0]
    found = distribution(logits[batch.target_columns], batch.target_ids, family.vlm)
    for ours, theirs in zip(found, all_standalone(replace(family, groups=groups), model), strict=True):
        assert theirs.dtype == torch.float64
        assert distance(ours, theirs) < EXACT


def in_float64(media: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in media.items()}


def test_it_has_the_families_it_claims():
    from lcot_plugin.packing.families import PACKABLE_FAMILIES

    assert set(FAMILIES) - {"llama", "qwen2"} <= PACKABLE_FAMILIES
    assert PACKABLE_FAMILIES - set(FAMILIES) == {"llama", "qwen2"}  # the text models of smolvlm and llava_onevision


# --- what must be right ----------------------------------------------------------------------------------------------


def wrong_batches(batch: PackedBatch) -> dict[str, PackedBatch]:
    segments = batch.segments
    row = torch.arange(segments.num_tokens)
    # One row of text; completions that see the completions before them; completions that see no prompt.
    last = {parent: index for index, parent in enumerate(segments.parents) if parent >= 0}
    chained, previous = [], {}
    for index, parent in enumerate(segments.parents):
        chained.append(parent if parent < 0 else previous.get(parent, parent))
        if parent >= 0:
            previous[parent] = index
    assert len(last) == 3
    return {
        "one text": replace(batch, segments=replace(segments, lengths=(segments.num_tokens,), parents=())),
        "completions see each other": replace(batch, segments=replace(segments, parents=tuple(chained))),
        "no prompt": replace(batch, segments=replace(segments, parents=())),
        "positions of the row": replace(batch, position_ids=row.expand_as(batch.position_ids)),
        "positions from 0 in every segment": replace(
            batch, position_ids=torch.cat([torch.arange(n) for n in segments.lengths]).expand_as(batch.position_ids)
        ),
        "columns of the row": replace(batch, target_columns=(batch.target_columns + 1).clamp(max=row[-1])),
    }


WRONG = (
    "one text",
    "completions see each other",
    "no prompt",
    "positions of the row",
    "positions from 0 in every segment",
    "columns of the row",
)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@torch.no_grad()
def test_wrong_alternatives_are_far_off(family, wrong):
    batch = wrong_batches(pack_groups(family.groups, family.vlm))[wrong]
    with segment_attention(family.model, batch.segments):
        found = packed(family, family.model, batch)
    for ours, theirs in zip(found, all_standalone(family, family.model), strict=True):
        assert distance(ours, theirs) > FAR


@pytest.mark.parametrize("family", MROPE, indirect=True)
@torch.no_grad()
def test_mrope_completions_count_from_the_largest_coordinate(family):
    """Not from the number of tokens before them."""
    batch = pack_groups(family.groups, family.vlm)
    positions, segments = batch.position_ids.clone(), batch.segments
    starts = [sum(segments.lengths[:index]) for index in range(len(segments.lengths))]
    for start, length, parent in zip(starts, segments.lengths, segments.parents, strict=True):
        if parent >= 0:
            positions[..., start : start + length] = segments.lengths[parent] + torch.arange(length)
    with segment_attention(family.model, batch.segments):
        found, _ = packed(family, family.model, replace(batch, position_ids=positions))
    assert distance(found, all_standalone(family, family.model)[0]) > FAR


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gemma3_text"], indirect=True)
@torch.no_grad()
def test_the_sliding_window_binds(family, monkeypatch):
    """It goes on through the prompt: without it the values are others, and within it they are the model's own."""
    config = family.model.config.get_text_config()
    assert config.sliding_window < min(len(group.prompt_ids) for group in family.groups)
    within, _ = all_standalone(family, family.model)
    monkeypatch.setattr(config, "sliding_window", 4096)
    for layer in family.model.get_decoder().layers:
        if getattr(layer.self_attn, "sliding_window", None):
            monkeypatch.setattr(layer.self_attn, "sliding_window", 4096)
    assert distance(all_standalone(family, family.model)[0], within) > FAR


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
@torch.no_grad()
def test_gemma3_needs_its_image_blocks(family):
    batch = pack_groups(family.groups, family.vlm)
    assert len(batch.segments.image_blocks) == 3
    without = replace(batch, segments=replace(batch.segments, image_blocks=()))
    with segment_attention(family.model, without.segments):
        found, _ = packed(family, family.model, without)
    assert distance(found, all_standalone(family, family.model)[0]) > FAR


# --- training --------------------------------------------------------------------------------------------------------


# transformers checkpoints Qwen3-VL's frozen tower too; so says torch where it is reentrant.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "qwen3"], indirect=True)
def test_lora_and_gradient_checkpointing(family, use_reentrant, twin):
    """The reference runs without checkpointing; the tower has no adapters and is remembered."""
    model = lora_model(family, twin)
    expected = standalone_step(family, model)
    assert all("lora" in name for name in expected[1])
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.train()
    batch = pack_groups(family.groups, family.vlm)
    check_equal(packed_step(family, model, batch), expected)
    memo = VisionMemo()
    for _ in range(2):
        with memo.of(model, "pack"):
            values = packed_step(family, model, batch)
        check_equal(values, expected)


def lora_model(family: Family, twin: Any) -> Any:
    """Adapters in the text model's attention, as LLaMA-Factory's `freeze_vision_tower` gives them."""
    model = model_of(family.name, directory_of(family.name, twin))
    decoder = {id(module) for module in model.get_decoder().modules()}
    targets = [
        name
        for name, module in model.named_modules()
        if id(module) in decoder and name.endswith(("q_proj", "v_proj")) and "vision" not in name
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False))


# --- the vision tower ------------------------------------------------------------------------------------------------


@contextmanager
def tower_calls(model: Any) -> Iterator[list[int]]:
    """Yields a list to which every call of the vision tower appends its patches or tiles."""
    inner = unwrap_base_model(model).model
    tower = next(getattr(inner, name) for name in ("visual", "vision_tower", "vision_model") if hasattr(inner, name))
    calls: list[int] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else next(v for k, v in kwargs.items() if k in ("pixel_values", "hidden_states"))
        calls.append(pixels.shape[0])

    handle = tower.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("family", VISION_FAMILIES, indirect=True)
@torch.no_grad()
def test_each_image_passes_the_tower_once_per_group(family):
    """And not once per completion, as without sharing."""
    batch = pack_groups(family.groups, family.vlm)
    with tower_calls(family.model) as together, segment_attention(family.model, batch.segments):
        packed(family, family.model, batch)
    with tower_calls(family.model) as prompts:
        for group in family.groups:
            standalone(family, family.model, group, group.completions[0])
    with tower_calls(family.model) as apart:
        all_standalone(family, family.model)
    assert len(together) == 1 and len(prompts) == 2 and len(apart) == 4 + 4
    assert sum(together) == sum(prompts) and sum(apart) == 4 * sum(together)
    config = family.model.config
    assert batch.num_patches == sum(num_patches(group.media, config) for group in family.groups) > 0


@pytest.mark.parametrize("family", VISION_FAMILIES, indirect=True)
def test_remembered_features_give_the_same_numbers(family, twin):
    """A pass without gradients, then two with them: the tower runs in the first only."""
    model = model_of(family.name, directory_of(family.name, twin))
    freeze_vision(model)
    assert not trains_vision(model) and trains_vision(family.model)
    batch, expected, memo = pack_groups(family.groups, family.vlm), standalone_step(family, model), VisionMemo()
    before = set(vars(model.model))
    with tower_calls(model) as calls:
        with torch.no_grad(), memo.of(model, "pack"), segment_attention(model, batch.segments):
            old = packed(family, model, batch)
        assert len(calls) == 1
        for _ in range(2):
            with memo.of(model, "pack"):
                found = packed_step(family, model, batch)
            assert torch.equal(found[0][0], old[0])
            check_equal(found, expected)
    assert len(calls) == len(memo) == 1
    assert set(vars(model.model)) == before


def freeze_vision(model: Any) -> None:
    model.requires_grad_(False)
    decoder = model.get_decoder()
    getattr(decoder, "text_model", decoder).requires_grad_(True)
    model.get_output_embeddings().requires_grad_(True)


@pytest.mark.parametrize("family", VISION_FAMILIES, indirect=True)
@torch.no_grad()
def test_features_of_another_pack_are_refused(family, twin):
    """The same pictures in another order, so that every tensor has the same shape."""
    model = model_of(family.name, directory_of(family.name, twin))
    freeze_vision(model)
    one = family.groups[0]
    pack = pack_groups([one], family.vlm)
    pixels = pack.media["pixel_values"]
    other = pack_groups([replace(one, media={**one.media, "pixel_values": pixels.flip(-1)})], family.vlm)
    memo = VisionMemo()
    with memo.of(model, "pack"), segment_attention(model, pack.segments):
        packed(family, model, pack)
        with pytest.raises(AssertionError, match="other images"):
            packed(family, model, other)
