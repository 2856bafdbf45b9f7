"""How many rows of logits exist at once, in memory that autograd keeps and in what any operation returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestLogits(TorchDispatchMode):
    """The most rows of vocabulary width that any tensor had, of those that operations returned."""

    def __init__(self, vocabulary: int, exclude: int):
        super().__init__()
        self.vocabulary, self.exclude, self.rows = vocabulary, exclude, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.see(tensor)
        return result

    def see(self, tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2 and tensor.shape[-1] == self.vocabulary:
            rows = tensor.numel() // self.vocabulary
            # The output layer's weight and its gradient are [hidden, vocabulary] once transposed.
            if rows != self.exclude:
                self.rows = max(self.rows, rows)


def logits_rows(output_layer: Any, compute: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """Rows of logits in the tensors that autograd kept, and in any tensor of the forward and backward passes."""
    vocabulary, hidden = output_layer.weight.shape
    kept, seen = LargestLogits(vocabulary, hidden), LargestLogits(vocabulary, hidden)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.see(tensor)
        return tensor

    with seen:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = compute().sum()
        torch.autograd.grad(total, output_layer.weight)
    return kept.rows, seen.rows
