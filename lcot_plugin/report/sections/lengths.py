"""Length against correctness: how often completions of each length are right, and how long right and wrong ones are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lcot_plugin.report.figures import RangeRow, histogram, ranges
from lcot_plugin.report.page import Html, Section, count, join, paragraph, tag
from lcot_plugin.report.subjects import Answers, Subject, read_answers, set_name

NUM_BINS = 8
MIN_IN_BIN = 20
"""Completions; with fewer, a share says nothing."""
MAX_SETS = 4
"""Evaluation sets of a run that have figures of their own."""
LAST_SHARE = 5
"""The last 1/5 of training's rollouts is looked at: the policy of the first ones is another."""


def section(subjects: Sequence[Subject]) -> Section | None:
    """None where no run has judged completions enough."""
    parts: list[object] = []
    for subject in subjects:
        own = _of_subject(subject)
        if own:
            parts += [*([tag("h3", subject.name)] if len(subjects) > 1 else []), *own]
    if not parts:
        return None
    caution = paragraph(
        "Harder problems take longer completions, so a falling share does not show that length makes them wrong.",
        class_="note",
    )
    return Section("lengths", "Length and correctness", join([caution, *parts]))


def _of_subject(subject: Subject) -> list[Html]:
    chosen: list[tuple[str, Answers]] = []
    for path in subject.run.all_eval_completions[:MAX_SETS]:
        every = read_answers(path)
        if len(every):
            last = int(every.steps.max())
            which = f" on {set_name(path)}" if set_name(path) else ""
            which += f" at step {last:,}" if len(np.unique(every.steps)) > 1 else ""
            chosen.append((f"Evaluation{which}", every.where(every.steps == last)))
    if not chosen and subject.answers is not None and len(subject.answers):
        steps = np.unique(subject.answers.steps)
        first = steps[-max(1, len(steps) // LAST_SHARE)]
        title = f"Training, steps {first:,} to {steps[-1]:,}"
        chosen.append((title, subject.answers.where(subject.answers.steps >= first)))
    parts = [part for title, answers in chosen for part in _figures(title, answers)]
    rest = len(subject.run.all_eval_completions) - MAX_SETS
    if parts and rest > 0:
        parts.append(paragraph(f"{count(rest, 'further evaluation set')} left out here.", class_="note"))
    return parts


def _figures(title: str, answers: Answers) -> list[Html]:
    rows = bins(answers)
    if len(rows) < 2:
        return []
    spread = histogram(
        [
            ("right", "var(--good)", answers.tokens[answers.right]),
            ("wrong", "var(--bad)", answers.tokens[~answers.right]),
        ],
        title="Length of right and of wrong completions",
    )
    by_length = tag(
        "div", tag("b", "Right, by length in tokens "), ranges(rows, "Share of right completions by length in tokens")
    )
    words = (
        f"{title}: {count(len(answers), 'completion')}, parted into lengths of about equal numbers; 95% intervals are "
        "Wilson's, clustered by problem."
    )
    return [paragraph(words, class_="note"), tag("div", tag("div", by_length), tag("div", spread), class_="charts two")]


def bins(answers: Answers) -> list[RangeRow]:
    """Lengths parted where about as many completions lie on either side; equal lengths stay together, and so do so few
    that a share of them would say nothing."""
    lengths, counts = np.unique(answers.tokens, return_counts=True)
    wanted = max(MIN_IN_BIN, len(answers) / NUM_BINS)
    shorter = (np.cumsum(counts) - counts).tolist()  # completions before each length
    starts = [0]
    for place, before in enumerate(shorter):
        if before - shorter[starts[-1]] >= wanted and len(answers) - before >= MIN_IN_BIN:
            starts.append(place)
    places = np.searchsorted(lengths[starts], answers.tokens, side="right")
    rows = []
    for place in np.unique(places):
        own = answers.where(places == place)
        share = own.accuracy()
        assert share is not None
        low, high = int(own.tokens.min()), int(own.tokens.max())
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        rows.append(RangeRow(name, share, "var(--after)", f"{len(own):,}"))
    return rows
