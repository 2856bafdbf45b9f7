"""Charts are well-formed, keep spikes and gaps, and say what they leave out."""

from __future__ import annotations

import html
import itertools
import math
import random
import re
import xml.etree.ElementTree as ET

import pytest

from lcot_plugin.report.charts import (
    MAX_LINES,
    MAX_POINTS,
    Mark,
    Series,
    finite_points,
    line_chart,
    number,
    running_mean,
    thinned,
    ticks,
)


def parsed(figure: str) -> ET.Element:
    """Strict XML: an unescaped character would not parse."""
    return ET.fromstring(figure)


def lines_of(figure: str) -> list[list[tuple[float, float]]]:
    """The places of every polyline."""
    found = re.findall(r'<polyline points="([^"]*)"', figure)
    return [[(float(p.split(",")[0]), float(p.split(",")[1])) for p in line.split()] for line in found]


def test_one_line_with_its_last_value_and_unit() -> None:
    figure = line_chart([Series("reward", [1, 2, 3], [0.0, 0.5, 1.0])], title="Reward", unit="mean")
    svg = parsed(figure).find("svg")
    assert svg is not None and svg.get("role") == "img"
    assert svg.get("aria-label") == "Reward. reward: last 1 mean"
    (line,) = lines_of(figure)
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True), "up on the page is a smaller y"
    assert "step 1\nreward: 0 mean" in [title.text for title in parsed(figure).iter("title")]


def test_values_that_are_not_finite_leave_a_gap_and_are_counted() -> None:
    values = [1.0, math.nan, 2.0, 3.0, None, math.inf, 4.0, 5.0]
    figure = line_chart([Series("loss", range(8), values)], title="Loss")
    assert [len(line) for line in lines_of(figure)] == [2, 2]
    assert figure.count("<circle") == 5, "the lonely value is seen too"
    assert "loss: 3 of 8 values are missing or not finite and leave gaps" in figure
    assert finite_points(Series("x", range(8), values)).num_left_out == 3
    assert "NaN" not in figure and "nan" not in figure and "inf," not in figure


@pytest.mark.parametrize("series", [[], [Series("x", [], [])], [Series("x", [1], [math.nan])]])
def test_nothing_to_draw_is_said(series: list[Series]) -> None:
    figure = line_chart(series, title="Loss")
    parsed(figure)
    assert "nothing to draw" in figure and "<svg" not in figure


def test_names_are_escaped() -> None:
    name = '</svg><script>alert("1")</script>&'
    figure = line_chart([Series(name, [1, 2], [1.0, 2.0])], title=name, unit=name, marks=[Mark(1, name)])
    parsed(figure)
    assert "<script" not in figure


def test_thinning_keeps_spikes_ends_and_order() -> None:
    draw = random.Random(0)
    run = [(float(step), draw.random()) for step in range(20_000)]
    run[7777] = (7777.0, 9.0)
    run[12_345] = (12345.0, -9.0)
    kept = thinned(run)
    assert len(kept) <= MAX_POINTS
    assert {run[0], run[7777], run[12_345], run[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(run[:50]) == run[:50]


def test_a_long_line_stays_small() -> None:
    figure = line_chart([Series("x", range(100_000), [math.sin(i) for i in range(100_000)])], title="x", smooth=True)
    assert len(figure) < 30_000


def test_smoothing_draws_the_running_mean_over_the_values() -> None:
    values = [float(i % 2) for i in range(60)]
    raw = lines_of(line_chart([Series("x", range(60), values)], title="x"))
    both = lines_of(line_chart([Series("x", range(60), values)], title="x", smooth=True))
    assert len(raw) == 1 and len(both) == 2
    spread = [max(y for _, y in line[20:]) - min(y for _, y in line[20:]) for line in both]
    assert spread[1] < 0.1 * spread[0]
    assert running_mean([(0, 1.0), (1, 3.0), (2, 5.0)], 2) == [(0, 1.0), (1, 2.0), (2, 4.0)]


def test_a_spike_leaves_the_mean_behind_it_as_it_was() -> None:
    draw = random.Random(1)
    run = [(float(step), draw.random()) for step in range(100)]
    spiked = [*run[:30], (30.0, 1e18), *run[31:]]
    for window in (1, 7, 40, 100, 200):
        mean = running_mean(run, window)
        assert [value for _, value in mean] == pytest.approx(
            [math.fsum(v for _, v in run[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(100)]
        )
        assert running_mean(spiked, window)[30 + window :] == mean[30 + window :]


@pytest.mark.parametrize(
    "values", [[1.7e308, -1.7e308], [1e299, -1e299, 0.0], [5e-324, 1e-323], [1e16, 1e16 + 2], [-1.0, 1e-320]]
)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_numbers_at_the_ends_of_what_there_is(values: list[float], logarithmic: bool) -> None:
    figure = line_chart([Series("x", range(len(values)), values)], title="x", logarithmic=logarithmic, smooth=True)
    parsed(figure)
    assert "nan" not in figure and "inf" not in figure.replace("finite", "")


def test_a_chart_of_very_many_lines_says_which_it_leaves_out() -> None:
    figure = line_chart([Series(f"set{i:03}", [1, 2], [0.0, 1.0]) for i in range(100)], title="x")
    assert len(lines_of(figure)) == MAX_LINES
    assert f"{100 - MAX_LINES} further lines are not drawn: set024, set025" in figure


def test_values_that_a_logarithmic_axis_has_no_place_for_are_counted() -> None:
    series = [Series("x", range(4), [0.0, 1.0, 10.0, 1000.0])]
    assert "1 values of 0 or less" in line_chart(series, title="x", logarithmic=True)
    assert "of 0 or less" not in line_chart(series, title="x")


def test_very_many_alarms_stay_small() -> None:
    marks = [Mark(step, "entropy collapse") for step in range(10_000)]
    figure = line_chart([Series("x", [0, 9_999], [0.0, 1.0])], title="x", marks=marks)
    assert len(figure) < 100_000
    assert "step 0: entropy collapse\nstep 1: entropy collapse" in html.unescape(figure)
    assert "more</title>" in figure


def test_marks_stand_where_they_happened() -> None:
    series = [Series("x", [0, 100], [0.0, 1.0])]
    figure = line_chart(series, title="x", marks=[Mark(50, "entropy collapse"), Mark(500, "later")])
    assert "step 50: entropy collapse" in figure
    assert "later" not in figure, "outside of what is drawn"


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    values = [10.0**-power for power in range(8)]
    figure = line_chart([Series("x", range(8), values)], title="x", logarithmic=True)
    (line,) = lines_of(figure)
    steps = [after[1] - before[1] for before, after in itertools.pairwise(line)]
    assert max(steps) - min(steps) < 0.3, "a straight line"
    parsed(line_chart([Series("x", [1, 2], [0.0, -1.0])], title="x", logarithmic=True))


def test_constant_and_single_values_are_drawn() -> None:
    assert "<polyline" in line_chart([Series("x", [1, 2], [5.0, 5.0])], title="x")
    assert "<circle" in line_chart([Series("x", [3], [5.0])], title="x")
    assert "<circle" in line_chart([Series("x", [3], [0.0])], title="x", limits=(0, None))


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6, 1e12])
def test_ticks_are_round_and_inside(scale: float) -> None:
    found = ticks(0.13 * scale, 0.97 * scale)
    assert 3 <= len(found) <= 6
    assert all(0.129 * scale <= tick <= 0.971 * scale for tick in found)


def test_numbers_are_written_for_people() -> None:
    values = (0, 0.41239, 12.345, 1234.5, 2_100_000, 3e-6, -0.5, 1e20)
    assert [number(value) for value in values] == ["0", "0.412", "12.3", "1,234", "2.1M", "3e-06", "-0.5", "1e+20"]
