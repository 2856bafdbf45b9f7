"""The weights of a policy in training, whole and with its adapters merged, without a change to the model.

In: the model with its parallel wrapper. Out: tensors by the names of the transformers model. Consumed by `weights.py`.
Parameters that DeepSpeed ZeRO-3 or FSDP keep in pieces are put together one module at a time, by all processes
together: every process must go through the whole of these generators.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lcot_plugin.whole_weights import gathered, settle, shards_weights

WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""Modules in which FSDP, activation checkpointing and torch.compile hold the wrapped one."""


def owners(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with the name it has in the transformers model; what an adapter wraps comes as one.

    FSDP's parameters are whole while the generator stands at their module.
    """
    if isinstance(module, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(module, recurse=False, writeback=False):
            yield from owners(module.module, name)
        return
    inner = wrapped(module)
    if inner is not None:
        yield from owners(inner, name)
        return
    if isinstance(module, PeftModel):
        yield from owners(module.base_model.model, name)
        return
    if isinstance(module, ModulesToSaveWrapper):
        yield from owners(module.modules_to_save[module.active_adapters[0]], name)
        return
    yield name, module
    if not isinstance(module, BaseTunerLayer):
        for child_name, child in module._modules.items():
            if child is not None:
                yield from owners(child, f"{name}.{child_name}" if name else child_name)


def wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper without parameters of its own holds; None where the module is none."""
    if isinstance(module, DistributedDataParallel) or type(module).__name__ == "DeepSpeedEngine":
        return module.module
    return next((module._modules[name] for name in WRAPPERS if name in module._modules), None)


def policy_tensors(model: nn.Module, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers; the parameters' own memory where nothing had to be merged or put together,
    else copies on the CPU.

    `keep`: whether this process needs them; others take part in putting them together.
    """
    # A tied parameter stays one tensor. The parameter is kept beside its copy: FSDP makes them anew, and a freed one's
    # id would be another's.
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    shards = shards_weights(model)
    if shards:
        settle(model)
    for name, module in owners(model):
        prefix = f"{name}." if name else ""
        if isinstance(module, BaseTunerLayer):
            with gathered(module.parameters()):
                if keep:
                    merged = merged_base_layer(module)
                    for key, tensor in merged.state_dict().items():
                        yield prefix + key, tensor.cpu()
                else:
                    put_together(module)
            continue
        own = {key: value for key, value in module._parameters.items() if value is not None}
        hidden = module._non_persistent_buffers_set
        own |= {key: value for key, value in module._buffers.items() if value is not None and key not in hidden}
        with gathered(module.parameters(recurse=False)):
            for key, value in own.items():
                tensor = full_tensor(value)
                if keep and shards:
                    _, tensor = copies.setdefault(id(value), (value, tensor.detach().to("cpu", copy=True)))
                if keep:
                    yield prefix + key, tensor.detach()


def adapter_tensors(model: nn.Module, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of the active LoRA adapter, on the CPU, by the names that PEFT gives them in its files."""
    if shards_weights(model):
        settle(model)
    for name, module in owners(model):
        if isinstance(module, LoraLayer):
            (adapter,) = module.active_adapters
            with gathered(module.parameters()):
                for part in ("lora_A", "lora_B"):
                    tensor = full_tensor(getattr(module, part)[adapter].weight)
                    if keep:
                        yield f"base_model.model.{name}.{part}.weight", tensor.detach().to("cpu", copy=True)


@torch.no_grad()
def merged_base_layer(layer: Any) -> nn.Module:
    """A copy of the layer that an adapter wraps, with the adapter merged by PEFT's own code."""
    twin = detached_copy(layer)
    twin.merge()
    return twin.get_base_layer()


def detached_copy(module: nn.Module) -> Any:
    """A module tree with tensors of its own. `copy.deepcopy` would follow DeepSpeed's and FSDP's hooks to the engine,
    and to all weights."""
    twin = copy.copy(module)
    for name, value in vars(twin).items():
        if type(value) in (dict, list):  # names of merged adapters, caches of norms
            vars(twin)[name] = copy.copy(value)
    twin._parameters = {
        name: None if value is None else nn.Parameter(full_tensor(value).detach().clone(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    twin._buffers = {
        name: None if value is None else full_tensor(value).detach().clone() for name, value in module._buffers.items()
    }
    twin._modules = {name: None if value is None else detached_copy(value) for name, value in module._modules.items()}
    return twin


def put_together(module: nn.Module) -> None:
    """This process's part in `detached_copy` on another one."""
    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values()):
            if value is not None:
                full_tensor(value)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """FSDP 2 keeps a DTensor of pieces; anything else is returned as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
