"""Every metric that a run logs has its panel, or is named as one that has none."""

from __future__ import annotations

import math
import re

import pytest
from report_folders import metrics

from lcot_plugin.report.health import PANELS
from lcot_plugin.report.panels import GROUPS, columns_of, compared_panels, curves, matches, not_drawn, run_panels


def titles(*arguments: object, **keys: object) -> list[str]:
    return [panel.title for panel in run_panels(*arguments, **keys)]  # type: ignore[arg-type]


def test_a_grpo_run_has_its_panels_the_most_telling_first() -> None:
    found = titles(metrics(40, every=10), "grpo")
    assert found[:3] == ["Reward", "Reward functions", "Accuracy"]
    assert {"Length of completions", "Entropy of a token", "Loss", "Phase times", "Peak memory"} <= set(found)


def test_sft_begins_with_the_loss() -> None:
    logs = [{"step": step, "loss": 3.0 / step, "learning_rate": 1e-4, "pack/fill": 0.98} for step in range(1, 9)]
    assert titles(logs, "sft") == ["Loss", "Learning rate", "Packing"]


def test_what_was_not_logged_or_is_zero_throughout_has_no_panel() -> None:
    assert titles([]) == []
    assert titles([{"step": 1, "kl": 0.0}, {"step": 2, "kl": 0.0}]) == []


def test_what_no_panel_shows_is_named() -> None:
    assert not_drawn(metrics(3)) == ["my_own_number"]


def test_every_metric_of_the_health_plot_is_drawn_here_too() -> None:
    patterns = [pattern for group in GROUPS for pattern, _ in group.metrics]
    wanted = [name.replace("*", "x") for panel in PANELS for name, _ in panel.metrics]
    assert [name for name in wanted if not any(matches(pattern, name) for pattern in patterns)] == []


def test_shares_are_percent_beside_evaluations_that_are() -> None:
    group = next(group for group in GROUPS if group.title == "Accuracy")
    logged = columns_of([{"step": 1, "accuracy": 0.5, "eval_accuracy": 40.0}])
    found = {curve.metric: curve.values for curve in curves(group, logged)}
    assert found == {"accuracy": [50.0], "eval_accuracy": [40.0]}


def test_evaluations_of_several_sets_are_told_apart() -> None:
    (panel,) = run_panels([{"step": 1, "eval_geo_accuracy": 30.0, "eval_demo_accuracy": 50.0}])
    assert ">geo accuracy " in panel.svg and ">demo accuracy " in panel.svg


def test_infinite_values_leave_gaps() -> None:
    (panel,) = run_panels([{"step": s, "loss": math.inf if s == 2 else 1.0 / s} for s in (1, 2, 3)], "sft")
    assert "1 of 3 values are missing or not finite" in panel.svg


def test_compared_runs_have_a_line_each() -> None:
    panels = compared_panels({"one": metrics(10), "<two>": metrics(10, seed=1), "sft": [{"step": 1, "loss": 1.0}]})
    reward = next(panel for panel in panels if panel.title == "Reward")
    loss = next(panel for panel in panels if panel.title == "Loss")
    assert re.findall(r"</span>(one|&lt;two&gt;|sft) <b>", reward.svg) == ["one", "&lt;two&gt;"]
    assert re.findall(r"</span>(one|&lt;two&gt;|sft) <b>", loss.svg) == ["one", "&lt;two&gt;", "sft"]


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("reward/*", "reward/geo", True),
        ("reward/*", "reward/", False),
        ("reward", "reward_std", False),
        ("eval_*accuracy", "eval_geo_accuracy", True),
        ("eval_*accuracy", "eval_accuracy_stderr", False),
        ("eval_*avg@*", "eval_avg@4", True),
        ("eval_*avg@*", "eval_avg@", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits
