"""The losses against TRL 0.24's own `GRPOTrainer._compute_loss`, fed the same numbers padded: values and gradients."""

import itertools
from collections import defaultdict
from types import MethodType, SimpleNamespace

import llamafactory.extras.packages  # noqa: F401  (before trl: on transformers >= 5.3 it is what makes trl importable)
import pytest
import torch
from policy_rows import MAX_LENGTH, Rows, arguments, objective, packs, random_rows, value_and_gradients
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.grpo_trainer import GRPOTrainer

from lcot_plugin.policy.metrics import MetricSums

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}
RANGE = {"epsilon": 0.2, "epsilon_high": 0.28}


def trl_trainer(
    keys: dict, logps: torch.Tensor, entropies: torch.Tensor, num_micro_batches: int, corrected: bool
) -> SimpleNamespace:
    """The attributes `_compute_loss` reads, on one process, with the model's pass replaced by given numbers."""
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda tensor: tensor if tensor.dim() else tensor.unsqueeze(0),
        pad_across_processes=lambda tensor, **_: tensor,
    )
    written = arguments(**keys)
    trainer = SimpleNamespace(
        accelerator=accelerator,
        args=SimpleNamespace(delta=written.grpo_delta),
        model=SimpleNamespace(training=True),
        beta=written.grpo_beta,
        epsilon_low=written.grpo_epsilon,
        epsilon_high=written.grpo_epsilon_high or written.grpo_epsilon,
        loss_type=written.grpo_loss_type,
        importance_sampling_level=written.grpo_importance_sampling_level or "token",
        top_entropy_quantile=written.grpo_top_entropy_quantile,
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=num_micro_batches,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logps, entropies),
    )
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    return trainer


def trl_loss(
    keys: dict, rows: Rows, sizes: tuple[int, ...] | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[float]]]:
    """Value, gradient with respect to the ragged log-probabilities, and the metrics TRL logs.

    sizes: completions of each micro-batch of the optimizer step; None: all in one.
    """
    flat_logps = rows.logps.clone().requires_grad_()
    lengths = rows.lengths

    def padded(values: torch.Tensor, padding: float = 0.0) -> torch.Tensor:
        return pad_sequence(values.split(lengths), batch_first=True, padding_value=padding)

    mask = padded(torch.ones(sum(lengths), dtype=torch.long)) * torch.tensor(rows.trained).unsqueeze(1)
    inputs = {
        "prompt_ids": torch.zeros(len(lengths), 2, dtype=torch.long),
        "prompt_mask": torch.ones(len(lengths), 2, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": rows.advantages,
        "ref_per_token_logps": padded(rows.ref_logps, -0.7),
    }
    if rows.old_logps is not None:
        inputs["old_per_token_logps"] = padded(rows.old_logps, -0.3)
    corrected = "sampler_correction" in keys
    if corrected:
        # As in `_generate_and_score_completions`.
        weights = torch.exp(padded(rows.old_logps) - padded(rows.sampler_logps))
        inputs["importance_sampling_ratio"] = torch.clamp(weights, max=arguments(**keys).grpo_sampler_correction_cap)
    logps, entropies = padded(flat_logps, -0.5), padded(rows.entropies, 9.0)
    sizes = sizes or (len(lengths),)
    loss = torch.zeros(())
    for start, size in zip(itertools.accumulate((0, *sizes)), sizes, strict=False):
        part = slice(start, start + size)
        trainer = trl_trainer(keys, logps[part], entropies[part], len(sizes), corrected)
        batch = {name: values[part] for name, values in inputs.items()}
        batch["num_items_in_batch"] = torch.tensor(sum(lengths))  # before the masking, as in TRL 0.24's `_generate`
        loss = loss + GRPOTrainer._compute_loss(trainer, None, batch)
    loss.backward()
    return loss.detach(), flat_logps.grad, trainer._metrics["train"]


def our_loss(keys: dict, rows: Rows, micro_batch_size: int | None = None) -> tuple[torch.Tensor, torch.Tensor, dict]:
    made = objective(**keys)
    terms = packs(made, rows, micro_batch_size=micro_batch_size or len(rows.lengths))[0]
    value, gradient, statistics = value_and_gradients(made, terms)
    sums = MetricSums()
    sums.add_statistics(statistics)
    whole = torch.zeros_like(rows.logps)
    whole[torch.tensor(rows.trained).repeat_interleave(torch.tensor(rows.lengths))] = gradient
    return value, whole, sums.pop_averages()


LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
GRID = [
    pytest.param(
        {
            "loss_type": loss_type,
            "importance_sampling_level": level,
            "beta": beta,
            "delta": delta,
            "top_entropy_quantile": quantile,
            **RANGE,
        },
        with_old,
        id=f"{loss_type}-{level}-beta{beta}-delta{delta}-entropy{quantile}-{'old' if with_old else 'on_policy'}",
    )
    for loss_type, level, beta, delta, quantile, with_old in itertools.product(
        LOSS_TYPES, ("token", "sequence"), (0.0, 0.04), (None, 2.0), (1.0, 0.5), (True, False)
    )
]


@pytest.mark.parametrize(("keys", "with_old"), GRID)
def test_values_and_gradients(keys: dict, with_old: bool):
    for seed in range(4):
        rows = random_rows(seed, with_old=with_old)
        trl_value, trl_gradient, trl_metrics = trl_loss(keys, rows)
        value, gradient, logged = our_loss(keys, rows)
        assert trl_gradient.abs().max() > 1e-3
        torch.testing.assert_close(value, trl_value, **TOLERANCE)
        torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)
        for ours, theirs in {
            "clip_low": "clip_ratio/low_mean",
            "clip_high": "clip_ratio/high_mean",
            "clip_region": "clip_ratio/region_mean",
            "entropy": "entropy",
        }.items():
            assert logged[ours] == pytest.approx(trl_metrics[theirs][0], abs=1e-6)
        if keys["beta"]:
            assert logged["kl"] == pytest.approx(trl_metrics["kl"][0], abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches(loss_type: str):
    """An optimizer step of three micro-batches, accumulated as TRL does: only bnpo depends on how they are cut."""
    keys = {"loss_type": loss_type, "beta": 0.04, **RANGE}
    rows = random_rows(1)
    trl_value, trl_gradient, _ = trl_loss(keys, rows, sizes=(2, 2, 2))
    value, gradient, _ = our_loss(keys, rows, micro_batch_size=2)
    torch.testing.assert_close(value, trl_value, **TOLERANCE)
    torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)
    other_cut = our_loss(keys, rows, micro_batch_size=3)[0]
    assert torch.allclose(other_cut, trl_value, atol=1e-4) is (loss_type != "bnpo")


def test_gspo_is_trls_sequence_level():
    keys = {"loss_type": "grpo", "importance_sampling_level": "sequence", **RANGE}
    for seed in range(4):
        rows = random_rows(seed)
        trl_value, trl_gradient, _ = trl_loss(keys, rows)
        value, gradient, _ = our_loss({"loss_type": "gspo", **RANGE}, rows)
        torch.testing.assert_close(value, trl_value, **TOLERANCE)
        torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)


@pytest.mark.parametrize("cap", [1.0, 2.0])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_truncated_importance_sampling(loss_type: str, cap: float):
    keys = {
        "loss_type": loss_type,
        "beta": 0.04,
        "sampler_correction": "token_truncate",
        "sampler_correction_cap": cap,
    }
    rows = random_rows(0)
    trl_value, trl_gradient, _ = trl_loss(keys, rows)
    value, gradient, logged = our_loss(keys, rows)
    assert logged["sampler_weight_capped"] > 0
    torch.testing.assert_close(value, trl_value, **TOLERANCE)
    torch.testing.assert_close(gradient, trl_gradient, **TOLERANCE)


def test_the_numbers_reach_every_branch():
    """Without this the grid could pass on ratios that nothing clips."""
    logged = [our_loss(RANGE, random_rows(seed))[2] for seed in range(4)]
    assert all(stats["clip_low"] > 0 and stats["clip_high"] > 0 and stats["ratio/max"] > 2 for stats in logged)


RIGHT = {"loss_type": "grpo", **RANGE}
WRONG = {
    "loss_type": {"loss_type": "dapo"},
    "epsilon": {"epsilon": 0.1},
    "epsilon_high": {"epsilon_high": None},
    "delta": {"delta": 1.5},
    "beta": {"beta": 0.01},
    "level": {"importance_sampling_level": "sequence"},
    "entropy": {"top_entropy_quantile": 0.8},
    "correction": {"sampler_correction": "token_truncate"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_another_setting_differs(wrong: dict):
    rows = random_rows(0)
    trl_value = trl_loss(RIGHT, rows)[0]
    value = our_loss({**RIGHT, **wrong}, rows)[0]
    assert not torch.allclose(value, trl_value, atol=1e-4)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_rows(loss_type: str):
    """All but dapo keep TRL's denominators; dapo leaves the masked tokens out of its own (TRL issue #6369)."""
    keys = {"loss_type": loss_type, "beta": 0.04}
    rows = random_rows(0)
    rows.trained[1] = rows.trained[3] = False
    trl_value, trl_gradient, _ = trl_loss(keys, rows)
    value, gradient, _ = our_loss(keys, rows)
    correction = 1.0
    if loss_type == "dapo":
        kept = sum(length for length, trained in zip(rows.lengths, rows.trained, strict=True) if trained)
        correction = sum(rows.lengths) / kept
        assert correction > 1.1
    torch.testing.assert_close(value, trl_value * correction, **TOLERANCE)
    torch.testing.assert_close(gradient, trl_gradient * correction, **TOLERANCE)
