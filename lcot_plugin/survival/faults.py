"""Faults that any training can meet: how they are counted, and gradients that are not finite.

In: the gradients of an optimizer step, before it. Out: the same, or none where they are not finite on some process;
after too many such steps an error that every process raises. Consumers: policy.faults, policy.trainer, packing.trainer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from lcot_plugin.errors import LcotError
from lcot_plugin.survival.stopping import largest

MAX_SKIPPED_STEPS = 5
"""Optimizer steps in a row that are left out, where no key says another number."""


class FaultError(LcotError):
    """A fault that cannot be got round; says what to change."""


class FaultCounts(Counter[str]):
    """How often each fault was met in this run, logged as `faults/NAME` from the first one on."""

    def logged(self) -> dict[str, float]:
        return {f"faults/{name}": float(number) for name, number in sorted(self.items())}


class GradientGuard(TrainerCallback):
    """Leaves an optimizer step out whose gradient is not finite on some process.

    Weights, moments and weight decay stay as they are; the step counts, and the learning rate moves on.
    """

    def __init__(self, trainer: Any, max_skipped: int, counts: FaultCounts, warn: Callable[[str], None], advice: str):
        """max_skipped: so many in a row are left out, the next one ends the run. advice: what to look at then."""
        self.trainer, self.max_skipped, self.counts, self.warn = trainer, max_skipped, counts, warn
        self.advice = advice
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self._check_engine(state.global_step)
        if accelerator.scaler is not None:
            return  # float16: the scaler leaves such steps out itself, and means to
        parameters = [p for p in self.trainer.model.parameters() if p.grad is not None]
        if not largest(int(not all_finite([p.grad for p in parameters])), accelerator):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.counts["skipped_steps"] += 1
        for parameter in parameters:
            parameter.grad = None
        told = f"Step {state.global_step}: the gradient is not finite (NaN or infinite)"
        if self.in_a_row > self.max_skipped:
            self.trainer._on_all_processes = True
            raise FaultError(
                f"{told}, after {self.max_skipped} steps in a row that were left out for it. The weights are those "
                "before the first of them. Lower learning_rate or max_grad_norm, train in bf16 or float32 rather than "
                f"fp16, and look at {self.advice}."
            )
        self.warn(f"{told}: this optimizer step is left out ({self.in_a_row} in a row).")

    def _check_engine(self, step: int) -> None:
        """DeepSpeed steps within its backward: it is too late to leave anything out."""
        accelerator = self.trainer.accelerator
        norm = self.trainer.model_wrapped.get_global_grad_norm()
        if norm is None or accelerator.mixed_precision == "fp16" or math.isfinite(norm):
            return
        self.trainer._weights_are_changing = True  # they have become NaN: not to be saved
        text = (
            f"Step {step}: the gradient is not finite, and DeepSpeed has made the step. Resume from the last "
            "checkpoint with a lower learning_rate"
        )
        if accelerator.mixed_precision == "bf16" and accelerator.state.deepspeed_plugin.zero_stage in (1, 2):
            text += (
                ', or with `"bf16": {"enabled": true, "check_grad_overflow": true}` in the DeepSpeed configuration, '
                "which leaves such steps out"
            )
        raise FaultError(f"{text}.")


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no element is NaN or infinite."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    filled = [tensor for tensor in local if tensor.numel()]
    if not filled:
        return True
    largest_of_each = torch._foreach_norm(filled, float("inf"))
    device = largest_of_each[0].device
    return bool(torch.stack([norm.to(device, torch.float32) for norm in largest_of_each]).isfinite().all())
