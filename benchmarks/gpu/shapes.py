"""The models that are measured: real architectures and sizes, random weights, nothing downloaded.

In: a shape's name. Out: a model folder that transformers, LLaMA-Factory and vLLM load, and its configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """What of a family's configuration differs from its tiny twin in the tests."""

    family: str
    """Key of `twins.TWIN_TEMPLATES`, which names LLaMA-Factory's template too."""
    text: dict[str, Any]
    vision: dict[str, Any]
    mrope: dict[str, Any]
    tied: bool


# As config.json of Qwen/Qwen2.5-VL-3B-Instruct and Qwen/Qwen3-VL-4B-Instruct have it.
SHAPES = {
    "qwen2_5_vl_3b": ModelShape(
        "qwen2_5_vl",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
        },
        {"sections": [16, 24, 24], "rope_theta": 1e6},
        tied=True,
    ),
    "qwen3_vl_4b": ModelShape(
        "qwen3_vl",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        {"sections": [24, 20, 20], "rope_theta": 5e6, "mrope_interleaved": True},
        tied=True,
    ),
    # The same code paths on a CPU, in seconds.
    "tiny_qwen2_5_vl": ModelShape("qwen2_5_vl", {"vocab_size": 1024}, {}, {"sections": [4, 6, 6]}, tied=True),
    "tiny_qwen3_vl": ModelShape(
        "qwen3_vl", {"vocab_size": 1024}, {}, {"sections": [6, 5, 5], "mrope_interleaved": True}, tied=True
    ),
}
REAL = ("qwen2_5_vl_3b", "qwen3_vl_4b")
TINY = ("tiny_qwen2_5_vl", "tiny_qwen3_vl")
PATCH = {"qwen2_5_vl": 28, "qwen3_vl": 32}
"""Pixels along the side of what becomes one image token, by family."""
MOST_IMAGE_TOKENS = 1024


def image_side(name: str, tokens: int) -> int:
    """Pixels along the side of a square picture of so many image tokens, a square number."""
    return round(tokens**0.5) * PATCH[SHAPES[name].family]


def template_of(name: str) -> str:
    """LLaMA-Factory's."""
    import twins

    return twins.TWIN_TEMPLATES[SHAPES[name].family]


def build(folder: Path, name: str, device: str = "cpu") -> Path:
    """Writes the model once, in bfloat16 on a GPU and in float32 for a CPU; returns its folder."""
    import torch
    import twins

    target = folder / name
    done = target / "built"
    if done.exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    blueprint = twins.BLUEPRINTS[SHAPES[name].family](target)
    patch = PATCH[SHAPES[name].family]
    size = {"shortest_edge": 4 * patch**2, "longest_edge": MOST_IMAGE_TOKENS * patch**2}
    blueprint.processor.image_processor.size = size
    torch.manual_seed(0)
    # Made where it is fast; a GPU draws four billion numbers in a moment.
    with torch.device(device):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = blueprint.model_class._from_config(configuration(blueprint, SHAPES[name]), dtype=dtype)
    end = blueprint.processor.tokenizer.convert_tokens_to_ids(list(blueprint.end_tokens))
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = blueprint.processor.tokenizer.pad_token_id
    model.save_pretrained(target)
    blueprint.processor.save_pretrained(target)
    done.touch()
    return target


def configuration(blueprint: Any, shape: ModelShape) -> Any:
    """The family's configuration in this size, with the token ids of the twin's tokenizer."""
    import twins

    config = blueprint.config.to_dict()
    rope = dict(shape.mrope)
    text = {**config["text_config"], **shape.text, **twins.mrope(rope.pop("sections"), **rope)}
    text = {**text, "tie_word_embeddings": shape.tied}
    vision = {**config["vision_config"], **shape.vision}
    for part in (text, vision):
        # A dtype or layer types of the twin would stay behind.
        for key in ("dtype", "torch_dtype", "layer_types", "max_window_layers"):
            part.pop(key, None)
    known = {key: config[key] for key in config if key.endswith("token_id")}
    return type(blueprint.config)(text_config=text, vision_config=vision, tie_word_embeddings=shape.tied, **known)
