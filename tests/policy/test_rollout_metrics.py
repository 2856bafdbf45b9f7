"""The metrics of hand-made groups, alone and over two processes."""

from __future__ import annotations

import pytest
import torch

from lcot_plugin.policy import metrics
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.rollout_metrics import add_rollout_metrics
from lcot_plugin.types import Completion, EncodedPrompt, Ending, Outcome, PromptRecord, RolloutGroup, Score, Verdict

NAN = float("nan")
RIGHT, WRONG, NONE, NO_GOLD, LATE = (
    Outcome.MATCHED,
    Outcome.MISMATCHED,
    Outcome.UNPARSABLE,
    Outcome.GOLD_UNPARSABLE,
    Outcome.TIMED_OUT,
)


def group(source: str, lengths: list[int], limit: int = 10) -> RolloutGroup:
    """Completions of `limit` tokens are truncated."""
    completions = [
        Completion([7] * n, [-1.0] * n, Ending.TRUNCATED if n == limit else Ending.STOPPED, "") for n in lengths
    ]
    return RolloutGroup(EncodedPrompt(PromptRecord([1], [], "?", "3", source, 0), {}), completions)


def scores(outcomes: list[Outcome | None], rewards: list[float]) -> list[Score]:
    return [
        Score({"accuracy": None if r != r else r}, None if r != r else r, None if o is None else Verdict(o))
        for o, r in zip(outcomes, rewards, strict=True)
    ]


GROUPS = [group("geo", [2, 4]), group("geo", [10, 10]), group("chart", [3, 10]), group("chart", [5, 6])]
OUTCOMES = [RIGHT, RIGHT, WRONG, NONE, RIGHT, LATE, NO_GOLD, NO_GOLD]
REWARDS = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, NAN, NAN]


def measured(
    groups: list[RolloutGroup], outcomes: list[Outcome | None], rewards: list[float], **options: bool
) -> MetricSums:
    sums = MetricSums()
    table = torch.tensor(rewards).view(len(groups), -1)
    add_rollout_metrics(sums, groups, scores(outcomes, rewards), table, {"reward_errors/mine": 2}, **options)
    return sums


def test_every_metric() -> None:
    assert measured(GROUPS, OUTCOMES, REWARDS).pop_averages() == pytest.approx(
        {
            "reward": 3 / 6,
            "reward_std": (0 + 0 + 0.5**0.5) / 3,
            "reward/geo": 2 / 4,
            "reward/chart": 1 / 2,
            "rewards/accuracy": 3 / 6,
            "accuracy": 3 / 6,
            "groups_without_variance": 3 / 4,
            "groups_all_right": 1 / 3,
            "groups_all_wrong": 1 / 3,
            "verdicts/unparsable": 1 / 8,
            "verdicts/gold_unparsable": 2 / 8,
            "verdicts/timed_out": 1 / 8,
            "completions/length": 50 / 8,
            "completions/length/min": 2,
            "completions/length/max": 10,
            "completions/length/right": (2 + 4 + 3) / 3,
            "completions/length/wrong": 10,
            "completions/truncated": 3 / 8,
            "completions/truncated/right": 0,
            "completions/truncated/wrong": 1,
            "reward_errors/mine": 2 / 8,
        }
    )


def test_one_data_set_has_no_rewards_of_its_own() -> None:
    found = measured(GROUPS, OUTCOMES, REWARDS, by_source=False).pop_averages()
    assert "reward" in found and not [name for name in found if name.startswith("reward/")]


def test_without_gold_answers_nothing_is_judged() -> None:
    found = measured(GROUPS, [None] * 8, [0.5] * 8).pop_averages()
    assert found["reward"] == 0.5
    assert not [name for name in found if name.startswith(("accuracy", "verdicts", "groups_all"))]
    assert not [name for name in found if name.endswith(("/right", "/wrong"))]


def test_a_group_that_is_all_wrong_may_have_variance() -> None:
    found = measured([group("geo", [2, 4])], [WRONG, NONE], [0.2, 0.0]).pop_averages()
    assert (found["groups_all_wrong"], found["groups_without_variance"]) == (1, 0)


def test_a_completion_without_a_verdict_does_not_spoil_its_group() -> None:
    found = measured([group("geo", [2, 4])], [RIGHT, NO_GOLD], [1.0, NAN]).pop_averages()
    assert (found["groups_all_right"], found["accuracy"]) == (1, 1)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_ranks_and_rollouts_add_up(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the groups are shared out, unequally too, the averages are those of all of them."""
    whole = measured(GROUPS, OUTCOMES, REWARDS).pop_averages()
    parts = [
        measured(GROUPS[part], OUTCOMES[slice(2 * part.start, 2 * part.stop)], REWARDS[2 * part.start : 2 * part.stop])
        for part in (slice(0, cut), slice(cut, 4))
    ]
    monkeypatch.setattr(metrics, "gather_object", lambda own: [*own, parts[1]._sums])
    merged = parts[0].pop_averages()
    # Each part counts its own reward errors.
    assert merged.pop("reward_errors/mine") == 2 * whole.pop("reward_errors/mine")
    assert merged == pytest.approx(whole)


def test_a_process_without_groups_adds_nothing() -> None:
    sums = MetricSums()
    add_rollout_metrics(sums, [], [], torch.empty(0, 2), {})
    assert sums.pop_averages() == {}
