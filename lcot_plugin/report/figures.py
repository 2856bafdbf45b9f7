"""Figures of the report that are no curves: shares with their intervals as dots on rules, lengths as histograms.

In: Shares, counts. Out: Html that shows every value as text beside the drawing, so that the drawing may be left unseen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lcot_plugin.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, number, ticks
from lcot_plugin.report.intervals import Share, percent, percents
from lcot_plugin.report.page import Html, count, escape, join, tag

NUM_BINS = 30
HEIGHT = 190


class RangeRow(NamedTuple):
    """One share in a figure of several."""

    name: object
    share: Share
    colour: str
    """CSS."""
    base: str
    """What stands behind it: `200 problems`."""


def ranges(rows: Sequence[RangeRow | None], label: str) -> Html:
    """Shares as dots with their 95% intervals, on a scale from 0 to 100%; None draws a rule between rows."""
    parts = []
    for row in rows:
        if row is None:
            parts.append(tag("div", class_="rule"))
            continue
        low, high = row.share.interval
        line = tag("i", style=f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%;background:{row.colour}")
        dot = tag("b", style=f"left:{100 * row.share.value:.1f}%;background:{row.colour}")
        value = join([tag("b", percent(row.share.value)), " ", percents(row.share.interval)])
        name = tag("div", tag("span", class_="key", style=f"background:{row.colour}"), row.name, class_="name")
        shown = tag("div", value, tag("span", f" of {row.base}", class_="soft"), class_="value")
        parts.append(tag("div", name, tag("div", line, dot, class_="range", aria_hidden="true"), shown, class_="row"))
    levels = (tag("span", level) for level in ("0%", "50%", "100%"))
    scale = tag("div", *levels, class_="scale", aria_hidden="true")
    return tag("div", *parts, scale, class_="ranges", role="group", aria_label=label)


def histogram(columns: Sequence[tuple[str, str, np.ndarray]], *, title: str, unit: str = "tokens") -> Html:
    """How values are spread, one outline per name, in percent of that name's own values; on a logarithmic axis where
    the largest is more than 30 times the median. columns: (name, CSS colour, [N] values of 0 or more)."""
    shown = [column for column in columns if len(column[2])]
    if not shown:
        return Html("")
    every = np.concatenate([values for *_, values in shown])
    low, high = max(0, int(every.min())), int(every.max())
    logarithmic = high > 30 * max(1.0, float(np.median(every)))
    if logarithmic:
        edges = np.unique(np.floor(np.geomspace(max(1, low) - 0.5, high + 0.5, NUM_BINS + 1)) + 0.5)
    else:
        step = max(1, math.ceil((high - low + 1) / NUM_BINS))
        edges = np.arange(low - 0.5, high + step + 0.5, step)
    shares = [100 * np.histogram(values, edges)[0] / len(values) for *_, values in shown]
    top = max(float(share.max()) for share in shares) * 1.06 or 1.0
    end = HEIGHT - BOTTOM

    def x(value: float) -> float:
        first, last, at = edges[0], edges[-1], value
        if logarithmic:
            first, last, at = math.log(first), math.log(last), math.log(max(value, edges[0]))
        return LEFT + (at - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return end - value / top * (end - TOP)

    parts = []
    for level in ticks(0, top):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="currentColor" '
            f'opacity=".13"/><text x="{LEFT - 5}" y="{y(level) + 3.5:.1f}" text-anchor="end" opacity=".75">'
            f"{number(level)}</text>"
        )
    marks = [10.0**p * f for p in range(8) for f in (1, 3)] if logarithmic else ticks(edges[0], edges[-1])
    for mark in marks:
        if edges[0] <= mark <= edges[-1] and x(mark) < WIDTH - RIGHT - 6 * len(unit) - 12:
            parts.append(
                f'<text x="{x(mark):.1f}" y="{end + 14}" text-anchor="middle" opacity=".75">{number(mark)}</text>'
            )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{end + 14}" text-anchor="end" opacity=".75">{escape(unit)}</text>')
    keys = []
    for place, ((name, ink, values), share) in enumerate(zip(shown, shares, strict=True)):
        steps = " ".join(
            f"{x(left):.1f},{y(height):.1f} {x(right):.1f},{y(height):.1f}"
            for left, right, height in zip(edges[:-1], edges[1:], share, strict=True)
        )
        outline = f"{x(edges[0]):.1f},{end} {steps} {x(edges[-1]):.1f},{end}"
        dash = ' stroke-dasharray="4 2"' if place else ""
        parts.append(
            f'<polyline points="{outline}" fill="{ink}" fill-opacity=".16" stroke="{ink}" stroke-width="1.5"{dash}/>'
        )
        told = f" median {np.median(values):,.0f} {unit}, {count(len(values), 'completion')}"
        keys.append(tag("div", tag("span", class_="key", style=f"background:{ink}"), tag("b", name), told))
    spoken = "; ".join(
        f"{name}: median {np.median(values):,.0f} {unit} of {len(values):,}" for name, _, values in shown
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", title), " ", tag("span", "% of each")),
        Html(
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {spoken}")}" '
            'style="display:block;width:100%;height:auto" font-size="11" font-family="inherit" fill="currentColor">'
            f"{''.join(parts)}</svg>"
        ),
        tag("div", *keys, style="font-size:.8em;line-height:1.5"),
    )
