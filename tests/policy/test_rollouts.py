"""Rollouts over several processes, simulated by threads; the engine writes the prompt's number, the scorer reads it."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rank_threads import run_ranks

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy import rollouts
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.rollouts import NO_PLACE, RolloutMaker, numbered_groups, rollout_lines
from lcot_plugin.protocols import NoWatcher
from lcot_plugin.report.completions import completion_line
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, SamplingParams, Score

G = 2


class Engine:
    """Completions whose first token is the prompt's number, the second the generation; notes the slots."""

    def __init__(self):
        self.slots = []

    def generate(self, model, prompts, sampling, slots, progress):
        self.slots += slots
        groups = []
        for prompt in prompts:
            completions = [Completion([prompt.record.record, n], [0.0] * 2, Ending.STOPPED, "") for n in range(G)]
            groups.append(RolloutGroup(prompt, completions))
            progress(G, 2 * G)
        return groups


class Watcher(NoWatcher):
    """Notes what it is told."""

    def __init__(self):
        self.phases, self.num_done = [], 0

    def phase(self, name, total=None):
        self.phases.append((name, total))

    def advance(self, number=1):
        self.num_done += number


@pytest.fixture
def roll_out(monkeypatch):
    """`roll_out(num_ranks, teaches, block, **arguments)`: prompts in `teaches` have one right answer, others none."""

    def run(num_ranks, teaches, block, num_prompts=12, **given):
        arguments = GrpoArguments(grpo_num_generations=G, **given)
        per_rank = len(block) // num_ranks
        plan = BatchPlan(per_rank * G, 1, 1, G, num_ranks)
        records = [PromptRecord([1], [], "?", "3", "problems", number) for number in range(num_prompts)]

        def on_rank(rank, gather):
            gathers[rank], local.rank = gather, rank

            def score(requests):
                return [
                    Score({"accuracy": r}, r, None)
                    for c in requests
                    for r in [float(c.token_ids[0] in teaches and c.token_ids[1] == 0)]
                ]

            maker = RolloutMaker(
                arguments=arguments,
                plan=plan,
                engine=Engine(),
                scorer=SimpleNamespace(score=score, take_counts=dict),
                encode=lambda record: EncodedPrompt(record, {}),
                scoring_request=lambda record, completion: completion,
                sampling=SamplingParams(G, 4),
                sums=MetricSums(),
                rank=rank,
                prompts=lambda indices: [records[index] for index in indices],
                num_prompts=num_prompts,
                watcher=Watcher(),
            )
            mine = block[rank * per_rank : (rank + 1) * per_rank]
            scored, lost = maker(None, [(index, records[index]) for index in mine], seed=0, step=5)
            return SimpleNamespace(scored=scored, lost=lost, counts=maker.counts, slots=maker.engine.slots, maker=maker)

        local, gathers = threading.local(), {}
        monkeypatch.setattr(rollouts, "gather_object", lambda mine: gathers[local.rank](mine))
        return run_ranks(num_ranks, on_rank)

    return run


def by_place(results):
    return {g.place: g.group.prompt.record.record for r in results for g in r.scored}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_without_dynamic_sampling_the_block_is_what_it_is(roll_out, num_ranks):
    results = roll_out(num_ranks, {3}, [3, 4, 5, 6])
    assert by_place(results) == {0: 3, 1: 4, 2: 5, 3: 6}
    assert all(not r.lost for r in results)
    assert [slot for r in results for slot in r.slots] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_groups_that_teach_nothing_are_replaced(roll_out, num_ranks):
    teaches = {3, 0, 1, 2, 7, 8, 9}
    results = roll_out(num_ranks, teaches, [3, 4, 5, 6], grpo_dynamic_sampling=True, grpo_dynamic_sampling_rounds=8)
    found = by_place(results)
    assert sorted(found) == [0, 1, 2, 3] and found[0] == 3
    assert set(found.values()) <= teaches and len(set(found.values())) == 4
    counts = results[0].counts
    assert counts.num_replaced == 3 and counts.num_left == 0 and counts.num_extra >= 3
    assert all(r.counts == counts for r in results)
    slots = [slot for r in results for slot in r.slots]
    assert len(set(slots)) == len(slots) == 4 + counts.num_extra, "no two prompts share random numbers"
    lost = [g for r in results for g in r.lost]
    assert len(lost) == counts.num_extra, "everything that was written is still there to be logged"
    assert {g.place for g in lost} <= {NO_PLACE, 1, 2, 3}


def test_the_same_whatever_the_processes(roll_out):
    """One and two processes ask for even numbers of prompts here, so they draw the same ones."""
    given = {"grpo_dynamic_sampling": True, "num_prompts": 40}
    teaches = set(range(40)) - {4, 5}
    assert by_place(roll_out(1, teaches, [3, 4, 5, 6], **given)) == by_place(
        roll_out(2, teaches, [3, 4, 5, 6], **given)
    )


def test_the_cap_on_rounds(roll_out):
    """Nothing teaches: two further rounds, and the groups stay as they were."""
    [result] = roll_out(1, set(), [3, 4], grpo_dynamic_sampling=True, grpo_dynamic_sampling_rounds=2)
    assert by_place([result]) == {0: 3, 1: 4}
    assert (result.counts.num_rounds, result.counts.num_left, result.counts.num_extra) == (2, 2, 4)
    assert len(result.lost) == 4


def test_rewards_that_are_normalised_one_by_one(roll_out):
    """Two rewards that cancel out: their sum does not differ, each does."""
    maker = object.__new__(RolloutMaker)
    scores = [Score({"a": 1.0, "b": 0.0}, 1.0, None), Score({"a": 0.0, "b": 1.0}, 1.0, None)]
    group = RolloutGroup(EncodedPrompt(PromptRecord([1], [], "?", "3", "problems", 0), {}), [])
    maker.arguments = GrpoArguments()
    assert not maker._differs(group, scores)
    maker.arguments = replace(GrpoArguments(), grpo_multi_objective_aggregation="normalize_then_sum")
    assert maker._differs(group, scores)
    maker.arguments = replace(maker.arguments, grpo_reward_weights="0,0")
    assert not maker._differs(group, scores), "rewards that only are logged"
    broken = RolloutGroup(replace(group.prompt, usable=False), [])
    maker.arguments = replace(maker.arguments, grpo_reward_weights=None)
    assert not maker._differs(broken, scores), "a group that cannot be trained on"


def test_who_looks_is_told_of_each_round(roll_out):
    (result,) = roll_out(1, {1, 3}, [0, 1, 2, 3], grpo_dynamic_sampling=True, grpo_dynamic_sampling_rounds=1)
    watcher = result.maker.watcher
    assert watcher.phases[:2] == [("rollout", 4 * G), ("score", None)]
    assert [name for name, _ in watcher.phases[2:]] == ["rollout", "score"]
    assert watcher.num_done == len(result.slots) * G == 4 * G + watcher.phases[2][1]


def test_lines_of_a_group_stand_together_and_have_its_number(roll_out):
    """Those of lost groups come last, without an advantage."""
    results = roll_out(2, {1, 3}, [0, 1, 2, 3], grpo_dynamic_sampling=True)
    advantages = {place: [0.5, -0.5] for place in range(4)}
    shares = [rollout_lines(completion_line, r.scored, r.lost, advantages, step=5) for r in results]
    lines = numbered_groups([line for share in shares for line in share])
    num_groups = sum(len(r.scored) + len(r.lost) for r in results)
    assert [(line["group"], line["sample"]) for line in lines] == [(g, n) for g in range(num_groups) for n in range(G)]
    assert {line["step"] for line in lines} == {5} and list(lines[0])[:3] == ["step", "group", "sample"]
    lost = [line["record"] for share in shares for line in share if line["advantage"] is None]
    assert sorted(lost) == sorted(g.group.prompt.record.record for r in results for g in r.lost for _ in range(G))
    assert lost, "the case has some"
