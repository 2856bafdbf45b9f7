"""`lcot doctor`'s estimate of the memory beside what the same recipe takes.

In: three recipes. Out: bytes estimated and measured. The doctor runs before the training, in a process of its own, and
the training with torch's own allocator settings, as a user's would. Measured is what torch's allocator held at most and
what CUDA holds beyond it (its context), which is what the estimate is of; the tensors alone stand beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import OK, Cell, Measured, last_line
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.shapes import REAL, TINY, template_of
from benchmarks.gpu.tables import NONE, gib, rows_of, table

BOUND = 0.15
"""How far the estimate may be off."""
REWARD = Path(__file__).with_name("some_reward.py")
# Shape, stage, tuning, tokens of a pass.
RUNS = [("sft", REAL[0], "lora", 8192), ("sft", REAL[0], "full", 16384), ("grpo", REAL[1], "lora", 16384)]
QUICK_RUNS = [("sft", TINY[0], "lora", 512), ("grpo", TINY[1], "lora", 512)]
LOAD = {"step_tokens": 32768, "median": 1500, "longest": 16000, "warm_up": 1, "steps": 3}
QUICK_LOAD = {"step_tokens": 512, "median": 47, "longest": 400, "warm_up": 1, "steps": 1}


def cells(folder: Path, device: str, quick: bool) -> list[Cell]:
    return [
        Cell(
            "doctor",
            f"{stage}_{shape}_{tuning}_{budget}",
            {
                "folder": str(folder),
                "device": device,
                "stage": stage,
                "shape": shape,
                "tuning": tuning,
                "budget": budget,
                "side": "ours",
                "load": QUICK_LOAD if quick else LOAD,
                "image_tokens": (4, 12) if quick else (60, 600),
                "prompts": 2 if quick else 32,
                "group": 2 if quick else 8,
                "new_tokens": 16 if quick else 1024,
            },
            allocator="",
        )
        for stage, shape, tuning, budget in (QUICK_RUNS if quick else RUNS)
    ]


# --- in the cell's process --------------------------------------------------------------------------------------------


def recipe_of(job: dict[str, Any]) -> dict[str, Any]:
    """A run of this plugin: of stage sft that of sft.py, of stage grpo with rewards that differ whatever is written."""
    from benchmarks.gpu import sft

    data, rows = sft.records(job)
    recipe = sft.recipe_of(job, data, rows) | {"output_dir": str(Path(job["folder"], "out", "doctor"))}
    if job["stage"] == "sft":
        return recipe
    gone = ("length_aware_packing", "pack_max_tokens", "max_steps")
    problems(data)
    return {key: value for key, value in recipe.items() if key not in gone} | {
        "stage": "grpo",
        "template": template_of(job["shape"]),
        "dataset": "problems",
        "cutoff_len": 1024,
        "max_new_tokens": job["new_tokens"],
        "grpo_num_generations": job["group"],
        "grpo_reward_funcs": f"{REWARD}:by_first_token",
        # Few at once, so that the update needs more than the rollout: random completions end long before their limit,
        # which the estimate of the rollout cannot know, while passes of the update are filled.
        "grpo_rollout_batch_size": 2 * job["group"],
        "grpo_micro_batch_tokens": job["budget"],
        "per_device_train_batch_size": job["prompts"] * job["group"],
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
    }


def problems(data: Path) -> None:
    """The records once more, as problems with a gold answer."""
    info = json.loads((data / "dataset_info.json").read_text())
    if "problems" not in info:
        records = json.loads((data / "records_images.json").read_text())
        short = [
            {"problem": r["problem"], "images": r["images"], "gold": "7"} for r in records if len(r["images"]) == 1
        ]
        (data / "problems.json").write_text(json.dumps(short))
        columns = {"prompt": "problem", "images": "images", "gold": "gold"}
        info["problems"] = {"file_name": "problems.json", "columns": columns}
        (data / "dataset_info.json").write_text(json.dumps(info, indent=1))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The estimate, then the run."""
    from lcot_plugin.activation import activate

    recipe = recipe_of(job)
    estimated = estimate(recipe, Path(job["folder"], "doctor"))
    activate()
    import torch
    from llamafactory.train.tuner import run_exp

    run_exp(dict(recipe))
    figures = {**estimated, "allocated": 0, "reserved": 0, "context": 0}
    if job["device"] != "cpu":
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            # Of this process, where no other one uses the GPU.
            "context": total - free - torch.cuda.memory_reserved(),
        }
    return figures


def estimate(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `lcot doctor` says: bytes of a device by phase, its allowances taken off as well.

    Raises RuntimeError with its last line where it gives no estimate.
    """
    from lcot_plugin.integration.recipe_doctor.memory import ALLOWANCE, CONTEXT_BYTES

    folder.mkdir(parents=True, exist_ok=True)
    written, found, log = folder / "recipe.json", folder / "doctor.json", folder / "doctor.log"
    written.write_text(json.dumps(recipe))  # which YAML can read
    found.unlink(missing_ok=True)
    written = written.rename(folder / "recipe.yaml")
    command = [sys.executable, "-m", "lcot_plugin", "doctor", str(written), "--records", "50", "--json", str(found)]
    with log.open("w") as output:
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    phases = json.loads(found.read_text())["estimates"].get("memory", {}).get("phases") if found.exists() else None
    if not phases:
        raise RuntimeError(f"lcot doctor gave no estimate: {last_line(log)}")
    worst = max(phases, key=lambda name: phases[name])
    return {"phases": phases, "worst": worst, "alive": (phases[worst] - CONTEXT_BYTES) / ALLOWANCE}


# --- the table --------------------------------------------------------------------------------------------------------


def off_by(result: dict[str, Any]) -> float | None:
    """Relative to what was measured; positive where the estimate is too large. None on a CPU."""
    if not result["reserved"]:
        return None
    return result["phases"][result["worst"]] / (result["reserved"] + result["context"]) - 1


def report(measured: Sequence[Measured], top: Peak, hardware: dict[str, Any]) -> str:
    def keys(cell: Cell) -> list[Any]:
        return [cell.job["stage"], cell.job["shape"], cell.job["tuning"], f"{cell.job['budget']:,}"]

    def values(cell: Cell, result: dict[str, Any]) -> list[Any]:
        off = off_by(result)
        held = result["reserved"] + result["context"]
        return [
            f"{gib(result['phases'][result['worst']])} ({result['worst']})",
            gib(held),
            NONE if off is None else f"{100 * off:+.1f} %",
            NONE if off is None else "yes" if abs(off) <= BOUND else "NO",
            gib(result["alive"]),
            gib(result["allocated"]),
        ]

    header = ["stage", "shape", "tuning", "tokens a pass", "estimated GiB", "measured GiB", "estimate is off by"]
    header += [f"within {BOUND:.0%}", "estimated tensors", "measured tensors"]
    text = (
        "`lcot doctor`'s peak beside that of the run: what torch's allocator held at most and CUDA's own; then the "
        "tensors alone, without the doctor's allowances. Torch's default allocator. Other programs on the GPU would be "
        "counted as CUDA's own: there must be none."
    )
    return f"## Doctor\n\n{text}\n\n{table(header, rows_of(measured, keys, values, len(header) - 4))}\n"


def figures(measured: Sequence[Measured], top: Peak) -> dict[str, Any]:
    done = {cell.name: off_by(result) for cell, result in measured if result["status"] == OK}
    return {"estimate_off_by": {name: None if off is None else round(off, 4) for name, off in done.items()}}
