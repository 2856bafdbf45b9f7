"""Orders that are the same on every platform and NumPy release: sorting and shuffling, built on what is specified.

Only `Generator.random` is drawn from (its stream does not change between releases, those of `permutation` and `shuffle`
may), and only unique integers are sorted or ties are broken by position (vectorised sorts order ties as they like).
"""

from __future__ import annotations

import numpy as np


def generator_of(*seeds: int) -> np.random.Generator:
    """Random numbers that depend on all of `seeds`, in order."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed % 2**32 for seed in seeds])))


def ascending(keys: np.ndarray) -> np.ndarray:
    """[n] int64: the stable order of non-negative integer `keys` [n]; several times faster than a stable argsort."""
    bits = len(keys).bit_length()
    if len(keys) == 0 or int(keys.max()) >= 1 << (62 - bits):
        return np.argsort(keys, kind="stable")
    combined = (keys.astype(np.int64) << bits) | np.arange(len(keys))
    combined.sort()
    return combined & ((1 << bits) - 1)


def ascending_fractions(fractions: np.ndarray) -> np.ndarray:
    """[n] int64: the order of numbers in [0, 1)."""
    return ascending((fractions * 2.0 ** (61 - len(fractions).bit_length())).astype(np.int64))


def permutation(length: int, generator: np.random.Generator) -> np.ndarray:
    """[length] int64, a random order."""
    return ascending_fractions(generator.random(length))


def ascending_rows(keys: np.ndarray) -> np.ndarray:
    """The stable order of each row of non-negative integer `keys` [rows, columns], below 2**62 / columns."""
    bits = int(keys.shape[1]).bit_length()
    combined = (keys << bits) | np.arange(keys.shape[1])
    combined.sort(axis=1)
    return combined & ((1 << bits) - 1)


def shuffled_rows(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A copy of `table` [rows, columns], each row in a random order of its own."""
    keys = (generator.random(table.shape) * 2.0**30).astype(np.int64)
    return np.take_along_axis(table, ascending_rows(keys), axis=1)


def exact_sums(values: np.ndarray, pack_of: np.ndarray, num_packs: int) -> np.ndarray:
    """[num_packs] int64: sums of int64 `values` [n] by pack; exact, for doubles hold integers up to 2**53."""
    return np.bincount(pack_of, weights=values, minlength=num_packs).astype(np.int64)
