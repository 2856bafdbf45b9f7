"""Which roof a GPU has."""

import pytest

from benchmarks.gpu.roofline import PEAKS, Peak, peak_of, roof

MEASURED = {"operations": 1e12, "bandwidth": 1e11, "source": "measured here"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_names_that_cuda_gives(name, key):
    assert peak_of(name) == PEAKS[key]
    assert roof({"name": name, "measured": MEASURED}) == PEAKS[key]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "CPU, x86_64",
    ],
)
def test_others_are_measured(name):
    assert peak_of(name) is None
    assert roof({"name": name, "measured": MEASURED}).source == "measured here"


def test_the_least_time_is_that_of_the_scarcer():
    peak = Peak(operations=100.0, bandwidth=10.0, source="")
    assert peak.seconds(200.0, 0.0) == 2.0
    assert peak.seconds(200.0, 50.0) == 5.0


def test_sheets_are_without_sparsity():
    """The H100's 1,979 TFLOP/s are with it."""
    assert PEAKS["H100 80GB HBM3"].operations == 989.5e12
    assert all(peak.operations / peak.bandwidth < 450 for peak in PEAKS.values())
