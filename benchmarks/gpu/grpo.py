"""The phases of a GRPO step beside TRL's: rollout, update (forward and backward), optimizer.

In: a shape, a phase, the side. Out: seconds and memory of the phase. One step is 8 prompts with a picture and 8
completions each, whose lengths are quantiles of a lognormal distribution; rewards are given. The update is
grpo_update.py's: a pack per prompt here, TRL's own GRPOTrainer with the given completions there. TRL's rollout is
`generate` with all rows at once, as its trainer calls it without vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import rollout
from benchmarks.gpu import rollouts
from benchmarks.gpu.cells import OK, Cell, Measured
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.shapes import REAL, TINY
from benchmarks.gpu.tables import NONE, gib, rows_of, spread, table
from benchmarks.grpo_update_sides import SIGMA, TEXT_AFTER, TEXT_BEFORE, Case, Placement, run_ours, run_trl

CASE = Case(prompts=8, generations=8, median=500, repeats=5, theirs=3, micro_batches=(8, 4))
QUICK = Case(image_tokens=16, prompts=2, generations=2, median=8, repeats=1, theirs=1, micro_batches=(2,))
NO_TRL = "TRL is not installed"


def cells(folder: Path, device: str, quick: bool) -> list[Cell]:
    case = QUICK if quick else CASE
    no_trl = "" if find_spec("trl") else NO_TRL
    found = []
    for shape in TINY[1:] if quick else REAL:
        base = {"folder": str(folder), "device": device, "shape": shape, "case": asdict(replace(case, shape=shape))}
        for side, title in (("ours", "ours"), ("generate", "trl")):
            job = {**base, "side": title, "phase": "rollout", "rollout": rollout_job(folder, device, shape, side, case)}
            found.append(Cell("grpo", f"{shape}_rollout_{title}", job))
        for micro in (0, *case.micro_batches):
            side = "trl" if micro else "ours"
            job = {**base, "side": side, "phase": "update", "micro_batch": micro}
            name = f"{shape}_update_{side}" + (f"_{micro}" if micro else "")
            found.append(Cell("grpo", name, job, no_trl if micro else ""))
    return found


def rollout_job(folder: Path, device: str, shape: str, side: str, case: Case) -> dict[str, Any]:
    """The rollout whose completions the update trains on, in numbers."""
    text = TEXT_BEFORE + TEXT_AFTER
    setting = rollout.Setting(
        "a step's rollout",
        case.prompts,
        case.generations,
        rows=case.prompts * case.generations,
        image_side=round(2 * case.image_tokens**0.5),
        text_tokens=(text, text),
        median=case.median,
        sigma=SIGMA,
        vocabulary=(rollouts.QUICK if shape in TINY else rollouts.SETTINGS)["main"].vocabulary,
    )
    return rollouts.job_of(folder, device, shape, side, setting, case.theirs, case.lengths())


# --- in the cell's process --------------------------------------------------------------------------------------------


def measure(job: dict[str, Any]) -> dict[str, Any]:
    if job["phase"] == "rollout":
        return rollouts.measure(job["rollout"])
    on_gpu = job["device"] != "cpu"
    case = Case(**{**job["case"], "micro_batches": tuple(job["case"]["micro_batches"])})
    placement = Placement(job["device"], "bfloat16" if on_gpu else "float32", checkpointing=True, optimizer_steps=3)
    folder = Path(job["folder"], "models", job["shape"])
    micro = job["micro_batch"]
    result = run_trl(folder, case, micro, placement) if micro else run_ours(folder, case, placement)
    return {"allocated": 0, "reserved": 0, **result, "tokens": sum(map(sum, case.lengths()))}


# --- the table --------------------------------------------------------------------------------------------------------


def report(measured: Sequence[Measured], top: Peak, hardware: dict[str, Any]) -> str:
    done = {cell.name: result for cell, result in measured if result["status"] == OK}

    def keys(cell: Cell) -> list[Any]:
        micro = cell.job.get("micro_batch")
        side = "lcot-plugin" if cell.job["side"] == "ours" else "TRL" + (f", batches of {micro}" if micro else "")
        return [cell.job["shape"], cell.job["phase"], side]

    def values(cell: Cell, result: dict[str, Any]) -> list[Any]:
        ours = done.get(f"{cell.job['shape']}_{cell.job['phase']}_ours")
        faster = median(result["seconds"]) / median(ours["seconds"]) if ours and cell.job["side"] != "ours" else None
        optimizer = result.get("optimizer_seconds")
        return [
            spread(result["seconds"]),
            f"{faster:.2f}" if faster else NONE,
            spread(optimizer, 3) if optimizer else NONE,
            gib(result["allocated"]),
            gib(result["reserved"]),
        ]

    header = ["shape", "phase", "side", "seconds", "ours is x", "optimizer, seconds", "GiB allocated", "GiB reserved"]
    steps = [
        f"A whole step of {shape}: lcot-plugin {step['ours']:.2f} s, TRL {step['trl']:.2f} s with its fastest batches, "
        f"{step['trl'] / step['ours']:.2f} times as long."
        for shape, step in whole_steps(measured).items()
        if {"ours", "trl"} <= step.keys()
    ]
    text = (
        "Seconds of a phase, the same completions on both sides: median, least and most. Bfloat16, all weights of the "
        "language model trained, gradient checkpointing, AdamW (fused), no vLLM on either side; memory is that of the "
        "phase."
    )
    parts = ["## GRPO", text, table(header, rows_of(measured, keys, values, len(header) - 3)), *steps]
    return "\n\n".join(parts) + "\n"


def whole_steps(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Seconds by shape and side: rollout, the fastest update, its optimizer step. Sides that lack a phase are left
    out."""
    found: dict[str, dict[str, float]] = {}
    done = [(cell.job, result) for cell, result in measured if result["status"] == OK]
    for shape in dict.fromkeys(job["shape"] for job, _ in done):
        for side in ("ours", "trl"):
            own = [(job["phase"], result) for job, result in done if (job["shape"], job["side"]) == (shape, side)]
            rolled = [median(result["seconds"]) for phase, result in own if phase == "rollout"]
            updated = [
                median(result["seconds"]) + median(result["optimizer_seconds"])
                for phase, result in own
                if phase == "update"
            ]
            if rolled and updated:
                found.setdefault(shape, {})[side] = rolled[0] + min(updated)
    return found


def figures(measured: Sequence[Measured], top: Peak) -> dict[str, Any]:
    done = [(cell, result) for cell, result in measured if result["status"] == OK]
    return {
        "seconds": {cell.name: round(median(result["seconds"]), 3) for cell, result in done},
        "step_seconds": whole_steps(measured),
    }
