"""Which models can compute packed rows.

In: a loaded model. Out: an error that says what to write instead, where it cannot. Asked once before training.
"""

from __future__ import annotations

import inspect
from typing import Any

from lcot_plugin.errors import ArgumentError
from lcot_plugin.vlm import unwrap_base_model

PACKABLE_FAMILIES = {
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava", "llava_onevision", "gemma3", "smolvlm", "idefics3"),
    *("gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
}
"""By `config.model_type`."""

TEXT_MODELS = {
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"),
    *("gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
}
"""By `config.get_text_config().model_type`: LLaVA, InternVL and Idefics3 can be built on any text model."""

LAYER_TYPES = {"full_attention", "sliding_attention"}


def text_model_of(model: Any) -> Any:
    """The text decoder of a transformers model, or of a PEFT model around one."""
    decoder = unwrap_base_model(model).get_decoder()
    # transformers 4.57 stops at the multimodal model of SmolVLM and Idefics3.
    return getattr(decoder, "text_model", decoder)


def check_packable(model: Any) -> None:
    """Raises ArgumentError where rows of several examples would not be computed exactly.

    model: a transformers model, or a PEFT model around one.
    """
    reason = why_not_packable(model)
    if reason is not None:
        raise ArgumentError(
            f"length_aware_packing: {reason}. Set length_aware_packing: false; supported model types: "
            f"{', '.join(sorted(PACKABLE_FAMILIES))}."
        )


def why_not_packable(model: Any) -> str | None:
    """What of a model keeps several examples from being computed exactly in one row; None where nothing does."""
    config = unwrap_base_model(model).config
    family = config.model_type
    if family not in PACKABLE_FAMILIES:
        return f"the model family {family!r} is not supported"
    text_config = config.get_text_config()
    if text_config.model_type not in TEXT_MODELS:
        return f"this {family!r} model's text model {text_config.model_type!r} is not supported"
    unknown = sorted(set(getattr(text_config, "layer_types", None) or ()) - LAYER_TYPES)
    if unknown:
        return f"this {family!r} model has layers of type {', '.join(unknown)}"
    if getattr(text_config, "attn_logit_softcapping", None) is not None:
        return f"this {family!r} model caps its attention logits (attn_logit_softcapping)"
    if getattr(text_config, "use_bidirectional_attention", None):
        return f"this {family!r} model attends in both directions (use_bidirectional_attention)"
    layers = (_why_not_layer(layer, family) for layer in text_model_of(model).layers)
    return next((reason for reason in layers if reason is not None), None)


def _why_not_layer(layer: Any, family: str) -> str | None:
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        return f"{family!r}: {type(layer).__name__} has no self-attention (`self_attn`)"
    if hasattr(attention, "sinks"):
        return f"{family!r}: {type(attention).__name__} has attention sinks"
    # A patch (LongLoRA's shifted attention, Unsloth) replaces the class's forward by one that computes by itself.
    if "ALL_ATTENTION_FUNCTIONS" not in inspect.getsource(inspect.unwrap(type(attention).forward)):
        return f"{family!r}: {type(attention).__name__} does not call transformers' AttentionInterface"
    return None


def trains_vision(model: Any) -> bool:
    """Whether a parameter of the vision tower, the projector or between them is trained, by itself or by an adapter.

    model: a transformers model, or a PEFT model around one. What is neither in the text model nor in the output layer
    counts as vision.
    """
    base = unwrap_base_model(model)
    text = {id(parameter) for parameter in text_model_of(base).parameters()}
    text |= {id(parameter) for parameter in base.get_output_embeddings().parameters()}
    return any(parameter.requires_grad and id(parameter) not in text for parameter in base.parameters())
