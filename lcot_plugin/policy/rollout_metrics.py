"""What one rollout says of the policy: groups and scores come in, sums and counts of its metrics go to MetricSums.

    reward, reward_std                  mean over completions; mean over groups of the standard deviation within
    reward/SOURCE                       mean over the completions of one data set's prompts
    rewards/NAME                        mean of one reward function, unweighted, where it did not abstain
    accuracy                            share of the judged completions whose answer matched, 0 to 1
    groups_without_variance             share of groups whose rewards do not differ: they teach nothing
    groups_all_right, groups_all_wrong  share of the judged groups in which every, or no, answer matched
    verdicts/OUTCOME                    share of the verdicts: unparsable, gold_unparsable, timed_out
    completions/length, /min, /max      tokens of a completion: mean, least, most
    completions/length/right, /wrong    mean tokens of the judged completions whose answer matched, or did not
    completions/truncated               share of completions that reached their limit
    completions/truncated/right, /wrong share of the right, of the wrong completions that reached it

A completion is judged where its record has a gold answer that can be read; an answer that is missing or whose
comparison ran out of time is wrong, as it is to the `accuracy` reward and in evaluation. "All right" and "all wrong"
go by the verdict and not by the highest and the lowest reward: rewards of several parts have no highest value that
is known here, and a group may well be all wrong and still have variance (of the format, of the length), which is
what separates these shares from groups_without_variance.

Legend: P prompts, G completions per prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from lcot_plugin.policy.advantages import has_variance
from lcot_plugin.policy.metrics import MAXIMUM_SUFFIX, MINIMUM_SUFFIX, MetricSums
from lcot_plugin.types import Ending, Outcome, RolloutGroup, Score

LOGGED_OUTCOMES = (Outcome.UNPARSABLE, Outcome.GOLD_UNPARSABLE, Outcome.TIMED_OUT)
"""Of the other two, `accuracy` is the one and the rest is the other."""


def add_rollout_metrics(
    sums: MetricSums,
    groups: Sequence[RolloutGroup],
    scores: Sequence[Score],
    rewards: torch.Tensor,
    counts: Mapping[str, int],
    *,
    by_source: bool = True,
) -> None:
    """Adds one process's share of a rollout; averages over rollouts and processes stay weighted by completions.

    Args:
        sums: where to.
        groups: [P] prompts with their completions.
        scores: [P x G] of all completions, in the order of the groups.
        rewards: [P, G] total rewards, NaN where a completion was given none.
        counts: the scorer's `take_counts()`, each logged as a share of the completions.
        by_source: whether to log reward/SOURCE; False where the run has one data set, whose rewards are `reward`.
    """

    def average(name: str, values: Sequence[float]) -> None:
        sums.add(name, float(sum(values)), len(values))

    completions = [completion for group in groups for completion in group.completions]
    lengths = [len(completion.token_ids) for completion in completions]
    truncated = [completion.ending is Ending.TRUNCATED for completion in completions]

    given = [[reward for reward in row if reward == reward] for row in rewards.tolist()]
    average("reward", [reward for row in given for reward in row])
    average("reward_std", [torch.tensor(row, dtype=torch.float64).std().item() for row in given if len(row) > 1])
    average("groups_without_variance", [not varies for varies in has_variance(rewards).tolist()])
    if by_source:
        of_source: dict[str, list[float]] = defaultdict(list)
        for group, row in zip(groups, given, strict=True):
            of_source[group.prompt.record.source] += row
        for source, values in of_source.items():
            average(f"reward/{source}", values)
    for name in dict.fromkeys(name for score in scores for name in score.rewards):
        average(f"rewards/{name}", [value for score in scores if (value := score.rewards[name]) is not None])

    outcomes = [score.verdict.outcome for score in scores if score.verdict is not None]
    for outcome in LOGGED_OUTCOMES:
        average(f"verdicts/{outcome.value}", [found is outcome for found in outcomes])
    right = [_is_right(score) for score in scores]
    average("accuracy", [judged for judged in right if judged is not None])
    _add_uniform_groups(sums, groups, right)

    average("completions/length", lengths)
    for length in lengths:
        sums.add("completions/length" + MAXIMUM_SUFFIX, length)
        sums.add("completions/length" + MINIMUM_SUFFIX, length)
    average("completions/truncated", truncated)
    for name, wanted in (("right", True), ("wrong", False)):
        own = [index for index, judged in enumerate(right) if judged is wanted]
        average(f"completions/length/{name}", [lengths[index] for index in own])
        average(f"completions/truncated/{name}", [truncated[index] for index in own])
    for name, number in counts.items():
        sums.add(name, number, len(completions))


def _is_right(score: Score) -> bool | None:
    """None where the completion was not judged."""
    if score.verdict is None or score.verdict.outcome is Outcome.GOLD_UNPARSABLE:
        return None
    return score.verdict.matched


def _add_uniform_groups(sums: MetricSums, groups: Sequence[RolloutGroup], right: Sequence[bool | None]) -> None:
    """right: [P x G], in the order of the groups."""
    start = 0
    for group in groups:
        stop = start + len(group.completions)
        judged = [value for value in right[start:stop] if value is not None]
        start = stop
        if judged:
            sums.add("groups_all_right", all(judged))
            sums.add("groups_all_wrong", not any(judged))
