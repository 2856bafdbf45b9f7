"""The reference policy of the KL term: what the policy was before this stage began, or when it was last moved.

Two ways: a separate frozen model (full and freeze tuning, LLaMA-Factory's `ref_model`), or, for adapters, a copy of
the trainable tensors as they were at the start, which needs no second model. Switching the adapter off would do for a
new LoRA only: an adapter that SFT made would go back to before SFT, and PiSSA changes the base weights under it. (A
second, frozen adapter, as PEFT offers, would be the same copy with more bookkeeping.)

Under ZeRO-3 and FSDP every process keeps its shard of the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lcot_plugin.whole_weights import gathered, own_share, parameters_by_name, settle, shards_weights, write_whole


class InitialWeights:
    """Copies of the trainable tensors as they are now, put back for the length of a `with` block."""

    def __init__(self, model: torch.nn.Module):
        """model: without a parallel wrapper."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with gathered(trained.values()):
            self.copies = {name: (p, p.detach().clone()) for name, p in trained.items()}
        self._sharding: Any = None
        """The model in the wrapper that shards it."""

    @torch.no_grad()
    def shard(self, wrapped: Any) -> None:
        """From now on a copy is this process's shard; called by every process once `wrapped` shards its weights."""
        settle(wrapped)
        parameters = parameters_by_name(wrapped.module if hasattr(wrapped, "module") else wrapped)
        trained = {name: parameters[name] for name in self.copies}
        current = {name: own_share(parameter).clone() for name, parameter in trained.items()}
        # What is where in a shard only its owner knows: it is asked to write the copies, and read off.
        write_whole(wrapped, {name: copy for name, (_, copy) in self.copies.items()})
        settle(wrapped)
        self.copies = {name: (parameter, own_share(parameter).clone()) for name, parameter in trained.items()}
        for name, parameter in trained.items():
            own_share(parameter).copy_(current[name])
        self._sharding = wrapped

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Swaps storage, so no tensor is copied unless the engine has moved or cast the parameter since; only under
        torch.no_grad. Shards are written in place: the engine's own buffers point there."""
        if self._sharding is not None:
            with self._shards_restored():
                yield
            return
        current = [parameter.data for parameter, _ in self.copies.values()]
        for parameter, initial in self.copies.values():
            parameter.data = initial.to(parameter.device, parameter.dtype)
        try:
            yield
        finally:
            for (parameter, _), data in zip(self.copies.values(), current, strict=True):
                parameter.data = data

    @contextmanager
    def _shards_restored(self) -> Iterator[None]:
        settle(self._sharding)
        shares = [own_share(parameter) for parameter, _ in self.copies.values()]
        current = [share.clone() for share in shares]
        for share, (_, initial) in zip(shares, self.copies.values(), strict=True):
            share.copy_(initial)
        try:
            yield
        finally:
            settle(self._sharding)
            for (parameter, _), values in zip(self.copies.values(), current, strict=True):
                own_share(parameter).copy_(values)


class ReferencePolicy:
    """Puts the reference policy in place for a while."""

    def __init__(self, policy: Any, separate_model: Any | None):
        """`policy`: the training model without its parallel wrapper. `separate_model`: a prepared frozen model, or
        None for adapters."""
        self.policy, self._separate_model = policy, separate_model
        self._initial = InitialWeights(policy) if separate_model is None else None
        self._is_wrapped = False
        self.moved = False
        """Whether it is no longer what the stage began with, so that a checkpoint must hold it."""

    def follow(self, wrapped: Any) -> None:
        """Told before each use how the policy is wrapped by now; by every process."""
        if not self._is_wrapped and self._initial is not None and shards_weights(wrapped):
            self._initial.shard(wrapped)
        self._is_wrapped = True

    @contextmanager
    def active(self) -> Iterator[Any | None]:
        """Within it the reference answers: the yielded model, or the training model itself where None is yielded."""
        if self._initial is None:
            yield self._separate_model
        else:
            with self._initial.restored():
                yield None

    @torch.no_grad()
    def move(self, alpha: float) -> None:
        """reference := (1 - alpha) * reference + alpha * policy (TR-DPO's soft update, arXiv 2404.09656).

        For whole weights: what a checkpoint holds of it is written by one process.
        """
        policy = dict(self.policy.named_parameters())
        for name, tensor in self._tensors().items():
            tensor.lerp_(policy[name].to(tensor.device, tensor.dtype), alpha)
        self.moved = True

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its tensors by parameter name, to be saved at once: all of them, or the trainable ones for adapters."""
        return {name: tensor.detach().cpu() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.moved = True

    def _tensors(self) -> dict[str, torch.Tensor]:
        if self._initial is not None:
            return {name: initial for name, (_, initial) in self._initial.copies.items()}
        assert self._separate_model is not None
        model = getattr(self._separate_model, "module", self._separate_model)
        return dict(model.named_parameters())
