"""Seam: `llamafactory.model.model_utils.quantization`. 4-bit weights on a CPU stay in the form that can be trained.

Where a CPU has AVX512-BF16, bitsandbytes (0.49.0 to 0.50.2) rearranges a 4-bit weight for good when its layer first
runs in eval mode: for a kernel that computes in bfloat16 and has no backward pass. After a rollout or an evaluation,
training would go on with gradients that stop at every such layer, and one warning of torch's (an error where a layer
has a bias). GPUs are not concerned. Can go when bitsandbytes trains a layer that has been in eval mode.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def apply(module: ModuleType) -> None:
    """Wraps `configure_quantization`, which LLaMA-Factory calls before it loads a model."""
    configure = module.configure_quantization

    def configure_quantization(
        config: Any, tokenizer: Any, model_args: Any, is_trainable: bool, init_kwargs: dict[str, Any]
    ) -> None:
        configure(config, tokenizer, model_args, is_trainable, init_kwargs)
        if is_trainable and getattr(init_kwargs.get("quantization_config"), "load_in_4bit", False):
            import bitsandbytes

            bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # asked by every layer that is made

    module.configure_quantization = configure_quantization
