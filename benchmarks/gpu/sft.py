"""SFT steps through LLaMA-Factory, with this plugin's packs and with LLaMA-Factory's own ways: tokens/s, MFU, memory.

In: a shape, how it is tuned, the tokens of a pass, the side. Out: seconds, tokens and operations of every measured
optimizer step, and the GPU's memory at its peak. All sides train the same records with pictures, about as many tokens
an optimizer step, with gradient checkpointing, and with flash-attention 2 where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage
from typing import Any

from benchmarks.gpu.cells import Cell, Measured
from benchmarks.gpu.flops import ModelOperations, Work
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.shapes import MOST_IMAGE_TOKENS, PATCH, REAL, SHAPES, TINY, template_of
from benchmarks.gpu.tables import NONE, gib, percent, rows_of, spread, table

SIDES = {"ours": "lcot-plugin", "neat_packing": "LLaMA-Factory, neat_packing", "batch_1": "LLaMA-Factory, batch 1"}


@dataclass(frozen=True)
class Load:
    """What is trained."""

    shapes: tuple[str, ...] = REAL
    tunings: tuple[str, ...] = ("lora", "full")
    """full: pure bfloat16 on a GPU, with AdamW's states in it; else two of these shapes would not fit into 80 GB."""
    budgets: tuple[int, ...] = (4096, 8192, 16384, 32768)
    """Tokens of a forward and backward pass, and of the longest record."""
    step_tokens: int = 32768
    """Of an optimizer step."""
    median: int = 1500
    longest: int = 16000
    image_tokens: tuple[int, int] = (60, 600)
    warm_up: int = 2
    """Optimizer steps that do not count."""
    steps: int = 6


QUICK = Load(TINY[:1], ("lora",), (512,), 1024, 47, 400, (4, 12), 1, 2)


def cells(folder: Path, device: str, quick: bool) -> list[Cell]:
    load = QUICK if quick else Load()
    return [
        Cell(
            "sft",
            f"{shape}_{tuning}_{budget}_{side}",
            {
                "folder": str(folder),
                "device": device,
                "shape": shape,
                "tuning": tuning,
                "budget": budget,
                "side": side,
                "load": {key: getattr(load, key) for key in ("step_tokens", "median", "longest", "warm_up", "steps")},
                "image_tokens": load.image_tokens,
                "environment": {"LCOT_PLUGIN": "1" if side == "ours" else "0"},
            },
        )
        for shape in load.shapes
        for tuning in load.tunings
        for budget in load.budgets
        for side in SIDES
    ]


# --- in the cell's process --------------------------------------------------------------------------------------------


def records(job: dict[str, Any]) -> tuple[Path, int]:
    """Writes the records once; returns their folder and about how many have the tokens of an optimizer step."""
    from transformers import AutoTokenizer

    from benchmarks.long_cot_workload import write_records

    family, budget, load = SHAPES[job["shape"]].family, job["budget"], job["load"]
    longest = min(load["longest"], budget - budget // 16)
    mean = mean_length(load["median"], longest)
    wanted = 1.5 * (load["warm_up"] + load["steps"]) * load["step_tokens"]
    number = round(wanted / mean / 0.7)  # seven of ten have pictures
    folder = Path(job["folder"], "records", f"{family}_{budget}_{number}")
    if not (folder / "dataset_info.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(Path(job["folder"], "models", job["shape"]))
        write_records(folder, "records", tokenizer, number, load["median"], longest, tuple(job["image_tokens"]))
    return folder, max(1, round(load["step_tokens"] / mean))


def mean_length(median: int, longest: int) -> float:
    """Of the lengths that `write_records` draws."""
    import math
    from statistics import NormalDist, fmean

    from benchmarks.long_cot_workload import SIGMA

    deviations = [NormalDist().inv_cdf((index + 0.5) / 1000) for index in range(1000)]
    return fmean(min(longest, median * math.exp(SIGMA * one)) for one in deviations)


def recipe_of(job: dict[str, Any], data: Path, rows: int) -> dict[str, Any]:
    """LLaMA-Factory's keys. rows: records that hold an optimizer step's tokens."""
    from transformers.utils import is_flash_attn_2_available

    from benchmarks import sft_throughput

    load, budget, on_gpu = job["load"], job["budget"], job["device"] != "cpu"
    settings = sft_throughput.Settings(budget=budget, rows=rows)
    arm = sft_throughput.arms_of(settings)[job["side"]]
    packed = {} if job["side"] == "batch_1" else {"gradient_accumulation_steps": max(1, load["step_tokens"] // budget)}
    full = job["tuning"] == "full"
    return {
        **sft_throughput.recipe_of(data, job["side"], settings, arm, "records_images"),
        **packed,
        "model_name_or_path": str(Path(job["folder"], "models", job["shape"])),
        "template": template_of(job["shape"]),
        "dataset_dir": str(data),
        "media_dir": str(data),
        "image_max_pixels": MOST_IMAGE_TOKENS * PATCH[SHAPES[job["shape"]].family] ** 2,
        "max_steps": load["warm_up"] + load["steps"],
        "finetuning_type": job["tuning"],
        **({} if full else {"lora_rank": 32, "lora_target": "all"}),
        "freeze_vision_tower": True,
        "use_cpu": not on_gpu,
        **({"pure_bf16": True} if on_gpu and full else {"bf16": on_gpu}),
        "optim": "adamw_torch_fused" if on_gpu else "adamw_torch",
        "flash_attn": "fa2" if on_gpu and is_flash_attn_2_available() else "sdpa",
        "enable_liger_kernel": on_gpu and job["side"] != "ours" and installed("liger_kernel"),
        "dataloader_num_workers": loader_workers() if on_gpu else 0,
        "disable_tqdm": True,
        "output_dir": str(Path(job["folder"], "out", "sft")),
    }


def loader_workers() -> int:
    """4, or none where they could not hand over what they make: pixels, and masks of a row by the row, go through
    shared memory, of which a container may have as little as 64 MiB."""
    shared = Path("/dev/shm")
    return 4 if shared.exists() and disk_usage(shared).free >= 16 * 2**30 else 0


def installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Trains; returns the figures of every optimizer step after the warm-up."""
    if job["side"] == "ours":
        from lcot_plugin.activation import activate

        activate()
    data, rows = records(job)
    return train(recipe_of(job, data, rows), job["load"]["warm_up"], job["tuning"])


def train(recipe: dict[str, Any], warm_up: int, tuning: str) -> dict[str, Any]:
    """Runs a recipe of stage sft. tuning: as `ModelOperations.training` takes it."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    from benchmarks.step_watch import Steps, watch

    steps, operations = Steps(), []

    class Count(TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            operations.append(ModelOperations.of(model))

    run_exp(dict(recipe), callbacks=[watch(steps), Count()])
    work = [Work(one.tokens, one.squares, one.labels, one.patches, one.patch_squares) for one in steps.counts]
    seconds = [after - before for before, after in pairwise(steps.seconds)][warm_up - 1 :]
    return {
        "seconds": seconds,
        "tokens": steps.tokens[warm_up:],
        "operations": [operations[0].training(one, tuning) for one in work[warm_up:]],
        "allocated": steps.allocated,
        "reserved": steps.reserved,
        "attention": recipe["flash_attn"],
        "liger": recipe["enable_liger_kernel"],
        "loader_workers": recipe["dataloader_num_workers"],
    }


# --- the table --------------------------------------------------------------------------------------------------------


def mfu(result: dict[str, Any], top: Peak) -> float:
    """Operations of the mathematics over those of the roof, in the measured steps' time."""
    return sum(result["operations"]) / sum(result["seconds"]) / top.operations


def report(measured: Sequence[Measured], top: Peak, hardware: dict[str, Any]) -> str:
    speed = {cell.name: tokens_per_second(result) for cell, result in measured if "tokens" in result}

    def keys(cell: Cell) -> list[Any]:
        return [cell.job["shape"], cell.job["tuning"], f"{cell.job['budget']:,}", SIDES[cell.job["side"]]]

    def values(cell: Cell, result: dict[str, Any]) -> list[Any]:
        ours = speed.get(cell.name.replace(cell.job["side"], "ours"))
        each = [tokens / seconds for tokens, seconds in zip(result["tokens"], result["seconds"], strict=True)]
        return [
            spread(each, 0),
            NONE if ours is None or cell.job["side"] == "ours" else f"{ours / speed[cell.name]:.2f}",
            percent(mfu(result, top)),
            spread(result["seconds"]),
            f"{sum(result['tokens']) / len(result['tokens']):,.0f}",
            gib(result["allocated"]),
            gib(result["reserved"]),
            result["attention"] + (" + liger" if result["liger"] else "") + f", {result['loader_workers']} loaders",
        ]

    header = ["shape", "tuning", "tokens a pass", "side", "tokens/s", "ours is x", "MFU", "seconds a step"]
    header += ["tokens a step", "GiB allocated", "GiB reserved", "kernels"]
    rows = rows_of(measured, keys, values, len(header) - 4)
    text = (
        "Real tokens (no padding) per second over whole optimizer steps, data and optimizer included; median, least "
        "and most over the steps after the warm-up. The same records with pictures for all sides, vision tower "
        "frozen, gradient checkpointing on. MFU counts what the mathematics needs: no recomputation, no padding."
    )
    return f"## SFT\n\n{text}\n\n{table(header, rows)}\n"


def tokens_per_second(result: dict[str, Any]) -> float:
    return sum(result["tokens"]) / sum(result["seconds"])


def figures(measured: Sequence[Measured], top: Peak) -> dict[str, Any]:
    """For the JSON line."""
    done = [(cell, result) for cell, result in measured if "tokens" in result]
    return {
        "tokens_per_second": {cell.name: round(tokens_per_second(result), 1) for cell, result in done},
        "mfu": {cell.name: round(mfu(result, top), 4) for cell, result in done},
        "allocated_gib": {cell.name: round(result["allocated"] / 2**30, 2) for cell, result in done},
    }
