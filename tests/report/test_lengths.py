"""The tables count right, and the picture has a panel for each kind of tokens that there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lcot_plugin.report import lengths
from lcot_plugin.report.lengths import SetLengths, as_dict, cutoff_table, length_table, num_longer, plot_lengths


def sets() -> list[SetLengths]:
    thoughts = np.array([100, 200, 300, 9000])
    images = np.array([0, 500, 500, 500])
    return [
        SetLengths(
            "long",
            {
                "prompt": np.full(4, 20),
                "image": images,
                "thought": thoughts,
                "answer": np.full(4, 10),
                "total": thoughts + images + 30,
            },
        ),
        SetLengths("prompts", {"prompt": np.array([7]), "image": np.array([0]), "total": np.array([7])}),
    ]


def cells(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.split()[:1] == [name]]
    return line.split()[1:]


def test_lengths_of_each_kind() -> None:
    table = length_table(sets()[:1])
    assert table.splitlines()[0].split()[-6:] == ["records", "mean", "p50", "p90", "p99", "max"]
    assert cells(table, "long") == ["4"]
    # A percentile is the length of a record, of two the longer one.
    assert cells(table, "thought") == ["2,400", "300", "9,000", "9,000", "9,000"]
    assert cells(table, "answer") == ["10"] * 5
    assert "thought" not in length_table(sets()[1:])


def test_what_each_cutoff_leaves_out() -> None:
    table = cutoff_table(sets(), 730)
    assert table.splitlines()[0].split()[3:6] == ["730", "(yours)", "1,024"]
    assert cells(table, "long") == ["2", "(50.0%)", *["1", "(25.0%)"] * 4, *["0", "(0%)"] * 2]
    assert cells(table, "prompts") == ["0", "(0%)"] * 7
    assert cells(table, "all")[:4] == ["2", "(40.0%)", "1", "(20.0%)"]
    assert num_longer(sets()[0], 730) == 2, "a record of exactly cutoff_len tokens is not longer"


def test_a_share_below_the_last_digit_is_not_zero() -> None:
    totals = np.full(10_000, 10)
    totals[0] = 2000
    assert cells(cutoff_table([SetLengths("many", {"total": totals})], 1024), "many")[:2] == ["1", "(<0.1%)"]


def test_both_tables_as_json() -> None:
    written = as_dict(sets(), 730)["long"]
    assert written["tokens"]["thought"] == {"mean": 2400.0, "p50": 300, "p90": 9000, "p99": 9000, "max": 9000}
    assert written["longer_than"]["730"] == 2
    assert set(written["longer_than"]) == {"730", *map(str, lengths.CUTOFFS)}


@pytest.mark.parametrize(("chosen", "panels"), [(slice(0, 2), 5), (slice(1, 2), 2)], ids=["both", "prompts only"])
def test_the_picture_has_a_panel_per_kind(chosen: slice, panels: int, tmp_path: Path) -> None:
    path = tmp_path / "lengths.png"
    plot_lengths(sets()[chosen], 1024, path)
    with Image.open(path) as image:
        assert image.height == pytest.approx(150 * (1.9 * panels + 0.9), abs=2)
        assert len(image.convert("RGB").getcolors(2**20) or []) > 10


@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_record_falls_into_a_bin(logarithmic: bool) -> None:
    for values in (np.array([7]), np.array([1, 2, 3]), np.arange(1, 70_000, 13)):
        edges = lengths._edges(values, logarithmic)
        assert (np.diff(edges) > 0).all()
        assert np.histogram(values, edges)[0].sum() == len(values)
