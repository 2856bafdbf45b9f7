"""The least time that a step can take on this machine's device, from a matrix product and a copy timed here.

In: what a step computes and reads. Out: seconds. A bound and not a prediction: attention, kernels that are too small,
reward functions, data and communication come on top, and real runs reach a third to two thirds of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.throughput import wait_for

SIZE = 2048
NUM_BYTES = 2**28
SECONDS = 0.3


@dataclass(frozen=True)
class Device:
    """What a device reached here."""

    name: str
    operations: float
    """Floating-point operations per second of a square matrix product, in the compute dtype."""
    bandwidth: float
    """Bytes per second, read and written."""


def measure_device(dtype: torch.dtype, size: int = SIZE, num_bytes: int = NUM_BYTES) -> Device:
    """Times the first GPU, or the CPU: a product of matrices of `size` rows and columns, a copy of `num_bytes`."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name(0) if cuda else f"the CPU, {torch.get_num_threads()} threads"
    matrix = torch.randn(size, size, device=device).to(dtype)
    seconds = _timed(lambda: matrix @ matrix, device)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _timed(lambda: target.copy_(source), device)
    return Device(name, 2 * size**3 / seconds, 2 * num_bytes / copying)


def _timed(function: object, device: torch.device) -> float:
    """Seconds per call, the best of those that fit into SECONDS."""
    assert callable(function)
    function()
    wait_for(device)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        begin = time.perf_counter()
        function()
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return best


def update_seconds(device: Device, cost: CostModel, num_tokens: int, record_tokens: int) -> float:
    """A pass over `num_tokens` in records of `record_tokens`. `cost` in operations."""
    return (cost.token * num_tokens + cost.square * num_tokens * record_tokens) / device.operations


def decode_seconds(device: Device, weight_bytes: float, new_tokens: int, num_rounds: int) -> float:
    """Writing `new_tokens` one after the other, all weights being read for each, `num_rounds` batches in turn."""
    return num_rounds * new_tokens * weight_bytes / device.bandwidth
