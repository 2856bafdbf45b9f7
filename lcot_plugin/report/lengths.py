"""Token counts of every record in, tables for a terminal and a picture of histograms out; for `lcot data stats`.

Two tables: how long prompts, images, thoughts and answers are, and what each `cutoff_len` would leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = {
    "prompt": "question, system prompt and turns before it, without image tokens",
    "image": "placeholders that the images take",
    "thought": "chain of thought with the words around it",
    "answer": "what follows the thought",
    "total": "what cutoff_len counts",
}
"""Kind of tokens -> what it holds, in the order of a record."""

CUTOFFS = (1024, 2048, 4096, 8192, 16384, 32768)
COLOURS = ("#3c78b4", "#d1783c", "#2f8f5b", "#8a5ca8", "#b8a02e", "#b5485d", "#4fa3a5", "#8c8c8c")
MAX_RATIO = 30
"""Between the longest and the median record, above which an axis is logarithmic."""
NUM_BINS = 40
MIN_RANGE = 20
"""Tokens that an axis spans at least: records of one length are a bar, not a wall."""


@dataclass(frozen=True)
class SetLengths:
    """Tokens of each record of one data set."""

    source: str
    counts: Mapping[str, NDArray[np.int64]]
    """Kind of KINDS -> [N] tokens per record; `total` is always there, kinds that the stage lacks are not."""

    @property
    def num_records(self) -> int:
        return len(self.counts["total"])


def length_table(sets: Sequence[SetLengths]) -> str:
    """Mean, percentiles and maximum of each kind of tokens in each data set."""
    rows = [["tokens per record", "records", "mean", "p50", "p90", "p99", "max"]]
    for entry in sets:
        rows.append([entry.source, f"{entry.num_records:,}", *[""] * 5])
        for kind in KINDS:
            values = entry.counts.get(kind)
            if values is not None and len(values):
                # Of the records themselves: a percentile between two of them is no record's length.
                p50, p90, p99 = np.percentile(values, (50, 90, 99), method="higher")
                numbers = (round(float(values.mean())), p50, p90, p99, values.max())
                rows.append([f"  {kind}", "", *(f"{int(number):,}" for number in numbers)])
    return _table(rows)


def cutoff_table(sets: Sequence[SetLengths], cutoff_len: int) -> str:
    """How many records of each data set are longer than each cutoff; `cutoff_len` is the recipe's own."""
    cutoffs = sorted({*CUTOFFS, cutoff_len})
    marked = [f"{cutoff:,}{' (yours)' if cutoff == cutoff_len else ''}" for cutoff in cutoffs]
    rows = [["longer than cutoff_len", *marked]]
    for entry in sets:
        numbers = [num_longer(entry, cutoff) for cutoff in cutoffs]
        rows.append([entry.source, *(_share(number, entry.num_records) for number in numbers)])
    if len(sets) > 1:
        total = sum(entry.num_records for entry in sets)
        sums = [sum(num_longer(entry, cutoff) for entry in sets) for cutoff in cutoffs]
        rows.append(["all", *(_share(number, total) for number in sums)])
    return _table(rows)


def num_longer(entry: SetLengths, cutoff: int) -> int:
    """Records of more than `cutoff` tokens."""
    return int((entry.counts["total"] > cutoff).sum())


def as_dict(sets: Sequence[SetLengths], cutoff_len: int) -> dict[str, Any]:
    """Both tables for JSON."""
    return {
        entry.source: {
            "records": entry.num_records,
            "tokens": {
                kind: {
                    "mean": float(values.mean()),
                    **{f"p{p}": int(np.percentile(values, p, method="higher")) for p in (50, 90, 99)},
                    "max": int(values.max()),
                }
                for kind, values in entry.counts.items()
                if len(values)
            },
            "longer_than": {str(cutoff): num_longer(entry, cutoff) for cutoff in sorted({*CUTOFFS, cutoff_len})},
        }
        for entry in sets
    }


def plot_lengths(sets: Sequence[SetLengths], cutoff_len: int, path: Path) -> None:
    """One panel per kind of tokens, one colour per data set; the cutoff is marked where it applies, on the total."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = [kind for kind in KINDS if any(_positive(entry, kind).size for entry in sets)]
    figure = Figure(figsize=(8, 1.9 * len(kinds) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for panel, kind in zip(panels, kinds, strict=True):
        _draw_panel(panel, kind, sets, cutoff_len if kind == "total" else None)
    panels[-1].set_xlabel("tokens")
    handles: list[Any] = [
        Patch(facecolor=_colour(index), label=f"{entry.source} ({entry.num_records:,})")
        for index, entry in enumerate(sets)
    ]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"cutoff_len {cutoff_len:,}"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), frameon=False)
    figure.savefig(path, dpi=150)


def _draw_panel(panel: Any, kind: str, sets: Sequence[SetLengths], cutoff_len: int | None) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    every = np.concatenate([_positive(entry, kind) for entry in sets])
    logarithmic = every.max() > MAX_RATIO * np.median(every) or every.max() > MAX_RATIO * every.min()
    edges = _edges(every, logarithmic)
    for index, entry in enumerate(sets):
        values = _positive(entry, kind)
        if not values.size:
            continue
        # Shares, so that a small set is seen beside a large one.
        weights = np.full(len(values), 100 / entry.num_records)
        panel.hist(values, edges, weights=weights, color=_colour(index), alpha=0.25)
        panel.hist(values, edges, weights=weights, color=_colour(index), histtype="step", linewidth=1.3)
    if cutoff_len is not None:
        panel.axvline(cutoff_len, color="black", linestyle="--", linewidth=1)
    if logarithmic:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_formatter("")
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if cutoff_len is None and edges[-1] - edges[0] < MIN_RANGE:
            middle = (edges[0] + edges[-1]) / 2
            panel.set_xlim(max(0, middle - MIN_RANGE / 2), middle + MIN_RANGE / 2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_title(f"{kind}: {KINDS[kind]}", loc="left", fontsize="medium")
    panel.set_ylabel("% of records")
    panel.spines[["top", "right"]].set_visible(False)


def _edges(values: NDArray[np.int64], logarithmic: bool) -> NDArray[np.float64]:
    """Bin edges between tokens, so that a length never lies on one."""
    low, high = values.min() - 0.5, values.max() + 0.5
    if logarithmic:
        return np.unique(np.floor(np.geomspace(low, high, NUM_BINS + 1)) + 0.5)
    step = max(1, int(np.ceil((high - low) / NUM_BINS)))
    return np.arange(low, high + step, step)


def _positive(entry: SetLengths, kind: str) -> NDArray[np.int64]:
    """Records without any tokens of a kind have no place in its histogram: text-only ones in that of images."""
    values = entry.counts.get(kind, np.empty(0, np.int64))
    return values[values > 0]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _share(number: int, total: int) -> str:
    if not number:
        return "0 (0%)"
    percent = 100 * number / total
    return f"{number:,} ({percent:.1f}%)" if percent >= 0.05 else f"{number:,} (<0.1%)"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
