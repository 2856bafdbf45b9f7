"""From scored groups to an Experience: advantages, replays, token weights, passes, frozen log-probabilities.

In: this process's ScoredGroups. Out: the Experience that it trains on, planned alike on every process from the cards of
all groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.packing.batch import num_patches
from lcot_plugin.policy.advantages import RewardTable, compute_advantages
from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.experience import (
    Experience,
    GroupCard,
    Key,
    MicroBatch,
    ScoredGroup,
    SequenceSize,
    card_of,
    exchange,
    filler,
    reward_totals,
    sequences_of,
    update_of,
)
from lcot_plugin.policy.kl import completion_kl
from lcot_plugin.policy.layouts import UpdateLayout
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.objectives import Objective
from lcot_plugin.policy.replay import ReplayBuffer, StoredGroup
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, TrainingSequence
from lcot_plugin.vlm import VisionLanguageModel

IDLE, IMAGE_FILLER = -1, -2
"""Groups of sequences that are computed for the pass's sake only."""

FrozenLogProbs = Callable[[list[MicroBatch]], list[list[torch.Tensor]]]
"""[micro-batches][sequences] tensors [T], float32, without gradient."""


@dataclass
class ExperienceMaker:
    """Holds what stays the same from rollout to rollout."""

    arguments: GrpoArguments
    plan: BatchPlan
    accumulation: int
    """Micro-steps per optimizer step."""
    vlm: VisionLanguageModel
    encode: Callable[[PromptRecord], EncodedPrompt]
    layout: UpdateLayout
    objective: Objective
    accelerator: Accelerator
    sums: MetricSums
    policy_log_probs: FrozenLogProbs
    reference_log_probs: FrozenLogProbs | None
    """None without a reference policy."""
    reward_weights: tuple[float, ...]
    seed: int
    replay: ReplayBuffer[StoredGroup] | None = None
    image_filler: EncodedPrompt | None = None
    """See GrpoTrainerMixin."""
    counts: DynamicSamplingCounts = field(default_factory=DynamicSamplingCounts)
    """Of the last rollout, where there is a replay buffer."""

    def __call__(
        self, scored: list[ScoredGroup], lost: list[ScoredGroup], rollout: int
    ) -> tuple[Experience, dict[int, list[float]]]:
        """The experience, and by place the advantages of the groups that were written for it.

        scored: this process's groups, `lost` those without a place. rollout: its number, counted from 0.
        """
        shortest = min([*scored, *lost], key=lambda group: len(group.group.prompt.record.input_ids)).group
        self._spare = TrainingSequence(shortest.prompt, shortest.completions[0], IDLE)
        cards, own = self._cards(scored)
        advantages = self._advantages(cards)
        written = {card.place: row for card, row in zip(cards, advantages.tolist(), strict=True)}
        for (place, number), sequence in own.items():
            sequence.advantage = written[place][number]
        if self.replay is not None:
            cards, advantages = self._with_replays(self.replay, cards, advantages, own, rollout)
        return self._planned(cards, advantages, own), written

    def _cards(self, scored: list[ScoredGroup]) -> tuple[list[GroupCard], dict[Key, TrainingSequence]]:
        """The cards of all processes by place, and the sequences of this one."""
        rank = self.accelerator.process_index
        mine = []
        own: dict[Key, TrainingSequence] = {}
        for group in scored:
            patches = num_patches(group.group.prompt.media, self.vlm.config)
            card = card_of(group, rank, patches, self.arguments.grpo_mask_truncated)
            own |= {(group.place, number): sequence for number, sequence in enumerate(sequences_of(group, card))}
            mine.append(card)
        if self.objective.beta_in_reward:
            mine = self._less_divergence(mine, own)
        return sorted(gather_object(mine), key=lambda card: card.place), own

    def _less_divergence(self, cards: list[GroupCard], own: dict[Key, TrainingSequence]) -> list[GroupCard]:
        """Cards whose rewards are less beta times the divergence from the reference, summed over the tokens."""
        assert self.reference_log_probs is not None
        keys, beta = list(own), self.objective.beta_in_reward
        sizes = self._sizes([(card, number) for card in cards for number in range(len(card.lengths))])
        [planned] = self.layout.plan(sizes, 1)
        num_passes = max(gather_object([len(planned)]))
        micro_batches = self._micro_batches([[own[keys[i]] for i in indices] for indices in planned], num_passes)
        policy, reference = self.policy_log_probs(micro_batches), self.reference_log_probs(micro_batches)
        self.layout.forget()  # the passes of the update are others
        divergences: dict[Key, float] = {}
        for indices, current, initial in zip(planned, policy, reference, strict=False):
            lengths = [len(logps) for logps in current]
            of_pass = completion_kl(torch.cat(current), torch.cat(initial), lengths, self.objective.kl_estimator)
            divergences |= {keys[index]: value for index, value in zip(indices, of_pass.tolist(), strict=False)}
        num_tokens = sum(len(own[key].completion.token_ids) for key in keys)
        self.sums.add("kl", sum(divergences.values()), num_tokens)
        return [
            replace(card, totals=tuple(t - beta * divergences[card.place, n] for n, t in enumerate(card.totals)))
            for card in cards
        ]

    def _advantages(self, cards: list[GroupCard]) -> torch.Tensor:
        """[P, G], the same on every process."""
        parts = torch.tensor([card.parts for card in cards], dtype=torch.float32)
        return compute_advantages(
            self.arguments, RewardTable(reward_totals(cards), parts, torch.tensor(self.reward_weights))
        )

    def _with_replays(
        self,
        replay: ReplayBuffer[StoredGroup],
        cards: list[GroupCard],
        advantages: torch.Tensor,
        own: dict[Key, TrainingSequence],
        rollout: int,
    ) -> tuple[list[GroupCard], torch.Tensor]:
        """Earlier groups in the places of those without an advantage; this rollout's others are kept."""
        informative = advantages.ne(0.0).any(-1).tolist()
        rank, per_rank = self.accelerator.process_index, self.plan.prompts_per_rank
        fresh = [
            (card.place, StoredGroup.of([own[card.place, number] for number in range(self.plan.num_generations)]))
            for card, differs in zip(cards, informative, strict=True)
            if differs and (card.place, 0) in own
        ]
        places = [position for position, differs in enumerate(informative) if not differs]
        drawn = replay.draw(len(places), self.seed, rollout)
        cards, advantages = list(cards), advantages.clone()
        for position, stored in zip(places, drawn, strict=False):
            place = cards[position].place
            owner, patches = place // per_rank, 0
            for number in range(self.plan.num_generations):
                own.pop((place, number), None)
            if owner == rank:
                prompt = self.encode(stored.record)
                own |= {(place, number): s for number, s in enumerate(stored.sequences(prompt, place))}
                patches = num_patches(prompt.media, self.vlm.config)
            cards[position] = replace(
                cards[position],
                owner=owner,
                prompt_tokens=len(stored.record.input_ids),
                prompt_patches=patches,
                lengths=tuple(map(len, stored.token_ids)),
                trained=stored.trained,
            )
            advantages[position] = torch.tensor(stored.advantages)
        # Only the process that decodes the pictures counts their patches; every process must plan with the same.
        patches_of = dict(gather_object([(c.place, c.prompt_patches) for c in cards if c.owner == rank]))
        cards = [replace(card, prompt_patches=patches_of[card.place]) for card in cards]
        groups = [stored for _, stored in sorted(gather_object(fresh), key=lambda item: item[0])]
        replay.add([(stored, stored.priority) for stored in groups], rollout)
        self.counts = DynamicSamplingCounts.of_rollout(informative, num_replayed=len(drawn))
        return cards, advantages

    def _planned(
        self, cards: list[GroupCard], advantages: torch.Tensor, own: dict[Key, TrainingSequence]
    ) -> Experience:
        """Weights, passes and frozen log-probabilities of every optimizer step."""
        plan, accumulation = self.plan, self.accumulation
        steps: list[list[tuple[GroupCard, int]]] = [[] for _ in range(plan.steps_per_generation // accumulation)]
        for card in cards:
            for number in range(plan.num_generations):
                steps[update_of(card.place, number, plan, accumulation)].append((card, number))
        by_place = {card.place: row for card, row in zip(cards, advantages.tolist(), strict=True)}
        updates: list[list[MicroBatch]] = []
        for entries in steps:
            updates.append(self._plan_update(entries, by_place, own, sum(map(len, updates))))
        experience = Experience(updates)
        if plan.micro_steps_per_rollout > accumulation:
            # Later optimizer steps of this block are off policy: their ratios need the policy of now.
            for sequence, logps in self._frozen(self.policy_log_probs, experience):
                if sequence.old_logps is None:  # a replayed one knows its own
                    sequence.old_logps = logps
        if self.objective.beta:
            assert self.reference_log_probs is not None
            for sequence, logps in self._frozen(self.reference_log_probs, experience):
                sequence.ref_logps = logps
        return experience

    def _plan_update(
        self,
        entries: list[tuple[GroupCard, int]],
        advantages: dict[int, list[float]],
        own: dict[Key, TrainingSequence],
        first_number: int,
    ) -> list[MicroBatch]:
        """This process's passes of one optimizer step, planned alike on all."""
        weights = self.objective.token_weights(
            [card.lengths[number] for card, number in entries],
            [card.trained[number] for card, number in entries],
            self.plan.completions_per_micro_step,
        )
        computed = []
        for (card, number), weight in zip(entries, weights, strict=True):
            idle = self.objective.skips_zero_advantages and advantages[card.place][number] == 0.0
            if card.trained[number] and not idle:
                computed.append((card, number))
            if (sequence := own.get((card.place, number))) is not None:
                sequence.token_weight = weight
        planned = self.layout.plan(self._sizes(computed), self.accelerator.num_processes)
        keys = [[[(computed[i][0].place, computed[i][1]) for i in indices] for indices in passes] for passes in planned]
        rank = self.accelerator.process_index
        sequences = exchange(own, keys, rank, gather_object, self.encode)
        self.sums.add("update/computed", len(computed), len(entries))
        return self._micro_batches(sequences, len(planned[rank]), first_number)

    def _frozen(
        self, log_probs: FrozenLogProbs, experience: Experience
    ) -> Iterator[tuple[TrainingSequence, torch.Tensor]]:
        found = log_probs(experience.micro_batches)
        for micro_batch, values in zip(experience.micro_batches, found, strict=True):
            yield from zip(micro_batch.sequences, values, strict=True)

    def _sizes(self, entries: Sequence[tuple[GroupCard, int]]) -> list[SequenceSize]:
        return [SequenceSize(c.place, c.prompt_tokens, c.prompt_patches, c.lengths[n]) for c, n in entries]

    def _micro_batches(
        self,
        passes: list[list[TrainingSequence]],
        num_passes: int,
        first_number: int = 0,
    ) -> list[MicroBatch]:
        """Passes without anything left to compute get a token that weighs nothing: the other processes wait for it."""
        micro_batches = []
        for number in range(num_passes):
            sequences = passes[number] if number < len(passes) else []
            if not sequences:
                sequences = [filler(self._spare, IDLE)]
            if self.image_filler is not None and not any(sequence.prompt.media for sequence in sequences):
                nothing = Completion(self.image_filler.record.input_ids[-1:], [0.0], Ending.STOPPED, "")
                sequences = [*sequences, TrainingSequence(self.image_filler, nothing, IMAGE_FILLER, trained=False)]
            micro_batches.append(MicroBatch(list(sequences), first_number + number))
        return micro_batches
