"""Every estimator against loops over the rewards that were given."""

import math
import statistics

import pytest
import torch
from policy_rows import arguments

from lcot_plugin.policy.advantages import RewardTable, compute_advantages, has_variance

NAN = float("nan")
EPSILON = 1e-4
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}

ESTIMATORS = {
    "group": {},
    "group-batch": {"scale_rewards": "batch"},
    "group-none": {"scale_rewards": "none"},
    "rloo": {"advantage": "rloo"},
    "reinforce_pp": {"advantage": "reinforce_pp"},
    "reinforce_pp_baseline": {"advantage": "reinforce_pp_baseline"},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
}
WITHOUT_BASELINE = {"reinforce_pp"}


def table_of(totals: torch.Tensor) -> RewardTable:
    """One reward function."""
    return RewardTable(totals, totals.unsqueeze(-1), torch.ones(1))


def random_table(seed: int, missing: bool = True) -> RewardTable:
    """5 prompts, 6 completions, 3 rewards; where `missing`, some abstain, one completion has none, one group few."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.rand(5, 6, 3, generator=generator, dtype=torch.float64)
    parts[..., 0] = parts[..., 0].round()
    weights = torch.tensor([1.0, 0.5, -0.2], dtype=torch.float64)
    if missing:
        parts[torch.rand(parts.shape, generator=generator) < 0.15] = NAN
        parts[0, 1] = NAN
        parts[1, 1:] = NAN
    totals = torch.where(parts.isnan().all(-1), NAN, (parts.nan_to_num(0.0) * weights).sum(-1))
    parts[2] = parts[2, :1]  # a group whose rewards do not differ
    totals[2] = totals[2, :1]
    if missing:
        totals[3, 2] = NAN  # a completion with rewards that must not be trained on
    return RewardTable(totals, parts, weights)


def plain_group(row: list[float], scale: float | None = None) -> list[float]:
    """r - mean over r's standard deviation, or over `scale`; 0 where there is nothing to compare."""
    given = [r for r in row if not math.isnan(r)]
    if len(given) < 2 or min(given) == max(given):
        return [0.0] * len(row)
    mean = sum(given) / len(given)
    by = statistics.stdev(given) + EPSILON if scale is None else scale
    return [0.0 if math.isnan(r) else (r - mean) / by for r in row]


def plain_advantages(name: str, table: RewardTable) -> list[list[float]]:
    rows = table.totals.tolist()
    everything = [r for row in rows for r in row if not math.isnan(r)]
    if name == "group":
        return [plain_group(row) for row in rows]
    if name == "group-batch":
        return [plain_group(row, statistics.stdev(everything) + EPSILON) for row in rows]
    if name == "group-none":
        return [plain_group(row, 1.0) for row in rows]
    if name == "rloo":
        result = []
        for row in rows:
            values = []
            for index, r in enumerate(row):
                others = [x for j, x in enumerate(row) if j != index and not math.isnan(x)]
                values.append(r - sum(others) / len(others) if others and not math.isnan(r) else 0.0)
            result.append(values)
        return result
    if name == "reinforce_pp":
        mean, by = sum(everything) / len(everything), statistics.stdev(everything) + EPSILON
        return [[0.0 if math.isnan(r) else (r - mean) / by for r in row] for row in rows]
    if name == "reinforce_pp_baseline":
        centred = [plain_group(row, 1.0) for row in rows]
        values = [
            c for c_row, row in zip(centred, rows, strict=True) for c, r in zip(c_row, row, strict=True) if r == r
        ]
        by = statistics.stdev(values) + EPSILON
        return [[c / by for c in row] for row in centred]
    summed = [[0.0] * len(row) for row in rows]
    for f, weight in enumerate(table.weights.tolist()):
        for p, row in enumerate(rows):
            part = [NAN if math.isnan(r) else table.parts[p, g, f].item() for g, r in enumerate(row)]
            for g, advantage in enumerate(plain_group(part)):
                summed[p][g] += weight * advantage
    values = [s for s_row, row in zip(summed, rows, strict=True) for s, r in zip(s_row, row, strict=True) if r == r]
    mean, by = sum(values) / len(values), statistics.stdev(values) + EPSILON
    return [
        [0.0 if math.isnan(r) else (s - mean) / by for s, r in zip(s_row, row, strict=True)]
        for s_row, row in zip(summed, rows, strict=True)
    ]


@pytest.mark.parametrize("missing", [False, True], ids=["all_given", "missing"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_equals_the_plain_loops(name: str, missing: bool):
    for seed in range(3):
        table = random_table(seed, missing)
        ours = compute_advantages(arguments(**ESTIMATORS[name]), table)
        expected = torch.tensor(plain_advantages(name, table), dtype=torch.float64)
        torch.testing.assert_close(ours, expected, **TOLERANCE)
        for other in ESTIMATORS.keys() - {name}:
            wrong = torch.tensor(plain_advantages(other, table), dtype=torch.float64)
            assert not torch.allclose(ours, wrong, atol=1e-2), other


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_completion_without_a_reward_gets_exactly_zero(name: str):
    table = random_table(0)
    advantages = compute_advantages(arguments(**ESTIMATORS[name]), table)
    assert advantages[table.totals.isnan()].eq(0.0).all()
    assert advantages.isfinite().all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_rewards_give_exactly_zero_where_the_group_is_the_baseline(name: str):
    rewards = torch.full((3, 7), 0.1)
    rewards[0, 0] = 1.0
    advantages = compute_advantages(arguments(**ESTIMATORS[name]), table_of(rewards))
    assert advantages[0].abs().min() > 0.01
    if name in WITHOUT_BASELINE:
        assert advantages[1:].lt(-0.1).all(), "below the batch's mean"
    else:
        assert advantages[1:].eq(0.0).all()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("rewards", [[[0.1] * 7] * 3, [[NAN] * 7] * 3, [[NAN, 0.3, NAN], [NAN] * 3]])
def test_nothing_to_compare_gives_exactly_zero(name: str, rewards: list[list[float]]):
    assert compute_advantages(arguments(**ESTIMATORS[name]), table_of(torch.tensor(rewards))).eq(0.0).all()


def test_rloo_by_hand():
    advantages = compute_advantages(arguments(advantage="rloo"), table_of(torch.tensor([[1.0, 0.0, 0.0, NAN]])))
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -0.5, -0.5, 0.0]]))


def test_gdpo_sees_what_a_sum_hides():
    """Rewards that add up to the same say nothing together, and something each."""
    parts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    table = RewardTable(parts @ torch.tensor([1.0, 0.5]), parts, torch.tensor([1.0, 0.5]))
    by_sum = compute_advantages(arguments(), table)
    gdpo = compute_advantages(arguments(multi_objective_aggregation="normalize_then_sum"), table)
    torch.testing.assert_close(by_sum[0], by_sum[1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(gdpo[1], 3 * gdpo[0])


def trl_advantages(rewards: torch.Tensor, scale: str) -> torch.Tensor:
    """The advantages as TRL 0.24 computes them inside `GRPOTrainer._generate_and_score_completions`."""
    num_generations = rewards.size(1)
    flat = rewards.flatten()
    mean = flat.view(-1, num_generations).mean(dim=1).repeat_interleave(num_generations)
    advantages = flat - mean
    if scale == "group":
        std = flat.view(-1, num_generations).std(dim=1).repeat_interleave(num_generations)
    else:
        std = flat.std().expand_as(flat)
    if scale != "none":
        advantages = advantages / (std + 1e-4)
    return advantages.view_as(rewards)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equals_trl_where_every_reward_is_given(scale: str, seed: int):
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(seed))
    ours = compute_advantages(arguments(scale_rewards=scale), table_of(rewards))
    torch.testing.assert_close(ours, trl_advantages(rewards, scale), **TOLERANCE)


def test_rounding_noise_is_not_blown_up():
    rewards = torch.full((1, 7), 0.1)
    assert trl_advantages(rewards, "group").abs().max() > 1e-6, "no rounding noise here: the test shows nothing"
    assert compute_advantages(arguments(), table_of(rewards)).eq(0.0).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_missing_reward_is_as_if_the_completion_were_not_there(name: str):
    def advantages(rewards: list[list[float]]) -> torch.Tensor:
        return compute_advantages(arguments(**ESTIMATORS[name]), table_of(torch.tensor(rewards)))

    with_gap = advantages([[1.0, NAN, 0.0, 0.25], [0.0, 0.0, NAN, 1.0]])
    without = advantages([[1.0, 0.0, 0.25], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(with_gap[0, [0, 2, 3]], without[0])
    torch.testing.assert_close(with_gap[1, [0, 1, 3]], without[1])
    as_zero = advantages([[1.0, 0.0, 0.0, 0.25], [0.0, 0.0, 0.0, 1.0]])
    assert not torch.allclose(with_gap, as_zero, atol=1e-2)


def test_groups_that_teach_nothing_have_no_variance():
    rewards = torch.tensor([[0.0, 0.0, 0.0], [1.0, NAN, 1.0], [NAN, 0.5, NAN], [NAN, NAN, NAN], [0.0, NAN, 1.0]])
    assert has_variance(rewards).tolist() == [False, False, False, False, True]
