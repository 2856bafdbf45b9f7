"""The model of a recipe without its weights: LLaMA-Factory builds and tunes it on torch's meta device.

In: parsed arguments and a configuration that is on this machine. Out: the module tree, every parameter with the dtype,
shape and `requires_grad` that it will have in the run; what is counted of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.model import load_model
from llamafactory.model.model_utils.visual import COMPOSITE_MODELS

from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.vlm import unwrap_base_model


@dataclass(frozen=True)
class Parameters:
    """How many parameters of a kind there are."""

    language: int
    vision: int
    trained: int
    """Of all, those that are trained; adapters included."""


def empty_model(run: RunArguments, tokenizer: Any, with_gradients: bool = True) -> Any:
    """The model on the meta device, as `load_model` would give it to the trainer.

    A checkpoint's dtype is not in the configuration of every model: bfloat16 is assumed where it is missing. An adapter
    that is loaded counts as one of the recipe's own lora_rank; quantisation is left to `bytes_of`.
    """
    model_args, finetuning_args = copy.copy(run.model), copy.copy(run.finetuning)
    model_args.train_from_scratch = True  # from the configuration: no weights are read
    model_args.adapter_name_or_path = None
    model_args.quantization_bit = model_args.quantization_method = None
    model_args.device_map = None
    model_args.compute_dtype = run.model.compute_dtype or torch.float32
    with torch.device("meta"), _dtype(model_args.compute_dtype):
        return load_model(tokenizer, model_args, finetuning_args, is_trainable=with_gradients)


@contextmanager
def _dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def of_vision(model: Any, name: str) -> bool:
    """Whether a parameter of this name belongs to the vision tower or its projector."""
    family = COMPOSITE_MODELS.get(unwrap_base_model(model).config.model_type)
    return family is not None and any(key in name for key in (*family.vision_model_keys, *family.projector_keys))


def count(model: Any) -> Parameters:
    """Parameters of the language model (adapters included) and of the vision tower with its projector."""
    language = vision = trained = 0
    for name, parameter in model.named_parameters():
        if of_vision(model, name):
            vision += parameter.numel()
        else:
            language += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    return Parameters(language, vision, trained)


def cache_bytes_per_token(model: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers that keep them."""
    config = unwrap_base_model(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    layers = sum("attention" in kind and "linear" not in kind for kind in kinds)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * layers * heads * width * dtype.itemsize
