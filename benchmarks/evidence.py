"""What the paper's claim rests on, in miniature: SFT of six kinds, RL after each, over five seeds; two remedies.

    python benchmarks/evidence.py [--quick] [--seeds 1 2 3 4 5] [--arms long short ...] [--output saves/evidence]

Every SFT takes 300 steps of 16 records from the embedded model (see evidence_data.py for the sets), every RL 100 steps
of 16 prompts x 8 completions on the shipped problems, every evaluation the shipped 400 held-out problems, greedily.
`none` is RL without SFT. The remedies are for RL after little SFT: a KL penalty, and problems chosen by their pass
rate, which `lcot data difficulty` measures with 8 answers to each of the 2,000.

Each stage is a process of its own, as `lcot train` starts it; what has been evaluated is not run again, so the same
command goes on where it was stopped. Prints a table, writes a plot, and, as its last line, JSON: the mean accuracies in
percent by arm with half their 95 % interval over seeds (Student's t). `--quick` evaluates the base model on a few
problems in about a minute, to check the machinery.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from evidence_data import SETS, write_sets  # noqa: E402

from lcot_plugin.demo.arms import BASE_MODEL, Stage, run_stage  # noqa: E402
from lcot_plugin.demo.data import build_sets  # noqa: E402

REMEDIES: dict[str, tuple[str, dict[str, float]]] = {
    "quarter_kl": ("quarter", {"grpo_beta": 0.04}),
    "quarter_chosen": ("quarter", {"grpo_min_pass_rate": 0.3, "grpo_max_pass_rate": 0.95}),
}
"""RL with other keys, on the SFT model of another arm."""
ARMS = ("none", *SETS, *REMEDIES)
TITLES = {
    "none": "no SFT",
    "long": "long CoT",
    "short": "answers only",
    "text": "long CoT, text only",
    "quarter": "long CoT, a quarter",
    "easy": "long CoT, easy only",
    "hard": "long CoT, hard only",
    "quarter_kl": "a quarter, KL penalty",
    "quarter_chosen": "a quarter, RL on 3 to 7 of 8",
}
STEPS = 300


def accuracy(folder: Path) -> dict[str, float] | None:
    """What the evaluation reports; None where there has been none."""
    file = folder / "eval_results.json"
    return json.loads(file.read_text()) if file.exists() else None


def evaluated(title: str, model: Path, folder: Path, keys: Mapping[str, Any]) -> dict[str, float]:
    """Evaluates a model once."""
    if accuracy(folder) is None:
        overrides = {"model_name_or_path": model, "output_dir": folder, "grpo_eval_generations": 0, **keys}
        run_stage(Stage(f"Evaluate {title}", "eval.yaml", folder, overrides), time.strftime("%H:%M"))
    found = accuracy(folder)
    assert found is not None
    return found


def trained(stage: Stage) -> Path:
    """Trains once; a folder without a whole model is trained anew."""
    if not (stage.output / "all_results.json").exists():
        run_stage(stage, time.strftime("%H:%M"))
    return stage.output


def measured_problems(seed: int, model: Path, folder: Path) -> dict[str, Any]:
    """The keys of the RL problems with the pass rates of a model; measured once."""
    out = folder / "difficulty"
    if not (out / "dataset_info.json").exists():
        print(f"{time.strftime('%H:%M')} {seed}: pass rates of the RL problems", flush=True)
        overrides = [f"model_name_or_path={model}", f"output_dir={folder}", f"seed={seed}"]
        command = [sys.executable, "-m", "lcot_plugin", "data", "difficulty", "yaml_recipes/grpo.yaml", *overrides]
        subprocess.run([*command, "--rollouts", "8", "--out", str(out)], cwd=ROOT, check=True)
    return {"dataset_dir": out}


def run_arm(arm: str, seed: int, output: Path) -> dict[str, float]:
    """Accuracies after SFT and after RL."""
    sft_arm, rl_keys = REMEDIES.get(arm, (arm, {}))
    folder, sft_folder = output / f"seed_{seed}" / arm, output / f"seed_{seed}" / sft_arm
    model, results = BASE_MODEL, {}
    if arm != "none":
        keys = {
            "model_name_or_path": BASE_MODEL,
            "output_dir": sft_folder / "sft",
            "dataset": sft_arm,
            "dataset_dir": output / "data",
            "max_steps": STEPS,
            "seed": seed,
        }
        model = trained(Stage(f"{seed} {sft_arm}: SFT", "sft.yaml", sft_folder / "sft", keys))
    results["sft"] = evaluated(f"{seed} {sft_arm}", model, sft_folder / "sft_eval", {})["eval_accuracy"]
    keys = {"model_name_or_path": model, "output_dir": folder / "rl", "seed": seed, "grpo_log_completions": False}
    if "grpo_min_pass_rate" in rl_keys:
        keys |= measured_problems(seed, model, folder)
    after = trained(Stage(f"{seed} {arm}: RL", "grpo.yaml", folder / "rl", keys | rl_keys))
    results["rl"] = evaluated(f"{seed} {arm}, RL", after, folder / "rl_eval", {})["eval_accuracy"]
    return results


def print_operands(arms: Sequence[str], seeds: Sequence[int], output: Path) -> None:
    """Means over seeds by number of operands."""
    num_operands = [len(problem.operations) + 1 for problem in build_sets()["test"]]

    def means(arm: str, stage: str) -> dict[int, float]:
        right: dict[int, list[float]] = {operands: [] for operands in sorted(set(num_operands))}
        for seed in seeds:
            file = output / f"seed_{seed}" / arm / f"{stage}_eval" / "eval_completions.jsonl"
            for completion in map(json.loads, file.read_text().splitlines()):
                right[num_operands[completion["record"]]].append(100 * completion["reward"])
        return {operands: fmean(values) for operands, values in right.items()}

    print("\ngreedy accuracy in % by number of operands, after SFT / after RL")
    print(f"{'SFT':<30}" + "".join(f"{operands:>14}" for operands in sorted(set(num_operands))))
    for arm in arms:
        before, after = means(REMEDIES.get(arm, (arm,))[0], "sft"), means(arm, "rl")
        cells = [f"{before[operands]:.0f} / {after[operands]:.0f}" for operands in before]
        print(f"{TITLES[arm]:<30}" + "".join(f"{cell:>14}" for cell in cells))


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean over seeds, by Student's t; NaN of a single one."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def print_table(found: Mapping[str, Mapping[str, Sequence[float]]], num_seeds: int) -> dict[str, Any]:
    """Means and intervals; returns them."""
    print(f"\ngreedy accuracy in %, mean of {num_seeds} seeds, +- half the 95 % interval")
    print(f"{'SFT':<30}{'after SFT':>16}{'after RL':>16}{'gain by RL':>16}")
    summary: dict[str, Any] = {}
    for arm, stages in found.items():
        gains = [after - before for before, after in zip(stages["sft"], stages["rl"], strict=True)]
        cells = [(fmean(values), interval(values)) for values in (stages["sft"], stages["rl"], gains)]
        print(f"{TITLES[arm]:<30}" + "".join(f"{f'{mean:.1f} +- {half:.1f}':>16}" for mean, half in cells))
        names = ("after_sft", "after_rl", "gain")
        summary[arm] = {name: [round(mean, 2), round(half, 2)] for name, (mean, half) in zip(names, cells, strict=True)}
    return summary


def plot(found: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Bars of both stages with every seed as a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, stages in enumerate(found.values()):
        for offset, (stage, colour) in zip((-0.2, 0.2), (("sft", "#3c78b4"), ("rl", "#2f8f5b")), strict=True):
            values = stages[stage]
            label = {"sft": "before RL", "rl": "after RL"}[stage] if place == 0 else None
            half = interval(values)
            error = half if half == half else 0
            axes.bar(place + offset, fmean(values), 0.36, color=colour, alpha=0.75, label=label, yerr=error)
            axes.plot([place + offset] * len(values), values, ".", color="#222222", markersize=4)
    axes.set_xticks(range(len(found)), [TITLES[arm].replace(", ", ",\n") for arm in found], fontsize=8)
    axes.set_ylabel("greedy accuracy, %")
    axes.axhline(10, color="#8c8c8c", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("saves/evidence"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    write_sets(output / "data")
    if arguments.quick:
        found = evaluated("base", BASE_MODEL, output / "quick", {"max_samples": 40})
        print(json.dumps({"quick": True, "base": found["eval_accuracy"]}))
        return
    found = {arm: {"sft": [], "rl": []} for arm in arguments.arms}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            for stage, value in run_arm(arm, seed, output).items():
                found[arm][stage].append(value)
    summary = print_table(found, len(arguments.seeds))
    print_operands(arguments.arms, arguments.seeds, output)
    plot(found, output / "evidence.png")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory"))
    print(f"{date.today()}, {platform.machine()}, Python {platform.python_version()}, {versions}")
    print(output / "evidence.png")
    print(json.dumps({"seeds": arguments.seeds, "arms": summary, "per_seed": found}))


if __name__ == "__main__":
    main()
