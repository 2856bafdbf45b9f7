"""Weights that several processes hold in pieces: two processes on the CPU, over gloo."""

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engines_on_cpu import end_process
from lora_twins import ALL_LAYERS, lora_twin
from torch import multiprocessing
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from lcot_plugin.rollout.vllm.client import Capabilities
from lcot_plugin.rollout.vllm.policy_tensors import adapter_tensors, policy_tensors
from lcot_plugin.rollout.vllm.weights import WeightSync, why_not_adapter
from lcot_plugin.whole_weights import shards_weights


def text_layer(model: torch.nn.Module) -> type:
    return type(next(module for name, module in model.named_modules() if name.endswith("language_model.layers.0")))


def ddp(model: torch.nn.Module) -> torch.nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: torch.nn.Module) -> torch.nn.Module:
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={text_layer(model)})
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))


def fsdp2(model: torch.nn.Module) -> torch.nn.Module:
    kind = text_layer(model)
    mesh = dist.init_device_mesh("cpu", (2,))
    for module in [module for module in model.modules() if isinstance(module, kind)]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"ddp": ddp, "fsdp": fsdp, "fsdp2": fsdp2}


def on_rank(rank: int, rendezvous: str, directory: Path, results: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # accelerate wants them set
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    reports = {name: report(rank, directory, wrapper, Path(f"{results}_{name}")) for name, wrapper in WRAPPERS.items()}
    torch.save(reports, f"{results}{rank}")
    end_process()


def report(rank: int, directory: Path, wrapper: Callable[[Any], Any], folder: Path) -> dict[str, Any]:
    """What this rank finds of a model in pieces."""
    plain = lora_twin(directory, targets=ALL_LAYERS)
    expected = {
        "policy": dict(policy_tensors(copy.deepcopy(plain), keep=True)),
        "adapter": dict(adapter_tensors(plain, keep=True)),
    }
    model = wrapper(plain)
    found = {
        "policy": dict(policy_tensors(model, keep=rank == 0)),
        "adapter": dict(adapter_tensors(model, keep=rank == 0)),
    }
    folder.mkdir(exist_ok=True)
    sync = WeightSync([Deaf()], "auto", folder, lambda line: None)
    sync.push(model, SimpleNamespace(is_main_process=rank == 0, num_processes=2), 3)
    return {
        "sharded": shards_weights(model),
        "obstacle": why_not_adapter(model),
        "counts": {kind: len(tensors) for kind, tensors in found.items()},
        "complete": all(found[kind].keys() == expected[kind].keys() for kind in found),
        "differs": [n for kind, tensors in found.items() for n, t in tensors.items() if not t.equal(expected[kind][n])],
        "sync": (sync.mode, sync.version, sync.name, sync.is_current(Deaf())),
        "written": sorted(path.name for path in folder.rglob("*.safetensors")),
    }


class Deaf:
    """A server that takes everything."""

    url = "http://127.0.0.1:1"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: Capabilities(frozenset({"/collective_rpc", "/update_weight_version"}), frozenset())


@pytest.fixture(scope="module")
def reports(twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Of both ranks, by wrapper."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = (str(folder / "rendezvous"), twin("qwen2_5_vl"), str(folder / "result"))
    multiprocessing.spawn(on_rank, arguments, nprocs=2)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_in_pieces_are_put_together(reports: list[dict[str, dict[str, Any]]], wrapper: str) -> None:
    first, second = (report[wrapper] for report in reports)
    assert first["sharded"] == (wrapper != "ddp")
    assert first["complete"] and not first["differs"]
    assert first["counts"]["policy"] > 50
    assert second["counts"] == {"policy": 0, "adapter": 0}  # they took part, and keep nothing


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_process_knows_what_was_sent(reports: list[dict[str, dict[str, Any]]], wrapper: str) -> None:
    first, second = (report[wrapper] for report in reports)
    assert "outside of the language model" in first["obstacle"]
    assert first["sync"] == second["sync"]
    assert first["sync"][:2] == ("weights", 3) and first["sync"][3]
    assert first["written"] == ["model.safetensors"]
