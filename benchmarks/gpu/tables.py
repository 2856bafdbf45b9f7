"""What is shown of the figures: medians with their spread, markdown tables, the result file.

In: cells and their figures. Out: text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.gpu.cells import OK, Measured
from benchmarks.gpu.roofline import roof

NONE = "-"
"""What was not measured."""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`1.52 (1.50 to 1.61)`: the median, the least and the most."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def gib(num_bytes: float | None) -> str:
    """0 and None are what a CPU says of a GPU's memory."""
    return f"{num_bytes / 2**30:,.1f}" if num_bytes else NONE


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:,.1f} %"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(value).replace("|", "/") for value in line) + " |" for line in lines)


def rows_of(
    measured: Iterable[Measured], keys: Callable[[Any], Sequence[Any]], values: Callable[..., Sequence[Any]], num: int
) -> list[list[Any]]:
    """A row per cell: what it is, then its `num` figures; or why there are none.

    keys: from a cell. values: from its figures.
    """
    rows = []
    for cell, result in measured:
        if result["status"] == OK:
            rows.append([*keys(cell), *values(cell, result)])
        else:
            why = f": {result['why']}" if result.get("why") and result["status"] != "out of memory" else ""
            rows.append([*keys(cell), result["status"] + why, *[NONE] * (num - 1)])
    return rows


def heading(hardware: dict[str, Any], day: str, quick: bool) -> str:
    """What everything was measured on."""
    top, reached = roof(hardware), hardware["measured"]
    software = ("python", "torch", "transformers", "llamafactory", "trl", "flash-attn", "liger-kernel", "lcot-plugin")
    gpu = [f"{hardware[key]}{unit}" for key, unit in (("gib", " GiB"),) if key in hardware]
    gpu += [f"{name} {hardware[key]}" for key, name in (("driver", "driver"), ("cuda", "CUDA")) if key in hardware]
    lines = [
        f"# GPU benchmark, {day}",
        "",
        ", ".join([hardware["name"], *gpu]) + ".",
        ", ".join(f"{name} {hardware[name]}" for name in software) + ".",
        "",
        f"Roof: {top.operations / 1e12:,.2f} TFLOP/s, {top.bandwidth / 1e9:,.0f} GB/s ({top.source}). A matrix product "
        f"reached {reached['operations'] / 1e12:,.2f} TFLOP/s here, a copy {reached['bandwidth'] / 1e9:,.0f} GB/s.",
    ]
    if hardware["device"] == "cpu":
        lines += ["", "On a CPU: memory is not measured, and shares of the roof say nothing about a GPU."]
    if quick:
        lines += ["", "--quick: tiny models and few tokens, to see that everything runs. No figure means anything."]
    return "\n".join(lines)
