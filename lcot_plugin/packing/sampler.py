"""Which packs each epoch trains on, as a sampler for a DataLoader whose batch is one pack.

In: the sizes of all examples and a cost model. Out: one `PackKey` per pack, row-major over the processes, so that
accelerate's sharding of batches gives every process its own pack of each micro-step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.plan import number_of_packs, plan_epoch
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan


class PackKey(NamedTuple):
    """One pack of a plan."""

    examples: tuple[int, ...]
    """Rows of the data set."""
    idle: bool
    """Whether they are repeated only because a process would have had nothing to compute."""


class PackSampler(Sampler[PackKey]):
    """A new plan each epoch, from (seed, epoch) alone; the same number of packs in all of them."""

    def __init__(
        self,
        sizes: ExampleSizes,
        limits: PackLimits,
        *,
        num_ranks: int,
        micro_steps: int,
        cost: CostModel,
        seed: int,
        mode: str = "levelled",
        shuffle: bool = True,
    ):
        """micro_steps: micro-steps per optimizer step (gradient_accumulation_steps)."""
        self.sizes, self.limits = sizes, limits
        self.num_ranks, self.micro_steps = num_ranks, micro_steps
        self.seed, self.mode, self.shuffle = seed, mode, shuffle
        self.num_packs = number_of_packs(sizes, limits, num_ranks=num_ranks, mode=mode)
        self.costs: dict[int, CostModel] = {0: cost}
        """Epoch -> the cost model that holds from it on."""
        self.epoch = 0
        self._plan: tuple[int, PackPlan] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one may have fewer micro-steps."""
        return -(-self.num_packs // (self.num_ranks * self.micro_steps))

    def begin_epoch(self, epoch: int) -> None:
        """Not called `set_epoch`: see PromptBlockSampler.begin_epoch."""
        self.epoch = epoch

    def cost_in(self, epoch: int) -> CostModel:
        """The cost model that an epoch is planned with."""
        return self.costs[max(start for start in self.costs if start <= epoch)]

    def plan(self) -> PackPlan:
        """The plan of the current epoch."""
        if self._plan is None or self._plan[0] != self.epoch:
            plan = plan_epoch(
                self.sizes,
                self.limits,
                num_ranks=self.num_ranks,
                micro_steps=self.micro_steps,
                cost=self.cost_in(self.epoch),
                seed=self.seed,
                epoch=self.epoch,
                mode=self.mode,
                shuffle=self.shuffle,
                num_packs=self.num_packs,
            )
            self._plan = (self.epoch, plan)
        return self._plan[1]

    def state(self) -> dict[str, Any]:
        """Everything that the plans follow from, for the checkpoint."""
        return {**self._origin(), "costs": {str(epoch): asdict(cost) for epoch, cost in self.costs.items()}}

    def take_up(self, state: dict[str, Any]) -> list[str]:
        """Plans with the cost models of a checkpoint; returns what else differs from it, empty where nothing does."""
        differing = differences(state, self._origin())
        if not differing:
            self.costs = {int(epoch): CostModel(**cost) for epoch, cost in state["costs"].items()}
            self._plan = None
        return differing

    def _origin(self) -> dict[str, Any]:
        return {
            "num_examples": len(self.sizes),
            "num_tokens": int(self.sizes.tokens.sum()),
            "num_patches": int(self.sizes.patches.sum()),
            "max_tokens": self.limits.max_tokens,
            "max_patches": self.limits.max_patches,
            "processes": self.num_ranks,
            "gradient_accumulation_steps": self.micro_steps,
            "seed": self.seed,
            "mode": self.mode,
            "shuffle": self.shuffle,
            "num_packs": self.num_packs,
        }

    def __len__(self) -> int:
        return self.num_packs

    def __iter__(self) -> Iterator[PackKey]:
        plan = self.plan()
        for start, end, idle in zip(plan.offsets[:-1], plan.offsets[1:], plan.idle, strict=True):
            yield PackKey(tuple(np.asarray(plan.indices[start:end]).tolist()), bool(idle))


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`processes 2, now 4` for every key of `now` whose saved value is another one."""
    return [f"{key} {saved.get(key)}, now {value}" for key, value in now.items() if saved.get(key) != value]
