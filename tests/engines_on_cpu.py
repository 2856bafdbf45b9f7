"""Engines that shard a model, on processes without an accelerator: where they are, and what they need to be told."""

from __future__ import annotations

import os
import sys
from functools import wraps
from typing import Any, NoReturn

import pytest
import torch.distributed as dist

DEEPSPEED = os.environ.get("LCOT_DEEPSPEED", "")
"""Folder that DeepSpeed was installed into by `pip install --target`. Among the other packages accelerate would import
it into every process of the suite, and its import warns."""
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="needs DeepSpeed in a folder of its own: LCOT_DEEPSPEED")


def import_path(way: str) -> str:
    """PYTHONPATH of a process that trains in this way."""
    return os.pathsep.join([*sys.path, DEEPSPEED] if way.startswith("zero") else sys.path)


def prepare(way: str) -> None:
    """Before transformers reads its arguments, in the process that trains."""
    if way.startswith("fsdp"):
        _allow_fsdp()
    if way.startswith("zero"):
        _steady_deepspeed()


def end_process() -> NoReturn:
    """Once the others are here too, and without tearing the interpreter down under gloo's threads.

    DeepSpeed, device meshes and DDP's reducer keep the process groups that they have made, and the groups their
    threads, one of which ends the process now and then (SIGABRT, pytorch/pytorch#190489).
    """
    dist.barrier()
    sys.stderr.flush()
    os._exit(0)


def _allow_fsdp() -> None:
    """accelerate gives processes on the CPU DDP, whatever they ask for."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def __init__(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = __init__


def _steady_deepspeed() -> None:
    """Nothing is compiled, and collectives end in the order in which they began.

    Of several all-gathers DeepSpeed waits for the last one. NCCL's stream has ended the others by then; gloo's two
    threads may not have, and weights are read of which a part has not arrived.
    """
    import deepspeed
    from deepspeed.comm.torch import TorchBackend

    # Collectives through shared memory, where gloo does.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gathers = ("all_gather", "all_gather_into_tensor", "all_gather_coalesced")
    for name in (*gathers, "reduce_scatter_tensor", "all_reduce", "broadcast"):
        setattr(TorchBackend, name, _ended(getattr(TorchBackend, name)))


def _ended(collective: Any) -> Any:
    @wraps(collective)
    def at_once(*args: Any, **kwargs: Any) -> Any:
        handle = collective(*args, **kwargs)
        if handle is not None:
            handle.wait()
        return handle

    return at_once
