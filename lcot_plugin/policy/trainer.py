"""The GRPO training loop, as a mixin over a transformers Trainer: rollout, scores, advantages, policy update.

In: prompt records from the data loader; what writes, judges and lays out (`GrpoParts`). Out: an updated policy, metrics
and alarms in the trainer's logs, completions as JSON lines.

The first micro-step of a rollout block makes the Experience that the others are served from; each micro-step computes
its share of the optimizer step's passes. So accumulation, clipping, checkpoints, callbacks and every parallel backend
remain the Trainer's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.packing.throughput import wait_for
from lcot_plugin.policy.ahead import RolloutAhead
from lcot_plugin.policy.checkpoint import GrpoCheckpoints
from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.experience import (
    Experience,
    MicroBatch,
    ScoredGroup,
    on_policy_gradients,
    policy_terms,
)
from lcot_plugin.policy.experience_maker import ExperienceMaker
from lcot_plugin.policy.faults import FittingPasses, GradientLedger, GuardedRollouts, write_lines
from lcot_plugin.policy.health import HealthMonitor
from lcot_plugin.policy.layouts import PackedLayout, RowsLayout, UpdateLayout, check_first_pass
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.objectives import PolicyTerms, entropy_threshold, make_objective, policy_loss
from lcot_plugin.policy.prompts import (
    NumberedPrompts,
    PromptEncoding,
    check_images_only,
    numbered_records,
    prompt_records,
)
from lcot_plugin.policy.reference import ReferencePolicy
from lcot_plugin.policy.replay import ReplayBuffer, StoredGroup
from lcot_plugin.policy.rollouts import RolloutMaker, numbered_groups, rollout_lines
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.protocols import CompletionScorer, NoWatcher, RolloutEngine, RunWatcher
from lcot_plugin.survival.faults import FaultCounts, GradientGuard
from lcot_plugin.survival.trainer import computes_alone
from lcot_plugin.types import (
    EncodedPrompt,
    PromptRecord,
    SamplingParams,
    ScoringRequest,
)
from lcot_plugin.vlm import VisionLanguageModel
from lcot_plugin.whole_weights import shards_weights

SEED_STRIDE = 1_000_003


@dataclass
class GrpoParts:
    """Everything the loop calls, made by the workflow."""

    arguments: GrpoArguments
    plan: BatchPlan
    sampling: SamplingParams
    vlm: VisionLanguageModel
    engine: RolloutEngine
    scorer: CompletionScorer
    encode: PromptEncoding
    layout: UpdateLayout
    rows: RowsLayout
    """What a packed layout is checked against; `layout` itself where groups are not packed."""
    scoring_request: Callable[[PromptRecord, Any], ScoringRequest]
    completions_log: Any
    """Has `write(lines)` and `drop_from_step(step)`."""
    completion_line: Callable[..., dict[str, Any]]
    watcher: RunWatcher = field(default_factory=NoWatcher)
    reward_weights: Sequence[float] = (1.0,)
    several_sources: bool = False
    """Whether prompts come from several data sets."""
    say: Callable[[str], None] = print
    """Logs a line, on the first process."""
    warn: Callable[[str], None] = print


class _FollowSteps(TrainerCallback):
    """The sampler learns its epoch from the trainer's steps alone; the reference moves between steps."""

    def __init__(self, trainer: GrpoTrainerMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sampler, plan = self.trainer.prompt_sampler, self.trainer.parts.plan
        micro_steps = sampler.num_blocks * plan.micro_steps_per_rollout
        sampler.begin_epoch(state.global_step * args.gradient_accumulation_steps // micro_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.ledger.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        arguments, reference = self.trainer.parts.arguments, self.trainer.reference
        every = arguments.grpo_ref_sync_steps
        if reference is not None and every and state.global_step % every == 0:
            reference.move(arguments.grpo_ref_mixup_alpha)


class GrpoTrainerMixin(GrpoCheckpoints):
    """Stands before a Trainer class in the bases; `setup_grpo` is called once after `__init__`."""

    image_filler: EncodedPrompt | None = None
    """A prompt with an image that goes, as a group of its own that nothing is computed from, with every micro-batch
    that has none. Set where several processes train a vision tower: one that did not use it would leave the others
    waiting for its gradients."""

    def setup_grpo(self, parts: GrpoParts) -> None:
        """The policy as it is now is the reference of the KL term."""
        self.parts = parts
        arguments = parts.arguments
        # This loss brings its own weights. With either of these the Trainer would not divide by the accumulation
        # steps: a parent class sets the second for losses of its own.
        self.model_accepts_loss_kwargs = False
        self.compute_loss_func = None
        self.objective = make_objective(arguments, parts.sampling.max_new_tokens)
        self.reference = None
        if self.objective.needs_reference and self.args.do_train:
            self.reference = ReferencePolicy(self.accelerator.unwrap_model(self.model), self.ref_model)
        self.metric_sums = MetricSums()
        self.health = HealthMonitor()
        self.dynamic_sampling = DynamicSamplingCounts()
        """Of the whole run."""
        replayed = arguments.grpo_replay_groups
        self.replay: ReplayBuffer[StoredGroup] | None = ReplayBuffer(replayed) if replayed else None
        self.ahead = RolloutAhead()
        self._experience = None
        self._micro_step: int | None = None
        self._resumed_from = None
        self._layout_checked = False
        self.add_callback(_FollowSteps(self))
        self.faults = FaultCounts()
        advice = "the last completions and their rewards (the limit is grpo_max_skipped_steps)"
        self.add_callback(GradientGuard(self, arguments.grpo_max_skipped_steps, self.faults, parts.warn, advice))
        self.setup_survival(parts.warn)
        self.guarded = GuardedRollouts(parts.engine, parts.scorer, self.stop_signals, self.faults, parts.warn)
        self.fitting, self.ledger = FittingPasses(self.faults, parts.warn), GradientLedger(self)
        self.guarded.alone = self.fitting.enabled = computes_alone(self.accelerator)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of (index, PromptRecord): one process's prompts of one rollout, repeated for its micro-steps."""
        self.prompt_sampler = self._make_sampler()
        loader = DataLoader(
            NumberedPrompts(self.train_dataset),
            batch_size=self.parts.plan.prompts_per_rank,
            sampler=self.prompt_sampler,
            collate_fn=numbered_records,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)

    def _make_sampler(self) -> PromptBlockSampler:
        plan, arguments = self.parts.plan, self.parts.arguments
        easy_first = arguments.grpo_curriculum == "easy_first"
        return PromptBlockSampler(
            num_prompts=len(self.train_dataset),
            block_size=plan.prompts_per_rollout,
            repeats=plan.micro_steps_per_rollout,
            seed=self._data_seed,
            shuffle=not self.finetuning_args.disable_shuffling,
            pass_rates=self.train_dataset["pass_rate"] if easy_first else None,
        )

    @property
    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def prompts_filled(self) -> int:
        """Places of an epoch's last batch that are filled with prompts taken already."""
        return self._make_sampler().num_filled

    def floating_point_ops(self, inputs: Any) -> int:
        """0: prompts do not tell how many tokens the completions will have."""
        return 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        resume_from_checkpoint = self.whole_checkpoint(resume_from_checkpoint)
        self._resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        self._micro_step = self._experience = None
        self._layout_checked = False
        if self._resumed_from is not None:
            self._load_state(self._resumed_from)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # Rollout

    def _begin_micro_step(self, prompts: list[tuple[int, PromptRecord]]) -> tuple[list[MicroBatch], bool]:
        """The passes of this micro-step, and whether they belong to the first update of a rollout; rolls out where a
        new block begins."""
        plan, accumulation = self.parts.plan, self.args.gradient_accumulation_steps
        if self._micro_step is None:
            self._micro_step = self._first_micro_step(self.state.global_step)
        phase = self._micro_step % plan.micro_steps_per_rollout
        if phase == 0:
            self._experience = None  # its pictures need not live as long as the next rollout
            self._experience = self._make_experience(prompts)
        elif self._experience is None:
            self._experience = self._load_experience()
        self._micro_step += 1
        return self._experience.passes(phase % plan.steps_per_generation, accumulation), phase < accumulation

    def _first_micro_step(self, global_step: int) -> int:
        """0 in a fresh run. A resumed one goes on at its checkpoint, and will write the later completions again."""
        if self.is_world_process_zero():
            self.parts.completions_log.drop_from_step(global_step)
        return global_step * self.args.gradient_accumulation_steps

    def _make_experience(self, prompts: list[tuple[int, PromptRecord]]) -> Experience:
        step, accumulation = self.state.global_step, self.args.gradient_accumulation_steps
        self.parts.watcher.phase("rollout")  # it begins with the weights' way to the servers
        self.parts.layout.forget()
        self.parts.scorer.trainer_state = self.state
        roll_out, make = self._rollout_maker(), self._experience_maker()
        number = step * accumulation // self.parts.plan.micro_steps_per_rollout
        written = self.ahead.take(number)
        # One autocast for all tokens: by itself each forward pass would cast the weights anew.
        with (
            self.parts.engine.policy(self.model_wrapped, self.accelerator, step) as model,
            self.accelerator.autocast(),
        ):
            scored, lost = roll_out(model, prompts, self._rollout_seed(step), step, written)
        self.guarded.agree(self)
        if self.parts.arguments.grpo_async_rollouts:
            self._write_ahead(roll_out, number + 1)
        self.parts.watcher.phase("prepare")
        started = time.perf_counter()
        experience, advantages = make(scored, lost, number)
        wait_for(self.accelerator.device)
        self.metric_sums.add("time/prepare", time.perf_counter() - started)
        self._log_completions(scored, lost, advantages)
        self._count(roll_out.counts, make.counts)
        return experience

    def _write_ahead(self, roll_out: RolloutMaker, number: int) -> None:
        """Begins rollout `number` with the weights that the engine has now."""
        plan = self.parts.plan
        step = number * plan.micro_steps_per_rollout // self.args.gradient_accumulation_steps
        if step < self.state.max_steps:
            mine = slice(roll_out.rank * plan.prompts_per_rank, (roll_out.rank + 1) * plan.prompts_per_rank)
            records = roll_out.prompts(self.prompt_sampler.block(number)[mine])
            write = partial(roll_out.write_ahead, records, self._rollout_seed(step), self.state.global_step)
            self.ahead.begin(number, write)

    def _rollout_seed(self, step: int) -> int:
        return self.args.seed * SEED_STRIDE + step

    def _count(self, sampled: DynamicSamplingCounts, replayed: DynamicSamplingCounts) -> None:
        """Groups whose rewards did not differ, and what became of them; the same on every process."""
        if self.replay is not None and self.parts.arguments.grpo_dynamic_sampling:
            number = replayed.num_replayed
            replayed = DynamicSamplingCounts(num_replayed=number, num_left=-number)
        counts = sampled + replayed
        self.dynamic_sampling += counts
        if counts.num_places:
            self.metric_sums.add("sampling/prompts_per_group", counts.num_rolled_out, counts.num_places)
            self.metric_sums.add("sampling/replayed", counts.num_replayed, counts.num_places)
            self.metric_sums.add("sampling/left_without_variance", counts.num_left, counts.num_places)

    def _experience_maker(self) -> ExperienceMaker:
        parts = self.parts
        return ExperienceMaker(
            arguments=parts.arguments,
            plan=parts.plan,
            accumulation=self.args.gradient_accumulation_steps,
            vlm=parts.vlm,
            encode=parts.encode,
            layout=parts.layout,
            objective=self.objective,
            accelerator=self.accelerator,
            sums=self.metric_sums,
            policy_log_probs=self._policy_log_probs,
            reference_log_probs=None if self.reference is None else self._reference_log_probs,
            reward_weights=tuple(parts.reward_weights),
            seed=self._data_seed,
            replay=self.replay,
            image_filler=self._image_filler(),
        )

    def _image_filler(self) -> EncodedPrompt | None:
        """Also where weights are sharded, frozen or not: every process must enter the tower to gather it."""
        sees_images = self.parts.vlm.image_token_id is not None
        if self.image_filler is None and sees_images and shards_weights(self.model_wrapped):
            check_images_only(self.train_dataset)
            self.image_filler = self.parts.encode.white_image(self.processing_class)
        return self.image_filler

    def _rollout_maker(self) -> RolloutMaker:
        parts, dataset = self.parts, self.train_dataset
        return RolloutMaker(
            arguments=parts.arguments,
            plan=parts.plan,
            engine=self.guarded,
            scorer=self.guarded,
            encode=parts.encode,
            scoring_request=parts.scoring_request,
            sampling=parts.sampling,
            sums=self.metric_sums,
            rank=self.accelerator.process_index,
            prompts=lambda indices: prompt_records([dataset[index] for index in indices]),
            num_prompts=len(dataset),
            show_progress=not self.args.disable_tqdm and self.is_local_process_zero(),
            by_source=parts.several_sources,
            watcher=parts.watcher,
        )

    def _log_completions(
        self, scored: list[ScoredGroup], lost: list[ScoredGroup], advantages: dict[int, list[float]]
    ) -> None:
        if not self.parts.arguments.grpo_log_completions:
            return
        lines = rollout_lines(self.parts.completion_line, scored, lost, advantages, self.state.global_step)
        gathered = gather_object(lines)
        if self.is_world_process_zero():
            write_lines(self.parts.completions_log, numbered_groups(gathered), self.faults, self.parts.warn)

    # Update

    def _policy_log_probs(self, micro_batches: list[MicroBatch]) -> list[list[torch.Tensor]]:
        return [self.fitting(partial(self._frozen_log_probs, self.model_wrapped), m) for m in micro_batches]

    def _reference_log_probs(self, micro_batches: list[MicroBatch]) -> list[list[torch.Tensor]]:
        assert self.reference is not None
        self.reference.follow(self.model_wrapped)
        with self.reference.active() as separate_model:
            model = separate_model or self.model_wrapped
            return [self.fitting(partial(self._frozen_log_probs, model), m) for m in micro_batches]

    @torch.no_grad()
    def _frozen_log_probs(self, model: Any, micro_batch: MicroBatch) -> list[torch.Tensor]:
        """The log-probabilities [T] of every sequence."""
        unwrapped, layout = self.accelerator.unwrap_model(model), self.parts.layout
        was_training = model.training
        model.eval()
        try:
            with self.compute_loss_context_manager(), layout.computing(unwrapped, micro_batch):
                logps, _ = layout.log_probs(model, unwrapped, micro_batch)
        finally:
            model.train(was_training)
        return list(logps.split(micro_batch.lengths))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of the passes of one micro-step; gradients are exchanged after the last one."""
        passes, on_policy = self._begin_micro_step(inputs)
        self.parts.watcher.phase("update")
        self._check_layout_once(passes)
        started = time.perf_counter()
        gradient_state = self.accelerator.gradient_state
        sync = gradient_state.sync_gradients
        # DeepSpeed waits by itself; of sharded weights the whole gradients would have to be kept.
        at_once = self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        total = torch.zeros((), device=self.accelerator.device)
        for number, micro_batch in enumerate(passes):
            exchanged = number == len(passes) - 1
            waiting = nullcontext() if exchanged or at_once else self.accelerator.no_sync(model)
            gradient_state._set_sync_gradients(sync and exchanged)
            with waiting:
                total += self._fitting_pass(model, on_policy, micro_batch)
        gradient_state._set_sync_gradients(sync)
        wait_for(self.accelerator.device)
        seconds = time.perf_counter() - started
        self.metric_sums.add("time/update", seconds, 1 / self.args.gradient_accumulation_steps)  # per optimizer step
        trained = sum(sum(micro_batch.lengths) for micro_batch in passes)
        self.metric_sums.add("tokens_per_second/update", trained, seconds)
        if self._micro_step is not None and self._micro_step % self.parts.plan.micro_steps_per_rollout == 0:
            self.parts.layout.forget()
        return total

    def _fitting_pass(self, model: Any, on_policy: bool, micro_batch: MicroBatch) -> torch.Tensor:
        """Forward and backward of a pass, in parts where memory does not do for the whole; its loss."""

        def compute(part: MicroBatch) -> torch.Tensor:
            again = partial(self._pass, model, on_policy, part)
            self.ledger.begin()
            loss = again()
            self.ledger.done(again)
            return loss

        return self.fitting(compute, micro_batch, self.ledger.undo)

    def _pass(self, model: Any, on_policy: bool, micro_batch: MicroBatch) -> torch.Tensor:
        with self.parts.layout.computing(self.accelerator.unwrap_model(model), micro_batch):
            return super().training_step(model, {"micro_batch": micro_batch, "on_policy": on_policy})

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As they are: layouts put on the device what they need there."""
        return inputs

    def _check_layout_once(self, passes: list[MicroBatch]) -> None:
        """Before anything is trained on: packed log-probabilities equal those of one completion at a time."""
        layout = self.parts.layout
        if self._layout_checked or not isinstance(layout, PackedLayout):
            return
        with self.compute_loss_context_manager():
            largest = check_first_pass(layout, self.parts.rows, self.model_wrapped, self.accelerator, passes)
        if largest is None:
            return
        self._layout_checked = True
        self.parts.say(
            f"Packed policy update checked against one completion at a time: log-probabilities differ by at most "
            f"{largest:.1e} nats."
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This pass's share of the loss, scaled so that the Trainer's and DDP's averages give the whole."""
        micro_batch: MicroBatch = inputs["micro_batch"]
        unwrapped = self.accelerator.unwrap_model(model)
        logps, entropies = self.parts.layout.log_probs(
            model,
            unwrapped,
            micro_batch,
            entropy_gradient=self.objective.entropy_gradient,
            known_gradients=on_policy_gradients(self.objective, micro_batch, self.accelerator.device),
        )
        terms = policy_terms(micro_batch, logps, entropies)
        loss, statistics = policy_loss(self.objective, terms, self._entropy_floor(terms))
        self.metric_sums.add_statistics(statistics)
        if inputs["on_policy"]:
            self._add_sampler_gap(micro_batch, terms)
        self.ledger.touched = True  # from here on the backward adds to gradients
        return loss * self.accelerator.num_processes * self.current_gradient_accumulation_steps

    def _entropy_floor(self, terms: PolicyTerms) -> torch.Tensor | None:
        """Of the tokens that all processes compute in this pass."""
        if self.objective.top_entropy_quantile >= 1.0:
            return None
        assert terms.entropies is not None
        kept = terms.entropies.detach()[terms.weights > 0]
        padded = self.accelerator.pad_across_processes(kept, pad_index=torch.nan)
        everywhere = self.accelerator.gather(padded)
        return entropy_threshold(everywhere[~everywhere.isnan()], self.objective.top_entropy_quantile)

    def _add_sampler_gap(self, micro_batch: MicroBatch, terms: PolicyTerms) -> None:
        """How far the sampler's log-probabilities lie from the trainer's, both of the policy that rolled out. Under
        another name where they are not: the gap's alarm is about rounding."""
        assert terms.sampler_logps is not None
        if terms.is_idle:
            return
        # A replayed completion's old log-probabilities are the sampler's own.
        replayed = [sequence.replayed for sequence in micro_batch.sequences if sequence.token_weight]
        fresh = ~torch.tensor(replayed).repeat_interleave(torch.tensor(terms.num_tokens))
        gap = (terms.old - terms.sampler_logps).abs()[fresh.to(terms.logps.device)]
        if gap.numel():
            arguments, sampling = self.parts.arguments, self.parts.sampling
            narrowed = arguments.grpo_rollout_engine == "vllm" and sampling.narrows
            name = "sampler_distance" if arguments.grpo_async_rollouts or narrowed else "sampler_gap"
            self.metric_sums.add(name, gap.sum(), gap.numel())
            self.metric_sums.add(f"{name}/max", gap.max())

    # Logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        is_training_log = "loss" in logs  # on every process; not the final summary or an evaluation
        if is_training_log:
            if torch.cuda.is_available():
                self.metric_sums.add("memory/peak_gib/max", torch.cuda.max_memory_allocated() / 2**30)
            counts = self.parts.engine.take_counts()
            for name, number in counts.items():
                self.metric_sums.add(name, number)
            logs |= self.metric_sums.pop_averages()
            for name in counts:
                logs[name] *= self.accelerator.num_processes  # of all processes together
            logs |= self.faults.logged()
            for phase in ("rollout", "update"):
                if (name := f"tokens_per_second/{phase}") in logs:
                    logs[name] *= self.accelerator.num_processes
        super().log(logs, *args, **kwargs)
        if is_training_log:
            for alarm in self.health.observe(self.state.global_step, logs):
                self.parts.warn(str(alarm))
                self.parts.watcher.alarm(alarm)
