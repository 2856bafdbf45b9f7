"""A callback that notes what each optimizer step of a LLaMA-Factory trainer took: time, tokens, losses and peak memory.

In: any run of `run_exp`, with the plugin or without. Out: `Steps`. For sft_throughput.py; Linux only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Steps:
    """What a process saw: one entry per optimizer step."""

    seconds: list[float] = field(default_factory=list)
    """When it ended, on the clock of the machine."""
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Sum of what the micro-steps contributed to the loss that was descended."""
    micro: list[tuple[int, int, float]] = field(default_factory=list)
    """Tokens, labels and loss of the micro-steps of the step that is under way."""
    baseline: int = 0
    """Resident bytes before the first step, with the model loaded."""
    peak: int = 0

    def end_step(self) -> None:
        self.seconds.append(time.perf_counter())
        tokens, labels, losses = zip(*self.micro, strict=True)
        self.tokens.append(sum(tokens))
        self.labels.append(sum(labels))
        self.losses.append(sum(losses))
        self.micro.clear()


def memory(key: str) -> int:
    """Bytes: VmRSS (now) or VmHWM (the most since it was last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def real_tokens(inputs: dict[str, Any], pad_token_id: int) -> tuple[int, int]:
    """Tokens and label tokens of a micro-batch that come from records, whatever the layout of the batch.

    Left out are padding, the white picture that both sides give a batch without one, and packs that only keep a process
    busy. No record holds the padding token.
    """
    if "packed" in inputs:
        import torch

        batch = inputs["packed"]
        lengths = torch.tensor(batch.segments.lengths)
        columns = batch.target_columns[batch.target_weights > 0]
        trained = torch.bucketize(columns, lengths.cumsum(0), right=True).unique()
        return int(lengths[trained].sum()), len(columns)
    mask = inputs["attention_mask"]
    tokens = mask.bool() if mask.dim() == 2 else inputs["input_ids"] != pad_token_id
    return int(tokens.sum()), int((inputs["labels"] != -100).sum())


def watch(steps: Steps) -> Any:
    """A callback that fills `steps`; counts where all trainers come by, in `Trainer.training_step`."""
    from transformers import Trainer, TrainerCallback

    original = Trainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        counts = real_tokens(inputs, self.processing_class.pad_token_id)
        loss = original(self, model, inputs, *args, **kwargs)
        steps.micro.append((*counts, float(loss)))
        return loss

    class Watch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            Trainer.training_step = training_step
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            steps.baseline = memory("VmRSS")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.end_step()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            Trainer.training_step = original
            steps.peak = memory("VmHWM")

    callback = Watch()
    callback.steps = steps
    return callback


def limit_memory() -> None:
    """An arm that needs more than the machine has gets an error instead of having the system end some process."""
    import resource

    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    most = int(line.split()[1]) * 1024 - (1 << 30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
