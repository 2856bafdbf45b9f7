"""Accuracy of a policy on verifiable problems: greedy, avg@k and pass@k, with every completion and its verdict.

In: prompt records, an engine, a scorer. Out: `ProblemResult`s of this process, then metrics over those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from lcot_plugin.evaluate.pass_at_k import sampled_metrics
from lcot_plugin.evaluate.worst_case import worst_case_metrics
from lcot_plugin.protocols import CompletionScorer, RolloutEngine
from lcot_plugin.types import (
    Completion,
    EncodedPrompt,
    Ending,
    Outcome,
    PromptRecord,
    SamplingParams,
    Score,
    ScoringRequest,
)


@dataclass
class ProblemResult:
    """One problem with its completions: the greedy one first, then the sampled ones."""

    record: PromptRecord
    completions: list[Completion]
    scores: list[Score]


@dataclass(frozen=True)
class Evaluator:
    """Runs problems in batches."""

    engine: RolloutEngine
    scorer: CompletionScorer
    encode: Callable[[PromptRecord], EncodedPrompt]
    sampling: SamplingParams
    """For the sampled completions; `num_generations` may be 0 for greedy only."""
    batch_size: int
    """Problems per batch."""
    scoring_request: Callable[[PromptRecord, Completion], ScoringRequest]

    def run(
        self, model: Any, records: Sequence[PromptRecord], progress: Callable[[int], None] = lambda _: None
    ) -> list[ProblemResult]:
        """`progress` is called with the number of problems just finished."""
        greedy = replace(self.sampling, num_generations=1, temperature=0.0)
        results = []
        for start in range(0, len(records), self.batch_size):
            batch = records[start : start + self.batch_size]
            prompts = [self.encode(record) for record in batch]
            slots = [record.record for record in batch]
            groups = self.engine.generate(model, prompts, greedy, slots)
            if self.sampling.num_generations:
                sampled = self.engine.generate(model, prompts, self.sampling, slots)
                for group, more in zip(groups, sampled, strict=True):
                    group.completions += more.completions
            scores = self.scorer.score(
                [self.scoring_request(group.prompt.record, c) for group in groups for c in group.completions]
            )
            taken = 0
            for group in groups:
                own = scores[taken : taken + len(group.completions)]
                taken += len(own)
                results.append(ProblemResult(group.prompt.record, group.completions, own))
            progress(len(batch))
        return results


def evaluation_metrics(results: Sequence[ProblemResult]) -> dict[str, float]:
    """Metrics over problems, shares in percent.

    `accuracy` is greedy, with its standard error; `avg@n` and `pass@k` are over the samples; `worst_case` is greedy,
    over problems whose records are variants. A problem whose gold answer cannot be read is counted in
    `gold_unparsable` and left out of everything else.
    """
    judged = [result for result in results if not _gold_unparsable(result)]
    metrics = {"problems": float(len(results)), "gold_unparsable": float(len(results) - len(judged))}
    if not judged:
        return metrics
    correct = [[_matched(score) for score in result.scores] for result in judged]
    greedy = [row[0] for row in correct]
    share = fmean(greedy)
    metrics["accuracy"] = 100 * share
    metrics["accuracy_stderr"] = 100 * (share * (1 - share) / len(greedy)) ** 0.5
    if len(correct[0]) > 1:
        metrics |= sampled_metrics([row[1:] for row in correct])
    ids = (result.record.problem_id for result in judged)
    metrics |= worst_case_metrics(zip(ids, greedy, strict=True))
    completions = [completion for result in judged for completion in result.completions]
    metrics["truncated"] = 100 * fmean(completion.ending is Ending.TRUNCATED for completion in completions)
    metrics["completion_length"] = fmean(len(completion.token_ids) for completion in completions)
    outcomes = [score.verdict.outcome for result in judged for score in result.scores if score.verdict is not None]
    for outcome in (Outcome.UNPARSABLE, Outcome.TIMED_OUT):
        metrics[outcome.value] = 100 * fmean(found is outcome for found in outcomes)
    sources = sorted({result.record.source for result in judged})
    if len(sources) > 1:
        for source in sources:
            rows = [row[0] for row, result in zip(correct, judged, strict=True) if result.record.source == source]
            metrics[f"accuracy/{source}"] = 100 * fmean(rows)
    return metrics


def _matched(score: Score) -> bool:
    return score.verdict is not None and score.verdict.matched


def _gold_unparsable(result: ProblemResult) -> bool:
    verdict = result.scores[0].verdict
    return verdict is None or verdict.outcome is Outcome.GOLD_UNPARSABLE
