"""The reference policy of the KL term: what the policy was before this stage began.

Three ways, none of which loads a model twice where it need not: a separate frozen model (full and freeze tuning,
LLaMA-Factory's `ref_model`), the base model with a *new* adapter switched off, or, where training goes on with an
adapter that SFT made, a copy of that adapter's first weights: switching it off would give the model before SFT.
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
        """Swaps storage, so no tensor is copied; only under torch.no_grad."""
        current = [parameter.data for parameter, _ in self._copies]
        for parameter, initial in self._copies:
            parameter.data = initial
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._copies, current, strict=True):
                parameter.data = data


class ReferencePolicy:
    """Puts the reference policy in place for a while."""

    def __init__(self, policy: Any, separate_model: Any | None, continues_adapter: bool):
        """`policy`: the training model without its parallel wrapper. `separate_model`: a prepared frozen model, or
        None for adapters. `continues_adapter`: training goes on with an existing adapter."""
        self._policy, self._separate_model = policy, separate_model
        self._initial = InitialWeights(policy) if separate_model is None and continues_adapter else None

    @contextmanager
    def active(self) -> Iterator[Any | None]:
        """Within it the reference answers: the yielded model, or the training model itself where None is yielded."""
        if self._separate_model is not None:
            yield self._separate_model
        elif self._initial is not None:
            with self._initial.restored():
                yield None
        else:
            with self._policy.disable_adapter():
                yield None
