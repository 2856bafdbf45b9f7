"""Seam: `llamafactory.model.model_utils.visual`. Says which parts of a model are its vision tower and its projector.

LLaMA-Factory 0.9.5 does not know the families below: `freeze_vision_tower` would freeze nothing, and `lora_target: all`
would reach into the vision tower. Can go when it registers them.
"""

from __future__ import annotations

from types import ModuleType

_IDEFICS3 = {
    "projector_keys": ["model.connector"],
    "vision_model_keys": ["model.vision_model"],
    "language_model_keys": ["model.text_model", "lm_head"],
}
_LLAVA = {"projector_keys": ["model.multi_modal_projector"]}  # LLaMA-Factory takes the other names for granted

MODELS: dict[str, dict[str, list[str]]] = {
    "smolvlm": _IDEFICS3,
    "idefics3": _IDEFICS3,
    "llava_onevision": _LLAVA,
    "lfm2_vl": _LLAVA,
}
"""`model_type` in config.json -> arguments of LLaMA-Factory's `_register_composite_model`."""


def apply(module: ModuleType) -> None:
    """Registers the families that are not known yet."""
    for model_type, keys in MODELS.items():
        if model_type not in module.COMPOSITE_MODELS:
            module._register_composite_model(model_type=model_type, **keys)
