"""Twins with LoRA adapters that change what they say: a fresh adapter, whose B is zero, changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

TEXT_LAYERS = r".*(language|text)_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)"
ALL_LAYERS = r".*\.(q_proj|v_proj|up_proj|down_proj|qkv|proj|linear_fc1)"
"""Linear layers of the vision tower too."""


def lora_twin(directory: Path, *, targets: str = TEXT_LAYERS, seed: int = 1, **settings: Any) -> Any:
    """The twin in `directory` as a PEFT model, in float32 and in eval mode; `settings`: of LoraConfig."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, **settings)
    # Not by loaded_twins, which imports LLaMA-Factory: some tests start processes that need this alone.
    base = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base, config).eval()
    train(model, seed)
    return model


@torch.no_grad()
def train(model: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Moves every trainable parameter, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = scale * float(parameter.std()) if parameter.any() else 0.02
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
