import pytest

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
