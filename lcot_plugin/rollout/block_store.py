"""Keys and values in blocks of tokens: what rollouts remember of prompts and of completions.

One tensor of blocks per layer, shared by all sequences; a sequence holds a list of blocks. So a completion takes only
as much memory as it has tokens, up to one block, nothing is copied when a sequence ends, and its blocks go to the next.

Example, blocks of 4 tokens: a completion of 6 tokens in blocks 2 and 0 has its token 5 in block 0, column 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import torch

GROWTH = 0.5
"""Share by which the tensors grow when no block is free: growing copies them."""


class BlockStore:
    """Blocks of every layer's keys and values. Tensors appear when the first keys are written: only then are their
    heads, dtype and device known."""

    def __init__(self, block_size: int, num_blocks: int = 0):
        """`block_size`: tokens of a block. `num_blocks`: how many to begin with."""
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._free: list[int] = list(range(num_blocks))
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    @property
    def num_taken(self) -> int:
        return self.num_blocks - len(self._free)

    def take(self, num: int) -> list[int]:
        """The lowest free blocks, so that those in use stay together at the front."""
        if num > len(self._free):
            more = max(num - len(self._free), int(self.num_blocks * GROWTH))
            for block in range(self.num_blocks, self.num_blocks + more):
                heapq.heappush(self._free, block)
            self.num_blocks += more
        return [heapq.heappop(self._free) for _ in range(num)]

    def give_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            heapq.heappush(self._free, block)

    def write(
        self, layer: int, blocks: torch.Tensor, columns: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Writes n tokens. blocks, columns: [n] int64; keys, values: [n, key_heads, head_dim]."""
        for tensors, states in ((self._keys, keys), (self._values, values)):
            tensors[layer] = self._fitting(tensors.get(layer), states)
            tensors[layer][blocks, :, columns] = states

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer that has been written, [num_blocks, key_heads, block_size, head_dim]."""
        return self._keys[layer], self._values[layer]

    def _fitting(self, tensor: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        held = 0 if tensor is None else len(tensor)
        if tensor is not None and held == self.num_blocks:
            return tensor
        # Zeros, because what is masked is multiplied by 0 all the same, which does not help against NaN.
        grown = states.new_zeros(self.num_blocks, states.shape[1], self.block_size, states.shape[2])
        if tensor is not None:
            grown[:held] = tensor
        return grown
