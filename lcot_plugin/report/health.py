"""The log of a GRPO run as one picture: is it learning, and is it well?

In: the trainer's `log_history` and the alarms of the health monitor. Out: health.png; what was not logged has no panel.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEALTH_PLOT = "health.png"
BLUE, RED, GREEN, ORANGE, PURPLE, GREY = "#1f77b4", "#d62728", "#2f8f5b", "#d8a03c", "#8064a2", "#7f7f7f"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY)
LETTERS_PER_COLUMN = 50
"""Of panels, in a line of the title."""
SMOOTHED_FROM = 30
"""Logs from which a running mean is drawn over the values."""


class AlarmMark(Protocol):
    """What is drawn of an alarm."""

    @property
    def name(self) -> str: ...

    @property
    def step(self) -> int: ...


class Panel(NamedTuple):
    """Metrics that share an axis."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    """(name, label); a name that ends with * stands for all that begin so, labelled with the rest."""
    limits: tuple[float | None, float | None] = (None, None)
    logarithmic: bool = False


PANELS = (
    Panel(
        "Reward and accuracy",
        "mean",
        (("reward", "reward"), ("reward/*", ""), ("accuracy", "accuracy"), ("eval_accuracy", "evaluation")),
    ),
    Panel(
        "Length of completions",
        "tokens",
        (
            ("completions/length", "mean"),
            ("completions/length/right", "right"),
            ("completions/length/wrong", "wrong"),
            ("completions/length/max", "longest"),
            ("completions/length/min", "shortest"),
        ),
        (0, None),
    ),
    Panel(
        "Truncated completions",
        "share",
        (
            ("completions/truncated", "of all"),
            ("completions/truncated/right", "of the right"),
            ("completions/truncated/wrong", "of the wrong"),
        ),
        (-0.02, 1.02),
    ),
    Panel(
        "Groups that teach nothing",
        "share",
        (
            ("groups_without_variance", "without variance"),
            ("groups_all_right", "all right"),
            ("groups_all_wrong", "all wrong"),
        ),
        (-0.02, 1.02),
    ),
    Panel("Verdicts", "share", (("verdicts/*", ""), ("reward_errors/*", "errors of ")), (0, None)),
    Panel("Entropy of a token", "nats", (("entropy", "entropy"),), (0, None)),
    Panel("KL divergence to the reference", "nats a token", (("kl", "KL"),)),
    Panel(
        "Clipped ratios",
        "share",
        (("clip_region", "both"), ("clip_low", "below"), ("clip_high", "above")),
        (0, None),
    ),
    Panel(
        "Importance ratios",
        "ratio",
        (("ratio/max", "largest"), ("ratio/min", "smallest")),
        logarithmic=True,
    ),
    Panel(
        "Gap between sampler and trainer",
        "nats",
        (("sampler_gap", "mean"), ("sampler_gap/max", "largest")),
        logarithmic=True,
    ),
    Panel("Gradient norm", "norm", (("grad_norm", "before clipping"),), logarithmic=True),
    Panel("Time", "seconds", (("time/*", ""),), (0, None)),
    Panel("Throughput", "tokens per second", (("tokens_per_second", "all"), ("tokens_per_second/*", "")), (0, None)),
    Panel("Peak memory", "GiB", (("memory/peak_gib/max", "of the process that needs most"),), (0, None)),
)
PERCENT = {"eval_accuracy"}
"""Logged in percent; drawn beside shares of 1."""

Curve = tuple[str, list[float], list[float]]
"""Label, steps, values."""


def plot_health(
    log_history: Sequence[Mapping[str, Any]],
    path: Path,
    alarms: Sequence[AlarmMark] = (),
    max_new_tokens: int | None = None,
) -> None:
    """Draws every panel that has data, with a line where an alarm was raised.

    log_history: as in trainer_state.json, each entry with its `step`; entries of evaluations among them.
    max_new_tokens: drawn as the limit of the lengths.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [(panel, found) for panel in PANELS if (found := curves(panel, log_history))]
    num_columns = min(3, max(1, len(drawn)))
    num_rows = max(1, math.ceil(len(drawn) / num_columns))
    figure = Figure(figsize=(4.6 * num_columns, 2.9 * num_rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, (panel, found) in zip(grid, drawn, strict=False):
        _draw(axes, panel, found)
        if panel.title.startswith("Length") and max_new_tokens:
            axes.axhline(max_new_tokens, color="black", linestyle="--", linewidth=1, label="max_new_tokens")
        for alarm in alarms:
            axes.axvline(alarm.step, color=RED, linestyle=":", linewidth=1)
        axes.legend(loc="best", frameon=False, fontsize="small")
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    told = [f"{alarm.name.replace('_', ' ')} (step {alarm.step:,})" for alarm in alarms]
    words = textwrap.fill(f"Alarms: {', '.join(told)}" if told else "No alarms", LETTERS_PER_COLUMN * num_columns)
    figure.suptitle(words, fontsize="medium", ha="left", x=0.01)
    figure.savefig(path, dpi=150)


def curves(panel: Panel, log_history: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """What there is of a panel's metrics; values that are not finite are left out, and so is a panel of zeros only."""
    names = dict.fromkeys(name for entry in log_history for name in entry)
    found = []
    for wanted, label in panel.metrics:
        prefix = wanted.removesuffix("*")
        matching = [name for name in names if name.startswith(prefix)] if prefix != wanted else [wanted]
        for name in matching:
            points = [
                (entry["step"], entry[name] / (100 if name in PERCENT else 1))
                for entry in log_history
                if name in entry and math.isfinite(entry[name])
            ]
            if points:
                steps, values = (list(column) for column in zip(*points, strict=True))
                shown = label if prefix == wanted else label + name.removeprefix(prefix).replace("_", " ")
                found.append((shown, steps, values))
    return found if any(value for _, _, values in found for value in values) else []


def _draw(axes: Axes, panel: Panel, found: Sequence[Curve]) -> None:
    positive = [value for _, _, values in found for value in values if value > 0]
    for index, (label, steps, values) in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        if label == "evaluation":
            axes.plot(steps, values, color="black", marker="o", markersize=4, linewidth=1, label=label)
        elif len(values) < SMOOTHED_FROM:
            # A single value would be an invisible line.
            axes.plot(steps, values, color=colour, marker="." if len(values) < 5 else None, label=label)
        else:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(steps, running_mean(values, len(values) // 15), color=colour, label=label)
    if panel.logarithmic and positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(*panel.limits)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place; of those that there are at the beginning."""
    sums, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        sums.append(total / min(window, index + 1))
    return sums
