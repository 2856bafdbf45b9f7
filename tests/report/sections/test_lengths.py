"""Lengths are parted so that every share has something behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_folders import completion, write_lines

from lcot_plugin.report.sections.lengths import MIN_IN_BIN, NUM_BINS, bins, section
from lcot_plugin.report.subjects import Answers, load_subjects


def answers(tokens: list[int], right: list[bool] | None = None) -> Answers:
    num = len(tokens)
    zeros = np.zeros(num, np.int64)
    flags = np.array(right if right is not None else [True] * num)
    return Answers(zeros, np.arange(num), zeros, flags, np.zeros(num, bool), np.array(tokens), ["a"])


def counts(tokens: list[int]) -> list[int]:
    return [row.share.num_samples for row in bins(answers(tokens))]


def test_every_evaluation_set_has_its_name(tmp_path: Path) -> None:
    for number in range(6):
        lines = [
            completion(step=0, sample="greedy", record=n, right=n % 2 == 0, length=10 + n // 25 * 90) for n in range(60)
        ]
        write_lines(tmp_path / f"eval_set{number}_completions.jsonl", lines)
    ((subject,), _) = load_subjects([tmp_path])
    found = section([subject])
    assert found is not None
    assert all(f"Evaluation on set{number}: 60 completions" in found.body for number in range(4))
    assert "set4" not in found.body and "2 further evaluation sets left out here" in found.body


def test_many_lengths_are_parted_evenly() -> None:
    found = counts(list(range(1600)))
    assert found == [200] * NUM_BINS


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_enough_and_nothing_is_lost(seed: int) -> None:
    tokens = np.random.default_rng(seed).geometric(0.05, 500).tolist()
    found = counts(tokens)
    assert sum(found) == 500 and min(found) >= MIN_IN_BIN


def test_equal_lengths_stay_together_and_few_are_joined() -> None:
    rows = bins(answers([23] * 100 + [33] * 5 + [35] * 100))
    assert [(row.name, row.share.num_samples) for row in rows] == [("23", 100), ("33 to 35", 105)]
    assert counts([5] * 300) == [300]


def test_the_share_of_each_part_is_its_own() -> None:
    tokens = [10] * 40 + [90] * 40
    rows = bins(answers(tokens, [True] * 40 + [False] * 30 + [True] * 10))
    assert [row.share.value for row in rows] == [1.0, 0.25]
