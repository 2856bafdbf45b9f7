"""Whole weights of a model that its training shards: for rollouts, checks, and what must be written into it.

In: the training model in its parallel wrapper (DDP, DeepSpeed, FSDP 1 or 2). Out: the model inside, with every weight
on every process and without the engine's hooks, so that each process may call it as often as its own work needs. With
the hooks on, every call gathers a share of the weights from all processes, and one that calls a layer once more than
another waits for ever.

What it costs: the weights, once, on every device. Gradients and the optimizer's state stay sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What a wrapper puts between the names of a parameter."""


def shards_weights(model: Any) -> bool:
    """Whether a process holds only a part of the weights: ZeRO-3 (partitioned when loaded) or FSDP (once wrapped)."""
    return _is_zero_3(model) or bool(_fsdp_1(model)) or bool(_fsdp_2(model))


@contextmanager
def whole_weights(model: Any, accelerator: Any) -> Iterator[Any]:
    """Yields the model inside the wrapper with whole weights; entered and left by every process.

    model: the training model as the trainer calls it. The weights are for reading: what is written is lost where they
    are sharded. Nothing is to be called through the wrapper meanwhile.
    """
    with ExitStack() as stack:
        if _is_zero_3(model):
            stack.enter_context(_zero_3_gathered(model))
        elif _fsdp_1(model):
            stack.enter_context(_fsdp_1_gathered(model))
        elif _fsdp_2(model):
            stack.enter_context(_fsdp_2_gathered(model))
        yield accelerator.unwrap_model(model)


def parameters_by_name(model: Any) -> dict[str, torch.nn.Parameter]:
    """Named as in the model without wrappers."""
    named = {}
    for name, parameter in model.named_parameters():
        for infix in _WRAPPERS:
            name = name.replace(infix, "")
        named[name] = parameter
    return named


def own_share(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: its shard where it is sharded, flat or empty as it may be."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.data
    data = parameter.data
    return data.to_local() if hasattr(data, "to_local") else data


def settle(model: Any) -> None:
    """Drops the whole weights that the engine has gathered, or is gathering ahead, and holds beside its shards.

    To be called before shards are read or written past the engine, and after. model: in its parallel wrapper.
    """
    if hasattr(model, "empty_partition_cache"):  # a DeepSpeed engine
        model.empty_partition_cache()
    for wrapper in _fsdp_1(model):
        handle = wrapper._handle
        if wrapper._is_root is None or handle is None:  # nothing has run, or nothing is held here
            continue
        if handle.uses_sharded_strategy and not handle.needs_unshard():
            handle.reshard(free_unsharded_flat_param=True)
    for module in _fsdp_2(model):
        module.reshard()


@torch.no_grad()
def write_whole(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Writes whole tensors, those of process 0, into parameters that are sharded; called by every process.

    model: in its parallel wrapper, settled. values: by `parameters_by_name`.
    """
    if _fsdp_1(model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model, writeback=True):
            parameters = parameters_by_name(model)
            for name, value in values.items():
                parameters[name].data.copy_(value)
                torch.distributed.broadcast(parameters[name].data, 0)
    elif _is_zero_3(model):
        import deepspeed

        parameters = parameters_by_name(getattr(model, "module", model))
        with deepspeed.zero.GatheredParameters([parameters[name] for name in values], modifier_rank=0):
            for name, value in values.items():
                parameters[name].data.copy_(value)
    else:
        from torch.distributed.tensor import distribute_tensor

        parameters = parameters_by_name(model)
        for name, value in values.items():
            parameter: Any = parameters[name].data
            value = value.to(parameter.to_local().device, parameter.dtype)
            # Scattered from process 0.
            share = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.to_local().copy_(share.to_local())


def _is_zero_3(model: Any) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _fsdp_1(model: Any) -> list[Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel.fsdp_modules(model)


def _fsdp_2(model: Any) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters that ZeRO-3 has partitioned are whole meanwhile, for reading; by every process."""
    partitioned: list[Any] = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield


@contextmanager
def _zero_3_gathered(model: Any) -> Iterator[None]:
    settle(model)
    with _without_hooks_of(model, "deepspeed."), gathered(model.parameters()):
        yield


@contextmanager
def _fsdp_1_gathered(model: Any) -> Iterator[None]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        wrappers = _fsdp_1(model)
        for wrapper in wrappers:
            wrapper.forward = wrapper.module.__call__  # without what it does around the call
        try:
            yield
        finally:
            for wrapper in wrappers:
                del wrapper.forward


@contextmanager
def _fsdp_2_gathered(model: Any) -> Iterator[None]:
    modules = _fsdp_2(model)
    for module in modules:
        module.unshard()
    try:
        with _without_hooks_of(model, "torch.distributed.fsdp."):
            yield
    finally:
        for module in modules:
            module.reshard()


@contextmanager
def _without_hooks_of(model: Any, package: str) -> Iterator[None]:
    """The forward hooks that a package has put on the modules are off; PEFT's and checkpointing's stay."""
    changed: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            before = dict(hooks)
            for key, hook in before.items():
                if (getattr(hook, "__module__", None) or "").startswith(package):
                    del hooks[key]
            if len(hooks) < len(before):
                changed.append((hooks, before))
    try:
        yield
    finally:
        for hooks, before in changed:
            hooks.clear()
            hooks.update(before)  # in the order they had
