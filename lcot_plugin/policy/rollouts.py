"""Prompts in, scored groups out: the engine writes, the scorer judges, groups that teach nothing are replaced.

In: this process's prompt records of one rollout. Out: ScoredGroups whose places over all processes are complete.
Dynamic sampling (DAPO, arXiv 2503.14476) is the only part that talks to other processes: they agree on which places
need another prompt, and each rolls out its share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.advantages import has_variance
from lcot_plugin.policy.dynamic_sampling import (
    DynamicSamplingCounts,
    extra_prompts,
    extra_slots,
    num_extra_prompts,
    rank_slice,
    replacements,
)
from lcot_plugin.policy.experience import ScoredGroup, or_nan
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.rollout_metrics import add_rollout_metrics
from lcot_plugin.protocols import CompletionScorer, NoWatcher, RolloutEngine, RunWatcher
from lcot_plugin.types import (
    EncodedPrompt,
    PromptRecord,
    RolloutGroup,
    SamplingParams,
    Score,
    ScoringRequest,
)

NO_PLACE = -1


@dataclass(frozen=True)
class Written:
    """One process's groups of a rollout, not judged yet."""

    groups: list[RolloutGroup]
    seconds: float
    """That they took to write."""
    waited: float
    """That the training stood still for them: the same, or less where they were written ahead."""


@dataclass
class RolloutMaker:
    """Rolls out and scores; `prompts` and `counts` matter to dynamic sampling only."""

    arguments: GrpoArguments
    plan: BatchPlan
    engine: RolloutEngine
    scorer: CompletionScorer
    encode: Callable[[PromptRecord], EncodedPrompt]
    scoring_request: Callable[[PromptRecord, Any], ScoringRequest]
    sampling: SamplingParams
    sums: MetricSums
    rank: int
    prompts: Callable[[Sequence[int]], list[PromptRecord]]
    """The training set's records by their index."""
    num_prompts: int
    show_progress: bool = False
    by_source: bool = False
    """Whether there are several data sets."""
    watcher: RunWatcher = field(default_factory=NoWatcher)
    counts: DynamicSamplingCounts = field(default_factory=DynamicSamplingCounts)
    """Of the last rollout."""

    def __call__(
        self,
        model: Any,
        prompts: Sequence[tuple[int, PromptRecord]],
        seed: int,
        step: int,
        written: Written | None = None,
    ) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """This process's groups: those that hold a place, and those that lost theirs to another.

        prompts: with their index in the training set. written: their groups, where they were written ahead; further
        rounds are written here.
        """
        records = [record for _, record in prompts]
        self._seconds = {"rollout": 0.0, "score": 0.0}
        self._num_scored = 0
        places = self.places(len(records))
        if written is None:
            written = self._write(model, records, places, seed, step, f"Rollout at step {step}")
        groups, scores = self._judged(written)
        rewards = _totals(scores)
        judged = [score for row in scores for score in row]
        add_rollout_metrics(self.sums, groups, judged, rewards, {}, by_source=self.by_source)
        scored = [ScoredGroup(*parts) for parts in zip(places, groups, scores, strict=True)]
        if not self.arguments.grpo_dynamic_sampling:
            self._add_round_metrics()
            return scored, []
        found = self._with_replacements(model, scored, [index for index, _ in prompts], seed, step)
        self._add_round_metrics()
        return found

    def _add_round_metrics(self) -> None:
        """Of all rounds together."""
        for phase, seconds in self._seconds.items():
            self.sums.add(f"time/{phase}", seconds)
        for name, number in self.scorer.take_counts().items():
            self.sums.add(name, number, self._num_scored)

    def _with_replacements(
        self, model: Any, scored: list[ScoredGroup], indices: list[int], seed: int, step: int
    ) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """Further rounds of other prompts for the places whose rewards do not differ."""
        block = gather_object(
            [(self._differs(one.group, one.scores), index) for one, index in zip(scored, indices, strict=True)]
        )
        informative = [differs for differs, _ in block]
        taken = {index for _, index in block}
        size, ranks = self.plan.prompts_per_rollout, self.plan.world_size
        rounds: list[list[bool]] = []
        extras: dict[int, tuple[RolloutGroup, list[Score]]] = {}
        for round_index in range(self.arguments.grpo_dynamic_sampling_rounds):
            found = [differs for round_ in rounds for differs in round_]
            num_open = len(informative) - sum(informative) - sum(found)
            if num_open <= 0:
                break
            num_extra = num_extra_prompts(num_open, [*informative, *found], size, ranks)
            drawn = extra_prompts(seed, step, round_index, self.num_prompts, num_extra, taken)
            taken |= set(drawn)
            mine = rank_slice(num_extra, self.rank, ranks)
            slots = extra_slots(size, len(found), num_extra)[mine]
            title = f"Rollout at step {step}, prompts for {num_open} groups whose rewards do not differ"
            groups, scores = self._judged(self._write(model, self.prompts(drawn[mine]), slots, seed, step, title))
            first = len(found) + mine.start
            extras |= {first + i: pair for i, pair in enumerate(zip(groups, scores, strict=True))}
            rounds.append(gather_object([self._differs(*pair) for pair in zip(groups, scores, strict=True)]))

        kept, lost = {group.place: group for group in scored}, []
        for place, extra in replacements(informative, [differs for round_ in rounds for differs in round_]):
            if place in kept:
                lost.append(kept.pop(place))
            if extra in extras:
                kept[place] = ScoredGroup(place, *extras.pop(extra))
        lost += [ScoredGroup(NO_PLACE, *left) for left in extras.values()]
        self.counts = DynamicSamplingCounts.of_rollout(informative, rounds)
        return [kept[place] for place in sorted(kept)], lost

    def _differs(self, group: RolloutGroup, scores: Sequence[Score]) -> bool:
        """Whether the rewards of a group that can be trained on differ; of one reward at least where each is
        normalised by itself."""
        if not group.prompt.usable:
            return False
        table = [_totals([scores])]
        if self.arguments.grpo_multi_objective_aggregation == "normalize_then_sum":
            weights = self.arguments.reward_weights() or [1.0] * len(scores[0].rewards)
            rows = zip(*(score.rewards.values() for score in scores), strict=True)
            parts = [row for row, weight in zip(rows, weights, strict=True) if weight]
            table = [torch.tensor([[or_nan(value) for value in row]]) for row in parts]
        return any(bool(has_variance(rewards)) for rewards in table)

    def places(self, num_prompts: int) -> range:
        """Those of this process's prompts in the rollout over all processes."""
        first = self.rank * self.plan.prompts_per_rank
        return range(first, first + num_prompts)

    def write_ahead(self, records: Sequence[PromptRecord], seed: int, policy_step: int) -> Written:
        """A later rollout's groups, without a progress bar: another thread shows its own meanwhile."""
        started = time.perf_counter()
        groups = self._generate(None, records, self.places(len(records)), seed, policy_step)
        return Written(groups, time.perf_counter() - started, waited=0.0)

    def _judged(self, written: Written) -> tuple[list[RolloutGroup], list[list[Score]]]:
        """The groups, with the scores of each."""
        groups = written.groups
        if not groups:
            return [], []
        num_tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
        self._seconds["rollout"] += written.waited
        self.sums.add("tokens_per_second/rollout", num_tokens, written.seconds)
        self.watcher.phase("score")
        started = time.perf_counter()
        requests = [self.scoring_request(group.prompt.record, c) for group in groups for c in group.completions]
        scores = self.scorer.score(requests)
        self._seconds["score"] += time.perf_counter() - started
        self._num_scored += len(requests)
        size = self.sampling.num_generations
        return groups, [scores[start : start + size] for start in range(0, len(scores), size)]

    def _write(
        self,
        model: Any,
        records: Sequence[PromptRecord],
        slots: Sequence[int],
        seed: int,
        step: int,
        title: str,
    ) -> Written:
        started, num_completions = time.perf_counter(), len(records) * self.sampling.num_generations
        self.watcher.phase("rollout", num_completions)
        with RolloutBar(title, num_completions, self.show_progress, self.watcher) as progress:
            groups = self._generate(model, records, slots, seed, step, progress=progress)
        seconds = time.perf_counter() - started
        return Written(groups, seconds, waited=seconds)

    def _generate(
        self,
        model: Any,
        records: Sequence[PromptRecord],
        slots: Sequence[int],
        seed: int,
        policy_step: int,
        **progress: Callable[[int, int], None],
    ) -> list[RolloutGroup]:
        if not records:
            return []
        prompts = [self.encode(record) for record in records]
        groups = self.engine.generate(model, prompts, replace(self.sampling, seed=seed), slots, **progress)
        for group in groups:
            for completion in group.completions:
                completion.policy_step = policy_step
        return groups


class RolloutBar:
    """A progress bar in completions, with tokens per second; nothing for quick rollouts."""

    def __init__(self, title: str, num_completions: int, shown: bool, watcher: RunWatcher):
        self._watcher = watcher
        self._bar = tqdm(
            total=num_completions, desc=title, unit="completion", leave=False, delay=2.0, disable=not shown
        )
        self._started, self._num_tokens = time.perf_counter(), 0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _update(self, num_ended: int, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{self._num_tokens / seconds:,.0f} tokens/s", refresh=False)
        self._bar.update(num_ended)
        self._watcher.advance(num_ended)


def rollout_lines(
    line: Callable[..., dict[str, Any]],
    scored: Sequence[ScoredGroup],
    lost: Sequence[ScoredGroup],
    advantages: Mapping[int, Sequence[float]],
    step: int,
) -> list[dict[str, Any]]:
    """One process's lines of completions.jsonl, those of a group one after another; see `numbered_groups`.

    advantages: by place. Those of lost groups have none: they do not train.
    """
    groups = [(one, advantages[one.place]) for one in scored]
    groups += [(one, [None] * len(one.scores)) for one in lost]  # type: ignore[list-item]
    return [
        line(one.group.prompt.record, completion, score, advantage=row[number], step=step, group=0, sample=number)
        for one, row in groups
        for number, (completion, score) in enumerate(zip(one.group.completions, one.scores, strict=True))
    ]


def numbered_groups(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of all processes, with `group` counted from 0: a group begins at its sample 0."""
    number = -1
    for line in lines:
        number += line["sample"] == 0
        line["group"] = number
    return list(lines)


def _totals(scores: Sequence[Sequence[Score]]) -> torch.Tensor:
    """[P, G] float32, NaN where every reward function abstained."""
    totals = [[or_nan(score.total) for score in row] for row in scores]
    return torch.tensor(totals, dtype=torch.float32)
