"""`lcot report`: folders of runs in, one HTML file that needs no other out.

    folders --subjects--> Subjects --sections.*--> Sections --page--> report.html

The file stays below MAX_BYTES: pictures and the texts of rollouts are what grows most, and have a budget each of what
curves and tables leave, which can be of hundreds of data sets. What had no room is said on the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lcot_plugin.errors import ArgumentError, LcotError
from lcot_plugin.report.page import Html, Section, count, join, listed, page, paragraph, tag
from lcot_plugin.report.rollout_view import css
from lcot_plugin.report.sections import alarms, comparison, configuration, curves, data, headline, lengths, rollouts
from lcot_plugin.report.subjects import Subject, load_subjects

REPORT_FILE = "report.html"
MAX_BYTES = 20_000_000
"""Of the whole file."""
PICTURE_BYTES = 9_000_000
ROLLOUT_BYTES = 6_000_000
"""Of the rollouts' texts; both for all runs together."""
FRAME_BYTES = 1_000_000
"""Styles, script, contents and foot, and what is written around the rollouts."""
MAX_ROLLOUTS = 20
"""Groups of a run, unless the user says otherwise."""


@dataclass(frozen=True)
class Written:
    """What became of it."""

    path: Path
    num_bytes: int
    num_runs: int
    notes: list[str]
    """What was left out."""


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    title: str | None = None,
    max_rollouts: int = MAX_ROLLOUTS,
    made_by: str = "lcot-plugin",
    progress: Callable[[str], None] = lambda _: None,
) -> Written:
    """Writes the report of some runs.

    folders: of runs, or of folders that hold runs. out: the file; by default `report.html` in the only run's folder, or
    in the folder that all runs are in. max_rollouts: groups shown of each run. made_by: name and version of
    the program, for the page's foot. progress: told what is being done.

    Raises LcotError where a folder holds no run or the file cannot be written.
    """
    if not folders:
        raise ArgumentError("Name the output_dir of a run, or several.")
    if max_rollouts < 0:
        raise ArgumentError(f"--max-rollouts {max_rollouts}: write 0 or more.")
    subjects, notes = load_subjects(folders, progress)
    path = out if out is not None else default_path(folders, subjects)
    if path.is_dir():
        path = path / REPORT_FILE
    text = report_html(subjects, notes, title=title, max_rollouts=max_rollouts, made_by=made_by, progress=progress)
    progress(f"Writing {path}")
    encoded = text.encode("utf-8", "replace")  # half a surrogate pair is what a model may well write
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(encoded)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise LcotError(f"{path} cannot be written: {error.strerror}. Name another file with -o.") from error
    return Written(path, len(encoded), len(subjects), notes)


def report_html(
    subjects: Sequence[Subject],
    notes: Sequence[str] = (),
    *,
    title: str | None = None,
    max_rollouts: int = MAX_ROLLOUTS,
    made_by: str = "lcot-plugin",
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """The page of some runs. notes: what was left out before."""
    progress("Computing results")
    result: Section | None = headline.section(subjects)
    progress("Drawing curves")
    parts = [result, *(part.section(subjects) for part in (comparison, alarms, data, lengths, configuration))]
    room = MAX_BYTES - FRAME_BYTES
    result, compared, *middle, configured = fitting(parts, room)
    room -= sum(map(size, (result, compared, *middle, configured)))
    drawn = curves.section(subjects, room)
    room -= size(drawn)
    # Rollouts take what the rest leaves.
    texts = min(ROLLOUT_BYTES, room * 2 // 5)
    budget = rollouts.Budget(texts, min(PICTURE_BYTES, room - texts))
    read = rollouts.section(subjects, max_rollouts, budget, progress) if max_rollouts else None
    sections = [s for s in (result, compared, drawn, *middle, read, configured) if s is not None]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    names = listed([subject.name for subject in subjects])
    subtitle = f"{count(len(subjects), 'run')}: {names}. Written {now}." if len(subjects) > 1 else f"Written {now}."
    return page(title or _title(subjects), subtitle, sections, _foot(made_by, notes), styles=css())


def size(section: Section | None) -> int:
    """Bytes of its body."""
    return len(section.body.encode("utf-8", "replace")) if section is not None else 0


def fitting(sections: Sequence[Section | None], room: int) -> list[Section | None]:
    """The same; those that would take more than is left of `room` bytes say so instead."""
    fitted: list[Section | None] = []
    for section in sections:
        if section is not None and size(section) > room:
            words = f"This part would take {size(section) / 1e6:,.1f} MB and has no room on this page: name fewer runs."
            fitted.append(Section(section.anchor, section.title, paragraph(words)))
        else:
            fitted.append(section)
            room -= size(section)
    return fitted


def default_path(folders: Sequence[Path], subjects: Sequence[Subject]) -> Path:
    """Where the report goes if the user does not say."""
    if len(folders) == 1:
        return folders[0] / REPORT_FILE
    shared = os.path.commonpath([subject.run.folder.resolve() for subject in subjects])
    here = Path.cwd()
    # Not at the root of a disk, nor above where the user is.
    return (Path(shared) if Path(shared).is_relative_to(here) else here) / REPORT_FILE


def _title(subjects: Sequence[Subject]) -> str:
    return f"Training report: {listed([subject.name for subject in subjects], 3)}"


def _foot(made_by: str, notes: Sequence[str]) -> Html:
    how = [
        "All intervals are of 95% confidence. Shares: Wilson's score interval; with several samples of a problem at "
        "the effective number of samples, computed from how the problems differ.",
        "An answer that is missing, or whose comparison ran out of time, counts as wrong. Problems whose gold answer "
        "cannot be read are left out, and counted.",
        f"Pictures are scaled down to {rollouts.PICTURE_SIDE} pixels; this file loads nothing from elsewhere.",
        *notes,
    ]
    made = paragraph(f"Made by lcot report, {made_by}.")
    return join([tag("ul", *(tag("li", line) for line in how)), made])
