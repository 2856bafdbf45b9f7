from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.policy.experience import (
    lengths_and_trained,
    reward_matrix,
    split_micro_batches,
    training_sequences,
)
from lcot_plugin.policy.losses import PolicyLossConfig, loss_normalizer
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, Score, TrainingSequence


def encoded(length, record=0):
    return EncodedPrompt(PromptRecord([1] * length, [], "?", "3", "problems", record), {})


def completion(length, ending=Ending.STOPPED):
    return Completion([7] * length, [-0.5] * length, ending, "text")


def score(total):
    return Score({"accuracy": total}, total, None)


def total_length(sequence):
    return len(sequence.prompt.record.input_ids) + len(sequence.completion.token_ids)


def test_reward_matrix():
    rewards = reward_matrix([score(1.0), score(None), score(0.0), score(0.25)], 2)
    torch.testing.assert_close(rewards, torch.tensor([[1.0, torch.nan], [0.0, 0.25]]), equal_nan=True)


def test_training_sequences_keep_the_order_of_groups():
    """Two prompts of two completions; the fourth was given no reward, the second was truncated."""
    groups = [
        RolloutGroup(encoded(3, 0), [completion(1), completion(2, Ending.TRUNCATED)]),
        RolloutGroup(encoded(5, 1), [completion(3), completion(4)]),
    ]
    scores = [score(1.0), score(0.0), score(1.0), score(None)]
    advantages = torch.tensor([[0.5, -0.5], [0.25, 0.0]])
    sequences = training_sequences(groups, scores, advantages, mask_truncated=False)
    assert [s.prompt.record.record for s in sequences] == [0, 0, 1, 1]
    assert [len(s.completion.token_ids) for s in sequences] == [1, 2, 3, 4]
    assert [s.advantage for s in sequences] == [0.5, -0.5, 0.25, 0.0]
    assert [s.trained for s in sequences] == [True, True, True, False]
    masked = training_sequences(groups, scores, advantages, mask_truncated=True)
    assert [s.trained for s in masked] == [True, False, True, False]
    assert all(s.old_logps is None and s.ref_logps is None for s in sequences)


@st.composite
def rollouts(draw):
    """Sequences of any length, that fill 1 to 3 optimizer steps."""
    micro_batch_size, micro_steps, updates = (draw(st.integers(1, 4)) for _ in range(3))
    count = micro_batch_size * micro_steps * updates
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=count, max_size=count))
    trained = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    sequences = [
        TrainingSequence(encoded(prompt, record), completion(length), float(record), keep)
        for record, ((prompt, length), keep) in enumerate(zip(sizes, trained, strict=True))
    ]
    return sequences, micro_batch_size, micro_steps


@settings(deadline=None, max_examples=50)
@given(rollouts())
def test_split_loses_nothing_and_sorts_within_an_optimizer_step(rollout):
    sequences, micro_batch_size, micro_steps = rollout
    micro_batches = split_micro_batches(sequences, micro_batch_size, micro_steps)
    assert {len(batch) for batch in micro_batches} == {micro_batch_size}
    assert len(micro_batches) * micro_batch_size == len(sequences)
    per_update = micro_batch_size * micro_steps
    for update, start in enumerate(range(0, len(sequences), per_update)):
        served = [s for batch in micro_batches[update * micro_steps : (update + 1) * micro_steps] for s in batch]
        assert Counter(map(id, served)) == Counter(map(id, sequences[start : start + per_update]))
        lengths = list(map(total_length, served))
        assert lengths == sorted(lengths)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@settings(deadline=None, max_examples=50)
@given(rollout=rollouts())
def test_normalizers_add_up_over_micro_batches(loss_type, rollout):
    """Sequences, sequences x max length, trained tokens: counted over the whole or over the parts."""
    sequences, micro_batch_size, micro_steps = rollout
    config = PolicyLossConfig(loss_type=loss_type, max_completion_length=30)
    parts = [
        loss_normalizer(config, *lengths_and_trained(batch))
        for batch in split_micro_batches(sequences, micro_batch_size, micro_steps)
    ]
    expected = {
        "grpo": len(sequences),
        "dr_grpo": 30 * len(sequences),
        "dapo": sum(len(s.completion.token_ids) for s in sequences if s.trained),
    }[loss_type]
    assert sum(parts) == loss_normalizer(config, *lengths_and_trained(sequences)) == expected


def test_lengths_and_trained():
    sequences = [
        TrainingSequence(encoded(3), completion(4), 0.0, True),
        TrainingSequence(encoded(2), completion(1), 0.0, False),
    ]
    lengths, trained = lengths_and_trained(sequences)
    assert lengths.tolist() == [4, 1] and lengths.dtype == torch.int64
    assert trained.tolist() == [True, False] and trained.dtype == torch.bool
