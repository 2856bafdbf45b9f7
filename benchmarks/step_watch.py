"""A callback that notes what each optimizer step of a LLaMA-Factory trainer took: time, tokens, losses and peak memory.

In: any run of `run_exp`, with the plugin or without, on the CPU or one GPU. Out: `Steps`. For sft_throughput.py and
gpu/; memory of a process is known on Linux only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Counts(NamedTuple):
    """What a micro-batch holds of records, whatever its layout: no padding, no picture that stands in for none."""

    tokens: int
    labels: int
    squares: int
    """Sum of the squared lengths of the records: what attention costs."""
    patches: int = 0
    patch_squares: int = 0
    """Sum of the squared patches of the pictures."""

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*(left + right for left, right in zip(self, other, strict=True)))


@dataclass
class Steps:
    """What a process saw: one entry per optimizer step."""

    seconds: list[float] = field(default_factory=list)
    """When it ended, on the clock of the machine."""
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Sum of what the micro-steps contributed to the loss that was descended."""
    counts: list[Counts] = field(default_factory=list)
    micro: list[tuple[Counts, float]] = field(default_factory=list)
    """Counts and loss of the micro-steps of the step that is under way."""
    baseline: int = 0
    """Resident bytes before the first step, with the model loaded; 0 where a GPU computes."""
    peak: int = 0
    """Resident bytes at most; 0 where a GPU computes."""
    allocated: int = 0
    """Bytes of the GPU at most while training: of tensors; 0 where the CPU computes."""
    reserved: int = 0
    """The same, held by torch's allocator."""

    def end_step(self) -> None:
        wait_for_gpu()
        self.seconds.append(time.perf_counter())
        counts, losses = zip(*self.micro, strict=True)
        self.counts.append(sum(counts[1:], counts[0]))
        self.tokens.append(self.counts[-1].tokens)
        self.labels.append(self.counts[-1].labels)
        self.losses.append(sum(losses))
        self.micro.clear()


def wait_for_gpu() -> None:
    """Until the GPU has done what it was told, where this process uses one."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory(key: str) -> int:
    """Bytes: VmRSS (now) or VmHWM (the most since it was last reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def counts_of(inputs: dict[str, Any], pad_token_id: int) -> Counts:
    """What of a micro-batch comes from records.

    Left out are padding, the white picture that both sides give a batch without one, and packs that only keep a process
    busy. No record holds the padding token.
    """
    import torch

    if "packed" in inputs:
        batch = inputs["packed"]
        lengths = torch.tensor(batch.segments.lengths)
        columns = batch.target_columns[batch.target_weights > 0].cpu()
        trained = torch.bucketize(columns, lengths.cumsum(0), right=True).unique()
        return Counts(int(lengths[trained].sum()), len(columns), squares(lengths[trained]), *patches(batch.media))
    labels = int((inputs["labels"] != -100).sum())
    real, mask = inputs["input_ids"] != pad_token_id, inputs["attention_mask"]
    if mask is None:
        # neat_packing for flash-attention, which cuts the row where positions begin anew.
        first = (inputs["position_ids"].reshape(-1, real.shape[-1]) == 0).all(0)
        lengths = first[real[0]].cumsum(0).bincount()
        return Counts(int(real.sum()), labels, squares(lengths), *patches(inputs))
    if mask.dim() == 2:  # 1 for every token of a record, or the record's number in the row
        lengths = torch.cat([row.long().bincount()[1:] for row in mask])
        return Counts(int(lengths.sum()), labels, squares(lengths), *patches(inputs))
    tokens, seen = int(real.sum()), int((mask == 0).sum())  # n (n + 1) / 2 pairs of a record of n tokens
    return Counts(tokens, labels, 2 * seen - tokens, *patches(inputs))


def squares(lengths: Any) -> int:
    return int((lengths.long() ** 2).sum())


def patches(media: dict[str, Any]) -> tuple[int, int]:
    """Patches of the Qwen families' pictures, and the sum of their squares."""
    if media.get("image_grid_thw") is None:
        return 0, 0
    of_picture = media["image_grid_thw"].prod(-1)
    return int(of_picture.sum()), squares(of_picture)


def watch(steps: Steps) -> Any:
    """A callback that fills `steps`; counts where all trainers come by, in `Trainer.training_step`."""
    import torch
    from transformers import Trainer, TrainerCallback

    original = Trainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        counts = counts_of(inputs, self.processing_class.pad_token_id)
        loss = original(self, model, inputs, *args, **kwargs)
        steps.micro.append((counts, float(loss)))
        return loss

    class Watch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            Trainer.training_step = training_step
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
                steps.baseline = memory("VmRSS")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.end_step()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            Trainer.training_step = original
            if torch.cuda.is_initialized():
                steps.allocated = torch.cuda.max_memory_allocated()
                steps.reserved = torch.cuda.max_memory_reserved()
            else:
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
