"""Every record that was left out or changed is counted, and the first ones are named."""

from __future__ import annotations

import json
from pathlib import Path

from lcot_plugin.report.data import MAX_EXAMPLES, DataReport
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
