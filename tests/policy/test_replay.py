import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.policy.replay import ReplayBuffer, StoredGroup
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, TrainingSequence


def filled(**settings):
    """Groups `0a 0b 1a 1b 2a`, of rollouts 0, 1 and 2."""
    buffer = ReplayBuffer(**{"capacity": 10, **settings})
    buffer.add([("0a", 1.0), ("0b", 0.5)], rollout=0)
    buffer.add([("1a", 0.25), ("1b", 1.0)], rollout=1)
    buffer.add([("2a", 1.0)], rollout=2)
    return buffer


def test_the_oldest_leave_a_full_buffer():
    buffer = filled(capacity=3)
    assert len(buffer) == 3
    assert sorted(buffer.draw(9, seed=0, rollout=3)) == ["1a", "1b", "2a"]


def test_groups_of_the_same_rollout_are_not_drawn():
    assert sorted(filled().draw(9, seed=0, rollout=2)) == ["0a", "0b", "1a", "1b"]
    assert sorted(filled().draw(9, seed=0, rollout=3)) == ["0a", "0b", "1a", "1b", "2a"]


def test_old_groups_leave():
    buffer = filled(max_age=4)
    assert sorted(buffer.draw(9, seed=0, rollout=4)) == ["0a", "0b", "1a", "1b", "2a"]
    assert sorted(buffer.draw(9, seed=0, rollout=5)) == ["1a", "1b", "2a"]
    assert len(buffer) == 3
    buffer.add([("6a", 1.0)], rollout=6)
    assert len(buffer) == 2


def test_groups_without_advantages_are_not_kept():
    buffer = ReplayBuffer(capacity=4)
    buffer.add([("a", 0.0), ("b", 0.1)], rollout=0)
    assert buffer.draw(4, seed=0, rollout=1) == ["b"]


@given(num=st.integers(0, 8), seed=st.integers(0, 2**31), priorities=st.lists(st.floats(1e-6, 1e6), max_size=12))
def test_drawn_without_replacement_and_by_seed_and_rollout_alone(num, seed, priorities):
    buffer, other_rank = ReplayBuffer(capacity=10), ReplayBuffer(capacity=10)
    for each in (buffer, other_rank):
        each.add(enumerate(priorities), rollout=0)
    other_rank.draw(3, seed, rollout=1)  # an earlier draw leaves no trace
    drawn = buffer.draw(num, seed, rollout=2)
    assert drawn == other_rank.draw(num, seed, rollout=2)
    assert len(set(drawn)) == len(drawn) == min(num, len(buffer))


def test_draws_differ():
    buffer = ReplayBuffer(capacity=100)
    buffer.add(((number, 1.0) for number in range(100)), rollout=0)
    draws = {tuple(buffer.draw(5, seed, rollout)) for seed in range(4) for rollout in range(1, 5)}
    assert len(draws) == 16


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_first_is_drawn_in_proportion_to_priority_to_the_exponent(exponent):
    priorities = {"low": 0.5, "middle": 1.0, "high": 2.0}
    buffer = ReplayBuffer(capacity=3, exponent=exponent)
    buffer.add(priorities.items(), rollout=0)
    num = 4000
    counts = Counter(buffer.draw(1, seed, rollout=1)[0] for seed in range(num))
    total = sum(priority**exponent for priority in priorities.values())
    for name, priority in priorities.items():
        share = priority**exponent / total
        assert counts[name] / num == pytest.approx(share, abs=5 * (share * (1 - share) / num) ** 0.5)


def test_the_second_is_drawn_as_the_first_of_those_that_are_left():
    buffer = ReplayBuffer(capacity=3)
    buffer.add([("low", 0.5), ("middle", 1.0), ("high", 2.0)], rollout=0)
    pairs = Counter(tuple(buffer.draw(2, seed, rollout=1)) for seed in range(6000))
    after_high = pairs["high", "low"] + pairs["high", "middle"]
    # 0.5 / (0.5 + 1.0), of about 3,400 draws: 5 standard deviations are 0.04
    assert pairs["high", "low"] / after_high == pytest.approx(1 / 3, abs=0.04)


def test_a_resumed_run_draws_the_same():
    buffer, resumed, smaller = filled(), ReplayBuffer(capacity=10), ReplayBuffer(capacity=2)
    state = pickle.loads(pickle.dumps(buffer.state_dict()))
    resumed.load_state_dict(state)
    assert resumed.draw(3, seed=1, rollout=4) == buffer.draw(3, seed=1, rollout=4)
    resumed.add([("4a", 1.0)], rollout=4)
    buffer.add([("4a", 1.0)], rollout=4)
    assert resumed.draw(3, seed=1, rollout=7) == buffer.draw(3, seed=1, rollout=7)
    smaller.load_state_dict(state)
    assert sorted(smaller.draw(9, seed=0, rollout=3)) == ["1b", "2a"]


def group(*, narrowed):
    prompt = EncodedPrompt(PromptRecord([1, 2], ["a.png"], "?", "3", "problems", 7), {"pixel_values": torch.ones(9)})
    completions = [
        Completion([5, 151_643], [-0.1, -0.3], Ending.STOPPED, "five", policy_logps=[-0.5, -0.6] if narrowed else None),
        Completion([6], [-0.2], Ending.TRUNCATED, "six", policy_logps=[-0.7] if narrowed else None),
    ]
    return [
        TrainingSequence(prompt, completions[0], group=3, advantage=1.5, trained=True),
        TrainingSequence(prompt, completions[1], group=3, advantage=-0.5, trained=False),
    ]


@pytest.mark.parametrize("narrowed", [False, True])
def test_a_group_comes_back_as_it_was(narrowed):
    sequences = group(narrowed=narrowed)
    stored = pickle.loads(pickle.dumps(StoredGroup.of(sequences)))
    again = EncodedPrompt(stored.record, {"pixel_values": torch.ones(9)})
    replayed = stored.sequences(again, group=0)
    assert all(sequence.prompt is again and sequence.group == 0 for sequence in replayed)
    for before, after in zip(sequences, replayed, strict=True):
        assert (after.advantage, after.trained) == (before.advantage, before.trained)
        old, new = before.completion, after.completion
        assert (new.token_ids, new.ending, new.text) == (old.token_ids, old.ending, "")
        assert new.sampler_logps == pytest.approx(old.sampler_logps)
        policy_logps = old.policy_logps or old.sampler_logps
        assert (new.policy_logps is None) == (old.policy_logps is None)
        assert after.old_logps.dtype == torch.float32
        assert after.old_logps.tolist() == pytest.approx(policy_logps)


def test_a_stored_group_has_no_pixels_and_eight_bytes_per_token():
    sequences = [group(narrowed=False)[0] for _ in range(8)]
    for sequence in sequences:
        sequence.completion.token_ids[:] = [151_643] * 2000
        sequence.completion.sampler_logps[:] = [-0.123456789] * 2000
    pickled = pickle.dumps(StoredGroup.of(sequences))
    assert b"torch" not in pickled
    assert 8 * 2000 * 8 < len(pickled) < 8 * 2000 * 8 + 4000


def test_what_cannot_be_trained_is_not():
    stored = StoredGroup.of(group(narrowed=False))
    broken = EncodedPrompt(stored.record, {}, usable=False)
    assert [sequence.trained for sequence in stored.sequences(broken, 0)] == [False, False]


def test_the_priority_is_the_mean_advantage_of_what_is_trained():
    assert StoredGroup.of(group(narrowed=False)).priority == pytest.approx(1.5 / 2)
