"""What test_whole_weights.py runs in two processes: `torchrun whole_weights_ranks.py WAY`, WAY one of WAYS."""

from __future__ import annotations

import sys
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import engines_on_cpu
import torch

from lcot_plugin.policy.reference import ReferencePolicy
from lcot_plugin.whole_weights import own_share, parameters_by_name, shards_weights, whole_weights

WIDTH = 8
ACCELERATOR = SimpleNamespace(unwrap_model=lambda model: getattr(model, "module", model))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.adapter = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(values) + self.adapter(values))


class Model(torch.nn.Module):
    """Two layers whose adapters are trained, and a frozen output layer of an odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.head = torch.nn.Linear(WIDTH, 5)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("adapter" in name)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            values = layer(values)
        return self.head(values)


def wrap(model: Model, way: str) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if way.startswith("zero"):
        import deepspeed

        engines_on_cpu.prepare(way)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            # The second way keeps small parameters whole beside their shards.
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0 if way == "zero3" else 10_000},
        }
        optimizer = torch.optim.SGD(trained, lr=0.1)
        return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    if way == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer)
        return fully_shard(model)
    if way == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = ModuleWrapPolicy({Layer})
        device = torch.device("cpu")
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=device)
    return torch.nn.parallel.DistributedDataParallel(model)


def step(wrapped: Any, optimizer: Any, values: torch.Tensor, way: str) -> None:
    wrapped.train()
    loss = wrapped(values).square().sum()
    if way.startswith("zero"):
        wrapped.backward(loss)
        wrapped.step()
    else:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(way: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model, values = Model(), torch.randn(3, WIDTH)
    alone = deepcopy(model)
    reference = ReferencePolicy(model, None)
    start = alone(values).detach()
    plain = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.1)
    wrapped = wrap(model, way)
    optimizer = None
    if not way.startswith("zero"):
        optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    assert shards_weights(wrapped) == (way != "ddp")

    for _ in range(3):
        expected = alone(values).detach()
        for attempt in range(2):
            # Other numbers of calls, and of layers, on each process.
            with torch.no_grad(), whole_weights(wrapped, ACCELERATOR) as inner:
                for _ in range(1 + 2 * rank):
                    torch.testing.assert_close(inner(values), expected)
                if rank == attempt:
                    inner.layers[0](values)
                sizes = {name: p.shape for name, p in parameters_by_name(inner).items()}
            assert sizes == {name: p.shape for name, p in alone.named_parameters()}
        if way != "ddp":
            held = sum(own_share(p).numel() for p in wrapped.parameters())
            assert held < sum(p.numel() for p in alone.parameters()), "the weights are sharded again"
        try:
            with whole_weights(wrapped, ACCELERATOR):
                raise RuntimeError("out of memory")
        except RuntimeError:
            pass
        with torch.no_grad():
            wrapped.eval()
            torch.testing.assert_close(wrapped(values), expected)
            reference.follow(wrapped)
            with reference.active() as separate:
                assert separate is None
                torch.testing.assert_close(wrapped(values), start)
            torch.testing.assert_close(wrapped(values), expected)
        step(wrapped, optimizer, values, way)
        alone(values).square().sum().backward()
        plain.step()
        plain.zero_grad()
    assert (alone(values) - start).abs().max() > 0.1
    engines_on_cpu.end_process()


if __name__ == "__main__":
    main(sys.argv[1])
