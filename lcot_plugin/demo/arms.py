"""The four arms of the paper on the embedded task: base, RL only, SFT, SFT then RL; `make demo`.

In: the recipes in yaml_recipes/. Out: `saves/demo/report.json` with four accuracies in percent, a plot of the reward
and accuracy curves, and a printed table. Every stage is a process of its own, started as `lcot train RECIPE` would be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from lcot_plugin.errors import LcotError
from lcot_plugin.report.arms import ArmResult, plot_arms, print_table

RECIPES = Path("yaml_recipes")
BASE_MODEL = Path("lcot_plugin/demo/model")


@dataclass(frozen=True)
class Stage:
    """One training or evaluation."""

    title: str
    recipe: str
    output: Path
    overrides: dict[str, object]


def stages(folder: Path, seed: int, max_samples: int | None) -> list[Stage]:
    """What is run, in order. `max_samples` bounds the test problems."""
    limit = {"max_samples": max_samples} if max_samples else {}

    def train(title: str, recipe: str, arm: str, model: Path) -> Stage:
        output = folder / arm
        return Stage(title, recipe, output, {"model_name_or_path": model, "output_dir": output, "seed": seed})

    def evaluate(title: str, arm: str, model: Path) -> Stage:
        output = folder / f"{arm}_eval"
        keys = {"model_name_or_path": model, "output_dir": output, **limit}
        return Stage(f"Evaluate {title}", "eval.yaml", output, keys)

    return [
        evaluate("base", "base", BASE_MODEL),
        train("SFT", "sft.yaml", "sft", BASE_MODEL),
        evaluate("SFT", "sft", folder / "sft"),
        train("SFT, then RL", "grpo.yaml", "sft_rl", folder / "sft"),
        evaluate("SFT, then RL", "sft_rl", folder / "sft_rl"),
        train("RL only", "grpo.yaml", "rl_only", BASE_MODEL),
        evaluate("RL only", "rl_only", folder / "rl_only"),
    ]


def run_stage(stage: Stage, position: str) -> float:
    """Runs a stage with a progress bar read from its trainer log; returns its seconds.

    Raises LcotError with the end of the log where the stage fails.
    """
    shutil.rmtree(stage.output, ignore_errors=True)  # a half-trained arm of an earlier run would be resumed
    stage.output.mkdir(parents=True)
    log_path = stage.output / "console.log"
    overrides = [f"{key}={value}" for key, value in stage.overrides.items()]
    command = [sys.executable, "-m", "lcot_plugin", "train", str(RECIPES / stage.recipe), *overrides]
    started = time.monotonic()
    with log_path.open("w") as log, tqdm(total=100, desc=f"{position} {stage.title}", bar_format=_BAR) as bar:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                _show_progress(bar, stage.output / "trainer_log.jsonl")
        finally:
            process.terminate()
        if process.returncode == 0:
            bar.n = 100
            bar.refresh()
    if process.returncode:
        end = "\n".join(log_path.read_text(errors="replace").splitlines()[-25:])
        raise LcotError(f"{' '.join(command)} failed; the end of {log_path}:\n{end}")
    return time.monotonic() - started


_BAR = "{desc:<28} {percentage:3.0f}% |{bar:30}| {elapsed} {postfix}"


def _show_progress(bar: tqdm, trainer_log: Path) -> None:
    if not trainer_log.exists():
        return
    lines = trainer_log.read_text().splitlines()
    if not lines:
        return
    last = json.loads(lines[-1])
    bar.n = last.get("percentage", 0)
    shown = {key: f"{last[key]:.3g}" for key in ("loss", "reward") if key in last}
    bar.set_postfix(left=last.get("remaining_time", "?"), **shown)


def run_arms(folder: Path, seed: int = 42, max_samples: int | None = None) -> dict[str, float]:
    """Runs everything and returns the four accuracies in percent, by arm."""
    for path in (RECIPES, BASE_MODEL):
        if not path.exists():
            raise LcotError(f"{path} is not here: run this from the root of the repository.")
    planned = stages(folder, seed, max_samples)
    seconds = {
        stage.output.name: run_stage(stage, f"[{number}/{len(planned)}]") for number, stage in enumerate(planned, 1)
    }
    results = [
        ArmResult.read(arm, folder / f"{arm}_eval", folder / arm, seconds.get(arm, 0.0))
        for arm in ("base", "rl_only", "sft", "sft_rl")
    ]
    accuracies = {result.arm: round(result.accuracy, 2) for result in results}
    (folder / "report.json").write_text(json.dumps(accuracies, indent=2) + "\n")
    plot_arms(results, folder / "arms.png")
    print_table(results)
    return accuracies


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lcot_plugin.demo.arms", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("saves/demo"), help="folder for models and the report")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--max-samples", type=int, help="test problems per evaluation (default: all)")
    arguments = parser.parse_args(argv)
    try:
        run_arms(arguments.output, arguments.seed, arguments.max_samples)
    except LcotError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Report: {arguments.output / 'report.json'}, plot: {arguments.output / 'arms.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
