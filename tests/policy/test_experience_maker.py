"""Plans of an experience over several processes, simulated by threads; the model's part is stood in for."""

import threading
from types import SimpleNamespace

import pytest
import torch
from rank_threads import run_ranks

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.policy import experience_maker
from lcot_plugin.policy.experience import ScoredGroup
from lcot_plugin.policy.experience_maker import ExperienceMaker
from lcot_plugin.policy.layouts import PackedLayout, RowsLayout
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.objectives import make_objective
from lcot_plugin.policy.replay import ReplayBuffer
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, Score

G = 4
REWARDS = [
    [1, 0, 0, 1],
    [1, 1, 1, 1],
    [0, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0, 1, 1],
    [1, 1, 1, 0],
    [0, 0, 0, 0],
    [1, 0, 1, 0],
]
"""Of eight prompts; the groups 1, 2 and 6 teach nothing."""
INFORMATIVE = {0, 3, 4, 5, 7}


def scored_groups(places):
    groups = []
    for place in places:
        prompt = EncodedPrompt(PromptRecord([1] * (5 + place), [], "?", "3", "problems", place), {})
        completions = [
            Completion(
                [place * 10 + n] * (3 + (place * 7 + n * 5) % 11),
                [-0.25] * (3 + (place * 7 + n * 5) % 11),
                Ending.STOPPED,
                "",
            )
            for n in range(G)
        ]
        scores = [Score({"accuracy": r}, float(r), None) for r in REWARDS[place]]
        groups.append(ScoredGroup(place, RolloutGroup(prompt, completions), scores))
    return groups


@pytest.fixture
def make(monkeypatch):
    """`make(num_ranks, packed, updates, **arguments)` gives every rank's maker after `rollouts` calls, and what the
    last call returned."""

    def run(num_ranks, *, packed=True, updates=1, rollouts=1, places=range(8), **given):
        arguments = GrpoArguments(grpo_num_generations=G, **given)
        per_rank = len(places) // num_ranks
        plan = BatchPlan(
            completions_per_micro_step=per_rank * G // (2 * updates),
            steps_per_generation=2 * updates,
            num_iterations=1,
            num_generations=G,
            world_size=num_ranks,
        )
        vlm = SimpleNamespace(config=SimpleNamespace(), banned_token_ids=[])
        layout = (
            PackedLayout(vlm, max_tokens=60, cost=CostModel(100.0, 1.0, 0.0), temperature=1.0, chunk_size=8)
            if packed
            else RowsLayout(vlm, rows=3, batch_media=None, pad_token_id=0, temperature=1.0, chunk_size=8)
        )

        def on_rank(rank, gather):
            gathers[rank] = gather
            local.rank = rank
            maker = ExperienceMaker(
                arguments=arguments,
                plan=plan,
                accumulation=2,
                vlm=vlm,
                encode=lambda record: EncodedPrompt(record, {}),
                layout=layout,
                objective=make_objective(arguments, 16),
                accelerator=SimpleNamespace(process_index=rank, num_processes=num_ranks),
                sums=MetricSums(),
                policy_log_probs=lambda batches: [[torch.zeros(n) for n in b.lengths] for b in batches],
                reference_log_probs=lambda batches: [[torch.full((n,), -0.5) for n in b.lengths] for b in batches],
                reward_weights=(1.0,),
                seed=0,
                replay=ReplayBuffer(8) if arguments.grpo_replay_groups else None,
            )
            mine = [places[rank * per_rank + i] for i in range(per_rank)]
            for rollout in range(rollouts):
                groups = [
                    ScoredGroup(rank * per_rank + i, group.group, group.scores)
                    for i, group in enumerate(scored_groups(mine))
                ]
                experience, advantages = maker(groups, [], rollout)
            return SimpleNamespace(experience=experience, advantages=advantages, maker=maker)

        local, gathers = threading.local(), {}
        monkeypatch.setattr(experience_maker, "gather_object", lambda mine: gathers[local.rank](mine))
        return run_ranks(num_ranks, on_rank)

    return run


def computed(results, update=0):
    """(token of the completion, length) of everything that weighs, over all ranks."""
    return sorted(
        (s.completion.token_ids[0], len(s.completion.token_ids))
        for result in results
        for micro_batch in result.experience.updates[update]
        for s in micro_batch.sequences
        if s.token_weight
    )


def total_weight(results):
    return sum(
        s.token_weight * len(s.completion.token_ids)
        for result in results
        for micro_batch in result.experience.micro_batches
        for s in micro_batch.sequences
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_completion_that_teaches_is_computed_once(make, num_ranks, packed):
    results = make(num_ranks, packed=packed)
    assert [token // 10 for token, _ in computed(results)] == sorted(list(INFORMATIVE) * G)
    assert len({token for token, _ in computed(results)}) == len(INFORMATIVE) * G
    assert len({len(result.experience.micro_batches) for result in results}) == 1, "as many passes on every rank"
    numbers = [micro_batch.number for micro_batch in results[0].experience.micro_batches]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_all_are_computed_where_all_contribute(make, num_ranks):
    results = make(num_ranks, grpo_beta=0.1)
    assert len(computed(results)) == 8 * G
    assert total_weight(results) == pytest.approx(1.0)
    for result in results:
        for sequence in (s for m in result.experience.micro_batches for s in m.sequences):
            assert sequence.ref_logps.tolist() == [-0.5] * len(sequence.completion.token_ids)
            assert sequence.old_logps is None, "one update per rollout is on policy"


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_weights_and_advantages_do_not_depend_on_the_processes(make, num_ranks):
    def of(results):
        return {
            s.completion.token_ids[0]: (s.advantage, s.token_weight)
            for result in results
            for m in result.experience.micro_batches
            for s in m.sequences
            if s.token_weight
        }

    assert of(make(num_ranks)) == of(make(1))


def test_a_group_is_computed_in_one_pass_where_it_fits(make):
    [result] = make(1)
    for micro_batch in result.experience.micro_batches:
        groups = [s.group for s in micro_batch.sequences]
        assert groups == sorted(groups, key=groups.index), "sequences of a group follow each other"
        tokens = sum(5 + group for group in set(groups)) + sum(micro_batch.lengths)
        assert tokens <= 60 + len(micro_batch.sequences)


def test_a_rank_without_anything_to_compute_keeps_step(make):
    """Four ranks with two groups each; only the first group of all teaches."""
    results = make(4, places=[0, 1, 2, 1, 2, 1, 2, 1])
    assert len(computed(results)) == G
    for result in results:
        assert result.experience.micro_batches
        for micro_batch in result.experience.micro_batches:
            assert micro_batch.sequences
    idle = [m for r in results for m in r.experience.micro_batches if not any(s.token_weight for s in m.sequences)]
    assert idle and all(m.lengths == [1] for m in idle)


def test_several_updates_of_one_rollout_are_off_policy(make):
    results = make(2, updates=2, grpo_beta=0.1)
    first, second = computed(results, 0), computed(results, 1)
    assert len(first) == len(second) == 4 * G and not set(first) & set(second)
    for s in (s for r in results for m in r.experience.micro_batches for s in m.sequences):
        assert s.old_logps.tolist() == [0.0] * len(s.completion.token_ids)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_earlier_groups_stand_in(make, num_ranks):
    """The same eight groups twice: in the second rollout the three that teach nothing are replaced by earlier ones."""
    results = make(num_ranks, rollouts=2, grpo_replay_groups=8)
    counted = computed(results)
    assert len(counted) == 8 * G
    assert len({token for token, _ in counted}) == len(INFORMATIVE) * G
    replayed = [s for r in results for m in r.experience.micro_batches for s in m.sequences if s.old_logps is not None]
    assert len(replayed) == 3 * G
    assert {s.group for s in replayed} == {1, 2, 6}
    assert all(s.old_logps.tolist() == [-0.25] * len(s.completion.token_ids) for s in replayed), "the sampler's"
    for result in results:
        assert result.maker.counts.num_replayed == 3 and result.maker.counts.num_left == 0
        assert result.advantages[1] == [0.0] * G, "what is logged of this rollout's own groups"


def test_the_divergence_comes_off_the_reward(make):
    """k1 of log-probabilities 0 and reference -0.5 is 0.5 per token, so longer completions earn less."""
    [plain] = make(1)
    [result] = make(1, grpo_beta=0.1, grpo_kl_in="reward", grpo_kl_estimator="k1")
    lengths = {
        s.completion.token_ids[0]: len(s.completion.token_ids)
        for m in result.experience.micro_batches
        for s in m.sequences
    }
    assert len(lengths) == 8 * G, "no two completions of a group earn the same now"
    for n in range(G):
        rewards = torch.tensor([r - 0.1 * 0.5 * lengths[10 + i] for i, r in enumerate(REWARDS[1])])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert result.advantages[1][n] == pytest.approx(expected[n].item(), abs=1e-5)
    assert plain.advantages[1] == [0.0] * G
    assert all(s.ref_logps is None for m in result.experience.micro_batches for s in m.sequences)
