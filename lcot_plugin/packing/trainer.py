"""SFT on packs, as a mixin over a transformers Trainer: data loader, attention scope, loss, logs, checkpoints.

In: a tokenised data set and what the workflow made (`PackingParts`). Out: the Trainer's own loop, in which a
micro-batch is one PackedBatch and every label token of an optimizer step weighs the same over all its packs and
processes. Evaluation, prediction, optimizers, schedulers and every parallel backend remain the Trainer's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.cost import CostModel, fit_cost_model
from lcot_plugin.packing.dataset import PackedExamples, PackStreamSampler
from lcot_plugin.packing.loss import packed_nll
from lcot_plugin.packing.sampler import PackSampler, differences
from lcot_plugin.packing.statistics import pack_sums, plan_statistics
from lcot_plugin.packing.stream import StreamPlanner
from lcot_plugin.packing.throughput import PackCount, PackTimes, Throughput
from lcot_plugin.survival.faults import MAX_SKIPPED_STEPS, FaultCounts, GradientGuard
from lcot_plugin.survival.trainer import SurvivingTrainer
from lcot_plugin.types import ExampleSizes, PackedBatch, PackLimits

STATE_FILE = "packing.json"
"""In every checkpoint: what its packs were planned from."""


@dataclass
class PackingParts:
    """Everything the loop calls, made by the workflow."""

    limits: PackLimits
    cost: CostModel
    collate: Callable[[Any], dict[str, Any]]
    """`[PackItem]` to `{"packed": PackedBatch, "input_ids": [1, N]}`."""
    sizes: ExampleSizes | None
    """None for a stream, whose examples are not known beforehand."""
    size_of: Callable[[dict[str, Any]], tuple[int, int, int] | None]
    """Tokens, patches and labels of one row of a stream; None where it is left out."""
    mode: str = "levelled"
    fits_cost: bool = False
    """Whether the cost model is fitted to the first steps (`pack_cost: auto`)."""
    buffer_size: int = 4096
    shuffle: bool = True
    say: Callable[[str], None] = print
    """Logs a line, on the first process."""
    warn: Callable[[str], None] = print
    plot: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None
    """Draws lengths of examples, tokens of packs, costs [micro-steps, ranks]; None where nobody looks."""


class _FollowSteps(TrainerCallback):
    """The sampler learns its epoch from the trainer's steps alone; times and costs are looked at between steps."""

    def __init__(self, trainer: PackingTrainerMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_pack_epoch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_pack_step()


class PackingTrainerMixin(SurvivingTrainer):
    """Stands before a Trainer class in the bases; `setup_packing` is called once after `__init__`."""

    model_accepts_loss_kwargs: bool
    pack_sampler: PackSampler | None = None

    def setup_packing(self, parts: PackingParts) -> None:
        """Must be called before `train`."""
        self.packing = parts
        self._evaluates_by_items = self.model_accepts_loss_kwargs  # as LLaMA-Factory has set it
        # The loss of a micro-batch is its share of the optimizer step's, so the Trainer must not average once more.
        self.model_accepts_loss_kwargs = True
        self.throughput = Throughput(parts.limits.max_tokens)
        self.pack_times = PackTimes(active=parts.fits_cost and parts.sizes is not None)
        self._step_started: float | None = None
        self._resumed: dict[str, Any] | None = None
        self._stream_origin: dict[str, Any] = {}
        self.add_callback(_FollowSteps(self))
        self.faults = FaultCounts()
        self.add_callback(GradientGuard(self, MAX_SKIPPED_STEPS, self.faults, parts.warn, "the data"))
        self.setup_survival(parts.warn)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of one pack each: `{"packed": PackedBatch, "input_ids": [1, N]}`."""
        parts, args = self.packing, self.args
        seed = args.data_seed if args.data_seed is not None else args.seed
        ranks, accumulation = self.accelerator.num_processes, args.gradient_accumulation_steps
        options: dict[str, Any] = {
            "batch_size": 1,
            "collate_fn": parts.collate,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        planning = {"num_ranks": ranks, "micro_steps": accumulation, "cost": parts.cost, "seed": seed}
        planning |= {"mode": parts.mode, "shuffle": parts.shuffle}
        if parts.sizes is None:
            make_planner = partial(StreamPlanner, parts.limits, buffer_size=parts.buffer_size, **planning)
            stream = PackStreamSampler(self.train_dataset, make_planner, parts.size_of)
            caps = {"max_tokens": parts.limits.max_tokens, "max_patches": parts.limits.max_patches}
            self._stream_origin = {**planning, "cost": asdict(parts.cost), **caps, "buffer_size": parts.buffer_size}
            self._take_up_state()
            # The items come from the sampler; without a length the Trainer goes by max_steps.
            return self.accelerator.prepare(DataLoader(PackedExamples(self.train_dataset), sampler=stream, **options))
        self.pack_sampler = sampler = PackSampler(parts.sizes, parts.limits, **planning)
        self._take_up_state()
        self.begin_pack_epoch()
        plan, cost = sampler.plan(), sampler.cost_in(sampler.epoch)
        parts.say(plan_statistics(plan, parts.sizes, parts.limits, cost).summary())
        if parts.plot is not None:
            tokens, _, language, vision = pack_sums(plan, parts.sizes, cost)
            parts.plot(parts.sizes.tokens, tokens, language + vision)
        return self.accelerator.prepare(DataLoader(PackedExamples(self.train_dataset), sampler=sampler, **options))

    def begin_pack_epoch(self) -> None:
        """Plans the epoch that the next step belongs to."""
        if self.pack_sampler is not None:
            self.pack_sampler.begin_epoch(self.state.global_step // self.pack_sampler.steps_per_epoch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor]:
        """The packs of one optimizer step, and what all their targets weigh together over all processes."""
        self._step_started = time.perf_counter()
        batches, _ = super().get_batch_samples(*args, **kwargs)
        weight = sum((batch["packed"].target_weights.double().sum().cpu() for batch in batches), torch.zeros(()))
        total = self.accelerator.reduce(weight.float().to(self.accelerator.device), reduction="sum")
        return batches, total.clamp(min=1.0)  # 0 where no record of the step has a label

    # Update

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one pack."""
        batch: PackedBatch = inputs["packed"].to(self.accelerator.device)
        inputs = {**inputs, "packed": batch}
        with (
            self.pack_times.measured(batch, self.accelerator.device),
            segment_attention(self.accelerator.unwrap_model(model), batch.segments),
        ):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This pack's share of the loss of the optimizer step, times the processes that DDP averages over."""
        if "packed" not in inputs:  # an evaluation, in padded batches
            items = num_items_in_batch if self._evaluates_by_items else None
            return super().compute_loss(model, inputs, return_outputs, items)
        batch: PackedBatch = inputs["packed"]
        nll, _ = packed_nll(model, self.accelerator.unwrap_model(model), batch)
        self.throughput.counts.append(PackCount.of(batch))
        return nll / num_items_in_batch * self.accelerator.num_processes

    def end_pack_step(self) -> None:
        """After every optimizer step: its duration, and the cost model once enough packs have been timed."""
        assert self._step_started is not None
        self.throughput.add_step(time.perf_counter() - self._step_started)
        sampler = self.pack_sampler
        if sampler is None or not self.pack_times.complete:
            return
        timed = [row for rows in gather_object([self.pack_times.take()]) for row in rows]
        tokens, squares, patches, seconds = np.array(timed).T
        next_epoch = -(-self.state.global_step // sampler.steps_per_epoch)
        # One process decides: in the last bit another machine may fit another model, and plan other packs.
        [sampler.costs[next_epoch]] = broadcast_object_list([fit_cost_model(tokens, squares, patches, seconds)])
        self.packing.say(
            f"pack_cost: {sampler.costs[next_epoch]}, from the durations of {len(timed)} packs; epoch {next_epoch} and "
            "later ones are planned with it."
        )

    # Logs and checkpoints

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # a training log, on every process; not the final summary or an evaluation
            logs |= self.throughput.pop(self._cost_now()) | self.faults.logged()
        super().log(logs, *args, **kwargs)

    def _cost_now(self) -> CostModel:
        sampler = self.pack_sampler
        return self.packing.cost if sampler is None else sampler.cost_in(sampler.epoch)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        resume_from_checkpoint = self.whole_checkpoint(resume_from_checkpoint)
        self._resumed = None
        if isinstance(resume_from_checkpoint, str):
            path = Path(resume_from_checkpoint, STATE_FILE)
            self._resumed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        result.metrics.update(self.throughput.of_run(self._cost_now()))
        return result

    def _save_beside(self, folder: Path) -> None:
        if self.args.should_save:
            state = self._stream_origin if self.pack_sampler is None else self.pack_sampler.state()
            Path(folder, STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _take_up_state(self) -> None:
        """The cost models that the checkpoint was planned with, or a warning where its packs cannot come back."""
        if self._resumed is None:
            return
        if self.pack_sampler is None:
            differing = differences(self._resumed, self._stream_origin)
        else:
            differing = self.pack_sampler.take_up(self._resumed)
            if len(self.pack_sampler.costs) > 1:
                self.pack_times.active = False  # they have been fitted; once more would plan other packs
        if differing:
            self.packing.say(
                f"The checkpoint was made with other packs than this run makes ({'; '.join(differing)}): of the epoch "
                "it was saved in, some examples will be seen twice and others not. The epochs after it are whole."
            )
