"""Alarms are raised by runs that go wrong, each by its own, and not by healthy ones however noisy they are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.policy.health import FIRST, LONG, OVER, RECENT, RULES, Alarm, HealthMonitor
from lcot_plugin.rewards.functions.registry import REWARDS

Log = dict[str, float]


def healthy_run(seed: int, num_logs: int = 200, num_prompts: int = 8, num_generations: int = 8) -> list[Log]:
    """A run that learns: right or wrong answers to problems of all difficulties are really drawn, everything else is a
    trend with noise of its usual size and tail."""
    draw = np.random.default_rng(seed)
    difficulty_offset, slope = draw.normal(-0.5, 1.0), draw.uniform(0.0, 3.0)
    logs = []
    for index in range(num_logs):
        progress = index / num_logs
        chance = 1 / (1 + np.exp(-(draw.normal(difficulty_offset, 1.5, num_prompts) + slope * progress)))
        right = draw.random((num_prompts, num_generations)) < chance[:, None]
        logs.append(
            {
                "loss": draw.normal(0, 0.01),
                "grad_norm": 0.3 * math.exp(draw.normal(0, 0.5)),
                "reward": right.mean(),
                "accuracy": right.mean(),
                "reward_std": right.std(1, ddof=1).mean(),
                "groups_without_variance": (right.all(1) | ~right.any(1)).mean(),
                "groups_all_right": right.all(1).mean(),
                "groups_all_wrong": (~right.any(1)).mean(),
                "entropy": 0.4 * math.exp(-1.5 * progress + draw.normal(0, 0.1)),
                "kl": 0.05 * progress * math.exp(draw.normal(0, 0.7)),
                "clip_region": 0.02 * math.exp(draw.normal(0, 0.5)),
                "ratio/max": 1 + math.exp(draw.normal(0.5, 0.7)),
                "sampler_gap": 0.01 * math.exp(draw.normal(0, 0.2)),
                "sampler_gap/max": math.exp(draw.normal(-0.5, 0.4)),
                "completions/length": 300 * math.exp(0.8 * progress + draw.normal(0, 0.15)),
                "completions/truncated": draw.binomial(num_prompts * num_generations, 0.15) / right.size,
                "verdicts/unparsable": 0.2 * (1 - progress),
                "verdicts/timed_out": draw.binomial(right.size, 0.01) / right.size,
                "verdicts/gold_unparsable": 0.0,
            }
        )
    return logs


def watch(logs: list[Log], monitor: HealthMonitor | None = None, first_step: int = 1) -> list[Alarm]:
    monitor = monitor or HealthMonitor()
    return [alarm for step, log in enumerate(logs, first_step) for alarm in monitor.observe(step, log)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_prompts", [4, 32])
def test_a_healthy_run_raises_none(seed: int, num_prompts: int) -> None:
    assert watch(healthy_run(seed, num_prompts=num_prompts)) == []


def test_a_poor_run_is_not_a_sick_one() -> None:
    """Few problems are in reach, most groups teach nothing, and the reward neither rises nor falls."""
    draw = np.random.default_rng(0)
    logs = healthy_run(0)
    for log in logs:
        right = draw.random((8, 8)) < np.where(draw.random(8) < 0.25, 0.3, 0.0)[:, None]
        share = float((~right.any(1)).mean())
        log |= {"reward": right.mean(), "groups_without_variance": share, "groups_all_wrong": share}
    assert watch(logs) == []


def test_a_model_that_learns_to_stop_is_well() -> None:
    logs = healthy_run(1)
    for index, log in enumerate(logs):
        progress = min(1.0, index / 50)
        log |= {
            "completions/length": 1000 - 900 * progress,
            "completions/truncated": 0.7 * (1 - progress),
            "reward": 0.1 + 0.5 * progress,
        }
    assert watch(logs) == []


def always(**values: float) -> Callable[[int], Log]:
    return lambda index: {name.replace("__", "/"): value for name, value in values.items()}


NOW = 100
"""Log from which on things go wrong."""
SICK: dict[str, Callable[[int], Log]] = {
    "entropy_collapse": lambda index: {"entropy": 0.2 * 0.8**index},
    "entropy_explosion": lambda index: {"entropy": 0.2 + 0.05 * index},
    "all_truncated": always(completions__truncated=0.9),
    "length_runaway": always(completions__truncated=0.6, completions__length=1500.0),
    "length_collapse": lambda index: {"completions/length": 12.0, "reward": 0.1},
    "reward_flat_low": always(
        reward=0.0, accuracy=0.0, groups_without_variance=1.0, groups_all_wrong=1.0, groups_all_right=0.0
    ),
    "reward_flat_high": always(
        reward=1.0, accuracy=1.0, groups_without_variance=1.0, groups_all_wrong=0.0, groups_all_right=1.0
    ),
    "reward_flat": always(reward=0.4, groups_without_variance=1.0, groups_all_wrong=0.6, groups_all_right=0.4),
    "reward_falling": lambda index: {"reward": max(0.0, 0.5 - 0.02 * index)},
    "sampler_gap": always(sampler_gap=0.08),
    "clip_fraction": always(clip_region=0.4),
    "ratio_explosion": always(ratio__max=4000.0),
    "kl_explosion": lambda index: {"kl": 0.05 * 1.3**index},
    "not_finite": always(grad_norm=math.nan),
    "gradient_spike": lambda index: {"grad_norm": 30.0} if index == 0 else {},
    "verdicts_timed_out": always(verdicts__timed_out=0.4),
    "gold_unparsable": always(verdicts__gold_unparsable=0.3),
}
ALSO = {
    "reward_flat_low": {"reward_falling"},
    "length_collapse": {"reward_falling"},
    "all_truncated": {"length_runaway"},
}
"""What a rule's case may raise beside it: a reward that is flat at its lowest fell, a length was half way there."""


def sick_run(name: str, num_logs: int = 200) -> list[Log]:
    """Healthy for NOW logs. Its reward rises then, whatever the seed's problems are."""
    logs = healthy_run(3, num_logs)
    for index, log in enumerate(logs):
        if index < NOW:
            log["reward"] = 0.2 + 0.3 * index / NOW + 0.05 * math.sin(index)
        else:
            log |= {"reward": 0.5} | SICK[name](index - NOW)
    return logs


@pytest.mark.parametrize("name", SICK)
def test_each_alarm_is_raised_once_by_its_own_run(name: str) -> None:
    alarms = watch(sick_run(name))
    assert [alarm.name for alarm in alarms].count(name) == 1
    assert {alarm.name for alarm in alarms} - {name} <= ALSO.get(name, set())
    (alarm,) = [alarm for alarm in alarms if alarm.name == name]
    assert NOW < alarm.step <= NOW + 2 * LONG
    assert re.search(r"\d", alarm.message), "its numbers"
    assert "nan" not in alarm.message.replace("NaN", "")


def test_there_is_a_case_for_every_rule() -> None:
    assert [rule.name for rule in RULES] == list(SICK)


@pytest.mark.parametrize("key", ["grad_norm", "loss"])
def test_what_is_not_finite(key: str) -> None:
    """Two logs may be an fp16 loss scaler that looks for its scale."""
    logs = healthy_run(0, 30)
    for log in logs[:2]:
        log[key] = math.inf
    assert watch(logs) == []
    logs[2][key] = math.nan
    assert [(alarm.name, alarm.step) for alarm in watch(logs)] == [("not_finite", 3)]


def test_the_largest_gap_counts_by_its_median() -> None:
    logs = healthy_run(0, 60)
    for log in logs[20:22]:
        log["sampler_gap/max"] = 30.0
    assert watch(logs) == []
    for log in logs[40:]:
        log["sampler_gap/max"] = 30.0
    assert [alarm.name for alarm in watch(logs)] == ["sampler_gap"]


def test_steps_without_variance_do_not_set_the_usual_gradient_norm() -> None:
    """With a KL term such a step has a tiny gradient, beside which every other one would be a spike."""
    logs = healthy_run(0, 60)
    for index, log in enumerate(logs):
        if index % 4:
            log |= {"groups_without_variance": 1.0, "grad_norm": 1e-4}
    assert "gradient_spike" not in {alarm.name for alarm in watch(logs)}
    assert watch([{"grad_norm": log["grad_norm"]} for log in logs]), "without that knowledge they are spikes"


def test_a_cold_model_without_much_entropy_is_not_a_collapse() -> None:
    logs = healthy_run(0)
    for index, log in enumerate(logs):
        log["entropy"] = 0.03 - 0.015 * index / len(logs)
    assert watch(logs) == []


def test_an_alarm_comes_again_after_it_was_over() -> None:
    def steps(pause: int) -> list[int]:
        shares = [0.9] * 20 + [0.1] * pause + [0.9] * 20
        return [alarm.step for alarm in watch([{"completions/truncated": share} for share in shares])]

    assert steps(pause=RECENT) == [RECENT]
    assert len(steps(pause=OVER + 2 * RECENT)) == 2


def test_logs_without_a_metric_change_nothing() -> None:
    """Of several optimizer steps on one rollout only the first one logs it."""
    logs = [{"completions/truncated": 0.9}] * RECENT
    thin = [log for full in logs for log in (full, *[{"loss": 0.1}] * OVER)]
    assert [alarm.name for alarm in watch(thin)] == ["all_truncated"]


@pytest.mark.parametrize("name", SICK)
@pytest.mark.parametrize("stop", [NOW - 3, NOW + 2, NOW + FIRST, NOW + 2 * LONG])
def test_a_resumed_run_raises_what_a_whole_one_does(name: str, stop: int) -> None:
    logs = sick_run(name)
    first, second, whole = HealthMonitor(), HealthMonitor(), HealthMonitor()
    before = watch(logs[:stop], first)
    second.take_up(json.loads(json.dumps(first.state())))
    assert before + watch(logs[stop:], second, stop + 1) == watch(logs, whole)
    assert second.summary() == whole.summary()
    assert second.state() == whole.state()


def test_a_state_is_a_copy() -> None:
    monitor = HealthMonitor()
    watch(sick_run("all_truncated")[: NOW + 3], monitor)
    state = monitor.state()
    before = json.dumps(state)
    assert watch(sick_run("all_truncated")[NOW + 3 :], monitor)
    assert json.dumps(state) == before


def test_summary() -> None:
    monitor = HealthMonitor()
    assert monitor.summary() == "Health: no alarms in 0 logs."
    watch([{"completions/truncated": 0.9}] * 9, monitor)
    assert monitor.summary() == "Health: 1 alarm in 9 logs: all truncated at step 5 (to the end)."
    watch([{"completions/truncated": 0.0}] * 20, monitor, 10)
    watch([{"sampler_gap": 0.3, "sampler_gap/max": 1.0}] * 5, monitor, 30)
    assert monitor.summary() == (
        "Health: 2 alarms in 34 logs: all truncated at step 5 (passed), sampler gap at step 34 (to the end)."
    )


def test_an_alarm_in_words() -> None:
    (alarm,) = watch([{"verdicts/timed_out": 0.25}] * RECENT)
    assert str(alarm).startswith(
        "Step 5, verdicts timed out: 25% of the verdicts ran out of time, which counts as wrong. Right answers may be"
    )


def test_the_keys_that_are_named_exist() -> None:
    for rule in RULES:
        words = set(re.findall(r"grpo_\w+", rule.advice))
        assert words <= set(vars(GrpoArguments())), rule.name
    assert {"soft_overlong", "format_think_boxed"} <= set(REWARDS)
