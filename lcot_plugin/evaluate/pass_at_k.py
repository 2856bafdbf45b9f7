"""pass@k and avg@k: from how many of n samples were right to what k samples would reach."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right (Chen et al., arXiv 2107.03374, eq. 1):
    1 - C(n - c, k) / C(n, k). Example: 1 right of 4, k = 2: 1 - C(3, 2) / C(4, 2) = 0.5."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {num_samples}.")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def ks_for(num_samples: int) -> list[int]:
    """The values of k that are reported for n samples: powers of two up to n, and n. 6 gives 1, 2, 4, 6."""
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    return sorted({*powers, num_samples}) if num_samples > 0 else []


def sampled_metrics(correct: Sequence[Sequence[bool]]) -> dict[str, float]:
    """avg@n and pass@k in percent, over problems; correct: [problems, n], the same n everywhere."""
    num_samples = len(correct[0])
    rights = [sum(row) for row in correct]
    metrics = {f"avg@{num_samples}": 100 * sum(rights) / (num_samples * len(rights))}
    for k in ks_for(num_samples):
        metrics[f"pass@{k}"] = 100 * sum(pass_at_k(num_samples, right, k) for right in rights) / len(rights)
    return metrics
