"""Which prompts each rollout takes: whole blocks, each repeated for as many micro-steps as its completions serve.

In: the number of prompts and the batch plan. Out: indices for a DataLoader whose batch is one process's prompts of one
rollout. The repeats keep LLaMA-Factory's step counts, progress and resume right: a micro-step is a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch.utils.data import Sampler

CURRICULUM_NOISE = 0.1
"""How far a pass rate may be moved up or down in an easy-first order: about as far as one measured with 16
completions is off by chance."""


class PromptBlockSampler(Sampler[int]):
    """Permutes the prompts anew each epoch, from (seed, epoch).

    Example, 5 prompts, blocks of 2, 2 repeats, permutation `3 0 4 1 2`:

        3 0 | 3 0 | 4 1 | 4 1 | 2 3 | 2 3

    The last block is filled from the start of the permutation, so that no prompt is ever left out; a block larger than
    all prompts together goes round the permutation as often as it takes.

    With pass rates the order of each epoch is easy first instead: by falling pass rate, each moved by a random number
    between -CURRICULUM_NOISE and CURRICULUM_NOISE, so that neighbours change places from epoch to epoch. Without
    shuffling nothing is moved.

        pass rate            0.25   0.9   0.3   none   0.0     a rate not known counts as the median of the others
        counts as            0.25   0.9   0.3   0.275  0.0
        moved to, perhaps    0.31   0.84  0.22  0.26   0.05
        order                1 0 3 2 4
    """

    def __init__(
        self,
        num_prompts: int,
        block_size: int,
        repeats: int,
        seed: int,
        shuffle: bool = True,
        pass_rates: Sequence[float | None] | None = None,
    ):
        """block_size: prompts of one rollout over all processes; repeats: micro-steps that a rollout serves.
        pass_rates: [num_prompts], from 0 to 1, None where not known, at least one of them known."""
        self.rates: list[float] | None = None
        if pass_rates is not None:
            middle = median(rate for rate in pass_rates if rate is not None)
            self.rates = [middle if rate is None else rate for rate in pass_rates]
        self.num_prompts, self.block_size, self.repeats = num_prompts, block_size, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    @property
    def num_blocks(self) -> int:
        return -(-self.num_prompts // self.block_size)

    @property
    def num_filled(self) -> int:
        """Places of the last block that are filled with prompts which the epoch has taken already."""
        return self.num_blocks * self.block_size - self.num_prompts

    def block(self, number: int) -> list[int]:
        """The prompts of a rollout over all processes; `number` counts over all epochs."""
        epoch, within = divmod(number, self.num_blocks)
        return self._blocks_of(self._order(epoch))[within]

    def begin_epoch(self, epoch: int) -> None:
        """Not called `set_epoch`: that name accelerate looks for, and where a resumed run skips batches it sets 0 on
        one process (transformers 4.57) and nothing on several."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_blocks * self.block_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks_of(self._order(self.epoch)):
            for _ in range(self.repeats):
                yield from block

    def _blocks_of(self, order: list[int]) -> list[list[int]]:
        size = self.block_size
        return [
            [order[position % self.num_prompts] for position in range(block * size, (block + 1) * size)]
            for block in range(self.num_blocks)
        ]

    def _order(self, epoch: int) -> list[int]:
        """The prompts of an epoch, each once."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.rates is None:
            if not self.shuffle:
                return list(range(self.num_prompts))
            return torch.randperm(self.num_prompts, generator=generator).tolist()
        rates = torch.tensor(self.rates, dtype=torch.float64)
        if self.shuffle:
            noise = torch.rand(self.num_prompts, generator=generator, dtype=torch.float64)
            rates += CURRICULUM_NOISE * (2.0 * noise - 1.0)
        return torch.argsort(rates, descending=True, stable=True).tolist()
