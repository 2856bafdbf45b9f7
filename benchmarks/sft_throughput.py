"""SFT on long-CoT records: length-aware packing beside LLaMA-Factory's own ways, on the CPU, from recipe to last step.

    python benchmarks/sft_throughput.py [--quick] [--arms ours,batch_1] [--fresh] [--folder saves/bench_sft_throughput]

Every arm is a process of its own (two under torchrun) that trains the same records through LLaMA-Factory; its arms run
without this plugin. Speeds are real tokens (no padding, no placeholder for a missing image) per second over all
optimizer steps but the first, waiting for data included. Memory is the peak of the resident set while training. A last
arm trains a small model for 50 steps on packs and on the same examples one by one, and compares the losses.

Each arm's figures are kept in the folder, so an interrupted benchmark goes on where it stopped; --fresh starts anew.
The last line is JSON. Results are kept in benchmarks/results/sft_throughput.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.long_cot_workload import Shape, build_model, write_records  # noqa: E402
from benchmarks.step_watch import Steps, limit_memory, watch  # noqa: E402

SHAPE = Shape(512, 2048, 6, 32768, 384, 4)
LOSS_SHAPE = Shape(128, 256, 3, 2048, 64, 2)


@dataclass(frozen=True)
class Settings:
    """What all arms have in common; figures of other settings are not reused."""

    shape: Shape = SHAPE
    budget: int = 16384
    """Tokens of a pack, cutoff_len, and about what a process trains on in one optimizer step."""
    median: int = 1500
    longest: int = 16000
    records: int = 32
    two_process_records: int = 96
    """More, so that every pack has equals: a step lasts as long as its slowest process."""
    image_tokens: tuple[int, int] = (60, 600)
    rows: int = 8
    """Records that hold about `budget` tokens: what batch 1 and padded batches accumulate to in a step."""
    two_process_rows: int = 7
    """The same per process, as many as make the steps of an epoch as many as ours."""
    padded_rows: int = 8
    """Rows of a padded batch, half as many where they do not fit into memory; fewer rows need less padding."""
    neat_steps: int = 3
    threads: int = 2
    """Of an arm with one process; processes of two have half of them each."""
    gradient_checkpointing: bool = True
    """LLaMA-Factory's default. Without it a padded batch that holds one of the longest records needs over 40 GB."""
    loss_shape: Shape = LOSS_SHAPE
    loss_budget: int = 640
    loss_median: int = 120
    loss_longest: int = 600
    loss_records: int = 400
    loss_steps: int = 50


QUICK = Settings(
    shape=Shape(128, 256, 2, 2048, 64, 2),
    budget=512,
    median=47,
    longest=500,
    records=24,
    two_process_records=24,
    image_tokens=(4, 12),
    neat_steps=3,
    loss_shape=Shape(128, 128, 2, 1024, 64, 2),
    loss_records=60,
    loss_steps=8,
)


QUICK_ARMS = ["ours", "batch_1", "neat_packing", "loss"]
"""Every process takes ten seconds to start, and a minute is all there is."""


@dataclass(frozen=True)
class Arm:
    """One way to train, as LLaMA-Factory's keys."""

    title: str
    recipe: dict[str, Any]
    processes: int = 1
    plugin: bool = False


def arms_of(settings: Settings) -> dict[str, Arm]:
    packs = {"length_aware_packing": True, "pack_max_tokens": settings.budget}
    single = {"gradient_accumulation_steps": settings.rows}
    padded = {
        "per_device_train_batch_size": settings.padded_rows,
        "gradient_accumulation_steps": settings.rows // settings.padded_rows,
    }
    shared = {"gradient_accumulation_steps": settings.two_process_rows}
    neat = {"neat_packing": True, "packing": True, "max_steps": settings.neat_steps}
    return {
        "ours": Arm("lcot-plugin", packs, plugin=True),
        "batch_1": Arm("LLaMA-Factory, batch 1", single),
        "padded": Arm("LLaMA-Factory, padded", padded),
        "neat_packing": Arm("LLaMA-Factory, neat_packing", neat),
        "ours_two_processes": Arm("lcot-plugin, 2 processes", packs, processes=2, plugin=True),
        "batch_1_two_processes": Arm("LLaMA-Factory, batch 1, 2 processes", shared, processes=2),
        "loss": Arm("losses", {"length_aware_packing": True, "gradient_accumulation_steps": 2}, plugin=True),
    }


def prepare(folder: Path, settings: Settings) -> dict[str, int]:
    """Writes models and records, once; returns the numbers of parameters."""
    done = folder / "prepared.json"
    if done.exists():
        return json.loads(done.read_text())["parameters"]
    from transformers import AutoTokenizer

    (folder / "data").mkdir(parents=True)
    parameters = {
        "records": build_model(folder / "model_records", settings.shape),
        "short": build_model(folder / "model_short", settings.loss_shape),
    }
    tokenizer = AutoTokenizer.from_pretrained(folder / "model_records")
    options = (settings.records, settings.median, settings.longest, settings.image_tokens)
    write_records(folder / "data", "records", tokenizer, *options)
    write_records(folder / "data", "many", tokenizer, settings.two_process_records, *options[1:])
    options = (settings.loss_records, settings.loss_median, settings.loss_longest, (4, 24))
    write_records(folder / "data", "short", tokenizer, *options)
    done.write_text(json.dumps({"settings": asdict(settings), "parameters": parameters}))
    return parameters


# --- one arm, in its own process --------------------------------------------------------------------------------------


def recipe_of(folder: Path, name: str, settings: Settings, arm: Arm, data: str) -> dict[str, Any]:
    short = name == "loss"
    return {
        "model_name_or_path": str(folder / ("model_short" if short else "model_records")),
        "template": "qwen2_vl",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": data,
        "dataset_dir": str(folder / "data"),
        "media_dir": str(folder / "data"),
        "cutoff_len": settings.budget,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 100 if short else 1,
        "max_steps": -1,  # one epoch
        "learning_rate": 1e-3 if short else 1e-5,
        "optim": "adamw_torch",
        "disable_gradient_checkpointing": not settings.gradient_checkpointing,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "log_level": "warning",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "output_dir": str(folder / "out"),
        "overwrite_output_dir": True,
        **({"ddp_backend": "gloo"} if arm.processes > 1 else {}),
        **arm.recipe,
    }


def run_arm(folder: Path, name: str, settings: Settings, recipe: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """Trains; returns the figures of this process."""
    if arm.plugin:
        from lcot_plugin.activation import activate

        activate()
    import llamafactory.train.sft.workflow as workflow
    from llamafactory.train.tuner import run_exp

    if name == "loss":
        from unpacked_reference import compare_losses

        keys = {"pack_max_tokens": settings.loss_budget, "cutoff_len": settings.loss_budget}
        return compare_losses({**recipe, **keys, "max_steps": settings.loss_steps}, lambda: watch(Steps()))
    tokenising = 0.0
    get_dataset = workflow.get_dataset

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal tokenising
        started = time.perf_counter()
        module = get_dataset(*args, **kwargs)
        tokenising = time.perf_counter() - started
        return module

    workflow.get_dataset = timed
    steps = Steps()
    if arm.processes == 1:
        limit_memory()
    run_exp(recipe, callbacks=[watch(steps)])
    return {**asdict(steps), "tokenising": tokenising}


# --- all arms ---------------------------------------------------------------------------------------------------------


def start(folder: Path, name: str, settings: Settings, recipe: dict[str, Any], arm: Arm) -> list[dict[str, Any]]:
    """Runs an arm to its end; one entry per process, `{"error": text}` where one failed."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    files = [folder / f"rank_{rank}.json" for rank in range(arm.processes)]
    for file in files:
        file.unlink(missing_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"name": name, "recipe": recipe}))
    environment = {
        **os.environ,
        "LCOT_PLUGIN": "1" if arm.plugin else "0",
        "OMP_NUM_THREADS": str(max(1, settings.threads // arm.processes)),
        "HF_HOME": str(folder / "cache" / name),  # records are tokenised anew
        "HF_DATASETS_CACHE": str(folder / "cache" / name / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "LLAMAFACTORY_VERBOSITY": "WARN",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    shutil.rmtree(folder / "cache" / name, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arm.processes}"]
    command = [sys.executable, *(launcher if arm.processes > 1 else []), __file__, "--job", str(job)]
    with (folder / f"{name}.log").open("w") as log:  # the bar goes to stderr
        code = subprocess.run(command, env=environment, stdout=log).returncode
    lost = {"error": f"ended with code {code}, see {folder / f'{name}.log'}"}
    return [json.loads(file.read_text()) if file.exists() else lost for file in files]


def measure(folder: Path, name: str, settings: Settings, arm: Arm) -> dict[str, Any]:
    """The figures of an arm; for LLaMA-Factory's, what it takes to make it run at all, and why."""
    data = "short" if name == "loss" else "many" if arm.processes > 1 else "records"
    recipe = recipe_of(folder, name, settings, arm, data)
    notes: list[str] = []
    while True:
        ranks = start(folder, name, settings, recipe, arm)
        error = next((rank["error"] for rank in ranks if "error" in rank), None)
        if error is None:
            break
        rows = recipe["per_device_train_batch_size"]
        if name == "padded" and "allocate memory" in error and rows > 1:
            notes.append(f"{rows} rows do not fit in memory")
            recipe["per_device_train_batch_size"] = rows // 2
            recipe["gradient_accumulation_steps"] *= 2
        elif name == "neat_packing" and recipe["dataset"] == data and "allocate memory" not in error:
            notes.append(f"fails on a pack without an image ({error.splitlines()[0][:80]}): records with images only")
            recipe["dataset"] = f"{data}_images"
        else:
            raise SystemExit(f"{arm.title}: {error}")
    if name == "loss":
        return {**ranks[0], "notes": notes}
    tokens = [sum(step) for step in zip(*(rank["tokens"] for rank in ranks), strict=True)]
    if name == "neat_packing":
        # A step costs the same however full its pack is, and in a large data set nearly all are full (99.5%); of the
        # few records here the last pack holds a remainder, which would speak against it.
        notes.append(f"packs counted as full; their real tokens were {tokens}")
        tokens = [settings.budget] * len(tokens)
    ends = ranks[0]["seconds"]
    return {
        "tokens_per_second": sum(tokens[1:]) / (ends[-1] - ends[0]),
        "measured_seconds": ends[-1] - ends[0],
        "steps": len(tokens),
        "tokens": tokens,
        "step_seconds": [after - before for before, after in pairwise(ends)],
        "peak": sum(rank["peak"] for rank in ranks),
        "baseline": sum(rank["baseline"] for rank in ranks),
        "tokenising": ranks[0]["tokenising"],
        "rows": recipe["per_device_train_batch_size"],
        "notes": notes,
    }


def child(job_file: Path) -> None:
    """Entry of an arm's process."""
    folder = job_file.parent
    job = json.loads(job_file.read_text())
    settings = load_settings(json.loads((folder / "prepared.json").read_text())["settings"])
    arm = arms_of(settings)[job["name"]]
    result = folder / f"rank_{os.environ.get('RANK', '0')}.json"
    try:
        figures = run_arm(folder, job["name"], settings, job["recipe"], arm)
    except Exception as error:
        result.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    result.write_text(json.dumps(figures))


def load_settings(values: dict[str, Any]) -> Settings:
    shapes = {key: Shape(**values[key]) for key in ("shape", "loss_shape")}
    return Settings(**{**values, **shapes, "image_tokens": tuple(values["image_tokens"])})


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """Relative to the reference, over all steps."""
    largest = max(abs(loss - right) / right for loss, right in zip(losses, reference, strict=True))
    return float(f"{largest:.2e}")


def figures_of(results: dict[str, dict[str, Any]], parameters: dict[str, int], settings: Settings) -> dict[str, Any]:
    """What is shown; None where an arm has not run."""

    def quotient(key: str, ours: str, theirs: str) -> float | None:
        return round(results[ours][key] / results[theirs][key], 3) if {ours, theirs} <= results.keys() else None

    def speed(ours: str, theirs: str) -> float | None:
        return quotient("tokens_per_second", ours, theirs)

    losses = results.get("loss")
    timed = {name: result for name, result in results.items() if name != "loss"}
    return {
        "vs_neat_packing": speed("ours", "neat_packing"),
        "vs_padded": speed("ours", "padded"),
        "vs_batch_1": speed("ours", "batch_1"),
        "vs_batch_1_two_processes": speed("ours_two_processes", "batch_1_two_processes"),
        "max_loss_difference": losses and largest_difference(losses["packed"], losses["unpacked"]),
        "max_loss_difference_of_means_per_example": losses
        and largest_difference(losses["per_example"], losses["unpacked"]),
        "memory_vs_neat_packing": quotient("peak", "ours", "neat_packing"),
        "tokens_per_second": {name: round(result["tokens_per_second"], 1) for name, result in timed.items()},
        "peak_mb": {name: round(result["peak"] / 2**20) for name, result in timed.items()},
        "baseline_mb": {name: round(result["baseline"] / 2**20) for name, result in timed.items()},
        "million_parameters": round(parameters["records"] / 1e6, 1),
        "budget": settings.budget,
        "records": settings.records,
        "two_process_records": settings.two_process_records,
        "padded_rows": results["padded"]["rows"] if "padded" in results else None,
        "gradient_checkpointing": settings.gradient_checkpointing,
    }


def show(results: dict[str, dict[str, Any]], arms: dict[str, Arm], figures: dict[str, Any], settings: Settings) -> None:
    libraries = ("llamafactory", "transformers", "torch", "accelerate")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(
        f"{figures['million_parameters']} M parameters, {settings.records} records ({settings.two_process_records} "
        f"for two processes), {settings.budget} tokens per pack, "
        f"gradient checkpointing {'on' if settings.gradient_checkpointing else 'off'}"
    )
    header = ("tokens/s", "steps", "seconds", "tokens/step", "peak MB", "before", "tokenising s")
    print(f"{'':<36}" + "".join(f"{column:>13}" for column in header))
    for name, result in results.items():
        if name == "loss":
            continue
        tokens = sum(result["tokens"][1:]) / max(1, result["steps"] - 1)
        print(
            f"{arms[name].title:<36}{result['tokens_per_second']:>13.1f}{result['steps'] - 1:>13}"
            f"{result['measured_seconds']:>13.1f}{tokens:>13.0f}{result['peak'] / 2**20:>13.0f}"
            f"{result['baseline'] / 2**20:>13.0f}{result['tokenising']:>13.1f}"
        )
    for name, result in results.items():
        for note in result["notes"]:
            print(f"{arms[name].title}: {note}.")
    if "loss" in results:
        losses = results["loss"]
        print(
            f"Loss over {len(losses['packed'])} steps: {losses['packed'][0]:.4f} to {losses['packed'][-1]:.4f}; from "
            f"the same examples one by one it differs by at most {figures['max_loss_difference']:.1e}, weighed by "
            f"micro-batch (wrong) by {figures['max_loss_difference_of_means_per_example']:.1e}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = list(arms_of(Settings()))
    parser.add_argument("--arms", type=lambda text: text.split(","), help="of: " + ", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help=f"a tiny model and short records; {', '.join(QUICK_ARMS)} where not named"
    )
    parser.add_argument("--vocabulary", type=int, help="rows of the embedding and of the output layer")
    parser.add_argument("--records", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--neat_steps", type=int)
    parser.add_argument("--padded_rows", type=int, help="2, 4 or 8")
    parser.add_argument("--no_gradient_checkpointing", dest="gradient_checkpointing", action="store_false")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier benchmark left in the folder")
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_sft_throughput"))
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        child(arguments.job)
        return
    arguments.arms = arguments.arms or (QUICK_ARMS if arguments.quick else names)
    if unknown := set(arguments.arms) - set(names):
        parser.error(f"--arms: no arm is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    changes = {
        key: getattr(arguments, key)
        for key in ("records", "threads", "neat_steps", "padded_rows", "gradient_checkpointing")
    }
    base = QUICK if arguments.quick else Settings()
    settings = load_settings({**asdict(base), **{key: value for key, value in changes.items() if value is not None}})
    if arguments.vocabulary is not None:
        settings = replace(settings, shape=replace(settings.shape, vocabulary=arguments.vocabulary))
    folder = arguments.folder.resolve() / ("quick" if arguments.quick else "full")
    prepared = folder / "prepared.json"
    if arguments.fresh or not prepared.exists() or json.loads(prepared.read_text())["settings"] != _as_json(settings):
        shutil.rmtree(folder, ignore_errors=True)
    parameters = prepare(folder, settings)
    arms = arms_of(settings)
    results: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(arguments.arms, 1):
        file = folder / f"arm_{name}.json"
        if not file.exists():
            print(f"\n--- {number} of {len(arguments.arms)}: {arms[name].title}", flush=True)
            file.write_text(json.dumps(measure(folder, name, settings, arms[name])))
        results[name] = json.loads(file.read_text())
    figures = figures_of(results, parameters, settings)
    show(results, arms, figures, settings)
    print(json.dumps({**figures, "quick": arguments.quick}))


def _as_json(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


if __name__ == "__main__":
    main()
