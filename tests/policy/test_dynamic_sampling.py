from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.policy.dynamic_sampling import (
    DynamicSamplingCounts,
    extra_prompts,
    extra_slots,
    num_extra_prompts,
    rank_slice,
    replacements,
)

BOOLS = st.lists(st.booleans(), min_size=1, max_size=40)


def test_as_many_as_are_expected_to_fill_the_open_places():
    """The example of the function, and its ends: nothing informative, everything open, one rank."""
    informative = [True] * 24 + [False] * 8
    assert num_extra_prompts(4, informative, block_size=32, num_ranks=4) == 8
    assert num_extra_prompts(4, informative, block_size=32, num_ranks=1) == 6
    assert num_extra_prompts(8, informative, block_size=32, num_ranks=1) == 11
    assert num_extra_prompts(32, [False] * 32, block_size=32, num_ranks=4) == 32
    assert num_extra_prompts(31, [True] + [False] * 31, block_size=32, num_ranks=4) == 32


@given(informative=BOOLS, num_open=st.integers(1, 40), per_rank=st.integers(1, 8), num_ranks=st.integers(1, 5))
def test_no_rank_is_idle_and_no_round_larger_than_a_block(informative, num_open, per_rank, num_ranks):
    block_size = per_rank * num_ranks
    num = num_extra_prompts(num_open, informative, block_size, num_ranks)
    assert 0 < num <= block_size
    assert num % num_ranks == 0
    assert num * sum(informative) >= num_open * len(informative) or num == block_size


@given(
    seed=st.integers(0, 2**31),
    num_prompts=st.integers(1, 30),
    num_needed=st.integers(0, 70),
    taken=st.sets(st.integers(0, 29)),
)
def test_others_are_drawn_before_those_already_taken(seed, num_prompts, num_needed, taken):
    taken = {row for row in taken if row < num_prompts}
    drawn = extra_prompts(seed, 5, 1, num_prompts, num_needed, taken)
    assert len(drawn) == num_needed
    assert set(drawn) <= set(range(num_prompts))
    num_others = num_prompts - len(taken)
    assert len(set(drawn[:num_others])) == min(num_needed, num_others), "without replacement"
    assert not taken & set(drawn[:num_others])
    assert len(set(drawn[:num_prompts])) == min(num_needed, num_prompts), "then the taken ones, once each"


def test_seed_step_and_round_decide():
    def drawn(seed, step, round_index):
        return tuple(extra_prompts(seed, step, round_index, 1000, 8, {1, 2}))

    keys = [(seed, step, round_index) for seed in range(3) for step in range(12) for round_index in range(3)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert drawn(1, 2, 0) == drawn(1, 2, 0)


def test_the_draw_is_the_same_in_every_release():
    """A run may be resumed by another Python."""
    assert extra_prompts(0, 0, 0, 10, 4, {0, 1}) == [6, 3, 9, 8]


def test_every_prompt_is_as_likely():
    counts = Counter(row for step in range(3000) for row in extra_prompts(7, step, 0, 10, 3, {0, 9}))
    assert set(counts) == set(range(1, 9))
    # 3000 * 3 / 8 = 1125 each; 5 standard deviations of a binomial are 5 * sqrt(1125 * 5 / 8) = 133.
    assert all(abs(count - 1125) < 133 for count in counts.values())


def test_slots_and_shares_of_the_ranks():
    assert list(extra_slots(block_size=8, num_earlier=4, num_extra=3)) == [12, 13, 14]
    drawn = [5, 3, 9, 1, 0, 7]
    assert [drawn[rank_slice(6, rank, 3)] for rank in range(3)] == [[5, 3], [9, 1], [0, 7]]


def test_the_example_of_the_module():
    block, found = [False, True, False, True], [False, True, False, True]
    assert replacements([True, False, True, False], found) == [(1, 1), (3, 3)]
    assert replacements(block, found) == [(0, 1), (2, 3)]
    assert num_extra_prompts(2, block, block_size=4, num_ranks=2) == 4


@given(informative=BOOLS, found=BOOLS)
def test_replacements(informative, found):
    pairs = replacements(informative, found)
    places, extras = [place for place, _ in pairs], [extra for _, extra in pairs]
    assert places == sorted(set(places)) and extras == sorted(set(extras))
    assert not any(informative[place] for place in places) and all(found[extra] for extra in extras)
    assert len(pairs) == min(informative.count(False), found.count(True))


@given(informative=BOOLS, rounds=st.lists(BOOLS, max_size=3), replayed=st.integers(0, 3))
def test_counts_add_up(informative, rounds, replayed):
    found = [is_informative for extras in rounds for is_informative in extras]
    num_open = informative.count(False) - min(informative.count(False), found.count(True))
    counts = DynamicSamplingCounts.of_rollout(informative, rounds, min(replayed, num_open))
    assert sum(informative) + counts.num_replaced + counts.num_replayed + counts.num_left == counts.num_places
    assert counts.num_rolled_out == len(informative) + len(found)
    assert counts.num_replaced + counts.num_surplus == found.count(True)
    assert counts.num_left >= 0
    twice = counts + counts
    assert (twice.num_rollouts, twice.num_left, twice.num_rounds) == (2, 2 * counts.num_left, 2 * len(rounds))


def test_the_sentence_for_the_end():
    first = DynamicSamplingCounts.of_rollout([True, False, False, False], [[True, False], [False, False]], 1)
    second = DynamicSamplingCounts.of_rollout([True, False, True, True], [[True, True]])
    assert (first + second).summary() == (
        "14 prompts were rolled out for the 8 groups of 2 rollouts. The rewards of 4 groups did not differ: 2 were "
        "replaced by groups of 6 further prompts, 1 by earlier groups of the replay buffer, 1 stayed and taught "
        "nothing. 1 informative groups of further prompts found no place."
    )
