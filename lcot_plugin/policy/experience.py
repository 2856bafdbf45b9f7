"""One rollout made ready for training: scored groups become sequences, sequences become micro-batches of every process.

In: groups with their scores, on the process that rolled them out. Out: an Experience, which serves
`grpo_num_iterations` passes of optimizer steps. What decides (advantages, weights, plan) is computed from cards, small
records that every process has of every group, so that all processes decide alike; only sequences that are computed
elsewhere than where they were written travel.

A group's place is its prompt's number in the rollout over all processes. Example with 2 processes, 2 prompts each,
G = 4 and 8 completions per process and optimizer step: places 0 1 | 2 3; with 4 completions there are two optimizer
steps, places 0 2 and places 1 3.

Legend: P prompts of a rollout over all processes, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.policy.objectives import Objective, PolicyTerms, policy_loss
from lcot_plugin.types import (
    Completion,
    EncodedPrompt,
    Ending,
    PackedBatch,
    PromptRecord,
    RolloutGroup,
    Score,
    TrainingSequence,
)

Key = tuple[int, int]
"""Place of the group, number of the completion within it."""


@dataclass
class ScoredGroup:
    """One prompt's completions and what they earned."""

    place: int
    group: RolloutGroup
    scores: list[Score]


@dataclass(frozen=True)
class GroupCard:
    """What every process knows of a group."""

    place: int
    owner: int
    """The process that has it."""
    prompt_tokens: int
    prompt_patches: int
    lengths: tuple[int, ...]
    """[G] tokens of each completion."""
    trained: tuple[bool, ...]
    """[G] False for completions that must not enter the loss."""
    totals: tuple[float, ...]
    """[G] weighted reward, NaN where every reward function abstained or the prompt's picture is broken."""
    parts: tuple[tuple[float, ...], ...]
    """[G][F] unweighted rewards, NaN where a function abstained."""


class SequenceSize(NamedTuple):
    """What a layout must know of a sequence to plan passes."""

    group: int
    prompt_tokens: int
    prompt_patches: int
    tokens: int


@dataclass
class MicroBatch:
    """The sequences of one forward and backward pass on this process."""

    sequences: list[TrainingSequence]
    """What is there for the pass's sake only has token_weight 0."""
    number: int
    """Its place in the experience."""
    packed: PackedBatch | None = field(default=None, repr=False)
    """Built by the layout on first use; not saved in checkpoints."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "packed": None}

    @property
    def lengths(self) -> list[int]:
        return [len(sequence.completion.token_ids) for sequence in self.sequences]


@dataclass
class Experience:
    """What one process trains on until the next rollout."""

    updates: list[list[MicroBatch]]
    """[optimizer steps of one iteration] passes; as many on every process."""

    def passes(self, micro_step: int, accumulation: int) -> list[MicroBatch]:
        """The passes of a micro-step of one iteration; those of an optimizer step are dealt to its micro-steps so that
        the last one, which exchanges gradients, always has one."""
        update, position = divmod(micro_step, accumulation)
        passes = self.updates[update]
        return passes[len(passes) * position // accumulation : len(passes) * (position + 1) // accumulation]

    @property
    def micro_batches(self) -> list[MicroBatch]:
        return [micro_batch for update in self.updates for micro_batch in update]


def card_of(scored: ScoredGroup, owner: int, prompt_patches: int, mask_truncated: bool) -> GroupCard:
    """The card of a group that this process has."""
    prompt, completions, scores = scored.group.prompt, scored.group.completions, scored.scores
    return GroupCard(
        place=scored.place,
        owner=owner,
        prompt_tokens=len(prompt.record.input_ids),
        prompt_patches=prompt_patches,
        lengths=tuple(len(completion.token_ids) for completion in completions),
        trained=tuple(
            prompt.usable and score.total is not None and not (mask_truncated and completion.ending is Ending.TRUNCATED)
            for completion, score in zip(completions, scores, strict=True)
        ),
        totals=tuple(or_nan(score.total if prompt.usable else None) for score in scores),
        parts=tuple(
            tuple(or_nan(reward if prompt.usable else None) for reward in score.rewards.values()) for score in scores
        ),
    )


def or_nan(value: float | None) -> float:
    """A reward as the tables hold it: NaN where none was given."""
    return float("nan") if value is None else float(value)


def reward_totals(cards: Sequence[GroupCard]) -> torch.Tensor:
    """[P, G] float32, NaN where every reward function abstained."""
    return torch.tensor([card.totals for card in cards], dtype=torch.float32)


def sequences_of(scored: ScoredGroup, card: GroupCard) -> list[TrainingSequence]:
    """The G sequences of a group; advantages and weights are not known yet."""
    return [
        TrainingSequence(scored.group.prompt, completion, scored.place, trained=trained)
        for completion, trained in zip(scored.group.completions, card.trained, strict=True)
    ]


def update_of(place: int, generation: int, plan: BatchPlan, accumulation: int) -> int:
    """The optimizer step that trains on a completion."""
    on_process = place % plan.prompts_per_rank * plan.num_generations + generation
    return on_process // (plan.completions_per_micro_step * accumulation)


def filler(sequence: TrainingSequence, group: int) -> TrainingSequence:
    """A sequence of one token that weighs nothing: for a pass that must be made though nothing is left to compute."""
    completion = sequence.completion
    first = Completion(completion.token_ids[:1], completion.sampler_logps[:1], completion.ending, "")
    return TrainingSequence(sequence.prompt, first, group, trained=False)


def exchange(
    own: dict[Key, TrainingSequence],
    plan: list[list[list[Key]]],
    rank: int,
    gather: Callable[[list[Any]], list[Any]],
    encode: Callable[[PromptRecord], EncodedPrompt],
) -> list[list[TrainingSequence]]:
    """The sequences of this process's passes.

    own: the sequences that this process has. plan: [processes][passes] keys. gather: a
    collective that joins the lists of all processes. Sequences travel without their pixels, which `encode` makes again.
    """
    leaving = {
        key for other, passes in enumerate(plan) if other != rank for keys in passes for key in keys
    } & own.keys()
    sent = {key: replace(own[key], prompt=replace(own[key].prompt, media={})) for key in leaving}
    arrived: dict[Key, TrainingSequence] = {}
    for sequences in gather([sent]):
        arrived |= sequences
    prompts: dict[int, EncodedPrompt] = {}

    def sequence_of(key: Key) -> TrainingSequence:
        if key in own:
            return own[key]
        found, place = arrived[key], key[0]
        if place not in prompts:
            prompts[place] = encode(found.prompt.record)
        return replace(found, prompt=prompts[place])

    return [[sequence_of(key) for key in keys] for keys in plan[rank]]


def policy_terms(micro_batch: MicroBatch, logps: torch.Tensor, entropies: torch.Tensor) -> PolicyTerms:
    """What the objective needs of every token of a pass; what is there for the pass's sake only is left out, unless
    there is nothing else. logps, entropies: [n] in the order of the sequences."""
    trained = [sequence.token_weight > 0 for sequence in micro_batch.sequences]
    idle, device = not any(trained), logps.device
    kept = [True] * len(trained) if idle else trained
    sequences = [sequence for sequence, keep in zip(micro_batch.sequences, kept, strict=True) if keep]
    lengths = [len(sequence.completion.token_ids) for sequence in sequences]

    def of_kept(values: torch.Tensor) -> torch.Tensor:
        if all(kept):
            return values
        pieces = zip(values.split(micro_batch.lengths), kept, strict=True)
        return torch.cat([piece for piece, keep in pieces if keep])

    def per_token(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(torch.tensor(lengths)).to(device)

    logps = of_kept(logps)

    def joined(found: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """None where no sequence has any; where only some have, the others get the current log-probabilities."""
        if all(values is None for values in found):
            return None
        current = logps.detach().split(lengths)
        return torch.cat([now if v is None else v.to(device) for v, now in zip(found, current, strict=True)])

    return PolicyTerms(
        logps=logps,
        advantages=per_token([sequence.advantage for sequence in sequences]),
        weights=per_token([sequence.token_weight for sequence in sequences]),
        lengths=lengths,
        old_logps=joined([sequence.old_logps for sequence in sequences]),
        ref_logps=joined([sequence.ref_logps for sequence in sequences]),
        sampler_logps=torch.tensor([value for s in sequences for value in _policy_logps(s)], device=device),
        entropies=of_kept(entropies),
        idle=idle,
    )


def on_policy_gradients(objective: Objective, micro_batch: MicroBatch, device: torch.device) -> torch.Tensor | None:
    """[n] the loss's gradient by each log-probability of a pass; None where it depends on them, as it does off policy.

    On policy every ratio is 1 whatever the log-probabilities are, so 0 does in their place.
    """
    on_policy = all(sequence.old_logps is None for sequence in micro_batch.sequences)
    if not (on_policy and objective.is_linear_on_policy):
        return None
    with torch.enable_grad():
        logps = torch.zeros(sum(micro_batch.lengths), device=device, requires_grad=True)
        loss, _ = policy_loss(objective, policy_terms(micro_batch, logps, torch.zeros_like(logps)))
        [gradients] = torch.autograd.grad(loss, logps)
    return gradients


def _policy_logps(sequence: TrainingSequence) -> list[float]:
    """The sampler's, of the policy itself: what narrowed the draw is no gap between sampler and trainer."""
    completion = sequence.completion
    return completion.sampler_logps if completion.policy_logps is None else completion.policy_logps
