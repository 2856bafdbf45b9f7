"""What a report is about: folders in, runs with their evaluations and completions out, each under a name of its own.

In: folders as the user gave them, each a run or a folder of runs. Out: `Subject`s in the order given, those that were
found in a folder by when they were started. Consumer: run_report and its sections.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lcot_plugin.errors import DataError, LcotError
from lcot_plugin.report.completions import COMPLETIONS_FILE
from lcot_plugin.report.completions_index import CompletionsIndex
from lcot_plugin.report.data import DATA_REPORT_FILE
from lcot_plugin.report.evaluations import JUDGED, Evaluation, read_evaluations
from lcot_plugin.report.intervals import Share, share_of
from lcot_plugin.report.masking import masked
from lcot_plugin.report.panels import is_finite
from lcot_plugin.report.run_log import RUN_FILE
from lcot_plugin.report.runs import Run, find_runs, holds_run, modified, read_run, seconds_of
from lcot_plugin.types import Ending, Outcome

RECORD_KINDS = {
    **dict.fromkeys(("arguments", "plan", "versions", "hardware"), dict),
    **dict.fromkeys(("datasets", "eval_datasets"), list),
}
DATA_REPORT_KINDS = {
    **dict.fromkeys(("records", "kept", "dropped", "mixed_in"), int),
    **dict.fromkeys(("notes", "findings"), list),
}
"""What stands under the keys of run.json, and of each data set in data_report.json, where they are there."""
MAX_RUNS = 12
"""Of folders that are searched: the newest ones."""
SET_NAME = re.compile(rf"eval_(.+)_{re.escape(COMPLETIONS_FILE)}")


@dataclass(frozen=True)
class Answers:
    """Completions as columns [N], those whose verdict says right or wrong."""

    steps: np.ndarray
    problems: np.ndarray
    """A number for each prompt, the same wherever that is answered."""
    sources: np.ndarray
    """Numbers into source_names."""
    right: np.ndarray
    """bool."""
    truncated: np.ndarray
    """bool."""
    tokens: np.ndarray
    source_names: list[str]
    num_unjudged: int = 0
    """Completions without a verdict, or whose gold answer cannot be read: not among these."""

    def __len__(self) -> int:
        return len(self.steps)

    def where(self, chosen: np.ndarray) -> Answers:
        """Those that are chosen; bool [N]."""
        names = ("steps", "problems", "sources", "right", "truncated", "tokens")
        return replace(self, num_unjudged=0, **{name: getattr(self, name)[chosen] for name in names})

    def accuracy(self) -> Share | None:
        """Of all of them, the interval taken over prompts. None where there are none."""
        if not len(self):
            return None
        _, places = np.unique(self.problems, return_inverse=True)
        counts = np.bincount(places)
        rights = np.bincount(places, weights=self.right).astype(int)
        return share_of(list(zip(rights.tolist(), counts.tolist(), strict=True)))


@dataclass
class Subject:
    """One run of the report."""

    name: str
    """Unlike the others' of the report."""
    run: Run
    evaluations: list[Evaluation] = field(default_factory=list)
    """By set and step."""

    @property
    def stage(self) -> str:
        """`grpo`, `sft`...; guessed where the run does not say."""
        written = self.run.record.get("stage")
        if isinstance(written, str) and written:
            return written
        known = self.run.completions or self.evaluations or any("reward" in entry for entry in self.run.metrics)
        return "grpo" if known else "sft"

    @property
    def trained(self) -> bool:
        """Whether there was training; otherwise the run only evaluated."""
        return self.run.completions is not None or any("loss" in entry for entry in self.run.metrics)

    @property
    def last_step(self) -> int | None:
        """Optimizer steps done, as far as the log goes."""
        steps = [int(entry["step"]) for entry in self.run.metrics if is_finite(entry.get("step"))]
        return max(steps, default=None) if self.trained else None

    @property
    def max_steps(self) -> int | None:
        value = (self.run.progress or {}).get("max_steps")
        return int(value) if is_finite(value) and value > 0 else None

    @property
    def seconds(self) -> float | None:
        """From the start to the last log; None where the run has not said when that was."""
        started = started_at(self.run)
        times = [entry["time"] for entry in self.run.metrics if is_finite(entry.get("time"))]
        if started is None:
            return times[-1] - times[0] if len(times) > 1 else None
        return times[-1] - started if times and times[-1] >= started else None

    @cached_property
    def answers(self) -> Answers | None:
        """Of training; None where the run kept no completions."""
        return read_answers(self.run.completions) if self.run.completions else None


def load_subjects(
    folders: Sequence[Path], progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Subject], list[str]]:
    """The runs of the folders, and in words what was left out.

    Raises DataError for a folder without any run, and for a run that was named and cannot be read.
    """
    found: list[Path] = []
    notes: list[str] = []
    searched: set[Path] = set()
    for folder in folders:
        runs = [folder] if not folder.is_dir() or holds_run(folder) else find_runs(folder)
        if not runs:
            raise DataError(
                f"{folder} holds no run, nor does a folder below it: name the output_dir of a run, or a folder of "
                "several. A run is told by run.json, metrics.jsonl, trainer_log.jsonl or completions.jsonl."
            )
        if runs != [folder]:
            searched.update(runs)
            if len(runs) > MAX_RUNS:
                notes.append(
                    f"{folder} holds {len(runs):,} runs: the {MAX_RUNS} that last wrote are shown, the other "
                    f"{len(runs) - MAX_RUNS:,} are left out. Name folders to choose."
                )
            runs = runs[:MAX_RUNS]
        found += [run for run in runs if run.resolve() not in {known.resolve() for known in found}]
    subjects: list[Subject] = []
    for folder, name in zip(found, unlike_names(found), strict=True):
        progress(f"Reading {folder}")
        try:
            subjects.append(load_subject(folder, name))
        except LcotError as error:
            if folder not in searched:
                raise
            notes.append(f"{folder} is left out: {error}")
    if not subjects:
        raise DataError(" ".join(notes))
    if searched:
        subjects.sort(key=lambda subject: _order(subject, searched))
    return subjects, notes


def load_subject(folder: Path, name: str) -> Subject:
    """One run with its evaluations and answers. Raises LcotError where one of its files cannot be read."""
    try:
        run = read_run(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}.") from error
    check_shapes(run)
    # Once more than when it was written: a page is shown to others, and other programs write such files too.
    shown = {name: masked(getattr(run, name)) for name in ("record", "data_report", "alarms", "progress")}
    subject = Subject(name, replace(run, **shown))
    subject.evaluations = read_all_evaluations(run, name)
    _ = subject.answers
    return subject


def check_shapes(run: Run) -> None:
    """Raises DataError where run.json or data_report.json is not built as a run writes it: a file of something else."""

    def check(path: Path, values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
        for key, kind in kinds.items():
            value = values.get(key)
            if value is not None and (not isinstance(value, kind) or (kind is int and not is_finite(value))):
                raise DataError(f"{path}: {key} is {type(value).__name__}, not {kind.__name__}. Move the file away.")

    check(run.folder / RUN_FILE, run.record, RECORD_KINDS)
    path = run.folder / DATA_REPORT_FILE
    for source, entry in (run.data_report or {}).items():
        check(path, {source: entry}, {source: dict})
        check(path, entry or {}, DATA_REPORT_KINDS)
        for finding in (entry or {}).get("findings") or []:
            check(path, {"finding": finding}, {"finding": dict})
            check(path, finding or {}, {"count": int, "examples": list})
            for example in (finding or {}).get("examples") or []:
                check(path, {"example": example}, {"example": dict})


def read_all_evaluations(run: Run, name: str) -> list[Evaluation]:
    """Of every evaluation set of a run."""
    evaluations = []
    for path in run.all_eval_completions:
        evaluations += read_evaluations(path, name, set_name(path))
    return evaluations


def set_name(path: Path) -> str:
    """Of the evaluation set whose completions a file holds; empty where the run has a single one."""
    matched = SET_NAME.fullmatch(path.name)
    return matched[1] if matched else ""


def read_answers(path: Path) -> Answers:
    """The columns of a file of completions. Raises LcotError where a line is no completion."""
    index = CompletionsIndex(path)
    index.grow()
    columns, names = index.columns, index.names
    verdicts = np.array([int(name == Outcome.MATCHED) if name in JUDGED else -1 for name in names["outcome"]])
    endings = np.array([name == Ending.TRUNCATED for name in names["ending"]])
    judged = verdicts[columns["outcome"]]
    kept = judged >= 0
    # Records are numbered within their data set.
    problems = columns["record"] * max(1, len(names["source"])) + columns["source"]
    return Answers(
        columns["step"][kept],
        problems[kept],
        columns["source"][kept],
        judged[kept] == 1,
        endings[columns["ending"]][kept],
        columns["num_tokens"][kept],
        names["source"],
        int((~kept).sum()),
    )


def unlike_names(folders: Sequence[Path]) -> list[str]:
    """The last part of every path, with as many before it as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depths = [1] * len(parts)
    while True:
        names = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        twice = {name for name, number in Counter(names).items() if number > 1}
        longer = [
            depth + (name in twice and depth < len(part))
            for name, part, depth in zip(names, parts, depths, strict=True)
        ]
        if longer == depths:
            return names
        depths = longer


def started_at(run: Run) -> float | None:
    """Unix seconds."""
    said = (seconds_of(about.get("started")) for about in (run.record, run.progress or {}))
    return next((seconds for seconds in said if seconds is not None), None)


def _order(subject: Subject, searched: set[Path]) -> tuple[int, float]:
    """Those that were named keep their place before those that were found, which go by when they were started."""
    if subject.run.folder not in searched:
        return (0, 0.0)
    run = subject.run
    times = [started_at(run), *(entry.get("time") for entry in run.metrics[:1])]
    # A running run replaces files meanwhile.
    written = [time for path in (*run.all_eval_completions, *run.folder.glob("*.json*")) if (time := modified(path))]
    return (1, next((float(time) for time in times if is_finite(time)), min(written, default=0.0)))
