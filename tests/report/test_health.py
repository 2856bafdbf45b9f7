"""The picture has a panel for what was logged, and the alarms in every one."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lcot_plugin.report.health import PANELS, curves, plot_health, running_mean

ALARMS = [SimpleNamespace(name="all_truncated", step=20), SimpleNamespace(name="entropy_collapse", step=33)]


def history(num_logs: int = 60) -> list[dict[str, Any]]:
    draw = random.Random(0)
    entries: list[dict[str, Any]] = []
    for step in range(1, num_logs + 1):
        entries.append(
            {
                "step": step,
                "loss": draw.random(),
                "learning_rate": 1e-6,
                "reward": step / num_logs,
                "reward/geo": draw.random(),
                "accuracy": draw.random(),
                "completions/length": 100 + step,
                "completions/length/max": 256,
                "completions/truncated": 0.1,
                "groups_without_variance": 0.5,
                "verdicts/unparsable": 0.1,
                "verdicts/timed_out": 0.0,
                "entropy": 0.5,
                "clip_region": 0.0,
                "clip_low": 0.0,
                "grad_norm": math.nan if step == 7 else 10 ** draw.uniform(-2, 2),
                "time/rollout": 3.0,
                "time/update": 1.0,
                "tokens_per_second/rollout": 1000.0,
            }
        )
        if step % 20 == 0:
            entries.append({"step": step, "eval_accuracy": 40.0 + step, "eval_runtime": 3.0})
    return [*entries, {"step": num_logs, "train_runtime": 12.0, "train_loss": 0.1}]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures in place of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


def test_picture(tmp_path: Path) -> None:
    plot_health(history(), tmp_path / "health.png", ALARMS, max_new_tokens=256)
    with Image.open(tmp_path / "health.png") as image:
        assert image.width == pytest.approx(3 * 4.6 * 150, abs=2)
        assert len(image.convert("RGB").getcolors(2**20) or []) > 10


def test_a_panel_for_what_was_logged(drawn: list[Figure], tmp_path: Path) -> None:
    plot_health(history(), tmp_path / "health.png", ALARMS, max_new_tokens=256)
    assert titles(drawn[0]) == [
        "Reward and accuracy",
        "Length of completions",
        "Truncated completions",
        "Groups that teach nothing",
        "Verdicts",
        "Entropy of a token",
        "Gradient norm",
        "Time",
        "Throughput",
    ]
    lengths = drawn[0].axes[1]
    limits = [line.get_ydata()[0] for line in lengths.get_lines() if line.get_label() == "max_new_tokens"]
    assert limits == [256]


def test_alarms_stand_in_every_panel_and_above(drawn: list[Figure], tmp_path: Path) -> None:
    plot_health(history(), tmp_path / "health.png", ALARMS)
    for axes in drawn[0].axes:
        steps = [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"]
        assert steps == [20, 33]
    assert drawn[0].get_suptitle() == "Alarms: all truncated (step 20), entropy collapse (step 33)"
    plot_health(history(), tmp_path / "health.png")
    assert drawn[1].get_suptitle() == "No alarms"


@pytest.mark.parametrize("num_alarms", [1, 30])
def test_the_names_of_many_alarms_stay_within_the_picture(num_alarms: int, drawn: list[Figure], tmp_path: Path) -> None:
    alarms = [SimpleNamespace(name="verdicts_timed_out", step=1000 + i) for i in range(num_alarms)]
    plot_health(history(), tmp_path / "health.png", alarms)
    figure = drawn[0]
    figure.canvas.draw()
    (title,) = [text for text in figure.texts if text.get_text().startswith("Alarms")]
    box = title.get_window_extent()
    assert box.x1 < figure.bbox.width
    tops = [axes.get_window_extent().y1 for axes in figure.axes]
    assert box.y0 > max(tops)


@pytest.mark.parametrize("entries", [[], [{"step": 1, "loss": 0.5}], history(1)])
def test_short_and_empty_histories(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_health(entries, tmp_path / "health.png", ALARMS)
    assert (tmp_path / "health.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_one_panel() -> None:
    found = {label: (steps, values) for label, steps, values in curves(PANELS[0], history(40))}
    assert list(found) == ["reward", "geo", "accuracy", "evaluation"]
    assert found["evaluation"] == ([20, 40], [0.6, 0.8]), "shares, as the others are"
    (norms,) = [curves(panel, history(10)) for panel in PANELS if panel.title == "Gradient norm"]
    assert 7 not in norms[0][1] and len(norms[0][1]) == 9


def test_running_mean() -> None:
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
