"""Which prompts each rollout takes: whole blocks, each repeated for as many micro-steps as its completions serve.

In: the number of prompts and the batch plan. Out: indices for a DataLoader whose batch is one process's prompts of one
rollout. The repeats keep LLaMA-Factory's step counts, progress and resume right: a micro-step is a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class PromptBlockSampler(Sampler[int]):
    """Permutes the prompts anew each epoch, from (seed, epoch).

    Example, 5 prompts, blocks of 2, 2 repeats, permutation `3 0 4 1 2`:

        3 0 | 3 0 | 4 1 | 4 1 | 2 3 | 2 3

    The last block is filled from the start of the permutation, so that no prompt is ever left out; a block larger than
    all prompts together goes round the permutation as often as it takes.
    """

    def __init__(self, num_prompts: int, block_size: int, repeats: int, seed: int, shuffle: bool = True):
        """block_size: prompts of one rollout over all processes; repeats: micro-steps that a rollout serves."""
        self.num_prompts, self.block_size, self.repeats = num_prompts, block_size, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    @property
    def num_blocks(self) -> int:
        return -(-self.num_prompts // self.block_size)

    @property
    def num_filled(self) -> int:
        """Places of the last block that are filled with prompts which the epoch has taken already."""
        return self.num_blocks * self.block_size - self.num_prompts

    def begin_epoch(self, epoch: int) -> None:
        """Not called `set_epoch`: that name accelerate looks for, and where a resumed run skips batches it sets 0 on
        one process (transformers 4.57) and nothing on several."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_blocks * self.block_size * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.num_prompts))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_prompts, generator=generator).tolist()
        for block in range(self.num_blocks):
            positions = range(block * self.block_size, (block + 1) * self.block_size)
            for _ in range(self.repeats):
                yield from (order[position % self.num_prompts] for position in positions)
