import numpy as np

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.dataset import PackedExamples, PackItem
from lcot_plugin.packing.sampler import PackKey, PackSampler
from lcot_plugin.types import ExampleSizes, PackLimits

COST = CostModel(token=1.0, square=0.001, patch=1.0)


def sampler(num_examples: int = 100, **changes: object) -> PackSampler:
    tokens = np.random.default_rng(0).integers(10, 200, num_examples)
    sizes = ExampleSizes(tokens, np.zeros_like(tokens), tokens // 2)
    settings = {"num_ranks": 2, "micro_steps": 2, "cost": COST, "seed": 1} | changes
    return PackSampler(sizes, PackLimits(400), **settings)


def examples(keys: list[PackKey]) -> list[int]:
    return sorted(index for key in keys if not key.idle for index in key.examples)


def test_every_epoch_has_every_example_once_and_as_many_packs() -> None:
    packs = sampler()
    epochs = []
    for epoch in range(3):
        packs.begin_epoch(epoch)
        epochs.append(list(packs))
        assert len(epochs[-1]) == len(packs)
        assert len(packs) % 2 == 0
        assert examples(epochs[-1]) == list(range(100))
    assert epochs[0] != epochs[1] != epochs[2]
    packs.begin_epoch(0)
    assert list(packs) == epochs[0]


def test_steps_of_an_epoch() -> None:
    packs = sampler()
    assert packs.steps_per_epoch == -(-len(packs) // 4)


def test_the_state_of_a_checkpoint() -> None:
    packs, fitted = sampler(), CostModel(token=2.0, square=0.1, patch=3.0)
    packs.costs[2] = fitted
    again = sampler()
    assert again.take_up(packs.state()) == []
    assert (again.cost_in(0), again.cost_in(1), again.cost_in(2), again.cost_in(9)) == (COST, COST, fitted, fitted)
    packs.begin_epoch(2)
    again.begin_epoch(2)
    assert list(packs) == list(again)


def test_a_checkpoint_of_other_packs_says_what_differs() -> None:
    packs = sampler()
    (ranks, *_) = sampler(num_ranks=4).take_up(packs.state())
    assert ranks == "processes 2, now 4"
    assert any(line.startswith("num_tokens ") for line in sampler(101).take_up(packs.state()))
    assert packs.take_up({}) != []


def test_rows_of_a_pack() -> None:
    rows = [{"input_ids": [i]} for i in range(5)]
    data = PackedExamples(rows)
    assert data[PackKey((3, 0), False)] == PackItem([rows[3], rows[0]], False)
    assert data[PackKey((1,), True)].idle
    item = PackItem([rows[2]])
    assert data[item] is item
    assert len(data) == 5
