import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.rollout.block_store import BlockStore


def states(num, start=0):
    """[num, 2 heads, 3] that tell tokens and heads apart."""
    return (start + torch.arange(num * 6.0)).view(num, 2, 3)


def test_tokens_lie_where_they_were_written():
    """The example of the module: token 5 of a completion in blocks 2 and 0 is in block 0, column 1."""
    store = BlockStore(4, num_blocks=3)
    blocks, columns = torch.tensor([2, 2, 2, 2, 0, 0]), torch.tensor([0, 1, 2, 3, 0, 1])
    store.write(7, blocks, columns, states(6), states(6, 100))
    keys, values = store.read(7)
    assert keys.shape == values.shape == (3, 2, 4, 3)
    assert torch.equal(keys[0, :, 1], states(6)[5]) and torch.equal(values[2, :, 3], states(6, 100)[3])
    assert not keys[1].any() and not values[1].any()


def test_growing_keeps_what_is_held():
    store = BlockStore(4, num_blocks=2)
    assert store.take(2) == [0, 1]
    store.write(0, torch.tensor([0, 1]), torch.tensor([3, 0]), states(2), states(2))
    held = [tensor.clone() for tensor in store.read(0)]
    assert store.take(1) == [2] and store.num_blocks == 3
    store.write(0, torch.tensor([2]), torch.tensor([0]), states(1, 50), states(1, 50))
    for tensor, before in zip(store.read(0), held, strict=True):
        assert torch.equal(tensor[:2], before)
        assert torch.equal(tensor[2, :, 0], states(1, 50)[0])


def test_the_store_grows_by_half_and_in_whole_blocks():
    store = BlockStore(4, num_blocks=20)
    store.take(21)
    assert store.num_blocks == 30 and store.num_taken == 21
    store.take(40)
    assert store.num_blocks == 61


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5), st.just(0)), max_size=40))
def test_no_block_has_two_owners(steps):
    """A number takes that many blocks, 0 gives back the oldest."""
    store = BlockStore(4)
    owners = []
    for step in steps:
        if step:
            owners.append(store.take(step))
        elif owners:
            store.give_back(owners.pop(0))
        held = [block for blocks in owners for block in blocks]
        assert len(held) == len(set(held)) == store.num_taken <= store.num_blocks
        assert all(0 <= block < store.num_blocks for block in held)


def test_the_lowest_free_blocks_are_taken():
    store = BlockStore(4)
    blocks = store.take(6)
    store.give_back([4, 1])
    assert store.take(1) == [1] and blocks == list(range(6))
