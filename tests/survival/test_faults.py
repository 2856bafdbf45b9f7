"""Gradients that are not finite: which steps are left out, and when a run ends for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lcot_plugin.survival.faults import FaultCounts, FaultError, GradientGuard, all_finite


class Accelerator:
    """Of one process, or of two of which the other one has `others`."""

    scaler, distributed_type, device, mixed_precision = None, "NO", torch.device("cpu"), "no"

    def __init__(self, others: int | None = None):
        self.num_processes, self.others = 1 if others is None else 2, others

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([self.others])])


def guard(max_skipped: int = 2, accelerator: Any = None) -> tuple[GradientGuard, Any, FaultCounts, list[str]]:
    trainer: Any = SimpleNamespace(model=nn.Linear(2, 2), accelerator=accelerator or Accelerator())
    counts, warned = FaultCounts(), []
    return GradientGuard(trainer, max_skipped, counts, warned.append, "the data"), trainer, counts, warned


def set_gradients(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.bias.grad[1] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(value: float) -> None:
    callback, trainer, counts, warned = guard()
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.1, weight_decay=0.1)
    set_gradients(trainer.model, 1.0)
    callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=0), None)
    optimizer.step()
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    set_gradients(trainer.model, value)
    callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=1), None)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert counts.logged() == {"faults/skipped_steps": 1.0}
    assert warned[0].startswith("Step 1: the gradient is not finite")


def test_only_so_many_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    callback, trainer, counts, _ = guard(max_skipped=2)
    for step, value in enumerate([float("nan"), float("nan"), 1.0, float("nan"), float("nan")]):
        set_gradients(trainer.model, value)
        callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=step), None)
    set_gradients(trainer.model, float("nan"))
    with pytest.raises(FaultError, match=r"Step 5.*after 2 steps in a row.*look at the data"):
        callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=5), None)
    assert counts["skipped_steps"] == 5
    assert trainer._on_all_processes


def test_a_bad_gradient_of_another_process_is_left_out_here_too() -> None:
    callback, trainer, counts, _ = guard(accelerator=Accelerator(others=1))
    set_gradients(trainer.model, 1.0)
    callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=0), None)
    assert trainer.model.weight.grad is None and counts["skipped_steps"] == 1


def test_float16_is_left_to_its_scaler() -> None:
    callback, trainer, counts, _ = guard()
    trainer.accelerator.scaler = object()
    set_gradients(trainer.model, float("inf"))
    callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=0), None)
    assert trainer.model.weight.grad is not None and not counts


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
@pytest.mark.parametrize(("precision", "stage", "advised"), [("bf16", 2, True), ("bf16", 3, False), ("no", 2, False)])
def test_deepspeeds_step_is_not_saved(norm: float, precision: str, stage: int, advised: bool) -> None:
    """`check_grad_overflow` is a setting of bf16, and DeepSpeed reads it with ZeRO 1 and 2 alone."""
    callback, trainer, _, _ = guard()
    trainer.accelerator.distributed_type, trainer.accelerator.mixed_precision = "DEEPSPEED", precision
    trainer.accelerator.state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    trainer.model_wrapped = SimpleNamespace(get_global_grad_norm=lambda: 1.0)
    callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=3), None)
    trainer.model_wrapped = SimpleNamespace(get_global_grad_norm=lambda: norm)
    with pytest.raises(FaultError, match="with a lower learning_rate") as raised:
        callback.on_pre_optimizer_step(None, SimpleNamespace(global_step=3), None)
    assert ("check_grad_overflow" in str(raised.value)) == advised
    assert trainer._weights_are_changing


def test_all_finite() -> None:
    assert all_finite([])
    assert all_finite([torch.ones(3), torch.zeros(0), torch.full((2,), 1e30, dtype=torch.bfloat16)])
    assert not all_finite([torch.ones(3), torch.tensor([0.0, float("nan")], dtype=torch.bfloat16)])
