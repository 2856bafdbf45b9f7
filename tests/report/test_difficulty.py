"""Pass rates become difficulties, figures, a table and a picture."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lcot_plugin.errors import ArgumentError
from lcot_plugin.report.difficulty import Difficulty, SetDifficulty, Thresholds, difficulty_table, plot_difficulty


@pytest.fixture
def measured() -> SetDifficulty:
    rates = {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 5: 0.0}
    return SetDifficulty("geo", 9, Thresholds(), rates, num_rollouts=4, num_truncated=6, num_unparsable=12)


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
    assert figures["thresholds"] == {"hard": 0.25, "medium": 0.75}


def test_learnable_is_what_is_neither_always_wrong_nor_always_right(measured: SetDifficulty) -> None:
    assert [measured.parts(record) for record in range(7)] == [
        ("hard",),
        ("hard", "learnable"),
        ("medium", "learnable"),
        ("medium", "learnable"),
        ("easy",),
        ("hard",),
        (),
    ]
    assert measured.as_dict()["learnable"] == 3


def test_table(measured: SetDifficulty) -> None:
    assert difficulty_table([measured]).splitlines() == [
        "data                      pass                      never  always",
        "set   records  measured   rate  hard  medium  easy  right   right  truncated  unparsable",
        "geo         9         6  0.417     3       2     1      2       1      25.0%       50.0%",
        "hard: pass rate up to 0.25; medium: above that, up to 0.75; easy: above 0.75; learnable: above 0 and below 1.",
        "geo: 3 of 6 records are never right or always right in 4 rollouts: GRPO learns nothing from such groups. The "
        "other 3 are learnable.",
        "geo: 50% of the rollouts state no answer that can be read: the model does not write cot_format's form; train "
        "SFT first, or raise max_new_tokens (25% were truncated).",
    ]


def test_a_model_that_knows_the_form_is_not_sent_to_sft(measured: SetDifficulty) -> None:
    assert "train SFT first" not in difficulty_table([replace(measured, num_unparsable=2)])


def test_nothing_measured() -> None:
    assert SetDifficulty("geo", 3, Thresholds()).as_dict()["mean_pass_rate"] is None


def test_picture(measured: SetDifficulty, tmp_path: Path) -> None:
    plot_difficulty([measured, SetDifficulty("empty", 3, Thresholds())], tmp_path / "difficulty.png")
    assert (tmp_path / "difficulty.png").read_bytes().startswith(b"\x89PNG")


def test_picture_counts_records_in_whole_numbers(measured: SetDifficulty, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    plot_difficulty([measured], Path("difficulty.png"))
    ticks = drawn[0].axes[0].get_yticks()
    assert len(ticks) > 1
    assert all(tick == round(tick) for tick in ticks)
