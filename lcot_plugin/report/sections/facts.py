"""What the runs were, shortly: state, steps, time, model, data; and in its own words why one has ended early."""

from __future__ import annotations

from collections.abc import Sequence

from lcot_plugin.report.page import Html, chips, duration, join, listed, paragraph, shortened, table, tag
from lcot_plugin.report.panels import is_finite
from lcot_plugin.report.subjects import Subject

STATES = {"stopped": "stopped by a signal"}
"""What a state is called whose own name says too little."""


def ends(subjects: Sequence[Subject]) -> list[Html]:
    """Why a run has ended before it had done all, in its own words."""
    parts = []
    for subject in subjects:
        message = (subject.run.progress or {}).get("message")
        if isinstance(message, str) and message and subject.run.state in ("failed", "stopped"):
            name = f"{subject.name}: " if len(subjects) > 1 else ""
            state = STATES.get(subject.run.state, subject.run.state)
            parts.append(paragraph(tag("b", f"{name}{state}. "), shortened(message)))
    return parts


def runs_table(subjects: Sequence[Subject]) -> Html:
    """The facts of every run; those of a single one as chips."""
    if len(subjects) == 1:
        return chips(run_facts(subjects[0]))
    columns = [dict(run_facts(subject)) for subject in subjects]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    rows = [[s.name, *(facts.get(name, "-") for name in names)] for s, facts in zip(subjects, columns, strict=True)]
    shown = table(("run", *names), rows, label="The runs", words=range(len(names) + 1))
    return join([tag("h3", "Runs"), shown])


def run_facts(subject: Subject) -> list[tuple[str, object]]:
    """What a run was, shortly: state, steps, time, completions, model, data."""
    run, record = subject.run, subject.run.record
    facts: list[tuple[str, object]] = []
    if run.state:
        facts.append(("state", STATES.get(run.state, run.state)))
    facts.append(("stage", subject.stage if subject.trained else f"{subject.stage}, evaluation only"))
    if subject.last_step is not None:
        of = f" of {subject.max_steps:,}" if subject.max_steps and subject.max_steps != subject.last_step else ""
        facts.append(("optimizer steps", f"{subject.last_step:,}{of}"))
    if subject.seconds is not None:
        facts.append(("time", duration(subject.seconds)))
    remaining = (run.progress or {}).get("remaining_seconds")
    if run.state == "running" and is_finite(remaining):
        facts.append(("time left, about", duration(remaining)))
    if run.completions is not None and subject.answers is not None:
        facts.append(("completions", f"{len(subject.answers) + subject.answers.num_unjudged:,}"))
    for name, key in (("model", "model"), ("fine-tuning", "finetuning_type"), ("template", "template")):
        if record.get(key):
            facts.append((name, _short_path(str(record[key]))))
    names = [str(name) for key in ("datasets", "eval_datasets") for name in record.get(key) or []]
    if names:
        facts.append(("data", listed(list(dict.fromkeys(names)), 3)))
    if run.alarms:
        facts.append(("alarms", tag("a", f"{len(run.alarms):,}", href="#alarms")))
    return facts


def _short_path(path: str) -> str:
    """The last two parts of a path: a hub name stays whole."""
    return "/".join(path.rstrip("/").split("/")[-2:])
