"""Decisions of the loop that need no model; the loop itself is trained in tests/integration/test_packed_sft*.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.sampler import PackSampler
from lcot_plugin.packing.trainer import PackingParts, PackingTrainerMixin
from lcot_plugin.types import ExampleSizes, PackLimits

COST = CostModel(token=1.0, square=0.001, patch=1.0)
TOKENS = np.random.default_rng(0).integers(10, 90, 60)
SIZES = ExampleSizes(TOKENS, TOKENS * 0, TOKENS // 2)


class Loop:
    """What the mixin asks of a Trainer."""

    def __init__(self, accepts: bool) -> None:
        self.model_accepts_loss_kwargs = accepts

    def add_callback(self, callback: Any) -> None: ...

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        return items


class Trainer(PackingTrainerMixin, Loop):
    pass


def trainer(said: list[str], accepts: bool = False, **changes: Any) -> Trainer:
    parts = PackingParts(PackLimits(200), COST, list, SIZES, lambda row: None, say=said.append)
    for key, value in changes.items():
        setattr(parts, key, value)
    made = Trainer(accepts)
    made.setup_packing(parts)
    return made


def sampler(**changes: Any) -> PackSampler:
    return PackSampler(
        SIZES, PackLimits(200), **({"num_ranks": 2, "micro_steps": 2, "cost": COST, "seed": 1} | changes)
    )


@pytest.mark.parametrize(("accepts", "given"), [(False, None), (True, 7)])
def test_an_evaluation_is_normalised_as_llamafactory_has_it(accepts: bool, given: int | None) -> None:
    """With its number of items transformers multiplies the loss by the processes, which VLMs then do not divide by."""
    made = trainer([], accepts)
    assert made.model_accepts_loss_kwargs, "in training"
    assert made.compute_loss(None, {"input_ids": 0}, num_items_in_batch=7) == given


def test_a_resumed_run_keeps_the_costs_that_were_fitted() -> None:
    said: list[str] = []
    first = sampler()
    first.costs[1] = CostModel(token=2.0, square=0.1, patch=3.0)
    resumed = trainer(said, fits_cost=True)
    resumed._resumed, resumed.pack_sampler = first.state(), sampler()
    assert resumed.pack_times.active
    resumed._take_up_state()
    assert resumed.pack_sampler.costs == first.costs
    assert not resumed.pack_times.active
    assert said == []


def test_other_packs_than_those_of_the_checkpoint_are_said() -> None:
    said: list[str] = []
    resumed = trainer(said)
    resumed._resumed, resumed.pack_sampler = sampler().state(), sampler(num_ranks=4)
    resumed._take_up_state()
    assert "processes 2, now 4" in said[0]

    stream = trainer(said, sizes=None)
    stream._resumed, stream._stream_origin = {"num_ranks": 2, "buffer_size": 8}, {"num_ranks": 2, "buffer_size": 9}
    stream._take_up_state()
    assert "(buffer_size 8, now 9)" in said[1]


def test_a_stream_is_not_timed() -> None:
    assert not trainer([], sizes=None, fits_cost=True).pack_times.active


def test_a_step_without_labels_divides_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer([])
    made.accelerator = SimpleNamespace(device="cpu", reduce=lambda tensor, reduction: tensor)
    batch = {"packed": SimpleNamespace(target_weights=torch.zeros(0))}
    monkeypatch.setattr(Loop, "get_batch_samples", lambda self: ([batch], None), raising=False)
    assert made.get_batch_samples()[1] == 1.0
