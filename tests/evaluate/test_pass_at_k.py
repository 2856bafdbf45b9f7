from itertools import combinations
from statistics import fmean

import pytest

from lcot_plugin.evaluate.pass_at_k import ks_for, pass_at_k, sampled_metrics


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_samples):
    """All ways to choose k of the n samples, enumerated."""
    for num_correct in range(num_samples + 1):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            expected = fmean(any(chosen) for chosen in combinations(samples, k))
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples():
    """1 right of 1000: it is among 500 chosen ones half of the time."""
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)
    assert pass_at_k(1000, 501, 500) == 1.0


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"pass@{k} needs at least {k} samples, there are 4"):
        pass_at_k(4, 2, k)


def test_ks_for():
    assert {n: ks_for(n) for n in (0, 1, 2, 3, 6, 8, 9)} == {
        0: [],
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        6: [1, 2, 4, 6],
        8: [1, 2, 4, 8],
        9: [1, 2, 4, 8, 9],
    }


def test_sampled_metrics():
    """Two problems of four samples, 1 and 4 right: avg 5/8, pass@2 the mean of 1/2 and 1."""
    metrics = sampled_metrics([[False, True, False, False], [True] * 4])
    assert metrics == pytest.approx({"avg@4": 62.5, "pass@1": 62.5, "pass@2": 75.0, "pass@4": 100.0})
