"""The GRPO training loop, as a mixin over a transformers Trainer: rollout, scores, advantages, clipped policy loss.

In: prompt records from the data loader; an engine that writes, a scorer that judges, a reference policy. Out: an
updated policy, metrics in the trainer's logs, completions as JSON lines.

Each micro-step of the Trainer is one micro-batch of completions. The first micro-step of a rollout block makes the
Experience that the others are served from, so accumulation, clipping, checkpoints, callbacks and every parallel
backend remain the Trainer's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.advantage import group_advantages, share_without_variance
from lcot_plugin.policy.experience import (
    Experience,
    lengths_and_trained,
    reward_matrix,
    split_micro_batches,
    training_sequences,
)
from lcot_plugin.policy.head import token_log_probs
from lcot_plugin.policy.losses import PolicyLossConfig, entropy_threshold, loss_normalizer, policy_loss
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.reference import ReferencePolicy
from lcot_plugin.policy.rows import build_rows
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.types import (
    Completion,
    CompletionScorer,
    EncodedPrompt,
    Ending,
    Outcome,
    PromptRecord,
    RolloutEngine,
    RolloutGroup,
    SamplingParams,
    Score,
    ScoringRequest,
    TrainingSequence,
)
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # the real one comes behind this mixin in the bases

EXPERIENCE_FILE = "experience_rank{rank}.pt"


@dataclass
class GrpoParts:
    """Everything the loop calls, made by the workflow."""

    arguments: GrpoArguments
    plan: BatchPlan
    sampling: SamplingParams
    vlm: VisionLanguageModel
    engine: RolloutEngine
    scorer: CompletionScorer
    encode: Callable[[PromptRecord], EncodedPrompt]
    batch_media: Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]]
    scoring_request: Callable[[PromptRecord, Any], ScoringRequest]
    completions_log: Any
    """Has `write(lines)` and `drop_from_step(step)`."""
    completion_line: Callable[..., dict[str, Any]]


class _SetSamplerEpoch(TrainerCallback):
    """The sampler learns its epoch from the trainer's steps alone."""

    def __init__(self, trainer: GrpoTrainerMixin):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sampler, plan = self.trainer.prompt_sampler, self.trainer.parts.plan
        micro_steps = sampler.num_blocks * plan.micro_steps_per_rollout
        sampler.begin_epoch(state.global_step * args.gradient_accumulation_steps // micro_steps)


class GrpoTrainerMixin(_Trainer):
    """Stands before a Trainer class in the bases; `setup_grpo` is called once after `__init__`."""

    image_filler: EncodedPrompt | None = None
    """A prompt with an image that goes, as a row of its own that nothing is computed from, with every micro-batch that
    has none. Set where several processes train a vision tower: one that did not use it would leave the others waiting
    for its gradients."""

    def setup_grpo(self, parts: GrpoParts) -> None:
        """The policy as it is now is the reference of the KL term."""
        self.parts = parts
        arguments = parts.arguments
        # This loss brings its own normaliser. With either of these the Trainer would not divide by the accumulation
        # steps: a parent class sets the second for losses of its own.
        self.model_accepts_loss_kwargs = False
        self.compute_loss_func = None
        self.loss_config = PolicyLossConfig(
            loss_type=arguments.grpo_loss_type,
            importance_sampling_level=arguments.grpo_importance_sampling_level,
            epsilon=arguments.grpo_epsilon,
            epsilon_high=arguments.grpo_epsilon_high,
            delta=arguments.grpo_delta,
            beta=arguments.grpo_beta,
            top_entropy_quantile=arguments.grpo_top_entropy_quantile,
            max_completion_length=parts.sampling.max_new_tokens,
        )
        self.reference = None
        if arguments.grpo_beta and self.args.do_train:
            self.reference = ReferencePolicy(self.accelerator.unwrap_model(self.model), self.ref_model)
        self.metric_sums = MetricSums()
        self._experience: Experience | None = None
        self._micro_step: int | None = None
        self._resumed_from: str | None = None
        self.add_callback(_SetSamplerEpoch(self))

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of PromptRecords: one process's prompts of one rollout, repeated for its micro-steps."""
        plan = self.parts.plan
        self.prompt_sampler = self._make_sampler()
        loader = DataLoader(
            self.train_dataset,
            batch_size=plan.prompts_per_rank,
            sampler=self.prompt_sampler,
            collate_fn=prompt_records,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)

    def _make_sampler(self) -> PromptBlockSampler:
        plan = self.parts.plan
        return PromptBlockSampler(
            num_prompts=len(self.train_dataset),
            block_size=plan.prompts_per_rollout,
            repeats=plan.micro_steps_per_rollout,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            shuffle=not self.finetuning_args.disable_shuffling,
        )

    def prompts_filled(self) -> int:
        """Places of an epoch's last batch that are filled with prompts taken already."""
        return self._make_sampler().num_filled

    def floating_point_ops(self, inputs: Any) -> int:
        """0: prompts do not tell how many tokens the completions will have."""
        return 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            # Where there is none, the Trainer says so.
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        self._resumed_from = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        self._micro_step = self._experience = None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _prepare_inputs(self, inputs: list[PromptRecord]) -> dict[str, Any]:
        """The micro-batch of completions of this micro-step; rolls out where a new block begins."""
        plan = self.parts.plan
        if self._micro_step is None:
            self._micro_step = self._first_micro_step(self.state.global_step)
        phase = self._micro_step % plan.micro_steps_per_rollout
        if phase == 0:
            self._experience = self._make_experience(inputs)
        elif self._experience is None:
            self._experience = self._load_experience()
        index = phase % plan.steps_per_generation
        self._micro_step += 1
        return {
            "sequences": self._experience.micro_batches[index],
            "normalizer": self._experience.normalizers[index // self.args.gradient_accumulation_steps],
            "on_policy": phase < self.args.gradient_accumulation_steps,
        }

    def _first_micro_step(self, global_step: int) -> int:
        """0 in a fresh run. A resumed one goes on at its checkpoint, and will write the later completions again."""
        if self.is_world_process_zero():
            self.parts.completions_log.drop_from_step(global_step)
        return global_step * self.args.gradient_accumulation_steps

    # Rollout

    def _make_experience(self, records: list[PromptRecord]) -> Experience:
        parts, arguments = self.parts, self.parts.arguments
        first_slot = self.accelerator.process_index * parts.plan.prompts_per_rank
        started = time.perf_counter()
        groups = self._roll_out([parts.encode(record) for record in records], first_slot)
        self.metric_sums.add("time/rollout", time.perf_counter() - started)
        parts.scorer.trainer_state = self.state
        parts.scorer.take_counts()  # what an evaluation has counted is no share of this rollout
        scores = parts.scorer.score(
            [parts.scoring_request(group.prompt.record, c) for group in groups for c in group.completions]
        )
        rewards = reward_matrix(scores, parts.plan.num_generations)
        gathered = self.accelerator.gather(rewards.to(self.accelerator.device)).cpu()
        mine = slice(first_slot, first_slot + parts.plan.prompts_per_rank)
        advantages = group_advantages(gathered, arguments.grpo_scale_rewards)[mine]
        sequences = training_sequences(groups, scores, advantages, arguments.grpo_mask_truncated)
        self._add_rollout_metrics(groups, scores, rewards)
        self._log_completions(groups, scores, advantages)

        accumulation = self.args.gradient_accumulation_steps
        per_update = parts.plan.completions_per_micro_step * accumulation
        micro_batches = split_micro_batches(sequences, parts.plan.completions_per_micro_step, accumulation)
        if parts.plan.micro_steps_per_rollout > accumulation:
            # Later optimizer steps of this block are off policy: their ratios need the policy of now.
            for batch in micro_batches:
                _attach(batch, "old_logps", self._frozen_log_probs(self.model_wrapped, batch))
        if self.reference is not None:
            with self.reference.active() as separate_model:
                for batch in micro_batches:
                    _attach(batch, "ref_logps", self._frozen_log_probs(separate_model or self.model_wrapped, batch))
        updates = [sequences[i : i + per_update] for i in range(0, len(sequences), per_update)]
        local = [loss_normalizer(self.loss_config, *lengths_and_trained(update)) for update in updates]
        totals = self.accelerator.reduce(torch.tensor(local, device=self.accelerator.device), reduction="sum")
        return Experience(micro_batches, totals.tolist())

    def _roll_out(self, prompts: list[EncodedPrompt], first_slot: int) -> list[RolloutGroup]:
        parts = self.parts
        sampling = replace(parts.sampling, seed=self.args.seed * 1_000_003 + self.state.global_step)
        slots = range(first_slot, first_slot + len(prompts))
        total = len(prompts) * sampling.num_generations
        bar = tqdm(
            total=total,
            desc=f"Rollout at step {self.state.global_step}",
            unit="completion",
            leave=False,
            delay=2.0,  # quick rollouts need no bar of their own
            disable=self.args.disable_tqdm or not self.is_local_process_zero(),
        )
        with bar, self.compute_loss_context_manager():
            model = self.accelerator.unwrap_model(self.model_wrapped)
            return parts.engine.generate(model, prompts, sampling, slots, bar.update)

    def _add_rollout_metrics(self, groups: list[RolloutGroup], scores: list[Score], rewards: torch.Tensor) -> None:
        completions = [completion for group in groups for completion in group.completions]
        lengths = [len(completion.token_ids) for completion in completions]
        given = rewards[~rewards.isnan()]
        add = self.metric_sums.add
        add("reward", given.sum().item(), given.numel())
        stds = [row[~row.isnan()].std().item() for row in rewards if (~row.isnan()).sum() > 1]
        add("reward_std", sum(stds), len(stds))
        add("groups_without_variance", share_without_variance(rewards) * len(groups), len(groups))
        for name in scores[0].rewards:
            values = [value for score in scores if (value := score.rewards[name]) is not None]
            add(f"rewards/{name}", sum(values), len(values))
        verdicts = [score.verdict for score in scores if score.verdict is not None]
        for outcome in (Outcome.UNPARSABLE, Outcome.GOLD_UNPARSABLE, Outcome.TIMED_OUT):
            add(f"verdicts/{outcome.value}", sum(v.outcome is outcome for v in verdicts), len(verdicts))
        for name, number in self.parts.scorer.take_counts().items():
            add(name, number, len(completions))
        add("completions/length", sum(lengths), len(lengths))
        add("completions/length/max", max(lengths))
        add("completions/truncated", sum(c.ending is Ending.TRUNCATED for c in completions), len(completions))

    def _log_completions(self, groups: list[RolloutGroup], scores: list[Score], advantages: torch.Tensor) -> None:
        if not self.parts.arguments.grpo_log_completions:
            return
        flat = [(group.prompt.record, completion) for group in groups for completion in group.completions]
        lines = [
            self.parts.completion_line(
                record,
                completion,
                score,
                advantage=advantage,
                step=self.state.global_step,
                sample=index % self.parts.plan.num_generations,
            )
            for index, ((record, completion), score, advantage) in enumerate(
                zip(flat, scores, advantages.flatten().tolist(), strict=True)
            )
        ]
        gathered = gather_object(lines)
        if self.is_world_process_zero():
            self.parts.completions_log.write(gathered)

    # Update

    def _log_probs(self, model: Any, sequences: list[TrainingSequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """[n] log-probabilities and entropies of all completion tokens, in the order of the sequences."""
        unwrapped = self.accelerator.unwrap_model(model)
        records = [sequence.prompt.record for sequence in sequences]
        if self.image_filler is not None and not any(record.images or record.videos for record in records):
            nothing = Completion([], [], Ending.STOPPED, "")
            sequences = [*sequences, TrainingSequence(self.image_filler, nothing, advantage=0.0, trained=False)]
        model_inputs, targets = build_rows(
            self.parts.vlm,
            sequences,
            self.parts.batch_media,
            unwrap_base_model(unwrapped),
            self.processing_class.pad_token_id,
            self.parts.sampling.temperature,
            self.parts.arguments.grpo_logits_chunk_size,
        )
        return token_log_probs(model, unwrapped, targets, model_inputs)

    @torch.no_grad()
    def _frozen_log_probs(self, model: Any, sequences: list[TrainingSequence]) -> torch.Tensor:
        was_training = model.training
        model.eval()
        try:
            with self.compute_loss_context_manager():
                return self._log_probs(model, sequences)[0]
        finally:
            model.train(was_training)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's share of the loss, scaled so that the Trainer's and DDP's averages give the whole."""
        sequences: list[TrainingSequence] = inputs["sequences"]
        logps, entropies = self._log_probs(model, sequences)
        device = logps.device
        lengths, trained = (tensor.to(device) for tensor in lengths_and_trained(sequences))
        old_logps = _stacked(sequences, "old_logps", device)
        entropy_floor = None
        if self.loss_config.top_entropy_quantile < 1.0:
            kept = entropies[trained.repeat_interleave(lengths)]
            padded = self.accelerator.pad_across_processes(kept, pad_index=torch.nan)
            everywhere = self.accelerator.gather(padded)
            entropy_floor = entropy_threshold(everywhere[~everywhere.isnan()], self.loss_config.top_entropy_quantile)
        loss, statistics = policy_loss(
            self.loss_config,
            logps,
            torch.tensor([sequence.advantage for sequence in sequences], device=device),
            lengths,
            trained,
            inputs["normalizer"],
            old_logps=old_logps,
            ref_logps=_stacked(sequences, "ref_logps", device),
            entropies=entropies,
            entropy_floor=entropy_floor,
        )
        self.metric_sums.add_statistics(statistics)
        if inputs["on_policy"]:
            gap = ((logps.detach() if old_logps is None else old_logps) - _sampler_logps(sequences, device)).abs()
            self.metric_sums.add("sampler_gap", gap.sum(), gap.numel())
            self.metric_sums.add("sampler_gap/max", gap.max())
        return loss * self.accelerator.num_processes * self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # a training log, on every process; not the final summary or an evaluation
            logs |= self.metric_sums.pop_averages()
        super().log(logs, *args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._micro_step and self._micro_step % self.parts.plan.micro_steps_per_rollout:
            # Between the updates of one rollout: a resumed run must go on with these completions, not with new ones.
            # They come first, so that a kill in between leaves no checkpoint that looks whole and lacks them.
            folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._experience, self._experience_path(folder))
        super()._save_checkpoint(model, trial)

    def _experience_path(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint, EXPERIENCE_FILE.format(rank=self.accelerator.process_index))

    def _load_experience(self) -> Experience:
        path = self._experience_path(self._resumed_from or "")
        if not path.exists():
            raise ValueError(
                f"Cannot resume from {self._resumed_from}: it was saved between the updates of one rollout and {path} "
                "is missing. Resume from another checkpoint, with the number of processes it was saved with."
            )
        return torch.load(path, weights_only=False)  # our own records, beside the optimizer state we also trust


def prompt_records(rows: Sequence[dict[str, Any]]) -> list[PromptRecord]:
    """Data set rows as records; the collate function of the data loaders."""
    return [
        PromptRecord(**{**row, **{media: row[media] or [] for media in ("images", "videos", "audios")}}) for row in rows
    ]


def _attach(sequences: list[TrainingSequence], field: str, values: torch.Tensor) -> None:
    pieces = values.split([len(sequence.completion.token_ids) for sequence in sequences])
    for sequence, piece in zip(sequences, pieces, strict=True):
        setattr(sequence, field, piece.tolist())


def _stacked(sequences: list[TrainingSequence], field: str, device: torch.device) -> torch.Tensor | None:
    if getattr(sequences[0], field) is None:
        return None
    return torch.tensor([value for s in sequences for value in getattr(s, field)], device=device)


def _sampler_logps(sequences: list[TrainingSequence], device: torch.device) -> torch.Tensor:
    return torch.tensor([value for s in sequences for value in s.completion.sampler_logps], device=device)
