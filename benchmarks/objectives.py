"""GRPO on the embedded task: the first version of this trainer beside the present one, and the objectives beside each
other at an equal budget.

    python benchmarks/objectives.py [--quick] [--seeds 1 2 3] [--objectives dapo gspo ...] [--output saves/objectives]

For every seed one SFT model is trained (yaml_recipes/sft.yaml); from it every objective trains with
yaml_recipes/grpo.yaml, the same number of rollouts and of completions, and is evaluated greedily on the 400 test
problems. `first version` is the commit FIRST_VERSION of this repository, taken from its history into a folder of its
own, with the same recipe and model. Every run is a process of its own; its seconds are those of the Trainer's loop
(train_runtime), without imports and loading.

Prints a table and, as its last line, JSON: mean accuracies in percent by objective, `speedup_vs_first_version` (seconds
of the first version over ours, same objective), accuracies of both. Results are kept in
benchmarks/results/objectives.md. `--quick` trains three steps of one objective on either side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
FIRST_VERSION = "dc44c1b"
"""Padded rows, one row per completion; the same recipe."""
FIRST, DEFAULT = "first version", "dapo"
FOUR_UPDATES = {
    "grpo_steps_per_generation": 4,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 32,
    "learning_rate": 5.0e-5,
}
"""Four updates per rollout: without them the ratios are 1 and these objectives are all alike. The budget of completions
is the same, so four times the steps, at a quarter of the learning rate."""
OBJECTIVES: dict[str, dict[str, object]] = {
    "dapo": {},
    "grpo": {"grpo_loss_type": "grpo"},
    "bnpo": {"grpo_loss_type": "bnpo"},
    "dr_grpo": {"grpo_loss_type": "dr_grpo", "grpo_scale_rewards": "none"},
    "rloo": {"grpo_advantage": "rloo", "grpo_scale_rewards": "none"},
    "reinforce_pp": {"grpo_advantage": "reinforce_pp"},
    "dapo, 4 updates": FOUR_UPDATES,
    "gspo, 4 updates": {
        **FOUR_UPDATES,
        "grpo_loss_type": "gspo",
        "grpo_epsilon": 3e-4,
        "grpo_epsilon_high": 4e-4,
    },
    "cispo, 4 updates": {**FOUR_UPDATES, "grpo_loss_type": "cispo"},
    "sapo, 4 updates": {**FOUR_UPDATES, "grpo_loss_type": "sapo"},
    "dapo, dynamic sampling": {"grpo_dynamic_sampling": True},
    "dapo, replay": {"grpo_replay_groups": 64},
}


@dataclass
class Arm:
    """What the seeds of one objective gave."""

    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def max_steps(changes: dict[str, object], steps: int) -> int:
    """Optimizer steps that use as many completions as `steps` of the recipe."""
    return steps * 4 if "grpo_steps_per_generation" in changes else steps


def train(recipe: str, output: Path, package: Path, overrides: dict[str, object]) -> None:
    """One run of `lcot train` with the package in the folder `package`."""
    keys = {**overrides, "output_dir": output, "dataset_dir": ROOT / "dataset_info"}
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lcot_plugin", "train", str(ROOT / "yaml_recipes" / recipe)]
    command += [f"{key}={value}" for key, value in keys.items()]
    environment = {**os.environ, "PYTHONPATH": str(package)}  # and from its folder: `-m` looks there first
    with (output / "console.log").open("w") as log:
        result = subprocess.run(command, cwd=package, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if result.returncode:
        end = "\n".join((output / "console.log").read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"{' '.join(command)} failed:\n{end}")


def measured(folder: Path) -> tuple[float, float]:
    """Greedy accuracy in percent, seconds of training."""
    accuracy = json.loads((folder / "eval" / "eval_results.json").read_text())["eval_accuracy"]
    return accuracy, json.loads((folder / "train_results.json").read_text())["train_runtime"]


def first_version(folder: Path) -> Path:
    """The package as it was, out of the history."""
    if not (folder / "lcot_plugin").exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "archive", FIRST_VERSION, "lcot_plugin"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


def run(arguments: argparse.Namespace) -> dict[str, Arm]:
    output: Path = arguments.output.resolve()
    steps = 3 if arguments.quick else 100
    names = [FIRST, *arguments.objectives]
    arms = {name: Arm() for name in names}
    bar = tqdm(total=len(arguments.seeds) * (1 + len(names)), unit="run", desc="Runs")
    for seed in arguments.seeds:
        sft = output / f"seed_{seed}" / "sft"
        if not (sft / "model.safetensors").exists():
            limit = {"max_steps": 5} if arguments.quick else {}
            train("sft.yaml", sft, ROOT, {"model_name_or_path": ROOT / "lcot_plugin/demo/model", "seed": seed, **limit})
        bar.update()
        for name in names:
            bar.set_postfix_str(f"seed {seed}, {name}")
            changes = OBJECTIVES[DEFAULT if name == FIRST else name]
            folder = output / f"seed_{seed}" / name.replace(", ", "_").replace(" ", "_")
            if not (folder / "eval" / "eval_results.json").exists():
                package = first_version(output / "first_version") if name == FIRST else ROOT
                keys: dict[str, object] = {
                    "model_name_or_path": sft,
                    "seed": seed,
                    "max_steps": max_steps(changes, steps),
                    **changes,
                }
                train("grpo.yaml", folder, package, keys)
                few = {"max_samples": 20} if arguments.quick else {}
                train("eval.yaml", folder / "eval", ROOT, {"model_name_or_path": folder, **few})
            accuracy, seconds = measured(folder)
            arms[name].accuracies.append(accuracy)
            arms[name].seconds.append(seconds)
            bar.update()
    bar.close()
    return arms


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--output", type=Path, default=Path("saves/objectives"), help="finished runs are kept here")
    parser.add_argument("--quick", action="store_true", help="three steps on either side; ends within a minute or so")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seeds, arguments.objectives = arguments.seeds[:1], [DEFAULT]
        arguments.output = arguments.output / "quick"
    arms = run(arguments)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory"))
    print(f"\n{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{'objective':<24}{'accuracy':>10}{'+-':>7}{'seconds':>9}   per seed")
    for name, arm in arms.items():
        spread = stdev(arm.accuracies) if len(arm.accuracies) > 1 else 0.0
        print(
            f"{name:<24}{fmean(arm.accuracies):>10.2f}{spread:>7.2f}{fmean(arm.seconds):>9.1f}   "
            + " ".join(f"{accuracy:.2f}" for accuracy in arm.accuracies)
        )
    figures: dict[str, object] = {
        "accuracy": {name: round(fmean(arm.accuracies), 2) for name, arm in arms.items()},
        "seconds": {name: round(fmean(arm.seconds), 1) for name, arm in arms.items()},
    }
    if DEFAULT in arms:
        speedup = fmean(arms[FIRST].seconds) / fmean(arms[DEFAULT].seconds)
        figures["speedup_vs_first_version"] = round(speedup, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
