from collections import Counter
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.policy.sampler import CURRICULUM_NOISE, PromptBlockSampler

SIZES = {
    "num_prompts": st.integers(1, 40),
    "block_size": st.integers(1, 50),
    "repeats": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
    "epoch": st.integers(0, 5),
}


def indices(num_prompts, block_size, repeats, seed, epoch, shuffle=True):
    sampler = PromptBlockSampler(num_prompts, block_size, repeats, seed, shuffle)
    sampler.begin_epoch(epoch)
    return list(sampler)


def test_without_shuffling():
    """The example of the class: five prompts, blocks of two, each served twice; the last is filled with the first."""
    assert indices(5, 2, 2, seed=0, epoch=0, shuffle=False) == [0, 1, 0, 1, 2, 3, 2, 3, 4, 0, 4, 0]


@settings(deadline=None, max_examples=50)
@given(**SIZES)
def test_every_prompt_is_taken_and_blocks_are_repeated(num_prompts, block_size, repeats, seed, epoch):
    sampler = PromptBlockSampler(num_prompts, block_size, repeats, seed)
    sampler.begin_epoch(epoch)
    taken = list(sampler)
    assert len(taken) == len(sampler) == sampler.num_blocks * block_size * repeats
    batches = [tuple(taken[i : i + block_size]) for i in range(0, len(taken), block_size)]
    blocks = batches[::repeats]
    assert batches == [block for block in blocks for _ in range(repeats)]
    counts = Counter(index for block in blocks for index in block)
    assert set(counts) == set(range(num_prompts))
    assert sum(counts.values()) - num_prompts == sampler.num_filled < block_size
    # No prompt is taken a third time before every one was taken twice.
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None, max_examples=50)
@given(**SIZES)
def test_only_seed_and_epoch_decide(num_prompts, block_size, repeats, seed, epoch):
    import torch

    first = indices(num_prompts, block_size, repeats, seed, epoch)
    torch.rand(1)  # the global random state has no part in it
    assert indices(num_prompts, block_size, repeats, seed, epoch) == first
    # The order of the prompts is that of any other block size and number of repeats.
    whole = indices(num_prompts, num_prompts, 1, seed, epoch)
    blocks = [first[i : i + block_size] for i in range(0, len(first), block_size * repeats)]
    assert [index for block in blocks for index in block][:num_prompts] == whole


def test_seeds_and_epochs_differ():
    orders = {tuple(indices(30, 5, 1, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@settings(deadline=None, max_examples=50)
@given(**SIZES, skipped=st.integers(0, 200))
def test_resuming_skips(num_prompts, block_size, repeats, seed, epoch, skipped):
    """What accelerate does on resume: a new sampler of the same epoch, `skipped` batches dropped unseen."""
    whole = indices(num_prompts, block_size, repeats, seed, epoch)
    again = PromptBlockSampler(num_prompts, block_size, repeats, seed)
    again.begin_epoch(epoch)
    start = skipped * block_size
    assert list(islice(again, start, None)) == whole[start:]


@settings(deadline=None, max_examples=50)
@given(num_prompts=st.integers(1, 30), per_rank=st.integers(1, 6), world_size=st.integers(1, 4))
def test_processes_share_the_blocks(num_prompts, per_rank, world_size):
    """accelerate deals batches out in turn: those of one micro-step together are one block."""
    taken = indices(num_prompts, per_rank * world_size, 2, seed=1, epoch=0)
    batches = [taken[i : i + per_rank] for i in range(0, len(taken), per_rank)]
    assert len(batches) % world_size == 0
    shares = [batches[rank::world_size] for rank in range(world_size)]
    blocks = [[index for batch in step for index in batch] for step in zip(*shares, strict=True)]
    assert blocks[::2] == blocks[1::2]
    assert {index for block in blocks for index in block} == set(range(num_prompts))


def test_nobody_else_sets_the_epoch():
    """accelerate tells a sampler that has `set_epoch` a wrong one where a resumed run skips batches."""
    import torch
    from accelerate.data_loader import prepare_data_loader, skip_first_batches

    sampler = PromptBlockSampler(num_prompts=30, block_size=2, repeats=1, seed=0)
    loader = prepare_data_loader(torch.utils.data.DataLoader(range(30), batch_size=2, sampler=sampler))
    sampler.begin_epoch(3)
    expected = list(sampler)[8:]
    assert torch.cat(list(skip_first_batches(loader, 4))).tolist() == expected


def easy_first(rates, epoch=0, **settings):
    sampler = PromptBlockSampler(
        len(rates), **{"block_size": len(rates), "repeats": 1, "seed": 0, "pass_rates": rates, **settings}
    )
    sampler.begin_epoch(epoch)
    return list(sampler)


def test_the_easy_ones_come_first():
    """The example of the class, unmoved: the rate that is not known counts as 0.275."""
    rates = [0.25, 0.9, 0.3, None, 0.0]
    assert easy_first(rates, shuffle=False) == [1, 2, 3, 0, 4]
    assert easy_first([0.5, 1.0, 0.5, 1.0], shuffle=False) == [1, 3, 0, 2], "equal ones in the order of the set"
    assert easy_first(rates, shuffle=False, block_size=2, repeats=2) == [1, 2, 1, 2, 3, 0, 3, 0, 4, 1, 4, 1]


@settings(deadline=None, max_examples=50)
@given(
    rates=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40), seed=st.integers(0, 2**31), epoch=st.integers(0, 5)
)
def test_only_neighbours_change_places(rates, seed, epoch):
    order = easy_first(rates, epoch, seed=seed)
    assert sorted(order) == list(range(len(rates)))
    assert order == easy_first(rates, epoch, seed=seed)
    for place, row in enumerate(order):
        assert all(rates[later] <= rates[row] + 2 * CURRICULUM_NOISE + 1e-9 for later in order[place:])


def test_an_easy_first_order_differs_from_epoch_to_epoch():
    rates = [row / 100 for row in range(101)]
    assert len({tuple(easy_first(rates, epoch)) for epoch in range(4)}) == 4


def test_those_not_known_stand_in_the_middle():
    order = easy_first([0.9] * 10 + [0.1] * 10 + [None] * 5)
    assert set(order[:10]) == set(range(10)) and set(order[15:]) == set(range(10, 20))


def test_a_block_is_what_the_epochs_yield():
    sampler = PromptBlockSampler(5, block_size=2, repeats=2, seed=3)
    for epoch in range(3):
        sampler.begin_epoch(epoch)
        taken = list(sampler)
        for block in range(3):
            assert sampler.block(3 * epoch + block) == taken[4 * block : 4 * block + 2]
