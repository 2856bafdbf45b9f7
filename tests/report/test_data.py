"""Every record that was left out or changed is counted, and the first ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcot_plugin.report.data import MAX_EXAMPLES, DataReport, split_advice
from lcot_plugin.types import Finding, Handling, RecordFault


def make_report() -> DataReport:
    report = DataReport()
    report.add_set("geometry", "geometry.json", 100)
    report.add_set("text", "text.jsonl", 1_000_000)
    for record in range(7):
        report.add("geometry", record, [Finding(RecordFault.MISSING_IMAGE, Handling.DROPPED, f"{record}.png")])
    report.add("geometry", 50, [Finding(RecordFault.UNCLOSED_THOUGHT, Handling.REPAIRED, "...and so")])
    both = [Finding(RecordFault.NO_ANSWER, Handling.REPAIRED), Finding(RecordFault.OVERLONG, Handling.DROPPED, "9 > 8")]
    report.add("geometry", 51, both)
    return report


def test_records_are_counted_once() -> None:
    entry = make_report().sets["geometry"]
    assert (entry.num_records, entry.num_dropped, entry.num_kept) == (100, 8, 92)
    assert entry.counts["missing image", "dropped"] == 7
    assert entry.counts["no answer", "repaired"] == 1


def test_the_table_names_faults_and_first_records() -> None:
    table = make_report().table()
    assert "1,000,000" in table
    lines = table.splitlines()
    assert any("missing image: dropped" in line and " 7 " in line and "record 0: 0.png" in line for line in lines)
    assert lines[1].split()[:3] == ["geometry", "100", "92"]


def test_it_is_written_whole(tmp_path: Path) -> None:
    path = make_report().write(tmp_path / "new")
    written = json.loads(path.read_text())
    assert written["geometry"]["dropped"] == 8
    faults = {finding["fault"]: finding for finding in written["geometry"]["findings"]}
    assert faults["missing image"]["count"] == 7
    assert len(faults["missing image"]["examples"]) == MAX_EXAMPLES
    assert written["text"] == {
        "file": "text.jsonl",
        "records": 1_000_000,
        "kept": 1_000_000,
        "dropped": 0,
        "mixed_in": 0,
        "notes": [],
        "findings": [],
    }


def test_a_clean_run_has_no_findings() -> None:
    report = DataReport()
    report.add_set("x", "x.json", 3)
    report.add("x", 0, [])
    assert report.num_findings == 0
    assert report.sets["x"].num_kept == 3


def test_mixing_is_part_of_the_sum() -> None:
    report = DataReport()
    report.add_set("x", "x.json", 10)
    report.add_mixed("x", -4)
    report.add("x", 1, [Finding(RecordFault.OVERLONG, Handling.DROPPED, "long")])
    assert report.sets["x"].num_kept == 5
    assert "mix_strategy" in report.table() and "-4" in report.table()


def test_a_set_that_cannot_be_used_keeps_nothing() -> None:
    report = DataReport()
    report.add_set("x", "x.json", 20)
    report.add_error("x", "wrong columns")
    report.add_error("y", "no such file")
    assert [line.split() for line in report.table().splitlines()[1:]] == [
        ["x", "20", "0", "cannot", "be", "read"],
        ["y", "0", "0", "cannot", "be", "read"],
    ]
    written = report.as_dict()
    assert (written["x"]["kept"], written["x"]["error"], written["y"]["error"]) == (0, "wrong columns", "no such file")


def test_advice_stands_once_below_the_table() -> None:
    report = DataReport()
    report.add_set("x", "x.json", 20)
    found, advice = "/a/long/folder/of/somebody/img.png", "check that media_dir is right."
    for fault in (RecordFault.MISSING_IMAGE, RecordFault.OUTSIDE_MEDIA_DIR):
        report.add("x", 3, [Finding(fault, Handling.DROPPED, f"img.png: {found} does not exist; {advice}")])
    table = report.table()
    assert table.count("record 3: .../img.png does not exist [1]") == 2
    assert table.splitlines()[-1] == f"[1] {advice}"
    assert report.table(faults=False).splitlines()[1:] == table.splitlines()[1:2]


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("a.png does not exist: check the path, or set media_dir.", ("a.png does not exist", "check the path, or set")),
        ("b/a.png: /c/b/a.png does not exist; check it", ("/c/b/a.png does not exist", "check it")),
        ("12 tokens, cutoff_len is 8", ("12 tokens, cutoff_len is 8", "")),
        ("", ("", "")),
    ],
)
def test_what_to_do_is_told_from_what_is_wrong(detail: str, expected: tuple[str, str]) -> None:
    fact, advice = split_advice(detail)
    assert (fact, advice.startswith(expected[1])) == (expected[0], True)


def test_notes_are_named_by_their_set() -> None:
    report = DataReport()
    report.add_set("x", "x.json", 3).notes.append("read as lcot_tagged")
    assert report.notes_text() == "x: read as lcot_tagged"
