"""Floating-point operations that a model's mathematics needs: what MFU counts.

In: a model's modules and what was computed (tokens, records, pictures). Out: operations. A multiplication and its
addition are two. Counted are matrix products: linear layers, attention (causal: half of the square) and the output
layer for trained tokens only. The backward pass needs a product for the gradient of each input and one for that of
each trained weight. Not counted is what an implementation adds: layers recomputed by gradient checkpointing, scores
recomputed by flash attention, padding, logits that nobody trains on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WINDOW_PATCHES = 64
"""Of a full window of Qwen2.5-VL: 112 pixels, 8 x 8 patches."""


@dataclass(frozen=True)
class Work:
    """What a pass computes."""

    tokens: int
    squares: int
    """Sum over tokens of twice the keys that they see: of a record of n tokens n x n."""
    labels: int
    """Tokens whose logits are needed."""
    patches: int = 0
    patch_squares: int = 0
    """Sum over pictures of the squared number of patches."""


@dataclass(frozen=True)
class ModelOperations:
    """Operations of a forward pass per unit of `Work`."""

    token: float
    adapters: float
    """LoRA's matrices, per token."""
    label: float
    square: float
    patch: float
    patch_square: float
    merged: int
    """Patches that become one token."""

    @classmethod
    def of(cls, model: Any) -> ModelOperations:
        """model: a Qwen2.5-VL or Qwen3-VL, also on the meta device, also with LoRA."""
        import torch

        from lcot_plugin.vlm import unwrap_base_model

        base = unwrap_base_model(model)
        text, vision = base.config.get_text_config(), base.config.vision_config
        merged = vision.spatial_merge_size**2
        head, sums = base.get_output_embeddings(), {"token": 0.0, "adapters": 0.0, "patch": 0.0}
        for name, module in base.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv3d) and module is not head:
                each = 2.0 * module.weight.numel()
                if "lora_" in name:
                    sums["adapters"] += each
                elif "visual" in name:
                    sums["patch"] += each / (merged if "merger" in name else 1)
                else:
                    sums["token"] += each
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        full = getattr(vision, "fullatt_block_indexes", None)
        full_layers = vision.depth if full is None else len(full)
        per_square = 4.0 * vision.hidden_size  # scores and values
        return cls(
            label=2.0 * head.weight.numel(),
            square=2.0 * text.num_hidden_layers * text.num_attention_heads * width,
            patch=sums["patch"] + (vision.depth - full_layers) * per_square * WINDOW_PATCHES,
            patch_square=full_layers * per_square,
            token=sums["token"],
            adapters=sums["adapters"],
            merged=merged,
        )

    def forward(self, work: Work) -> float:
        language = (self.token + self.adapters) * work.tokens + self.square * work.squares + self.label * work.labels
        return language + self.patch * work.patches + self.patch_square * work.patch_squares

    def training(self, work: Work, tuning: str) -> float:
        """Forward and backward with a frozen vision tower. tuning: `full` or `lora` (of the language model)."""
        weights = 1 if tuning == "full" else 0
        linear = (self.token * work.tokens + self.label * work.labels) * (1 + weights)
        return self.forward(work) + linear + 2 * (self.adapters * work.tokens + self.square * work.squares)
