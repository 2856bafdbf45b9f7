"""The curves of every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcot_plugin.report.charts import Mark
from lcot_plugin.report.page import Html, Section, count, folded, join, listed, paragraph, tag
from lcot_plugin.report.panels import Panel, is_finite, not_drawn, run_panels
from lcot_plugin.report.subjects import Subject

MAX_NAMES = 40


def section(subjects: Sequence[Subject], room: int) -> Section | None:
    """None where no run has logged anything that is drawn. room: bytes for all runs; who has none left is told."""
    drawn = []
    for subject in subjects:
        part = run_curves(subject)
        if part is None:
            continue
        size = len(part.encode("utf-8", "replace"))
        if size <= room:
            room -= size
        else:
            part = paragraph(f"These curves would take {size / 1e6:,.1f} MB and have no room on this page.")
        drawn.append((subject, part))
    if not drawn:
        return None
    if len(drawn) == 1 and len(subjects) == 1:
        body = drawn[0][1]
    else:
        body = join(folded(f"Curves of {subject.name}", part, open_=len(drawn) == 1) for subject, part in drawn)
    return Section("curves", "Curves", body)


def run_curves(subject: Subject) -> Html | None:
    """One run's charts; None where there are none."""
    if not subject.trained:
        return None  # an evaluation is a point, and stands in the results
    metrics = subject.run.metrics
    marks = [Mark(alarm["step"], str(alarm.get("name", "alarm")).replace("_", " ")) for alarm in known_steps(subject)]
    panels = run_panels(metrics, subject.stage, marks=marks)
    if not panels:
        return None
    words = f"{count(len(metrics), 'log')}. Pale: every value; bold: the mean of the last fifteenth of them."
    if marks:
        words += " Dotted upright lines: alarms."
    rest = not_drawn(metrics)
    left = f"Also logged, not drawn: {listed(rest, MAX_NAMES)}." if rest else ""
    return join([paragraph(words, class_="note"), charts(panels), paragraph(left, class_="note") if left else ""])


def charts(panels: Sequence[Panel]) -> Html:
    """Panels beside each other, with what they tell."""
    shown = (tag("div", Html(panel.svg), paragraph(panel.explanation)) for panel in panels)
    return tag("div", *shown, class_="charts")


def known_steps(subject: Subject) -> list[dict[str, Any]]:
    return [alarm for alarm in subject.run.alarms if is_finite(alarm.get("step"))]
