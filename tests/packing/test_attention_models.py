"""Rows packed for real models: every example's logits and gradients are those it has alone."""

from itertools import accumulate
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from twins import TEXT, TWIN_TEMPLATES, sharpen

from lcot_plugin.errors import ArgumentError
from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.families import PACKABLE_FAMILIES, check_packable
from lcot_plugin.types import Segments

MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TEXT_CONFIGS = {
    "llama": {},
    "qwen2": {"hidden_size": 128},
    "qwen3": {},
    "mistral": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}
VLM_FAMILIES = sorted(TWIN_TEMPLATES)
FAMILIES = [*VLM_FAMILIES, *TEXT_CONFIGS]

PLAIN = Segments((40, 23, 31))
FOREST = Segments((20, 9, 14, 7, 12), (-1, 0, 0, 1, -1))
"""A prompt with two continuations, the first continued further, and a segment of its own."""


def load(family: str, twin: Any) -> Any:
    if family in TWIN_TEMPLATES:
        return AutoModelForImageTextToText.from_pretrained(twin(family), dtype=torch.float32).eval()
    config = transformers.AutoConfig.for_model(
        family, vocab_size=300, pad_token_id=0, **{**TEXT, **TEXT_CONFIGS[family]}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        sharpen(model)
    return model


def logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[N, vocabulary] of one row of text."""
    family = model.config.model_type
    arguments = {"token_type_ids": torch.zeros_like(ids)[None]} if family == "gemma3" else {}
    position_ids = positions.expand(3, 1, -1) if family in MROPE_FAMILIES else positions[None]
    return model(input_ids=ids[None], position_ids=position_ids, use_cache=False, **arguments).logits[0]


def path_of(segments: Segments, index: int) -> list[int]:
    """Flat positions of the segment's ancestors and its own."""
    starts = [0, *accumulate(segments.lengths)]
    parent = segments.parents[index] if segments.parents else -1
    before = path_of(segments, parent) if parent >= 0 else []
    return [*before, *range(starts[index], starts[index + 1])]


def random_row(segments: Segments) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids that are no placeholder, and positions counted along each path."""
    ids = torch.randint(0, 250, (segments.num_tokens,), generator=torch.Generator().manual_seed(0))
    positions = torch.empty_like(ids)
    for index in range(len(segments.lengths)):
        path = path_of(segments, index)
        positions[path] = torch.arange(len(path))
    return ids, positions


def alone(model: Any, segments: Segments, ids: torch.Tensor) -> torch.Tensor:
    """[N, vocabulary]: every segment's logits from a row of its path only, by the model's own attention."""
    parts = []
    for index, length in enumerate(segments.lengths):
        path = path_of(segments, index)
        parts.append(logits(model, ids[path], torch.arange(len(path)))[-length:])
    return torch.cat(parts)


def loss_of(values: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    return (values.log_softmax(-1) * weights).sum() / values.shape[0] / 10


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        # Sharpened twins have gradients of up to some hundreds.
        difference = (gradient - theirs[name]).abs().max()
        assert difference <= 1e-5 * max(1.0, float(theirs[name].abs().max())), name


@pytest.mark.parametrize("segments", [PLAIN, FOREST], ids=["plain", "forest"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_alone(family, segments, twin):
    model = load(family, twin)
    before = model.config.get_text_config()._attn_implementation
    ids, positions = random_row(segments)
    expected = alone(model, segments, ids)
    loss_of(expected).backward()
    expected_gradients = gradients(model)
    with segment_attention(model, segments):
        packed = logits(model, ids, positions)
        loss_of(packed).backward()
    torch.testing.assert_close(packed.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model), expected_gradients)
    assert model.config.get_text_config()._attn_implementation == before

    with segment_attention(model, Segments((segments.num_tokens,))):
        one_row = logits(model, ids, positions)
    assert (one_row.log_softmax(-1) - expected.log_softmax(-1)).abs().max() > 0.05


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_gradient_checkpointing_recomputes_within_the_segments(family, use_reentrant, twin):
    model = load(family, twin)
    ids, positions = random_row(FOREST)
    with segment_attention(model, FOREST):
        loss_of(logits(model, ids, positions)).backward()
    expected = gradients(model)

    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.train()
    with segment_attention(model, FOREST):
        loss_of(logits(model, ids, positions)).backward()
    assert_same_gradients(gradients(model), expected)


def test_rows_may_differ_from_step_to_step(twin):
    model = load("gemma3", twin)
    for segments in (PLAIN, FOREST, Segments((30, 64)), PLAIN):
        ids, positions = random_row(segments)
        with torch.no_grad(), segment_attention(model, segments):
            packed = logits(model, ids, positions)
        with torch.no_grad():
            expected = alone(model, segments, ids)
        torch.testing.assert_close(packed.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_the_vision_tower_keeps_its_attention(family, twin):
    model = load(family, twin)
    before = (model.config._attn_implementation, model.config.vision_config._attn_implementation)
    with segment_attention(model, PLAIN):
        assert (model.config._attn_implementation, model.config.vision_config._attn_implementation) == before
        assert model.config.get_text_config()._attn_implementation == "lcot_segments"


def test_an_error_inside_leaves_the_model_as_it_was(twin):
    model = load("qwen2_5_vl", twin)
    text_config = model.config.get_text_config()
    before = text_config._attn_implementation
    ids, positions = random_row(PLAIN)
    with (
        pytest.raises(ValueError, match="the segments have 20 tokens"),
        segment_attention(model, Segments((20,))),
    ):
        logits(model, ids, positions)
    assert text_config._attn_implementation == before
    assert torch.isfinite(logits(model, ids, positions)).all()


def test_a_lora_model_is_packed_like_its_base(twin):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(load("qwen3_vl", twin), lora)
    check_packable(model)
    ids, positions = random_row(FOREST)
    with torch.no_grad():
        expected = alone(model, FOREST, ids)
        with segment_attention(model, FOREST):
            packed = logits(model, ids, positions)
    torch.testing.assert_close(packed.log_softmax(-1), expected.log_softmax(-1), atol=1e-5, rtol=1e-5)


# --- which models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_are_accepted(family, twin):
    assert family in PACKABLE_FAMILIES
    check_packable(load(family, twin))


def small(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config)


def test_an_unknown_family_is_told_what_to_write():
    config = transformers.Gemma2Config(vocab_size=64, pad_token_id=0, **TEXT)
    with pytest.raises(ArgumentError, match=r"'gemma2'.*length_aware_packing: false.*qwen2_5_vl"):
        check_packable(small(config))


def test_an_unknown_text_model_in_a_known_family_is_refused():
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        text_config={"model_type": "gemma2", "vocab_size": 64, "pad_token_id": 0, **TEXT},
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **vision},
    )
    with pytest.raises(ArgumentError, match="text model 'gemma2'"):
        check_packable(transformers.LlavaForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attn_logit_softcapping", 50.0, "attn_logit_softcapping"),
        ("use_bidirectional_attention", True, "both directions"),
        ("layer_types", ["linear_attention", "full_attention"], "layers of type linear_attention"),
    ],
)
def test_settings_that_change_attention_are_refused(key, value, message):
    model = load("gemma3_text", None)
    setattr(model.config, key, value)
    with pytest.raises(ArgumentError, match=message):
        check_packable(model)


def test_layers_that_compute_attention_themselves_are_refused(monkeypatch):
    model = load("llama", None)

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden_states

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", forward)
    with pytest.raises(ArgumentError, match="LlamaAttention does not call"):
        check_packable(model)


def test_attention_sinks_and_layers_without_attention_are_refused():
    model = load("llama", None)
    model.model.layers[0].self_attn.sinks = torch.zeros(4)
    with pytest.raises(ArgumentError, match="sinks"):
        check_packable(model)
    del model.model.layers[0].self_attn
    with pytest.raises(ArgumentError, match="no self-attention"):
        check_packable(model)
