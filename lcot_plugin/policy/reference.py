"""The reference policy of the KL term: what the policy was before this stage began.

Two ways: a separate frozen model (full and freeze tuning, LLaMA-Factory's `ref_model`), or, for adapters, a copy of
the trainable tensors as they were at the start, which needs no second model. Switching the adapter off would do for a
new LoRA only: an adapter that SFT made would go back to before SFT, and PiSSA changes the base weights under it. (A
second, frozen adapter, as PEFT offers, would be the same copy with more bookkeeping.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class InitialWeights:
    """Copies of the trainable tensors as they are now, put back for the length of a `with` block."""

    def __init__(self, model: torch.nn.Module):
        self._copies = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Swaps storage, so no tensor is copied unless the engine has moved or cast the parameter since; only under
        torch.no_grad."""
        current = [parameter.data for parameter, _ in self._copies]
        for parameter, initial in self._copies:
            parameter.data = initial.to(parameter.device, parameter.dtype)
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._copies, current, strict=True):
                parameter.data = data


class ReferencePolicy:
    """Puts the reference policy in place for a while."""

    def __init__(self, policy: Any, separate_model: Any | None):
        """`policy`: the training model without its parallel wrapper. `separate_model`: a prepared frozen model, or
        None for adapters."""
        self._separate_model = separate_model
        self._initial = InitialWeights(policy) if separate_model is None else None

    @contextmanager
    def active(self) -> Iterator[Any | None]:
        """Within it the reference answers: the yielded model, or the training model itself where None is yielded."""
        if self._initial is None:
            yield self._separate_model
        else:
            with self._initial.restored():
                yield None
