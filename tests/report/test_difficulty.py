"""Pass rates become difficulties, figures, a table and a picture."""

from pathlib import Path

import pytest

from lcot_plugin.errors import ArgumentError
from lcot_plugin.report.difficulty import Difficulty, SetDifficulty, Thresholds, difficulty_table, plot_difficulty


@pytest.fixture
def measured() -> SetDifficulty:
    rates = {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 0.0}
    return SetDifficulty("geo", 9, Thresholds(), rates, num_rollouts=4, num_truncated=6)


@pytest.mark.parametrize(
    ("pass_rate", "expected"),
    [(0.0, "hard"), (0.25, "hard"), (0.2501, "medium"), (0.75, "medium"), (0.7501, "easy"), (1.0, "easy")],
)
def test_a_threshold_belongs_to_the_harder_side(pass_rate: float, expected: str) -> None:
    assert Thresholds().difficulty(pass_rate) is Difficulty(expected)


@pytest.mark.parametrize("limits", [(0.75, 0.25), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_thresholds_that_cannot_be(limits: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match="the lower one first"):
        Thresholds(*limits)


def test_always_wrong_and_always_right_are_told_apart(measured: SetDifficulty) -> None:
    figures = measured.as_dict()
    assert [figures[key] for key in ("all_wrong", "hard", "medium", "easy", "all_right")] == [2, 3, 2, 1, 1]
    assert figures["measured"] == 6
    assert figures["mean_pass_rate"] == pytest.approx(2.5 / 6)
    assert figures["truncated"] == pytest.approx(100 * 6 / 24)


def test_the_table_names_what_was_not_measured(measured: SetDifficulty) -> None:
    measured.no_gold, measured.num_no_gold = [7, 6], 12
    measured.left_out, measured.num_left_out = [(8, "missing image: a.png")], 1
    table = difficulty_table([measured])
    assert "3 of 6 records are always wrong (0.0) or always right (1.0)" in table
    assert "12 records without a gold answer that can be verified, not measured: 6, 7 and 10 more" in table
    assert "1 records cannot be used: record 8 (missing image: a.png)" in table


def test_nothing_measured() -> None:
    assert SetDifficulty("geo", 3, Thresholds()).as_dict()["mean_pass_rate"] is None


def test_picture(measured: SetDifficulty, tmp_path: Path) -> None:
    plot_difficulty([measured, SetDifficulty("empty", 3, Thresholds())], tmp_path / "difficulty.png")
    assert (tmp_path / "difficulty.png").read_bytes().startswith(b"\x89PNG")
