"""A long GRPO run on the embedded task while everything around it fails, beside the same run left alone.

    python benchmarks/soak.py --vllm-python .venv-vllm/bin/python [--quick] [--steps 2000] [--output saves/soak]

One SFT model (yaml_recipes/sft.yaml), from it twice yaml_recipes/grpo.yaml, 4 prompts x 8 completions a step. The run
that is left alone writes its completions in process. Those of the disturbed one are written by a vLLM server that it
starts, and

* the comparison behind 1% of the verdicts hangs, until the verifier kills it (soak_faults.py),
* 1% of the data's pictures end in the middle,
* every 200 steps the server is killed (SIGKILL to its process group),
* twice, after a third and after two thirds, the training process is (SIGKILL); the same command is then run again.

Both are evaluated greedily on the 400 test problems. The memory of the training process and of the server (resident,
with no file behind it) is read every two seconds; its slope is that of a line through the samples of each life of a
process without its first 150 steps, the median over the lives.

Prints a table and, as its last line, JSON: `accuracy` of both in percent with `interval` (95%, Wilson), `steps`,
`faults` by kind, `recovery_seconds` by kind (median, from the kill until two more optimizer steps are
logged), `lost_steps` that were
made again, `memory_mb_per_1000_steps` by run and process, `seconds`. memory.png shows the samples. Results are kept in
benchmarks/results/soak.md. `--quick`: 12 steps, one kill of each kind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from objectives import ROOT, train
from scipy.stats import binomtest
from soak_faults import HANGS, write_data
from tqdm.auto import tqdm

SAMPLE_SECONDS = 2.0
SETTLING_STEPS = 150
SERVER, TRAINER = "server", "trainer"
FAULTS = Path(__file__).with_name("soak_faults.py")
ALONE, DISTURBED = "left alone", "disturbed"
MiB = 1 << 20


@dataclass
class Plan:
    """A run's optimizer steps, and those after which the server or the training process is killed."""

    steps: int
    server_kills: list[int] = field(default_factory=list)
    trainer_kills: list[int] = field(default_factory=list)


@dataclass
class Life:
    """The memory of one process, in bytes, by optimizer step, from its start to its end."""

    steps: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, step: int, processes: Sequence[psutil.Process]) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            size = sum(anonymous_bytes(process.pid) for process in processes)
            self.steps.append(step)
            self.sizes.append(size)

    def slope(self) -> float | None:
        """MiB per 1,000 steps; None for a life too short to tell."""
        steps, sizes = np.array(self.steps), np.array(self.sizes)
        settled = steps > (steps[0] if len(steps) else 0) + SETTLING_STEPS
        if len(np.unique(steps[settled])) < 15:
            return None
        return float(np.polyfit(steps[settled], sizes[settled], 1)[0]) * 1000 / MiB


@dataclass
class Seen:
    """What came of a run."""

    lives: dict[str, list[Life]] = field(default_factory=lambda: defaultdict(list))
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost_steps: int = 0
    seconds: float = 0.0

    def slope(self, process: str) -> float | None:
        slopes = [slope for life in self.lives[process] if (slope := life.slope()) is not None]
        return round(median(slopes), 2) if slopes else None


class Run:
    """A GRPO run, watched, and disturbed where its plan says so."""

    def __init__(self, output: Path, keys: dict[str, object], plan: Plan) -> None:
        self._output = output
        self._plan = plan
        pairs = {**keys, "output_dir": output, "max_steps": plan.steps, "overwrite_output_dir": False}
        recipe = str(ROOT / "yaml_recipes" / "grpo.yaml")
        self._command = [sys.executable, "-m", "lcot_plugin", "train", recipe]
        self._command += [f"{key}={value}" for key, value in pairs.items()]
        self._seen = Seen()
        self._pending: dict[str, tuple[float, int]] = {}
        """By what was killed: when, and how many steps had been logged by then."""

    def watch(self) -> Seen:
        """To the end, however often the training process has to be started."""
        self._output.mkdir(parents=True)
        started = time.monotonic()
        with tqdm(total=self._plan.steps, unit="step", desc=self._output.name) as bar:
            while self._watch_process(self._start(), bar) is None:
                pass
        self._seen.seconds = time.monotonic() - started
        return self._seen

    def _start(self) -> subprocess.Popen[bytes]:
        search = os.pathsep.join([str(ROOT), str(FAULTS.parent)])  # the verifier's processes import soak_faults
        environment = {**os.environ, "PYTHONPATH": search, HANGS: str(self._output.with_suffix(".hangs"))}
        with self._output.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _watch_process(self, process: subprocess.Popen[bytes], bar: tqdm) -> int | None:
        """Its exit status, None where it was killed."""
        trainer, server = psutil.Process(process.pid), None
        lives = self._seen.lives
        lives[TRAINER].append(Life())
        before, sampled = self._logged(), 0.0
        while process.poll() is None:
            time.sleep(0.1)
            logged, step = self._logged(), self._step()
            if step > bar.n:
                bar.update(step - bar.n)
            self._note_recovery(logged)
            found = _server_of(trainer)
            if found is not None and found != server:
                server = found
                lives[SERVER].append(Life())
            if time.monotonic() - sampled > SAMPLE_SECONDS and logged > before:
                sampled = time.monotonic()
                lives[TRAINER][-1].add(step, [trainer])
                if found is not None:
                    lives[SERVER][-1].add(step, _family(found))
            if self._pending or logged == before:
                continue  # one fault at a time
            if self._plan.server_kills and step >= self._plan.server_kills[0] and found is not None:
                self._plan.server_kills.pop(0)
                self._pending[SERVER] = time.monotonic(), logged
                os.killpg(os.getpgid(found.pid), signal.SIGKILL)
            elif self._plan.trainer_kills and step >= self._plan.trainer_kills[0]:
                self._plan.trainer_kills.pop(0)
                process.kill()
                process.wait()
                self._pending[TRAINER] = time.monotonic(), self._logged()
                self._seen.lost_steps += self._step() - self._saved()
                return None
        if process.returncode:
            sys.exit(f"{' '.join(self._command)} ended with {process.returncode}; see {self._output}.log")
        return process.returncode

    def _note_recovery(self, logged: int) -> None:
        for what, (when, at) in list(self._pending.items()):
            if logged >= at + 2:  # the step in which it was killed may end without it
                self._seen.recovery[what].append(time.monotonic() - when)
                del self._pending[what]

    def _lines(self) -> list[str]:
        path = self._output / "trainer_log.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def _logged(self) -> int:
        """Optimizer steps that were logged, those that were made again counted again."""
        return len(self._lines())

    def _step(self) -> int:
        for line in reversed(self._lines()):
            with contextlib.suppress(ValueError):  # a line of which a kill has left the beginning
                return int(json.loads(line)["current_steps"])
        return 0

    def _saved(self) -> int:
        return max((int(path.name.split("-")[1]) for path in self._output.glob("checkpoint-*")), default=0)


def anonymous_bytes(pid: int) -> int:
    """Resident memory that no file is behind; Linux. Pages of libraries would come and go with other processes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    if not sizes:
        raise ProcessLookupError(f"process {pid} has ended")
    return sum(sizes)


def _server_of(trainer: psutil.Process) -> psutil.Process | None:
    """The vLLM server that a training process has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in trainer.children():
            if any("lcot_launch" in part for part in child.cmdline()):
                return child
    return None


def _family(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return [process]


def evaluated(model: Path, problems: int) -> tuple[float, list[float]]:
    """Greedy accuracy in percent and its 95% interval (Wilson)."""
    keys = {"model_name_or_path": model, "grpo_eval_generations": 0, "max_samples": problems}
    train("eval.yaml", model / "eval", ROOT, keys)
    accuracy = json.loads((model / "eval" / "eval_results.json").read_text())["eval_accuracy"]
    interval = binomtest(round(accuracy * problems / 100), problems).proportion_ci(method="wilson")
    return accuracy, [round(100 * interval.low, 2), round(100 * interval.high, 2)]


def plot(runs: dict[str, Seen], path: Path) -> None:
    """Memory by step, a panel per run and process."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(name, process) for name, seen in runs.items() for process in (TRAINER, SERVER) if seen.lives[process]]
    figure, panels = plt.subplots(1, len(shown), figsize=(4.4 * len(shown), 3.6), squeeze=False)
    for panel, (name, process) in zip(panels[0], shown, strict=True):
        for life in runs[name].lives[process]:
            panel.plot(life.steps, np.array(life.sizes) / MiB, linewidth=1)
        panel.set(title=f"{name}: {process}", xlabel="optimizer step", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("memory, MiB")
    figure.suptitle("Memory; a line is the life of a process", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("saves/soak"))
    parser.add_argument("--quick", action="store_true", help="12 steps, one kill of each kind; a few minutes")
    arguments = parser.parse_args(argv)
    if not arguments.vllm_python.exists():
        parser.error(f"{arguments.vllm_python} does not exist: `make vllm-env` installs vLLM, --vllm-python names it")
    steps, every = (12, 4) if arguments.quick else (arguments.steps, 200)
    output = (arguments.output / "quick" if arguments.quick else arguments.output).resolve()
    base = {"model_name_or_path": ROOT / "lcot_plugin/demo/model", "seed": arguments.seed}
    sft = output / "sft"
    if not (sft / "model.safetensors").exists():
        train("sft.yaml", sft, ROOT, {**base, **({"max_steps": 5} if arguments.quick else {})})
    broken = write_data(ROOT / "lcot_plugin/demo/data/rl.parquet", output / "data")
    shared: dict[str, object] = {
        "model_name_or_path": sft,
        "seed": arguments.seed,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1.0e-4,
        "save_strategy": "steps",
        "save_steps": 3 if arguments.quick else 100,
        "save_total_limit": 2,
    }
    vllm = {"grpo_rollout_engine": "vllm", "grpo_vllm_python": arguments.vllm_python.absolute()}
    disturbed = {
        **vllm,
        "dataset": "problems",
        "dataset_dir": output / "data",
        "grpo_reward_funcs": f"{FAULTS}:accuracy",
    }
    plans = {
        ALONE: ({"dataset_dir": ROOT / "dataset_info"}, Plan(steps)),
        DISTURBED: (disturbed, Plan(steps, list(range(every, steps, every)), [steps // 3, 2 * steps // 3])),
    }
    seen: dict[str, Seen] = {}
    for name, (keys, plan) in plans.items():
        folder = output / name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        for suffix in (".log", ".hangs"):
            folder.with_suffix(suffix).unlink(missing_ok=True)
        seen[name] = Run(folder, {**shared, **keys}, plan).watch()
    hangs = (output / "disturbed.hangs").read_text().count("\n")
    results = {name: evaluated(output / name.replace(" ", "_"), 20 if arguments.quick else 400) for name in plans}
    plot(seen, output / "memory.png")
    disturbance = seen[DISTURBED]
    figures = {
        "accuracy": {name: round(accuracy, 2) for name, (accuracy, _) in results.items()},
        "interval": {name: interval for name, (_, interval) in results.items()},
        "steps": steps,
        "faults": {
            "hung verdicts": hangs,
            "broken pictures": broken,
            "servers killed": len(disturbance.lives[SERVER]) - len(disturbance.lives[TRAINER]),
            "trainers killed": len(disturbance.lives[TRAINER]) - 1,
        },
        "recovery_seconds": {what: round(median(seconds), 1) for what, seconds in disturbance.recovery.items()},
        "lost_steps": disturbance.lost_steps,
        "memory_mb_per_1000_steps": {
            name: {process: run.slope(process) for process in (TRAINER, SERVER)} for name, run in seen.items()
        },
        "seconds": {name: round(run.seconds) for name, run in seen.items()},
    }
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory"))
    print(f"\n{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"{'':<12}{'accuracy':>10}{'95% interval':>18}{'minutes':>9}   memory, MiB per 1,000 steps: trainer, server")
    for name, (accuracy, (low, high)) in results.items():
        slopes = ", ".join(f"{seen[name].slope(process)}" for process in (TRAINER, SERVER))
        print(f"{name:<12}{accuracy:>10.2f}{f'{low:.1f} to {high:.1f}':>18}{seen[name].seconds / 60:>9.1f}   {slopes}")
    for name, count in figures["faults"].items():
        print(f"{name:<18}{count:>6}")
    print(f"recovery, seconds: {dict(disturbance.recovery)}; steps made again: {disturbance.lost_steps}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
