"""What became of the data sets' records, and what truncation cost, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lcot_plugin.report.data import split_advice
from lcot_plugin.report.intervals import percent
from lcot_plugin.report.page import Html, Section, count, join, paragraph, table, tag
from lcot_plugin.report.subjects import Answers, Subject


def section(subjects: Sequence[Subject]) -> Section | None:
    """None where no run has a data report or judged completions."""
    parts: list[object] = []
    for subject in subjects:
        own = [*_records(subject), *_truncation(subject)]
        if own:
            parts += [*([tag("h3", subject.name)] if len(subjects) > 1 else []), *own]
    return Section("data", "Data and truncation", join(parts)) if parts else None


def _records(subject: Subject) -> list[Html]:
    """data_report.json: every data set, and every fault that was found with its handling."""
    report = subject.run.data_report
    if not report:
        return []
    sets: list[list[Any]] = []
    faults: list[list[Any]] = []
    notes = []
    for source, entry in report.items():
        if not isinstance(entry, dict):
            continue
        records, kept, dropped = (int(entry.get(key) or 0) for key in ("records", "kept", "dropped"))
        share = percent(dropped / records) if records else "-"
        mixed = int(entry.get("mixed_in") or 0)
        sets.append([source, f"{records:,}", f"{dropped:,} ({share})", f"{mixed:+,}" if mixed else "0", f"{kept:,}"])
        notes += [f"{source}: {note}" for note in entry.get("notes") or []]
        if entry.get("error"):
            notes.append(f"{source} cannot be used: {entry['error']}")
        for finding in entry.get("findings") or []:
            example = (finding.get("examples") or [{}])[0]
            fact, _ = split_advice(str(example.get("detail", "")))
            first = f"record {example['record']}: {fact}" if "record" in example else "-"
            what = [source, finding.get("fault", ""), finding.get("handling", ""), f"{finding.get('count', 0):,}"]
            faults.append([*what, first])
    if not sets:
        return []
    parts = [
        table(
            ("data set", "records", "left out", "repeated or left out by mixing", "used"),
            sets,
            label="Records of each data set",
        )
    ]
    if faults:
        headings = ("data set", "what was found", "what was done", "records", "the first")
        parts.append(table(headings, faults, label="Faults of the data", words=(0, 1, 2, 4)))
    else:
        parts.append(paragraph("No faults were found in the records.", class_="note"))
    return [*parts, *(paragraph(note, class_="note") for note in notes)]


def _truncation(subject: Subject) -> list[Html]:
    """Completions that reached their limit, by data set, in training; evaluations have them in their own table."""
    answers = subject.answers
    if answers is None or not len(answers):
        return []
    rows = []
    names = [(answers.source_names[place], answers.sources == place) for place in np.unique(answers.sources)]
    for name, chosen in [*names, *([("all", np.ones(len(answers), bool))] if len(names) > 1 else [])]:
        own = answers.where(chosen)
        rows.append(
            [
                name or "not named",
                f"{len(own):,}",
                _share(own.truncated),
                _share(own.truncated[own.right]),
                _share(own.truncated[~own.right]),
                f"{np.median(own.tokens):,.0f}",
                f"{np.percentile(own.tokens, 90, method='higher'):,.0f}",
                f"{own.tokens.max():,.0f}",
            ]
        )
    headings = ("data set", "completions", "truncated", "of the right", "of the wrong", "median", "90%", "longest")
    return [
        table(headings, rows, label="Truncated completions in training"),
        paragraph(
            "Completions of training: share that reached max_new_tokens, and lengths in tokens. " + _unjudged(answers),
            class_="note",
        ),
    ]


def _unjudged(answers: Answers) -> str:
    if not answers.num_unjudged:
        return ""
    without = count(answers.num_unjudged, "completion")
    return f"{without} without a verdict, or whose gold answer cannot be read, left out."


def _share(truncated: np.ndarray) -> str:
    return percent(float(truncated.mean())) if len(truncated) else "-"
