"""The paper's four arms on the embedded task over three seeds: base, RL only, SFT, SFT then RL.

    python benchmarks/demo_arms.py [--quick] [--seeds 1 2 3] [--output saves/demo_arms]

Runs `lcot_plugin.demo.arms` once per seed, from the root of the repository; every stage is a process of its own.
Prints a table and, as its last line, JSON: the accuracies in percent by arm, per seed and their means. Results are kept
in benchmarks/results/demo_arms.md. `--quick` checks the machinery in about a minute: the base model is evaluated on a
few problems and nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).parent.parent))

from lcot_plugin.demo.arms import run_arms, run_stage, stages

ARMS = ("base", "rl_only", "sft", "sft_rl")


def quick(output: Path) -> None:
    evaluation = stages(output, seed=1, max_samples=50)[0]
    run_stage(evaluation, "[1/1]")
    metrics = json.loads((evaluation.output / "eval_results.json").read_text())
    print(json.dumps({"quick": True, "base": metrics["eval_accuracy"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("saves/demo_arms"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        quick(arguments.output / "quick")
        return
    per_seed: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        print(f"Seed {seed}")
        accuracies = run_arms(arguments.output / f"seed_{seed}", seed)
        for arm in ARMS:
            per_seed[arm].append(accuracies[arm])

    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory"))
    )
    print("arm      " + "".join(f"  seed {seed:<4}" for seed in arguments.seeds) + "  mean   +-")
    for arm, values in per_seed.items():
        spread = stdev(values) if len(values) > 1 else 0.0
        print(f"{arm:<9}" + "".join(f"  {value:<9.2f}" for value in values) + f"  {fmean(values):<6.2f} {spread:.2f}")
    means = {arm: round(fmean(values), 2) for arm, values in per_seed.items()}
    print(json.dumps({"seeds": arguments.seeds, "per_seed": per_seed, "mean": means}))


if __name__ == "__main__":
    main()
