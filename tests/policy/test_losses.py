import itertools
from dataclasses import replace

import pytest
import torch

from lcot_plugin.policy.losses import (
    PolicyLossConfig,
    clipped_policy_term,
    entropy_threshold,
    importance_ratio,
    k3_divergence,
    loss_normalizer,
    policy_loss,
)
from lcot_plugin.policy.metrics import MetricSums

CONFIGS = [
    PolicyLossConfig(loss_type=loss_type, importance_sampling_level=level, beta=0.04, max_completion_length=16)
    for loss_type, level in itertools.product(("grpo", "dr_grpo", "dapo"), ("token", "sequence"))
]


def rows(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random keyword arguments of `policy_loss` for completions of these lengths, all trained."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    num_tokens = sum(lengths)
    logps = normal(num_tokens) - 2.0
    return {
        "logps": logps,
        "old_logps": logps + 0.3 * normal(num_tokens),
        "ref_logps": logps + 0.3 * normal(num_tokens),
        "entropies": normal(num_tokens).abs(),
        "advantages": normal(len(lengths)),
        "lengths": torch.tensor(lengths),
        "trained": torch.ones(len(lengths), dtype=torch.bool),
    }


def part(batch: dict[str, torch.Tensor], first: int, last: int) -> dict[str, torch.Tensor]:
    """The sequences first to last - 1."""
    ends = [0, *batch["lengths"].cumsum(0).tolist()]
    tokens = slice(ends[first], ends[last])
    per_sequence = {"advantages", "lengths", "trained"}
    return {name: v[first:last] if name in per_sequence else v[tokens] for name, v in batch.items()}


def value_and_grad(config: PolicyLossConfig, batch: dict, normalizer: float, **kwargs):
    logps = batch["logps"].clone().requires_grad_()
    loss, stats = policy_loss(config, **{**batch, "logps": logps}, normalizer=normalizer, **kwargs)
    loss.backward()
    return loss.detach(), logps.grad, stats


def logged(*parts: dict) -> dict[str, float]:
    """The statistics of these parts together, as the trainer logs them."""
    sums = MetricSums()
    for stats in parts:
        sums.add_statistics(stats)
    return sums.pop_averages()


def test_worked_example_by_hand():
    """Two completions, three tokens; ratios 1.5 (clipped to 1.2), 0.5 and 1.1; advantages 1 and -1."""
    logps = torch.tensor([1.5, 0.5, 1.1]).log()
    batch = {
        "logps": logps,
        "old_logps": torch.zeros(3),
        "advantages": torch.tensor([1.0, -1.0]),
        "lengths": torch.tensor([2, 1]),
        "trained": torch.tensor([True, True]),
    }
    # Tokens: -min(1.5, 1.2) = -1.2; -min(0.5, 0.8) = -0.5; -min(-1.1, -1.1) = 1.1.
    expected = {
        "grpo": ((-1.2 - 0.5) / 2 + 1.1) / 2,
        "dr_grpo": (-1.2 - 0.5 + 1.1) / (2 * 10),
        "dapo": (-1.2 - 0.5 + 1.1) / 3,
    }
    for loss_type, value in expected.items():
        config = PolicyLossConfig(loss_type=loss_type, max_completion_length=10)
        normalizer = loss_normalizer(config, batch["lengths"], batch["trained"])
        loss, grad, stats = value_and_grad(config, batch, normalizer)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert grad[0] == 0.0, "a clipped token passes no gradient"
        assert grad[1] < 0 < grad[2]
        averages = logged(stats)
        assert averages["ratio/max"] == pytest.approx(1.5)
        assert averages["clip_high"] == pytest.approx(1 / 3)
        assert averages["clip_low"] == 0.0


def test_clip_higher_moves_only_the_upper_bound():
    ratio, advantages = torch.tensor([1.5, 0.5]), torch.tensor([1.0, -1.0])
    symmetric = clipped_policy_term(PolicyLossConfig(epsilon=0.2), ratio, advantages)
    higher = clipped_policy_term(PolicyLossConfig(epsilon=0.2, epsilon_high=0.28), ratio, advantages)
    torch.testing.assert_close(symmetric, torch.tensor([-1.2, 0.8]))
    torch.testing.assert_close(higher, torch.tensor([-1.28, 0.8]))


def test_delta_bounds_the_ratio_of_bad_tokens():
    ratio, advantages = torch.tensor([7.0]), torch.tensor([-1.0])
    assert clipped_policy_term(PolicyLossConfig(), ratio, advantages).item() == pytest.approx(7.0)
    assert clipped_policy_term(PolicyLossConfig(delta=2.0), ratio, advantages).item() == pytest.approx(2.0)


def test_sequence_ratio_is_the_geometric_mean_of_the_token_ratios():
    logps, lengths = torch.tensor([2.0, 8.0, 3.0]).log(), torch.tensor([2, 1])
    config = PolicyLossConfig(importance_sampling_level="sequence")
    torch.testing.assert_close(importance_ratio(config, logps, torch.zeros(3), lengths), torch.tensor([4.0, 4.0, 3.0]))


def test_k3_is_unbiased_and_never_negative():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimate = k3_divergence(policy.log(), reference.log())
    assert estimate.min() >= 0
    torch.testing.assert_close((policy * estimate).sum(), (policy * (policy / reference).log()).sum())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_micro_batches_add_up_to_the_whole(config: PolicyLossConfig):
    batch = rows([3, 7, 1, 5, 2])
    batch["trained"][3] = False
    pieces = [part(batch, 0, 1), part(batch, 1, 4), part(batch, 4, 5)]
    normalizer = sum(loss_normalizer(config, p["lengths"], p["trained"]) for p in pieces)
    assert normalizer == loss_normalizer(config, batch["lengths"], batch["trained"])

    whole_loss, whole_grad, whole_stats = value_and_grad(config, batch, normalizer)
    results = [value_and_grad(config, p, normalizer) for p in pieces]
    torch.testing.assert_close(sum(loss for loss, _, _ in results), whole_loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.cat([grad for _, grad, _ in results]), whole_grad, atol=1e-6, rtol=1e-6)
    assert logged(*(stats for _, _, stats in results)) == pytest.approx(logged(whole_stats), abs=1e-6)

    own = [value_and_grad(config, p, loss_normalizer(config, p["lengths"], p["trained"]))[0] for p in pieces]
    assert not torch.isclose(sum(own) / len(own), whole_loss, atol=1e-3), "a mean of micro-batch means must differ"


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_masked_rows_take_no_part(config: PolicyLossConfig):
    batch = rows([3, 7, 4])
    batch["trained"][1] = False
    normalizer = loss_normalizer(config, batch["lengths"], batch["trained"])
    loss, grad, stats = value_and_grad(config, batch, normalizer)
    assert grad[3:10].eq(0.0).all()
    assert grad[:3].ne(0.0).any() and grad[10:].ne(0.0).any()

    poisoned = {name: value.clone() for name, value in batch.items()}
    poisoned["old_logps"][3:10] = -1e4  # the ratio overflows
    poisoned["ref_logps"][3:10] = 1e4
    poisoned["advantages"][1] = torch.nan
    poisoned_loss, poisoned_grad, poisoned_stats = value_and_grad(config, poisoned, normalizer)
    torch.testing.assert_close(poisoned_loss, loss)
    torch.testing.assert_close(poisoned_grad, grad)
    assert logged(poisoned_stats) == pytest.approx(logged(stats))


def test_masked_rows_in_the_denominators():
    lengths, trained = torch.tensor([3, 7, 4]), torch.tensor([True, False, True])
    assert loss_normalizer(PolicyLossConfig(loss_type="grpo"), lengths, trained) == 3
    assert loss_normalizer(PolicyLossConfig(loss_type="dr_grpo", max_completion_length=10), lengths, trained) == 30
    assert loss_normalizer(PolicyLossConfig(loss_type="dapo"), lengths, trained) == 7


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_micro_batch_without_trained_rows_gives_zero_and_a_gradient(config: PolicyLossConfig):
    batch = rows([3, 2])
    batch["trained"][:] = False
    quantile = replace(config, top_entropy_quantile=0.5)
    loss, grad, stats = value_and_grad(quantile, batch, normalizer=0.0)
    assert loss == 0.0
    assert grad.eq(0.0).all()
    assert logged(stats) == {"ratio/max": 0.0}
    other = value_and_grad(quantile, rows([4]), normalizer=4.0)[2]
    assert logged(stats, other) == pytest.approx(logged(other))


def test_entropy_threshold_keeps_the_asked_share():
    entropies = torch.arange(100.0)
    kept = entropies >= entropy_threshold(entropies, 0.2)
    assert kept.sum() == 20
    assert kept[80:].all()


def test_entropy_floor_silences_the_policy_term_but_not_the_divergence():
    batch = rows([2, 2])
    batch["entropies"] = torch.tensor([0.1, 2.0, 3.0, 0.2])
    config = PolicyLossConfig(top_entropy_quantile=0.5)
    grad = value_and_grad(config, {**batch, "old_logps": None}, 4.0, entropy_floor=1.0)[1]
    assert grad.ne(0.0).tolist() == [False, True, True, False]
    by_quantile = value_and_grad(config, {**batch, "old_logps": None}, 4.0)[1]
    torch.testing.assert_close(by_quantile, grad)
    with_kl = value_and_grad(replace(config, beta=0.1), {**batch, "old_logps": None}, 4.0, entropy_floor=1.0)[1]
    assert with_kl.ne(0.0).all()
