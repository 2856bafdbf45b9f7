"""What a GPU can do at most: by its data sheet, and as measured here.

In: the name that CUDA gives the GPU. Out: floating-point operations and bytes per second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Peak:
    """The roof: dense (no 2:4 sparsity) bfloat16 with float32 sums, and memory."""

    operations: float
    """Per second."""
    bandwidth: float
    """Bytes per second."""
    source: str

    def seconds(self, operations: float, num_bytes: float) -> float:
        """The least time for both, computed and read at once."""
        return max(operations / self.operations, num_bytes / self.bandwidth)


def _sheet(teraflops: float, gigabytes: float, document: str) -> Peak:
    return Peak(teraflops * 1e12, gigabytes * 1e9, f"NVIDIA, {document}")


# The sheets of data center GPUs print twice these operations, with sparsity. The first key that stands in the name as
# whole words counts.
PEAKS = {
    "B200": _sheet(2250, 8000, "Blackwell architecture technical brief (HGX B200)"),
    "H200 NVL": _sheet(835.5, 4800, "H200 data sheet"),
    "H200": _sheet(989.5, 4800, "H200 data sheet"),
    "H100 NVL": _sheet(835.5, 3900, "H100 data sheet"),
    "H100 PCIe": _sheet(756.5, 2000, "H100 data sheet"),
    "H100 80GB HBM3": _sheet(989.5, 3350, "H100 data sheet"),
    "A100-SXM4-80GB": _sheet(312, 2039, "A100 data sheet"),
    "A100-SXM4-40GB": _sheet(312, 1555, "A100 data sheet"),
    "A100 80GB PCIe": _sheet(312, 1935, "A100 data sheet"),
    "A100-PCIE-40GB": _sheet(312, 1555, "A100 data sheet"),
    "L40S": _sheet(362, 864, "L40S data sheet"),
    "L4": _sheet(121, 300, "L4 data sheet"),
    "A40": _sheet(149.7, 696, "A40 data sheet"),
    "A10": _sheet(125, 600, "A10 data sheet"),
    "RTX 4090": _sheet(165.2, 1008, "Ada GPU architecture white paper"),
    "RTX 3090": _sheet(71, 936, "GA102 GPU architecture white paper"),
}
OTHERS = ("MIG", "Ti", "D", "Laptop")
"""Words behind a name of the table that make it a part of the GPU, or another one: its roof is measured."""


def peak_of(name: str) -> Peak | None:
    """By the table; None for a GPU that is not in it."""
    words = f" {name} "
    if any(f" {other} " in words for other in OTHERS):
        return None
    return next((peak for key, peak in PEAKS.items() if f" {key} " in words), None)


def measured_peak(device: str) -> Peak:
    """A product of two large matrices and a copy, the best of many."""
    import torch

    from lcot_plugin.integration.recipe_doctor.speed import measure_device

    on_gpu = device != "cpu"
    sizes = {"size": 8192, "num_bytes": 2**30} if on_gpu else {"size": 512, "num_bytes": 2**24}
    found = measure_device(torch.bfloat16 if on_gpu else torch.float32, **sizes)
    return Peak(found.operations, found.bandwidth, f"measured here: matrices of {sizes['size']} rows, a copy")


def roof(hardware: dict[str, Any]) -> Peak:
    """What gaps are stated against: the data sheet's where the GPU is known, else what was measured."""
    return peak_of(hardware["name"]) or Peak(**hardware["measured"])


def hardware_of(device: str) -> dict[str, Any]:
    """The device, its software and what it reaches; computed in a process of its own."""
    import platform
    import shutil
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found: dict[str, Any] = {"name": f"CPU, {platform.processor() or platform.machine()}", "device": device}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            answer = subprocess.run(command, capture_output=True, text=True).stdout.split()
            found["driver"] = answer[0] if answer else "unknown"
    found["python"] = platform.python_version()
    for name in ("torch", "transformers", "llamafactory", "trl", "flash-attn", "liger-kernel", "lcot-plugin"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "measured": asdict(measured_peak(device))}
