from dataclasses import replace

import pytest
import torch
from rank_threads import run_ranks

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.experience import (
    Experience,
    MicroBatch,
    ScoredGroup,
    card_of,
    exchange,
    filler,
    on_policy_gradients,
    policy_terms,
    reward_totals,
    sequences_of,
    update_of,
)
from lcot_plugin.policy.objectives import LOSS_TYPES, make_objective, policy_loss
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, Score, TrainingSequence


def encoded(length, record=0, usable=True, media=None):
    return EncodedPrompt(PromptRecord([1] * length, [], "?", "3", "problems", record), media or {}, usable)


def completion(length, ending=Ending.STOPPED, policy_logps=None):
    return Completion([7] * length, [-0.5] * length, ending, "text", policy_logps)


def score(total, **rewards):
    return Score(rewards or {"accuracy": total}, total, None)


def sequence(length, group=0, weight=0.5, **fields):
    return TrainingSequence(encoded(3), completion(length), group, token_weight=weight, **fields)


def sequence_of(prompt, length):
    return TrainingSequence(prompt, completion(length), prompt.record.record)


# --- cards ------------------------------------------------------------------------------------------------------------


def scored_group(usable=True):
    """The second completion was truncated, the third was given no reward."""
    completions = [completion(1), completion(2, Ending.TRUNCATED), completion(3), completion(4)]
    scores = [
        score(1.0, accuracy=1.0, iou=None),
        score(0.0, accuracy=0.0, iou=0.5),
        score(None, accuracy=None, iou=None),
        score(1.0, accuracy=1.0, iou=0.0),
    ]
    return ScoredGroup(6, RolloutGroup(encoded(5, usable=usable), completions), scores)


@pytest.mark.parametrize(
    ("usable", "mask_truncated", "trained"),
    [
        (True, False, (True, True, False, True)),
        (True, True, (True, False, False, True)),
        (False, False, (False, False, False, False)),
    ],
)
def test_what_is_trained(usable, mask_truncated, trained):
    scored = scored_group(usable)
    card = card_of(scored, owner=1, prompt_patches=8, mask_truncated=mask_truncated)
    assert card.trained == trained
    assert (card.place, card.owner, card.prompt_tokens, card.prompt_patches) == (6, 1, 5, 8)
    assert card.lengths == (1, 2, 3, 4)
    sequences = sequences_of(scored, card)
    assert tuple(s.trained for s in sequences) == trained
    assert {s.group for s in sequences} == {6}


def test_rewards_that_were_not_given_are_nan():
    card = card_of(scored_group(), 0, 0, False)
    torch.testing.assert_close(reward_totals([card]), torch.tensor([[1.0, 0.0, torch.nan, 1.0]]), equal_nan=True)
    expected = torch.tensor([[1.0, torch.nan], [0.0, 0.5], [torch.nan, torch.nan], [1.0, 0.0]])
    torch.testing.assert_close(torch.tensor(card.parts), expected, equal_nan=True)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_an_optimizer_step_takes_as_many_completions_of_every_process():
    """Two processes of two prompts, four completions each, four completions per process and optimizer step."""
    plan = BatchPlan(
        completions_per_micro_step=2, steps_per_generation=4, num_iterations=1, num_generations=4, world_size=2
    )
    steps = [[update_of(place, number, plan, accumulation=2) for number in range(4)] for place in range(4)]
    assert steps == [[0] * 4, [1] * 4, [0] * 4, [1] * 4]
    shared = replace(plan, completions_per_micro_step=1, steps_per_generation=8)
    assert [update_of(1, number, shared, accumulation=2) for number in range(4)] == [2, 2, 3, 3]


@pytest.mark.parametrize("num_passes", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4])
def test_passes_are_dealt_to_micro_steps(num_passes, accumulation):
    """Each is made once, in order; the last micro-step, which exchanges gradients, has one."""
    updates = [[MicroBatch([], update * 100 + number) for number in range(num_passes)] for update in range(2)]
    experience = Experience(updates)
    for update in range(2):
        dealt = [experience.passes(update * accumulation + step, accumulation) for step in range(accumulation)]
        assert [m.number for step in dealt for m in step] == [m.number for m in updates[update]]
        assert dealt[-1]


# --- exchange ---------------------------------------------------------------------------------------------------------


def test_sequences_travel_without_pixels_and_are_whole_again():
    pixels = {"pixel_values": torch.ones(4, 6)}
    prompts = {place: encoded(3, record=place, media=pixels) for place in range(3)}
    have = [
        {(0, 0): sequence_of(prompts[0], 2), (0, 1): sequence_of(prompts[0], 3)},
        {(1, 0): sequence_of(prompts[1], 4), (2, 0): sequence_of(prompts[2], 5)},
    ]
    plan = [[[(0, 0), (1, 0)], [(2, 0)]], [[(0, 1)], []]]
    sent = []

    def on_rank(rank, gather):
        def watched(mine):
            sent.extend(mine)
            return gather(mine)

        return exchange(have[rank], plan, rank, watched, lambda record: prompts[record.record])

    received = run_ranks(2, on_rank)
    assert all(not found.prompt.media for part in sent for found in part.values())
    assert {key for part in sent for key in part} == {(1, 0), (2, 0), (0, 1)}
    lengths = [[[len(s.completion.token_ids) for s in passed] for passed in passes] for passes in received]
    assert lengths == [[[2, 4], [5]], [[3], []]]
    for passes in received:
        for passed in passes:
            for found in passed:
                assert found.prompt is prompts[found.group]


# --- terms ------------------------------------------------------------------------------------------------------------


def test_terms_of_a_pass():
    sequences = [
        sequence(2, advantage=0.5, weight=0.25, old_logps=torch.tensor([-3.0, -4.0])),
        sequence(1, group=-2, weight=0.0),
        sequence(3, advantage=-0.5, weight=0.125),
    ]
    sequences[2].completion = completion(3, policy_logps=[-1.0, -2.0, -3.0])
    logps = torch.arange(6.0, requires_grad=True)
    terms = policy_terms(MicroBatch(sequences, 0), logps, torch.arange(6.0) + 10)
    assert not terms.is_idle and terms.num_tokens == [2, 3]
    assert terms.logps.tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert terms.entropies.tolist() == [10.0, 11.0, 13.0, 14.0, 15.0]
    assert terms.advantages.tolist() == [0.5, 0.5, -0.5, -0.5, -0.5]
    assert terms.weights.tolist() == [0.25, 0.25, 0.125, 0.125, 0.125]
    assert terms.old_logps.tolist() == [-3.0, -4.0, 3.0, 4.0, 5.0], "where it is not known, the policy of now"
    assert not terms.old_logps.requires_grad
    assert terms.ref_logps is None
    assert terms.sampler_logps.tolist() == [-0.5, -0.5, -1.0, -2.0, -3.0], "before anything narrowed the draw"
    terms.logps.sum().backward()
    assert logps.grad.tolist() == [1, 1, 0, 1, 1, 1]


def test_a_pass_of_nothing_keeps_its_graph():
    idle = filler(sequence(9), group=-1)
    assert len(idle.completion.token_ids) == 1 and not idle.trained and idle.token_weight == 0
    terms = policy_terms(MicroBatch([idle], 0), torch.zeros(1, requires_grad=True), torch.zeros(1))
    assert terms.is_idle and terms.logps.requires_grad


@pytest.mark.parametrize("loss_type", sorted(LOSS_TYPES))
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradients_that_are_known_before_the_pass(loss_type, level):
    """On policy they are those that come out afterwards, whatever the log-probabilities are; else nothing is said."""
    kind = LOSS_TYPES[loss_type]
    if kind.fixed_level and level != kind.importance_sampling_level:
        level = None
    objective = make_objective(GrpoArguments(grpo_loss_type=loss_type, grpo_importance_sampling_level=level), 16)
    sequences = [sequence(4, advantage=0.75), sequence(1, weight=0.0), sequence(3, advantage=-1.5, weight=0.125)]
    micro_batch = MicroBatch(sequences, 0)
    known = on_policy_gradients(objective, micro_batch, torch.device("cpu"))
    logps = (torch.randn(8) - 2).requires_grad_()
    loss, _ = policy_loss(objective, policy_terms(micro_batch, logps, torch.zeros(8)))
    loss.backward()
    torch.testing.assert_close(known, logps.grad, atol=1e-6, rtol=0)
    assert known[4] == 0 and known.count_nonzero() == 7
    sequences[0].old_logps = torch.zeros(4)
    assert on_policy_gradients(objective, micro_batch, torch.device("cpu")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo_beta": 0.1},
        {"grpo_entropy_coef": 0.1},
        {"grpo_llds_coef": 0.1},
        {"grpo_top_entropy_quantile": 0.5},
        {"grpo_sampler_correction": "token_truncate"},
    ],
)
def test_gradients_that_depend_on_the_pass_are_not_foretold(changes):
    objective = make_objective(GrpoArguments(**changes), 16)
    micro_batch = MicroBatch([sequence(4, advantage=0.75)], 0)
    assert on_policy_gradients(objective, micro_batch, torch.device("cpu")) is None


def test_a_checkpoint_does_not_hold_packed_rows():
    micro_batch = MicroBatch([sequence(2)], 3, packed="a row")
    assert micro_batch.__getstate__()["packed"] is None and micro_batch.packed == "a row"
