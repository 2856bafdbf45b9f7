"""The losses against TRL 0.24's own `GRPOTrainer._compute_loss`, fed the same numbers padded: values and gradients."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, replace
from types import MethodType, SimpleNamespace

import llamafactory.extras.packages  # noqa: F401  (before trl: on transformers >= 5.3 it is what makes trl importable)
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.grpo_trainer import GRPOTrainer

from lcot_plugin.policy.losses import PolicyLossConfig, loss_normalizer, policy_loss
from lcot_plugin.policy.metrics import MetricSums

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}
EPSILON, EPSILON_HIGH, MAX_LENGTH = 0.2, 0.28, 12


@dataclass
class Rows:
    """One micro-batch as ragged rows."""

    logps: torch.Tensor
    old_logps: torch.Tensor | None
    ref_logps: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    lengths: torch.Tensor
    trained: torch.Tensor


def random_rows(seed: int, with_old: bool = True) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, MAX_LENGTH + 1, (5,), generator=generator)
    num_tokens = int(lengths.sum())

    def normal(num: int) -> torch.Tensor:
        return torch.randn(num, generator=generator)

    logps = -normal(num_tokens).abs()
    return Rows(
        logps=logps,
        # Wide enough that ratios fall below 0.8, above 1.28 and above 2.
        old_logps=logps + 0.6 * normal(num_tokens) if with_old else None,
        ref_logps=logps + 0.4 * normal(num_tokens),
        entropies=normal(num_tokens).abs(),
        advantages=normal(len(lengths)),
        lengths=lengths,
        trained=torch.ones(len(lengths), dtype=torch.bool),
    )


def trl_trainer(config: PolicyLossConfig, logps: torch.Tensor, entropies: torch.Tensor) -> SimpleNamespace:
    """The attributes `_compute_loss` reads, on one process, with the model's pass replaced by given numbers."""
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda tensor: tensor if tensor.dim() else tensor.unsqueeze(0),
        pad_across_processes=lambda tensor, **_: tensor,
    )
    low, high = config.clip_range
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=SimpleNamespace(delta=config.delta),
        model=SimpleNamespace(training=True),
        beta=config.beta,
        epsilon_low=1 - low,
        epsilon_high=high - 1,
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        top_entropy_quantile=config.top_entropy_quantile,
        max_completion_length=config.max_completion_length,
        current_gradient_accumulation_steps=1,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logps, entropies),
    )
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    return trainer


def trl_loss(config: PolicyLossConfig, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[float]]]:
    """Value, gradient with respect to the ragged log-probabilities, and the metrics TRL logs."""
    logps = rows.logps.clone().requires_grad_()
    lengths = rows.lengths.tolist()

    def padded(values: torch.Tensor, padding: float = 0.0) -> torch.Tensor:
        return pad_sequence(values.split(lengths), batch_first=True, padding_value=padding)

    mask = padded(torch.ones(sum(lengths), dtype=torch.long)) * rows.trained.unsqueeze(1)
    inputs = {
        "prompt_ids": torch.zeros(len(lengths), 2, dtype=torch.long),
        "prompt_mask": torch.ones(len(lengths), 2, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": rows.advantages,
        "ref_per_token_logps": padded(rows.ref_logps, -0.7),
        "num_items_in_batch": rows.lengths.sum(),  # counted before the masking, as in TRL 0.24's `_generate`
    }
    if rows.old_logps is not None:
        inputs["old_per_token_logps"] = padded(rows.old_logps, -0.3)
    trainer = trl_trainer(config, padded(logps, -0.5), padded(rows.entropies, 9.0))
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.detach(), logps.grad, trainer._metrics["train"]


def our_loss(config: PolicyLossConfig, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    logps = rows.logps.clone().requires_grad_()
    loss, stats = policy_loss(
        config,
        **{**vars(rows), "logps": logps},
        normalizer=loss_normalizer(config, rows.lengths, rows.trained),
    )
    loss.backward()
    sums = MetricSums()
    sums.add_statistics(stats)
    return loss.detach(), logps.grad, sums.pop_averages()


GRID = [
    pytest.param(
        PolicyLossConfig(
            loss_type=loss_type,
            importance_sampling_level=level,
            epsilon=EPSILON,
            epsilon_high=EPSILON_HIGH,
            beta=beta,
            delta=delta,
            top_entropy_quantile=quantile,
            max_completion_length=MAX_LENGTH,
        ),
        with_old,
        id=f"{loss_type}-{level}-beta{beta}-delta{delta}-entropy{quantile}-{'old' if with_old else 'on_policy'}",
    )
    for loss_type, level, beta, delta, quantile, with_old in itertools.product(
        ("grpo", "dr_grpo", "dapo"), ("token", "sequence"), (0.0, 0.04), (None, 2.0), (1.0, 0.5), (True, False)
    )
]


@pytest.mark.parametrize(("config", "with_old"), GRID)
def test_values_and_gradients(config: PolicyLossConfig, with_old: bool):
    for seed in range(4):
        rows = random_rows(seed, with_old)
        trl_value, trl_grad, trl_metrics = trl_loss(config, rows)
        value, grad, stats = our_loss(config, rows)
        assert trl_grad.abs().max() > 1e-3
        torch.testing.assert_close(value, trl_value, **TOLERANCE)
        torch.testing.assert_close(grad, trl_grad, **TOLERANCE)
        for ours, theirs in {
            "clip_low": "clip_ratio/low_mean",
            "clip_high": "clip_ratio/high_mean",
            "clip_region": "clip_ratio/region_mean",
            "entropy": "entropy",
        }.items():
            assert stats[ours] == pytest.approx(trl_metrics[theirs][0], abs=1e-6)
        if config.beta:
            assert stats["kl"] == pytest.approx(trl_metrics["kl"][0], abs=1e-6)


def test_the_numbers_reach_every_branch():
    """Without this the grid could pass on ratios that nothing clips."""
    config = PolicyLossConfig(epsilon=EPSILON, epsilon_high=EPSILON_HIGH)
    logged = [our_loss(config, random_rows(seed))[2] for seed in range(4)]
    assert all(stats["clip_low"] > 0 and stats["clip_high"] > 0 and stats["ratio/max"] > 2 for stats in logged)


RIGHT = PolicyLossConfig(loss_type="grpo", epsilon=EPSILON, epsilon_high=EPSILON_HIGH)
WRONG = {
    "loss_type": replace(RIGHT, loss_type="dapo"),
    "epsilon": replace(RIGHT, epsilon=0.1),
    "epsilon_high": replace(RIGHT, epsilon_high=None),
    "delta": replace(RIGHT, delta=1.5),
    "beta": replace(RIGHT, beta=0.01),
    "level": replace(RIGHT, importance_sampling_level="sequence"),
    "entropy": replace(RIGHT, top_entropy_quantile=0.8),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_another_setting_differs(wrong: PolicyLossConfig):
    rows = random_rows(0)
    trl_value, _, _ = trl_loss(RIGHT, rows)
    value, _, _ = our_loss(wrong, rows)
    assert not torch.allclose(value, trl_value, atol=1e-4)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_masked_rows(loss_type: str):
    """grpo and dr_grpo keep TRL's denominators; dapo leaves the masked tokens out of its own (TRL issue #6369)."""
    config = PolicyLossConfig(loss_type=loss_type, beta=0.04, max_completion_length=MAX_LENGTH)
    rows = random_rows(0)
    rows.trained[[1, 3]] = False
    trl_value, trl_grad, _ = trl_loss(config, rows)
    value, grad, _ = our_loss(config, rows)
    correction = 1.0
    if loss_type == "dapo":
        correction = (rows.lengths.sum() / rows.lengths[rows.trained].sum()).item()
        assert correction > 1.2
    torch.testing.assert_close(value, trl_value * correction, **TOLERANCE)
    torch.testing.assert_close(grad, trl_grad * correction, **TOLERANCE)
