"""Comparison of training arms: evaluation results and trainer logs in, a table and a picture out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TITLES = {"base": "base", "rl_only": "RL only", "sft": "SFT", "sft_rl": "SFT, then RL"}
COLOURS = {"base": "#8c8c8c", "rl_only": "#d1783c", "sft": "#3c78b4", "sft_rl": "#2f8f5b"}


@dataclass
class ArmResult:
    """What one arm reached."""

    arm: str
    accuracy: float
    """Greedy, percent of the held-out problems."""
    stderr: float
    """Standard error of `accuracy` in percentage points."""
    sampled: dict[str, float]
    """avg@n and pass@k in percent."""
    length: float
    """Mean tokens per completion."""
    seconds: float
    """Training time; 0 for the base model."""
    rewards: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean reward) of the RL stage; empty without one."""

    @classmethod
    def read(cls, arm: str, evaluation: Path, training: Path, seconds: float) -> ArmResult:
        """From the folders of the evaluation and of the training run (which need not exist)."""
        metrics = json.loads((evaluation / "eval_results.json").read_text())
        state = training / "trainer_state.json"
        history = json.loads(state.read_text())["log_history"] if state.exists() else []
        return cls(
            arm=arm,
            accuracy=metrics["eval_accuracy"],
            stderr=metrics["eval_accuracy_stderr"],
            sampled={k.removeprefix("eval_"): v for k, v in metrics.items() if "avg@" in k or "pass@" in k},
            length=metrics["eval_completion_length"],
            seconds=seconds,
            rewards=[(entry["step"], entry["reward"]) for entry in history if "reward" in entry],
        )


def print_table(results: Sequence[ArmResult]) -> None:
    """One line per arm."""
    sampled = list(results[0].sampled)
    header = ["arm", "accuracy", "+-", *sampled, "tokens", "training"]
    rows = [
        [
            TITLES[result.arm],
            f"{result.accuracy:.1f}%",
            f"{result.stderr:.1f}",
            *(f"{result.sampled[name]:.1f}%" for name in sampled),
            f"{result.length:.0f}",
            f"{result.seconds:.0f} s" if result.seconds else "-",
        ]
        for result in results
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def smooth(values: Sequence[float], window: int = 10) -> list[float]:
    """Running mean over the last `window` values."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def plot_arms(results: Sequence[ArmResult], path: Path) -> None:
    """Reward curves of the RL stages on the left, held-out accuracy with its standard error on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    for result in results:
        if result.rewards:
            steps, rewards = zip(*result.rewards, strict=True)
            colour = COLOURS[result.arm]
            curves.plot(steps, rewards, color=colour, alpha=0.25)
            curves.plot(steps, smooth(rewards), color=colour, label=TITLES[result.arm])
    curves.set(xlabel="GRPO step", ylabel="mean reward", ylim=(0, 1), title="Reward while training")
    curves.legend(loc="upper left", frameon=False)

    positions = range(len(results))
    bars.bar(
        positions,
        [result.accuracy for result in results],
        yerr=[result.stderr for result in results],
        color=[COLOURS[result.arm] for result in results],
        capsize=3,
    )
    for position, result in zip(positions, results, strict=True):
        bars.text(position, result.accuracy + result.stderr + 1.5, f"{result.accuracy:.1f}", ha="center")
    bars.set_xticks(list(positions), [TITLES[result.arm] for result in results])
    bars.set(ylabel="held-out accuracy (%)", ylim=(0, 108), title="After training")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
