"""A plan of packs as a picture: how full the packs are, and how long the processes wait for each other.

In: lengths of the examples, tokens and predicted cost of every pack. Out: packing.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PACKING_PLOT = "packing.png"
MAX_MICRO_STEPS = 100
"""Micro-steps that are drawn; an epoch may have a hundred thousand."""
BLUE, RED, GREY = "#1f77b4", "#d62728", "#7f7f7f"


def plot_packing(lengths: np.ndarray, tokens: np.ndarray, costs: np.ndarray, max_tokens: int, path: Path) -> None:
    """lengths: [examples]; tokens: [packs]; costs: [micro-steps, ranks], in any unit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: dict[str, Any] = figure.subplot_mosaic([["examples", "packs"], ["waiting", "waiting"]])
    examples, packs, waiting = (panels[name] for name in ("examples", "packs", "waiting"))

    examples.hist(lengths, np.geomspace(max(1, lengths.min()), lengths.max() + 1, 40).tolist(), color=BLUE, alpha=0.7)
    examples.set_xscale("log")
    examples.set_title(f"{len(lengths):,} examples, median {np.median(lengths):,.0f} tokens", loc="left")
    examples.set_xlabel("tokens of an example")

    packs.hist(tokens, np.linspace(0, max_tokens, 41).tolist(), color=BLUE, alpha=0.7)
    packs.axvline(max_tokens, color="black", linestyle="--", linewidth=1)
    packs.set_title(f"{len(tokens):,} packs, {tokens.sum() / len(tokens) / max_tokens:.1%} full", loc="left")
    packs.set_xlabel("tokens of a pack")

    shown = costs[:MAX_MICRO_STEPS] / costs.mean()
    steps = np.arange(1, len(shown) + 1)
    dearest, mean = shown.max(1), shown.mean(1)
    waiting.bar(steps, dearest, width=1.0, color=RED, alpha=0.5, label="waiting for the dearest pack")
    waiting.bar(steps, mean, width=1.0, color=BLUE, label="computing")
    waiting.set_ylabel("predicted cost, mean = 1")
    waiting.set_xlabel("micro-step")
    share = 1 - costs.sum() / (costs.max(1).sum() * costs.shape[1])
    waiting.set_title(f"predicted waiting of {costs.shape[1]} process(es): {share:.2%} of the time", loc="left")
    waiting.legend(loc="lower right", framealpha=0.9)
    for panel in panels.values():
        panel.title.set_fontsize("medium")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=GREY)
    figure.savefig(path, dpi=150)
