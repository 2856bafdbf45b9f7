"""Several runs beside each other: accuracies against the first, curves over each other, arguments that differ."""

from __future__ import annotations

from collections.abc import Sequence

from lcot_plugin.report.evaluations import Evaluation, by_set, compare, nearly_whole
from lcot_plugin.report.intervals import percent, percents
from lcot_plugin.report.page import Html, Section, count, join, listed, paragraph, table, tag
from lcot_plugin.report.panels import compared_panels
from lcot_plugin.report.sections.configuration import value_cell, value_text
from lcot_plugin.report.sections.curves import charts
from lcot_plugin.report.sections.headline import difference_cells
from lcot_plugin.report.subjects import Subject

ABSENT = Html('<span class="soft">-</span>')
UNIMPORTANT = ("output_dir", "overwrite_output_dir", "run_name", "logging_dir")
"""Arguments that differ between any two runs and change nothing."""


def section(subjects: Sequence[Subject]) -> Section | None:
    """None for a single run."""
    if len(subjects) < 2:
        return None
    parts = [*_accuracies(subjects), *_curves(subjects), *_arguments(subjects)]
    return Section("comparison", "Comparison", join(parts)) if parts else None


def _accuracies(subjects: Sequence[Subject]) -> list[Html]:
    """Every run's last evaluation of a set of problems against the first run's."""
    parts: list[Html] = []
    for same in by_set([evaluation for subject in subjects for evaluation in subject.evaluations]):
        last = list({evaluation.run: evaluation for evaluation in nearly_whole(same)}.values())
        if len(last) > 1:
            parts += [tag("h3", f"Accuracy on {_set_title(last[0])}"), _against_first(last)]
    if parts:
        words = (
            "Differences are to the first run, in points. Where the same problems were evaluated they are paired by "
            "problem, over those that both were asked (Bonett and Price's interval, McNemar's exact test of gained "
            "against lost), else the interval is Newcombe's for two independent shares. p values are not corrected for "
            "several comparisons."
        )
        parts.append(paragraph(words, class_="note"))
    return parts


def _against_first(last: Sequence[Evaluation]) -> Html:
    rows: list[list[object]] = []
    for evaluation in last:
        share = evaluation.accuracy()
        if share is None:
            continue
        cells: list[object] = [
            evaluation.run,
            f"{evaluation.step:,}",
            f"{share.num_problems:,}",
            join([tag("b", percent(share.value)), f" {percents(share.interval)}"]),
        ]
        difference = compare(last[0], evaluation) if evaluation is not last[0] else None
        if difference is None:
            rows.append([*cells, "", "", "", ""])
            continue
        how = f"paired, {difference.num_problems:,}" if difference.paired else "unpaired"
        rows.append([*cells, *difference_cells(difference), how])
    headings = ("run", "step", "problems", "accuracy", "difference, points", "gained / lost", "p", "how")
    return table(headings, rows, label="Accuracy of every run against the first")


def _set_title(evaluation: Evaluation) -> str:
    return evaluation.set_name or listed(evaluation.sources)


def _curves(subjects: Sequence[Subject]) -> list[Html]:
    """Of the runs of one stage: losses and rewards of different ones are no more than called the same."""
    parts: list[Html] = []
    stages = list(dict.fromkeys(subject.stage for subject in subjects if subject.trained))
    for stage in stages:
        runs = {s.name: s.run.metrics for s in subjects if s.trained and s.stage == stage}
        panels = compared_panels(runs, stage) if len(runs) > 1 else []
        if panels:
            title = "Curves over each other" + (f": {stage}" if len(stages) > 1 else "")
            words = "One line per run, of what two runs or more have logged. Bold: the mean of the last fifteenth."
            parts += [tag("h3", title), paragraph(words, class_="note"), charts(panels)]
    return parts


def _arguments(subjects: Sequence[Subject]) -> list[Html]:
    """Of the runs of one kind: between a training and an evaluation nearly everything differs."""
    parts: list[Html] = []
    kinds = list(dict.fromkeys(_kind(subject) for subject in subjects))
    for kind in kinds:
        own = [subject for subject in subjects if _kind(subject) == kind]
        if len(own) > 1:
            parts += _arguments_of_kind(own, f": {kind}" if len(kinds) > 1 else "")
    return parts


def _kind(subject: Subject) -> str:
    return f"{subject.stage} training" if subject.trained else "evaluations"


def _arguments_of_kind(subjects: Sequence[Subject], ending: str) -> list[Html]:
    known = [subject for subject in subjects if subject.run.record]
    if len(known) < 2:
        return []
    missing = [subject.name for subject in subjects if not subject.run.record]
    rows, num_equal = differing(known)
    title = tag("h3", f"Arguments that differ{ending}")
    words = f"{count(num_equal, 'further argument')}, versions and hardware among them, equal in all."
    if missing:
        words += f" Not recorded by {listed(missing)}."
    note = paragraph(words, class_="note")
    if not rows:
        return [title, paragraph("None."), note]
    headings = ("key", *(subject.name for subject in known))
    body = [[key, *(value_cell(value) if present else ABSENT for present, value in values)] for key, values in rows]
    columns = tuple(range(len(headings)))
    return [title, table(headings, body, label="Arguments that differ", words=columns, class_="arguments"), note]


def differing(subjects: Sequence[Subject]) -> tuple[list[tuple[str, list[tuple[bool, object]]]], int]:
    """Arguments, and facts of the machine, that are not equal in all runs: (key, (written, value) of each run); and how
    many are."""
    columns = []
    for subject in subjects:
        record = subject.run.record
        column = {str(key): value for key, value in (record.get("arguments") or {}).items()}
        column |= {f"version of {key}": value for key, value in (record.get("versions") or {}).items()}
        column |= {f"hardware: {key}": value for key, value in (record.get("hardware") or {}).items()}
        columns.append({key: value for key, value in column.items() if key not in UNIMPORTANT})
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = []
    for key in keys:
        values = [(key in column, column.get(key)) for column in columns]
        if len({(present, value_text(value)) for present, value in values}) > 1:
            rows.append((key, values))
    return rows, len(keys) - len(rows)
