"""Line charts as inline SVG: numbers in, one `<figure>` out that needs no script, no style sheet and no other file.

In: series of (step, value), with gaps where a value is None, NaN or infinite. Out: HTML text, consumed by the report
and by LLaMA Board's live view.

A chart inherits its ink from the page (`currentColor`), so that it stands on light and dark grounds alike; a page may
choose other colours of lines by the variables --chart-1 ... --chart-8. Its text has the size of the page's where the
chart is about 380 pixels wide, which is a phone's column and a third of a desktop's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lcot_plugin.report.shown_text import visible

COLOURS = ("#3d84c6", "#d9722b", "#2f9e6b", "#9a6fd8", "#d6546a", "#8c8a2e", "#2a9fb0", "#8a8f98")
"""Each has a contrast of about 3 and more with white and with near black."""
WIDTH = 380
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22
"""Margins of the plot, in units of the SVG."""
MAX_POINTS = 400
"""Points that are drawn of a line: about one a unit of width. Of a bin the first, least, largest and last stay."""
NUM_READINGS = 48
"""Places at which the values can be read by pointing."""
SMOOTHED_FROM = 30
"""Values from which a running mean is drawn over them."""
MAX_LINES = 24
"""Of a chart, colours repeat after eight; what has no line is named below it."""
MAX_MARKS = 4
"""That are told in words at one place."""
LARGEST = 1e300
"""Beyond it the arithmetic of a scale has no numbers left; no metric means anything there."""
SINGLE_UP_TO = 12
"""Values up to which each has a dot."""
RIGHT_ALIGN = 'text-anchor="end"'


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    """As many as steps; None, NaN, infinite ones and those beyond LARGEST leave a gap and are counted."""
    dots: bool = False
    """Whether every value has a dot: evaluations, which are few."""


class Mark(NamedTuple):
    """Something that happened at a step: a dotted line with its words."""

    step: float
    text: str


class _Scale(NamedTuple):
    """From values to places."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    unit: str = "",
    height: int = 190,
    smooth: bool = False,
    logarithmic: bool = False,
    limits: tuple[float | None, float | None] = (None, None),
    marks: Sequence[Mark] = (),
    x_label: str = "step",
) -> str:
    """One chart with its legend, each line's last value and what was left out of it.

    height: units of the SVG, whose width is 380. smooth: draw the running mean of long lines over them. limits: of the
    axis of values, None where the values themselves decide. marks: drawn between the first and the last step.
    """
    points = [finite_points(line) for line in series]
    every_line = [(line, found) for line, found in zip(series, points, strict=True) if any(found.runs)]
    drawn = every_line[:MAX_LINES]
    notes = [note for line, found in zip(series, points, strict=True) if (note := _left_out(line, found))][:MAX_LINES]
    if len(every_line) > MAX_LINES:
        rest = ", ".join(line.name for line, _ in every_line[MAX_LINES : 2 * MAX_LINES])
        notes.append(f"{len(every_line) - MAX_LINES:,} further lines are not drawn: {_shortened(rest)}")
    if not drawn:
        words = " ".join(["nothing to draw.", *notes])
        return f'<figure class="chart"><figcaption>{_caption(title, unit)}{_text(words)}</figcaption></figure>'
    every = [point for _, found in drawn for run in found.runs for point in run]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    across = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _vertical(ys, limits, logarithmic, height)
    if up.logarithmic and (num_below := sum(y <= 0 for y in ys)):
        notes.append(f"{num_below:,} values of 0 or less stand at the lower edge, which has no 0")
    parts = [_grid(across, up, height, f"{x_label} {number(across.high)}")]
    parts += _marks(marks, across, height)
    for index, (line, found) in enumerate(drawn):
        parts += _line(line, found, colour(index), across, up, smooth)
    parts.append(_readings(drawn, across, unit, height, x_label))
    spoken = "; ".join(f"{line.name}: last {number(found.last)} {unit}".rstrip() for line, found in drawn)
    legend = "".join(_key(line, found, index) for index, (line, found) in enumerate(drawn))
    shown = f"<small>{_text('; '.join(notes))}</small>" if notes else ""
    return (
        f'<figure class="chart"><figcaption>{_caption(title, unit)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_text(f"{title}. {spoken}")}" '
        f'style="display:block;width:100%;height:auto" font-size="11" font-family="inherit" fill="currentColor">'
        f'{"".join(parts)}</svg><div class="chart-legend" style="font-size:.8em;line-height:1.5">{legend}{shown}</div>'
        "</figure>"
    )


def _marks(marks: Sequence[Mark], across: _Scale, height: int) -> list[str]:
    """Those between the first and the last step; the ones that would stand on each other are one."""
    places: dict[int, list[Mark]] = {}
    for mark in marks:
        if across.low <= mark.step <= across.high:
            places.setdefault(round(across(mark.step)), []).append(mark)
    parts = []
    for x, own in places.items():
        words = [f"step {mark.step:,.0f}: {_shortened(mark.text)}" for mark in own[:MAX_MARKS]]
        words += [f"and {len(own) - MAX_MARKS:,} more"] if len(own) > MAX_MARKS else []
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{height - BOTTOM}" stroke-dasharray="2 3" '
            f'stroke="var(--chart-alarm, #d6546a)"><title>{_text(chr(10).join(words))}</title></line>'
        )
    return parts


def colour(index: int) -> str:
    """The colour of a chart's line number `index`, as CSS; a page may set it by --chart-1..8."""
    place = index % len(COLOURS)
    return f"var(--chart-{place + 1}, {COLOURS[place]})"


class Points(NamedTuple):
    """The values of a line that can be drawn."""

    runs: list[list[tuple[float, float]]]
    """Points without a gap between them."""
    num_left_out: int

    @property
    def last(self) -> float:
        return self.runs[-1][-1][1]

    @property
    def num_values(self) -> int:
        return sum(map(len, self.runs))


def finite_points(line: Series) -> Points:
    """The line cut where a value is missing or not finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    num_left_out = 0
    for step, value in zip(line.steps, line.values, strict=True):
        if value is not None and abs(value) <= LARGEST:  # no for NaN too
            runs[-1].append((float(step), float(value)))
            continue
        num_left_out += 1
        if runs[-1]:
            runs.append([])
    return Points([run for run in runs if run], num_left_out)


def thinned(run: Sequence[tuple[float, float]], max_points: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `max_points` of the points: of every bin its first, least, largest and last, so that spikes stay."""
    if len(run) <= max_points:
        return list(run)
    num_bins = max(1, max_points // 4)
    kept: list[tuple[float, float]] = []
    for index in range(num_bins):
        start, stop = index * len(run) // num_bins, (index + 1) * len(run) // num_bins
        places = range(start, stop)
        least, largest = min(places, key=lambda i: run[i][1]), max(places, key=lambda i: run[i][1])
        kept += [run[i] for i in sorted({start, least, largest, stop - 1})]
    return kept


def running_mean(run: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean of the last `window` values at each place; of those that there are at the beginning."""
    # Sums within blocks of `window` values, forwards and backwards. One total from which old values are taken away
    # would have lost, after a spike of 1e18, everything else.
    values = [value for _, value in run]
    ahead, behind = [*values], [*values]
    for index in range(1, len(run)):
        if index % window:
            ahead[index] += ahead[index - 1]
    for index in reversed(range(len(run) - 1)):
        if (index + 1) % window:
            behind[index] += behind[index + 1]
    found = []
    for index, (step, _) in enumerate(run):
        start = index - window + 1
        total = ahead[index] + (behind[start] if start > 0 and start % window else 0.0)
        found.append((step, total / min(window, index + 1)))
    return found


def number(value: float) -> str:
    """A number as a person writes it: `0.412`, `1,234`, `2.1M`, `3e-06`."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6:
        for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
            if factor <= size < 1000 * factor:
                return f"{value / factor:.3g}{letter}"
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.2g}"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers between low and high, about `wanted` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** max(-300, math.floor(math.log10(rough)))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _vertical(ys: Sequence[float], limits: tuple[float | None, float | None], wanted_log: bool, height: int) -> _Scale:
    place = (height - BOTTOM, TOP)
    positive = [y for y in ys if y > 0]
    if wanted_log and positive and max(positive) > 10 * min(positive):
        return _Scale(min(positive) / 1.2, max(positive) * 1.2, *place, logarithmic=True)
    low = min(ys) if limits[0] is None else min(limits[0], min(ys))
    high = max(ys) if limits[1] is None else max(limits[1], max(ys))
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return _Scale(low - (room if limits[0] is None else 0), high + (room if limits[1] is None else 0), *place)


def _grid(across: _Scale, up: _Scale, height: int, x_label: str) -> str:
    parts = []
    if up.logarithmic:
        powers = range(math.ceil(math.log10(up.low)), math.floor(math.log10(up.high)) + 1)
        every = [10.0**power for power in powers] or [up.low * 1.2, up.high / 1.2]
        levels = every[:: max(1, math.ceil(len(every) / 5))]
    else:
        levels = [level for level in ticks(up.low, up.high) if up.low <= level <= up.high]
    for level in levels:
        y = up(level)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".13"/>'
            f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" {RIGHT_ALIGN} opacity=".75">{number(level)}</text>'
        )
    steps = [step for step in ticks(across.low, across.high) if step == int(step)] or [across.low]
    end = height - BOTTOM
    for step in steps:
        x = across(step)
        if x < WIDTH - RIGHT - 6 * len(x_label) - 14:  # there the axis has its name
            anchor = "middle" if x > LEFT + 8 else "start"
            parts.append(f'<text x="{x:.1f}" y="{end + 14}" text-anchor="{anchor}" opacity=".75">{number(step)}</text>')
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{end}" y2="{end}" stroke="currentColor" opacity=".35"/>'
        f'<text x="{WIDTH - RIGHT}" y="{end + 14}" {RIGHT_ALIGN} opacity=".75">{_text(x_label)}</text>'
    )
    return "".join(parts)


def _line(line: Series, found: Points, ink: str, across: _Scale, up: _Scale, smooth: bool) -> list[str]:
    smoothed = smooth and not line.dots and found.num_values >= SMOOTHED_FROM
    parts = []
    for run in found.runs:
        parts.append(_path(thinned(run), ink, across, up, 'opacity=".3" stroke-width="1"' if smoothed else ""))
        if smoothed:
            mean = running_mean(run, max(2, found.num_values // 15))
            parts.append(_path(thinned(mean), ink, across, up, 'stroke-width="2"'))
        # A value between two gaps would be an invisible line.
        if line.dots or found.num_values <= SINGLE_UP_TO or len(run) == 1:
            shown = thinned(run)
            parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6" fill="{ink}"/>' for x, y in shown]
    return parts


def _path(run: Sequence[tuple[float, float]], ink: str, across: _Scale, up: _Scale, style: str) -> str:
    if len(run) < 2:
        return ""
    places = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in run)
    width = style or 'stroke-width="1.6"'
    return f'<polyline points="{places}" fill="none" stroke="{ink}" stroke-linejoin="round" {width}/>'


def _readings(drawn: Sequence[tuple[Series, Points]], across: _Scale, unit: str, height: int, x_label: str) -> str:
    """Invisible columns that tell the values of all lines where the pointer stands."""
    steps = sorted({step for _, found in drawn for run in found.runs for step, _ in run})
    chosen = (
        steps
        if len(steps) <= NUM_READINGS
        else [steps[i * (len(steps) - 1) // (NUM_READINGS - 1)] for i in range(NUM_READINGS)]
    )
    values = [{step: value for run in found.runs for step, value in run} for _, found in drawn]
    places = [across(step) for step in chosen]
    parts = []
    for index, step in enumerate(chosen):
        left = (places[index - 1] + places[index]) / 2 if index else LEFT
        right = (places[index] + places[index + 1]) / 2 if index + 1 < len(places) else WIDTH - RIGHT
        told = [f"{x_label} {number(step)}"] + [
            f"{line.name}: {number(of_line[step])} {unit}".rstrip()
            for (line, _), of_line in zip(drawn, values, strict=True)
            if step in of_line
        ]
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{max(0.5, right - left):.1f}" height="{height - TOP - BOTTOM}">'
            f"<title>{_text(chr(10).join(told))}</title></rect>"
        )
    return f'<g fill="transparent" class="chart-readings">{"".join(parts)}</g>'


def _key(line: Series, found: Points, index: int) -> str:
    return (
        '<span style="margin-right:.9em;display:inline-block;max-width:100%;overflow-wrap:anywhere">'
        '<span aria-hidden="true" style="display:inline-block;width:.8em;height:.25em;border-radius:1px;'
        f'vertical-align:.25em;margin-right:.35em;background:{colour(index)}"></span>'
        f"{_text(line.name)} <b>{number(found.last)}</b></span>"
    )


def _caption(title: str, unit: str) -> str:
    return f"<b>{_text(title)}</b> " + (f"<span>{_text(unit)}</span> " if unit else "")


def _text(value: str) -> str:
    """As HTML text or an attribute's value; a name may hold control characters too."""
    return html.escape(visible(value))


def _left_out(line: Series, found: Points) -> str:
    if not found.num_left_out:
        return ""
    every = len(line.values)
    name = _shortened(line.name)
    return f"{name}: {found.num_left_out:,} of {every:,} values are missing or not finite and leave gaps"


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit:,} characters more)"
