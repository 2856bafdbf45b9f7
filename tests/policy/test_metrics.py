import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lcot_plugin.policy import metrics
from lcot_plugin.policy.metrics import MetricSums


def test_averages_are_weighted_by_counts():
    sums = MetricSums()
    sums.add("reward", 3.0, 4)
    sums.add("reward", 0.0, 2)
    sums.add("time", 2.0)
    sums.add("time", 5.0)
    assert sums.pop_averages() == {"reward": 0.5, "time": 3.5}


def test_a_count_of_zero_adds_nothing():
    sums = MetricSums()
    sums.add("clip_ratio", 0.0, 0)
    assert sums.pop_averages() == {}


def test_maxima():
    sums = MetricSums()
    for value in (-3.0, -1.0, -2.0):
        sums.add("gap/max", value)
    assert sums.pop_averages() == {"gap/max": -1.0}


def test_minima():
    sums = MetricSums()
    for value in (3.0, torch.tensor(1.0), torch.tensor(0.5), 2.0):
        sums.add("length/min", value)
    sums.add_statistics({"ratio_min": torch.tensor(0.75)})
    sums.add_statistics({"ratio_min": torch.tensor(0.25)})
    assert sums.pop_averages() == {"length/min": 0.5, "ratio/min": 0.25}


def test_starts_anew():
    sums = MetricSums()
    sums.add("reward", 1.0)
    sums.pop_averages()
    sums.add("reward", 0.0)
    assert sums.pop_averages() == {"reward": 0.0}


def test_ranks_weigh_by_their_counts(monkeypatch: pytest.MonkeyPatch):
    """One rank saw 1 observation, the other 3, and only the other one a third metric."""
    other = MetricSums()
    other.add("reward", 0.0, 3)
    other.add("gap/max", 0.5)
    other.add("kl", 0.25)
    monkeypatch.setattr(metrics, "gather_object", lambda own: [*own, other._sums])
    sums = MetricSums()
    sums.add("reward", 1.0, 1)
    sums.add("gap/max", 0.25)
    assert sums.pop_averages() == {"reward": 0.25, "gap/max": 0.5, "kl": 0.25}


class Reads(TorchDispatchMode):
    """Counts the tensors that become Python numbers, for each of which a GPU would have to finish its work."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_tensors_are_read_only_when_logged():
    sums, one, two = MetricSums(), torch.tensor(1.0), torch.tensor(2.0)
    with Reads() as reads:
        for value in (two, one):
            sums.add("kl", value, 4)
            sums.add_statistics({"ratio_max": value, "entropy_sum": value, "entropy_count": 3, "nothing_count": 0})
            sums.add_statistics({"clip_sum": value, "clip_count": 0})
    assert reads.count == 0
    assert sums.pop_averages() == {"kl": 3 / 8, "ratio/max": 2.0, "entropy": 0.5}
