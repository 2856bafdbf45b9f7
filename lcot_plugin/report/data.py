"""Findings of the loaded data sets in, one table for the log and `data_report.json` out.

The loading of data adds to it; the run's log, its output folder, `lcot data` and the HTML report show it. Nothing is
left out of training without standing here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcot_plugin.types import Finding, Handling

DATA_REPORT_FILE = "data_report.json"
MAX_EXAMPLES = 5
"""Records named per data set, fault and handling; the others are counted."""
ADVICE = re.compile(
    r"(?P<fact>.*?)[:;.] (?P<advice>(?:add|check|convert|download|give|leave|lower|mark|move|name|put|raise|remove|set|"
    r"shuffle|use|write)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
"""`a.png does not exist: check the path`."""
FOLDERS = re.compile(r"(?<![\w./])/(?:[^/\s:;,'\"]+/){2,}")
"""The folders of an absolute path."""
TWICE = re.compile(r"(?P<path>.+?): (?P<found>/.+) does not exist\.?")
"""A path as written, and where it was looked for."""


@dataclass
class SetReport:
    """What became of one data set."""

    file: str = ""
    num_records: int = 0
    num_dropped: int = 0
    num_mixed_in: int = 0
    """Repetitions that `mix_strategy: interleave_...` added; negative where it left records out."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(fault, handling) -> number of records."""
    examples: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)
    """(fault, handling) -> (record, detail) of the first few."""
    notes: list[str] = field(default_factory=list)
    """What was decided for the whole set: the schema that `lcot_auto` recognised."""
    error: str = ""
    """Why nothing of the set can be used; empty where something can."""

    @property
    def num_kept(self) -> int:
        return 0 if self.error else self.num_records + self.num_mixed_in - self.num_dropped


class DataReport:
    """Counts what happened to the records of each data set."""

    def __init__(self) -> None:
        self.sets: dict[str, SetReport] = {}

    def add_set(self, source: str, file: str, num_records: int) -> SetReport:
        """Counts `num_records` more records of `source`, before anything is left out of them."""
        entry = self.sets.setdefault(source, SetReport(file))
        entry.num_records += num_records
        return entry

    def add_mixed(self, source: str, num_records: int) -> None:
        """Counts what joining several sets by `mix_strategy` added to `source`, or took from it (below 0)."""
        self.sets.setdefault(source, SetReport()).num_mixed_in += num_records

    def add(self, source: str, record: int, findings: list[Finding]) -> None:
        """Counts the findings of one record; it is dropped at most once."""
        entry = self.sets.setdefault(source, SetReport())
        for finding in findings:
            key = (finding.fault.value, finding.handling.value)
            entry.counts[key] += 1
            examples = entry.examples.setdefault(key, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append((record, finding.detail))
        entry.num_dropped += any(finding.handling is Handling.DROPPED for finding in findings)

    def add_error(self, source: str, error: str) -> None:
        """Counts a data set that cannot be used at all."""
        self.sets.setdefault(source, SetReport()).error = error

    @property
    def num_findings(self) -> int:
        return sum(sum(entry.counts.values()) for entry in self.sets.values())

    def notes_text(self) -> str:
        """`train: read as lcot_tagged...`, one line per note; for a terminal."""
        return "\n".join(f"{source}: {note}" for source, entry in self.sets.items() for note in entry.notes)

    def table(self, *, faults: bool = True) -> str:
        """One line per data set, then one per fault with an example, what to do about them below; for a terminal.

        Without `faults` the sets alone, where the faults are listed elsewhere.
        """
        advices: dict[str, int] = {}
        rows = [("data set", "records", "kept", "what", "count", "first")]
        for source, entry in sorted(self.sets.items()):
            # Where every record was left out, the faults below say so.
            what = "cannot be read" if entry.error and not entry.num_dropped else ""
            rows.append((source, f"{entry.num_records:,}", f"{entry.num_kept:,}", what, "", ""))
            if entry.num_mixed_in:
                rows.append(("", "", "", "repeated or left out by mix_strategy", f"{entry.num_mixed_in:+,}", ""))
            counts = entry.counts if faults else {}
            for (fault, handling), count in sorted(counts.items(), key=lambda item: -item[1]):
                record, detail = entry.examples[fault, handling][0]
                fact, advice = split_advice(detail)
                mark = f" [{advices.setdefault(advice, len(advices) + 1)}]" if advice else ""
                first = f"record {record}: {_short(fact)}{mark}" if fact else f"record {record}"
                rows.append(("", "", "", f"{fault}: {handling}", f"{count:,}", first))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                # Numbers to the right.
                cell.rjust(width) if column in (1, 2, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, [*widths, 0], strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *(f"[{number}] {advice}" for advice, number in advices.items())])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every count, and the first records of each kind."""
        return {
            source: {
                "file": entry.file,
                "records": entry.num_records,
                "kept": entry.num_kept,
                "dropped": entry.num_dropped,
                "mixed_in": entry.num_mixed_in,
                "notes": entry.notes,
                **({"error": entry.error} if entry.error else {}),
                "findings": [
                    {
                        "fault": fault,
                        "handling": handling,
                        "count": count,
                        "examples": [
                            {"record": record, "detail": detail} for record, detail in entry.examples[fault, handling]
                        ],
                    }
                    for (fault, handling), count in sorted(entry.counts.items(), key=lambda item: -item[1])
                ],
            }
            for source, entry in sorted(self.sets.items())
        }

    def write(self, folder: Path) -> Path:
        """Writes `data_report.json` into `folder` and returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DATA_REPORT_FILE
        path.write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return path


def split_advice(detail: str) -> tuple[str, str]:
    """(what is wrong, what to do about it) of a finding's detail; the latter is empty where it says nothing.

    A path that is given as written and as it was looked for is given once.
    """
    fact, advice = " ".join(detail.split()), ""
    if found := ADVICE.fullmatch(fact):
        fact, advice = found["fact"], found["advice"]
    if (found := TWICE.fullmatch(fact)) and found["found"].endswith(f"/{found['path'].removeprefix('./')}"):
        fact = f"{found['found']} does not exist"
    return fact, advice


def _short(text: str, limit: int = 90) -> str:
    """Without the folders of absolute paths, which would leave no room for what is said of the file."""
    line = FOLDERS.sub(".../", " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."
