"""The policy update of GRPO (forward and backward pass) on the CPU: packed groups beside TRL's trainer.

    python benchmarks/grpo_update.py [--quick] [--only short,long] [--fresh] [--folder saves/bench_grpo_update]

One optimizer step: a prompt with an image (or several prompts), and completions whose lengths are evenly spaced
quantiles of a lognormal distribution. Both sides train a Qwen2.5-VL with random weights on the same completions and
rewards: float32, DAPO's loss, on policy, the gradients of the whole language model, the vision tower frozen, no
gradient checkpointing. TRL's side is its GRPOTrainer: only its sampling is replaced, by the given completions, so that
padding, splitting into micro-batches, advantages and loss are its own. It runs with several micro-batches
(per_device_train_batch_size); its time is that of the fastest.

Every arm is a process of its own. Seconds are the median of the timed passes; a pass over short completions goes
before them. Memory is the peak of the resident anonymous memory above that of the process with the model loaded,
sampled every 5 ms. Ours is also compared with plain passes over one completion at a time. Each arm's figures are kept
in the folder, so an interrupted benchmark goes on where it stopped; --fresh starts anew. Ratios are theirs over ours.
The last line is JSON. Results are kept in benchmarks/results/grpo_update.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from grpo_update_sides import SIGMA, Case, run_ours, run_trl  # noqa: E402
from long_cot_workload import Shape, build_model  # noqa: E402

SHAPES = {
    "speed": Shape(512, 2048, 6, 32768, 320, 8),
    "vocabulary": Shape(256, 1024, 6, 151936, 320, 8),
    "quick": Shape(128, 512, 2, 4096, 64, 2),
}


def cases_of(quick: bool) -> dict[str, Case]:
    if quick:
        base = Case("quick", image_tokens=16, median=32, repeats=2, theirs=2, micro_batches=(8, 1), exact=True)
        return {
            "short": base,
            "large_image": replace(base, image_tokens=64),
            "long": replace(base, median=160, theirs=1),
            "vocabulary": replace(base, micro_batches=(8,), exact=False),
        }
    base = Case(micro_batches=(8, 4, 2, 1), repeats=5, exact=True)
    point = Case()
    return {
        "short": base,
        "large_image": replace(base, image_tokens=1024),
        "long": replace(base, median=2000, repeats=3, theirs=1, micro_batches=(4, 2, 1)),
        "four_prompts": replace(point, prompts=4, theirs=1),
        "vocabulary": replace(base, shape="vocabulary", micro_batches=(8, 1), exact=False),
        "generations_4": replace(point, generations=4, micro_batches=(4,)),
        "generations_16": replace(point, generations=16),
        "image_0": replace(point, image_tokens=0),
        "sigma_0": replace(point, sigma=0.0),
        "sigma_0.5": replace(point, sigma=0.5),
        "sigma_1": replace(point, sigma=1.0),
    }


# --- one arm, in its own process --------------------------------------------------------------------------------------


def limit_memory() -> None:
    """An arm that needs more than the machine has gets an error instead of having the system end some process."""
    import resource

    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    most = int(line.split()[1]) * 1024 - (1 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def child(job_file: Path) -> None:
    """Entry of an arm's process: computes its cases in turn."""
    import torch

    job = json.loads(job_file.read_text())
    torch.set_num_threads(job["threads"])
    limit_memory()
    for name, (values, micro_batch, result) in job["cases"].items():
        case = Case(**{**values, "micro_batches": tuple(values["micro_batches"])})
        folder = Path(job["folder"]) / case.shape
        try:
            figures = run_trl(folder, case, micro_batch) if micro_batch else run_ours(folder, case)
        except (RuntimeError, MemoryError) as error:
            if "allocate memory" not in str(error) and not isinstance(error, MemoryError):
                raise RuntimeError(f"case {name}: {error}") from error
            figures = {"error": "does not fit in memory"}
        Path(result).write_text(json.dumps(figures))


# --- all arms ---------------------------------------------------------------------------------------------------------


def prepare(folder: Path, cases: dict[str, Case]) -> dict[str, int]:
    """Writes the models, once; returns the numbers of parameters."""
    parameters = {}
    for shape in sorted({case.shape for case in cases.values()}):
        count = folder / f"{shape}.json"
        if not count.exists():
            shutil.rmtree(folder / shape, ignore_errors=True)
            count.write_text(json.dumps(build_model(folder / shape, SHAPES[shape])))
        parameters[shape] = json.loads(count.read_text())
    return parameters


def start(folder: Path, threads: int, jobs: dict[str, tuple[Case, int]], label: str) -> None:
    """Runs arms in one process."""
    job = folder / "job.json"
    entries = {name: (asdict(case), micro, str(folder / f"arm_{name}.json")) for name, (case, micro) in jobs.items()}
    job.write_text(json.dumps({"folder": str(folder), "threads": threads, "cases": entries}))
    environment = {
        **os.environ,
        "LCOT_PLUGIN": "0",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would make every other program on the machine count double
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "LLAMAFACTORY_VERBOSITY": "WARN",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    log = folder / f"{label}.log"
    with log.open("w") as output:
        command = [sys.executable, __file__, "--job", str(job)]
        code = subprocess.run(command, env=environment, stdout=output, stderr=output).returncode
    if code:
        raise SystemExit(f"{label} ended with code {code}:\n{log.read_text()[-2000:]}")


def measure(folder: Path, cases: dict[str, Case], threads: int, quick: bool) -> dict[str, dict[int, dict[str, Any]]]:
    """Figures by case, then by TRL's micro-batch; 0 for ours."""
    from tqdm import tqdm

    arms = {
        f"{name}_{micro or 'ours'}": (case, micro) for name, case in cases.items() for micro in (0, *case.micro_batches)
    }
    missing = [name for name in arms if not (folder / f"arm_{name}.json").exists()]
    # Starting a process takes seconds, and a minute is all there is: one per side.
    together = [[name for name in missing if bool(arms[name][1]) is theirs] for theirs in (False, True)]
    batches = together if quick else [[name] for name in missing]
    for names in (progress := tqdm([batch for batch in batches if batch], unit="process")):
        label = names[0] if len(names) == 1 else "all cases of one side"
        progress.set_postfix_str(label)
        start(folder, threads, {name: arms[name] for name in names}, label.replace(" ", "_"))
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in cases}
    for name, case in cases.items():
        for micro in (0, *case.micro_batches):
            results[name][micro] = json.loads((folder / f"arm_{name}_{micro or 'ours'}.json").read_text())
    return results


def seconds(figures: dict[str, Any]) -> float:
    return statistics.median(figures["seconds"]) if "seconds" in figures else math.inf


def fastest(arms: dict[int, dict[str, Any]]) -> int:
    """TRL's best micro-batch."""
    return min((micro for micro in arms if micro), key=lambda micro: seconds(arms[micro]))


def speedup(arms: dict[int, dict[str, Any]]) -> float:
    return round(seconds(arms[fastest(arms)]) / seconds(arms[0]), 2)


def processor_speedup(arms: dict[int, dict[str, Any]]) -> float:
    """By the time of all threads on a core, which hardly changes where other programs run too."""
    theirs = min(
        statistics.median(one["processor_seconds"]) for micro, one in arms.items() if micro and "seconds" in one
    )
    return round(theirs / statistics.median(arms[0]["processor_seconds"]), 2)


def memory_ratio(arms: dict[int, dict[str, Any]], micro: int) -> float:
    return round(arms[micro]["peak"] / arms[0]["peak"], 2)


def figures_of(results: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """What is shown; None where a case has not run."""
    exact = [arms[0] for arms in results.values() if "max_abs_difference" in arms[0]]

    def quotient(name: str) -> float | None:
        return speedup(results[name]) if name in results else None

    whole = results.get("vocabulary")
    differences = [one["max_abs_difference"] for arms in results.values() for micro, one in arms.items() if micro
                   and "max_abs_difference" in one]  # fmt: skip
    return {
        "speedup_256": quotient("short"),
        "speedup_1024": quotient("large_image"),
        "speedup_long": quotient("long"),
        "speedup_256_four_prompts": quotient("four_prompts"),
        "memory_ratio": memory_ratio(whole, max(whole)) if whole else None,
        "max_abs_difference": max((one["max_abs_difference"] for one in exact), default=None),
        "gradient_difference": max((one["gradient_difference"] for one in exact), default=None),
        "trl_max_abs_difference": max(differences, default=None),
        "trl_micro_batch": {name: fastest(arms) for name, arms in results.items()},
        "memory_ratio_at_fastest": {
            name: memory_ratio(arms, fastest(arms)) for name, arms in results.items() if "peak" in arms[fastest(arms)]
        },
        "speedup": {name: speedup(arms) for name, arms in results.items()},
        "speedup_processor_time": {name: processor_speedup(arms) for name, arms in results.items()},
    }


def show(results: dict[str, dict[int, dict[str, Any]]], cases: dict[str, Case], parameters: dict[str, int]) -> None:
    libraries = ("trl", "transformers", "torch")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    for shape, number in parameters.items():
        print(f"{shape}: {number / 1e6:.1f} M parameters, {SHAPES[shape]}")
    print(f"{'':<34}{'seconds':>9}{'ours is':>9}{'on cores':>9}{'peak MB':>9}{'ours is':>9}  passes")
    for name, arms in results.items():
        case = cases[name]
        lengths = sorted(length for group in case.lengths() for length in group)
        print(
            f"{name}: {case.prompts} x image of {case.image_tokens} tokens, {case.generations} completions, "
            f"{lengths[0]} to {lengths[-1]} tokens, vocabulary {SHAPES[case.shape].vocabulary}"
        )
        for micro, figures in arms.items():
            title = f"  TRL, batches of {micro}" if micro else "  lcot-plugin, one pack"
            if "error" in figures:
                print(f"{title:<34}{figures['error']}")
                continue
            faster = f"{seconds(figures) / seconds(arms[0]):.2f}x" if micro else ""
            smaller = f"{arms[0]['peak'] / figures['peak']:.3f}" if micro else ""
            print(
                f"{title:<34}{seconds(figures):>9.2f}{faster:>9}{statistics.median(figures['processor_seconds']):>9.2f}"
                f"{figures['peak'] / 2**20:>9.0f}{smaller:>9}  " + ", ".join(f"{one:.2f}" for one in figures["seconds"])
            )


def plot(results: dict[str, dict[int, dict[str, Any]]], file: Path) -> None:
    """How the ratio grows with the group, the image and the spread of the lengths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = {
        "completions per prompt": {4: "generations_4", 8: "short", 16: "generations_16"},
        "image tokens": {0: "image_0", 256: "short", 1024: "large_image"},
        "spread of the lengths (sigma of their logarithm)": {
            0.0: "sigma_0", 0.5: "sigma_0.5", round(SIGMA, 2): "short", 1.0: "sigma_1"
        },
    }  # fmt: skip
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes, axes_of.items(), strict=True):
        found = {value: results[name] for value, name in points.items() if name in results}
        # The largest batch everywhere (8, or the whole group of 4): a change of batches is no growth.
        ratios = [seconds(arms[max(arms)]) / seconds(arms[0]) for arms in found.values()]
        axis.plot(list(found), ratios, "o-", label="seconds")
        axis.plot(list(found), [memory_ratio(arms, max(arms)) for arms in found.values()], "s--", label="peak memory")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(xlabel=title, xticks=list(found))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="TRL over lcot-plugin", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, short completions, one process per side")
    parser.add_argument("--only", type=lambda text: text.split(","), help="of: " + ", ".join(cases_of(quick=False)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier benchmark left in the folder")
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_grpo_update"))
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        child(arguments.job)
        return
    cases = cases_of(arguments.quick)
    if unknown := set(arguments.only or []) - set(cases):
        parser.error(f"--only: no case is called {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    cases = {name: case for name, case in cases.items() if name in (arguments.only or cases)}
    folder = arguments.folder.resolve() / ("quick" if arguments.quick else f"threads_{arguments.threads}")
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = prepare(folder, cases)
    results = measure(folder, cases, arguments.threads, arguments.quick)
    show(results, cases, parameters)
    if arguments.quick:
        print("--quick: a tiny model and short completions; the ratios say nothing about real ones.")
    elif {"generations_4", "image_0", "sigma_1"} <= results.keys():
        plot(results, folder / "grpo_update.png")
        print(f"Plot: {folder / 'grpo_update.png'}")
    print(json.dumps({**figures_of(results), "quick": arguments.quick}))


if __name__ == "__main__":
    main()
