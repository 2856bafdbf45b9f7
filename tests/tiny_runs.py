"""A transformers Trainer on eight numbers with the mixin of lcot_plugin.survival, as a process of its own too.

python tiny_runs.py FOLDER [kill_in_save=STEP] [signal_in=STEP] [signal=15] [full_at=STEP] [resume=1] [steps=6]
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from lcot_plugin.survival.trainer import SurvivingTrainer


class Numbers(nn.Module):
    """Draws from every generator that a resumed run must go on with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = nn.Linear(4, 1), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = random.random() + float(np.random.rand())
        return {"loss": ((self.layer(self.dropout(x)) - labels - noise) ** 2).mean()}


class TinyTrainer(SurvivingTrainer, Trainer):
    """Does before a micro-step, and before a checkpoint, what a test asks for."""

    before_step: Any = None
    in_save: Any = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.before_step is not None:
            self.before_step(self)
        return super().training_step(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:  # after the model and the optimizer
        if self.in_save is not None:
            self.in_save(self, Path(output_dir))
        super()._save_rng_state(output_dir)


def tiny_trainer(folder: Path, warned: list[str] | None = None, steps: int = 6, **changes: Any) -> TinyTrainer:
    options: dict[str, Any] = {
        "max_steps": steps,
        "save_steps": 2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
    }
    options |= {"per_device_train_batch_size": 1, "learning_rate": 0.1, "report_to": "none", "use_cpu": True}
    options |= {"disable_tqdm": True, "dataloader_pin_memory": False, "save_total_limit": 2, "seed": 3}
    generator = torch.Generator().manual_seed(1)
    data = [{"x": torch.randn(4, generator=generator), "labels": torch.ones(1)} for _ in range(8)]
    trainer = TinyTrainer(
        model=Numbers(),
        args=TrainingArguments(output_dir=str(folder), **{**options, **changes}),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.setup_survival(print if warned is None else warned.append)
    return trainer


class LimitFiles(TrainerCallback):
    """From a step on no file may grow beyond some bytes: what a full disk does to who writes."""

    def __init__(self, step: int, num_bytes: int):
        self.step, self.num_bytes = step, num_bytes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.RLIM_INFINITY))
        elif state.global_step == self.step + 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def weights(trainer: TinyTrainer) -> list[float]:
    return trainer.model.layer.weight.flatten().tolist()


def run_tiny(folder: Path, **faults: Any) -> subprocess.CompletedProcess[str]:
    """Trains in a process of its own; the last line of its output is the weights."""
    command = [sys.executable, __file__, str(folder), *(f"{name}={value}" for name, value in faults.items())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def main(
    folder: str,
    kill_in_save: int = -1,
    signal_in: int = -1,
    signal: int = signal.SIGTERM,
    full_at: int = -1,
    resume: int = 0,
    steps: int = 6,
) -> None:
    trainer = tiny_trainer(Path(folder), steps=steps)

    def before_step(trainer: TinyTrainer) -> None:
        if trainer.state.global_step == signal_in:
            os.kill(os.getpid(), signal)

    def in_save(trainer: TinyTrainer, folder: Path) -> None:
        if trainer.state.global_step == kill_in_save:
            os.kill(os.getpid(), 9)

    trainer.before_step, trainer.in_save = before_step, in_save
    if full_at >= 0:
        trainer.add_callback(LimitFiles(full_at, 300))
    trainer.train(resume_from_checkpoint=trainer.whole_checkpoint(bool(resume)) if resume else None)
    print(weights(trainer))


if __name__ == "__main__":
    main(sys.argv[1], **{name: int(value) for name, value in (item.split("=") for item in sys.argv[2:])})
