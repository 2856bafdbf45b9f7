"""GRPO on the embedded task with rollouts in process and by vLLM: the same accuracy, and the gap between the two.

    python benchmarks/engines.py --vllm-python .venv-vllm/bin/python [--quick] [--seeds 1 2 3] [--output saves/engines]

For every seed one SFT model is trained (yaml_recipes/sft.yaml); from it yaml_recipes/grpo.yaml trains with each engine,
all weights (which vLLM reloads before every rollout) and a LoRA (which vLLM loads as an adapter), and is evaluated
greedily on the 400 test problems, in process for all. vLLM runs in its own environment (`make vllm-env`), on the same
cores as the training. Gaps are between the sampler's log-probabilities and the trainer's, of the same weights.

Prints a table and, as its last line, JSON: `accuracy` in percent by arm, `sampler_gap` (mean, nats) and
`sampler_gap_max`, `rollout_seconds` per step, `difference` (accuracy of vLLM less that in process) by kind of training.
Results are kept in benchmarks/results/engines.md. `--quick` trains two steps with all weights on either side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from objectives import ROOT, measured, train
from tqdm.auto import tqdm

LORA = {"finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32, "learning_rate": 1e-3}
KINDS: dict[str, dict[str, object]] = {"all weights": {}, "LoRA": LORA}
IN_PROCESS, VLLM = "in process", "vLLM"


@dataclass
class Arm:
    """What the seeds of one kind of training with one engine gave."""

    accuracies: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    largest_gap: float = 0.0
    rollout_seconds: list[float] = field(default_factory=list)

    def add(self, folder: Path) -> None:
        accuracy, _ = measured(folder)
        self.accuracies.append(accuracy)
        logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        steps = [log for log in logs if "sampler_gap" in log]
        self.gaps.append(fmean(log["sampler_gap"] for log in steps))
        self.largest_gap = max(self.largest_gap, *(log["sampler_gap/max"] for log in steps))
        self.rollout_seconds.append(fmean(log["time/rollout"] for log in logs if "time/rollout" in log))


def run(arguments: argparse.Namespace) -> dict[tuple[str, str], Arm]:
    output: Path = arguments.output.resolve()
    kinds = ["all weights"] if arguments.quick else list(KINDS)
    arms = {(kind, engine): Arm() for kind in kinds for engine in (IN_PROCESS, VLLM)}
    server = {"grpo_rollout_engine": "vllm", "grpo_vllm_python": arguments.vllm_python.absolute()}
    bar = tqdm(total=len(arguments.seeds) * (1 + len(arms)), unit="run", desc="Runs")
    for seed in arguments.seeds:
        sft = output / f"seed_{seed}" / "sft"
        if not (sft / "model.safetensors").exists():
            limit = {"max_steps": 5} if arguments.quick else {}
            train("sft.yaml", sft, ROOT, {"model_name_or_path": ROOT / "lcot_plugin/demo/model", "seed": seed, **limit})
        bar.update()
        for (kind, engine), arm in arms.items():
            bar.set_postfix_str(f"seed {seed}, {kind}, {engine}")
            folder = output / f"seed_{seed}" / f"{kind}_{engine}".replace(" ", "_")
            if not (folder / "eval" / "eval_results.json").exists():
                keys = {
                    "model_name_or_path": sft,
                    "seed": seed,
                    "max_steps": 2 if arguments.quick else arguments.steps,
                    "logging_steps": 1,
                    **KINDS[kind],
                    **(server if engine == VLLM else {}),
                }
                train("grpo.yaml", folder, ROOT, keys)
                model = {"model_name_or_path": folder}
                if kind == "LoRA":
                    model = {"model_name_or_path": sft, "adapter_name_or_path": folder, "finetuning_type": "lora"}
                few = {"max_samples": 20} if arguments.quick else {}
                train("eval.yaml", folder / "eval", ROOT, {**model, **few})
            arm.add(folder)
            bar.update()
    bar.close()
    return arms


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, 16 prompts x 8 completions each")
    parser.add_argument("--output", type=Path, default=Path("saves/engines"), help="finished runs are kept here")
    parser.add_argument("--quick", action="store_true", help="two steps with all weights; a minute or two")
    arguments = parser.parse_args(argv)
    if not arguments.vllm_python.exists():
        parser.error(f"{arguments.vllm_python} does not exist: `make vllm-env` installs vLLM, --vllm-python names it")
    if arguments.quick:
        arguments.seeds, arguments.output = arguments.seeds[:1], arguments.output / "quick"
    arms = run(arguments)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory"))
    print(f"\n{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{'':<26}{'accuracy':>10}{'gap':>10}{'largest':>10}{'rollout s':>11}   accuracy per seed")
    for (kind, engine), arm in arms.items():
        print(
            f"{kind + ', ' + engine:<26}{fmean(arm.accuracies):>10.2f}{fmean(arm.gaps):>10.1e}{arm.largest_gap:>10.1e}"
            f"{fmean(arm.rollout_seconds):>11.2f}   " + " ".join(f"{accuracy:.2f}" for accuracy in arm.accuracies)
        )
    by_name = {f"{kind}, {engine}": arm for (kind, engine), arm in arms.items()}
    accuracy = {name: round(fmean(arm.accuracies), 2) for name, arm in by_name.items()}
    kinds = dict.fromkeys(kind for kind, _ in arms)
    figures = {
        "accuracy": accuracy,
        "difference": {
            kind: round(accuracy[f"{kind}, {VLLM}"] - accuracy[f"{kind}, {IN_PROCESS}"], 2) for kind in kinds
        },
        "sampler_gap": {name: fmean(arm.gaps) for name, arm in by_name.items()},
        "sampler_gap_max": {name: arm.largest_gap for name, arm in by_name.items()},
        "rollout_seconds": {name: round(fmean(arm.rollout_seconds), 2) for name, arm in by_name.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
