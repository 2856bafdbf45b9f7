"""Seam: `llamafactory.train.sft.trainer`. Makes a resumed run go on from its checkpoint in three cases.

A full or freeze tuned VLM:

transformers saves many VLMs under older parameter names (`model.layers.*` for `model.language_model.layers.*`), which
`from_pretrained` translates back. `Trainer` resumes with a plain `load_state_dict(strict=False)` instead: the names do
not fit, a warning about missing keys scrolls by, and training goes on from the *base* weights with the checkpoint's
optimizer and step. Measured with Qwen2.5-VL: the whole language model on transformers 5.5.4, nearly everything on
4.57.6. Adapters are not affected. Can go when Trainer loads checkpoints by `from_pretrained`.

A LoRA under FSDP 2 with `FULL_STATE_DICT`: accelerate saves the first process's pieces of the adapter as if they were
all of it, and a resumed run has the adapter that it began with. The adapter file beside them is whole. Can go when
accelerate gathers it.

Several processes without an accelerator: `Trainer` loads the optimizer to the process's device, `cpu:0`, a name that
torch.load does not know ("don't know how to restore data location"). Can go when either of them changes.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, distribute_tensor

from lcot_plugin.vlm import unwrap_base_model

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_CPU_PRIORITY = 11
"""Behind torch's own entry for `cpu`, which is 10."""


def apply(module: ModuleType) -> None:
    """Replaces `CustomSeq2SeqTrainer` by a subclass that loads checkpoints by their real names."""
    original = module.CustomSeq2SeqTrainer
    if hasattr(original, "_holds_full_weights"):
        return

    class CustomSeq2SeqTrainer(original):  # type: ignore[misc, valid-type]
        __doc__ = original.__doc__

        def _holds_full_weights(self, checkpoint: str, model: Any) -> bool:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            plain = model is unwrap_base_model(model)  # not PEFT
            return plain and not sharded and any(Path(checkpoint, name).is_file() for name in _WEIGHT_FILES)

        def _holds_sharded_adapter(self, checkpoint: str, model: Any) -> bool:
            peft = isinstance(self.accelerator.unwrap_model(model), PeftModel)
            return self.accelerator.is_fsdp2 and peft and Path(checkpoint, SAFETENSORS_WEIGHTS_NAME).is_file()

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            model = self.model if model is None else model
            if self._holds_full_weights(resume_from_checkpoint, model):
                load_full_weights(model, resume_from_checkpoint)
            elif self._holds_sharded_adapter(resume_from_checkpoint, model):
                load_sharded_adapter(model, resume_from_checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

        def _load_best_model(self) -> None:
            if self._holds_full_weights(self.state.best_model_checkpoint, self.model):
                load_full_weights(self.model, self.state.best_model_checkpoint)
            elif self._holds_sharded_adapter(self.state.best_model_checkpoint, self.model):
                load_sharded_adapter(self.model, self.state.best_model_checkpoint)
            else:
                super()._load_best_model()

    torch.serialization.register_package(_CPU_PRIORITY, lambda storage: None, _stay_on_cpu)
    CustomSeq2SeqTrainer.__module__ = original.__module__
    CustomSeq2SeqTrainer.__qualname__ = "CustomSeq2SeqTrainer"
    module.CustomSeq2SeqTrainer = CustomSeq2SeqTrainer


def load_full_weights(model: Any, checkpoint: str) -> None:
    """Every weight of `model` from a checkpoint folder; raises RuntimeError where a name or a shape does not fit."""
    # float32 holds what either precision saved; each parameter then takes its own. `model.dtype` is that of the first
    # parameter, which may be a bfloat16 vision tower before a float32 language model.
    saved = type(model).from_pretrained(checkpoint, config=model.config, dtype=torch.float32)
    model.load_state_dict(saved.state_dict(), strict=True)


def load_sharded_adapter(model: Any, checkpoint: str) -> None:
    """The active adapter of a model that FSDP 2 has sharded, from the adapter file of a checkpoint.

    Raises KeyError where the file lacks a weight.
    """
    saved = load_file(Path(checkpoint, SAFETENSORS_WEIGHTS_NAME))
    for name, weight in get_peft_model_state_dict(model).items():
        value = saved[name].to(weight.device, weight.dtype)
        if isinstance(weight, DTensor):
            value = distribute_tensor(value, weight.device_mesh, weight.placements)
        weight.copy_(value)


def _stay_on_cpu(storage: Any, location: str) -> Any | None:
    """torch.load's question where a storage it has read into memory belongs; None leaves it to others."""
    return storage if location.startswith("cpu:") else None
