"""What a report is about: folders in, runs with their evaluations and completions out, each under a name of its own.

In: folders as the user gave them, each a run or a folder of runs. Out: `Subject`s in the order given, those that were
found in a folder by when they were started. Consumer: run_report and its sections.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lcot_plugin.errors import DataError, LcotError
from lcot_plugin.report.completions import COMPLETIONS_FILE
from lcot_plugin.report.completions_index import CompletionsIndex
from lcot_plugin.report.evaluations import Evaluation, read_evaluations
from lcot_plugin.report.intervals import Share, share_of
from lcot_plugin.report.masking import masked
from lcot_plugin.report.runs import Run, find_runs, holds_run, read_run
from lcot_plugin.types import Ending, Outcome

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
        steps = [int(entry["step"]) for entry in self.run.metrics if isinstance(entry.get("step"), int)]
        return max(steps, default=None) if self.trained else None

    @property
    def max_steps(self) -> int | None:
        value = (self.run.progress or {}).get("max_steps")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def seconds(self) -> float | None:
        """From the start to the last log; None where the run has not said when that was."""
        started = started_at(self.run)
        times = [entry["time"] for entry in self.run.metrics if isinstance(entry.get("time"), int | float)]
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
    loaded: dict[Path, Run] = {}
    for folder in found:
        progress(f"Reading {folder}")
        try:
            run = read_run(folder)
            # Once more than when it was written: a page is shown to others, and other programs write such files too.
            loaded[folder] = replace(run, record=masked(run.record))
        except LcotError as error:
            if folder not in searched:
                raise
            notes.append(f"{folder} is left out: {error}")
    if not loaded:
        raise DataError(" ".join(notes))
    names = unlike_names(list(loaded))
    subjects = [Subject(name, run) for name, run in zip(names, loaded.values(), strict=True)]
    if searched:
        subjects.sort(key=lambda subject: _order(subject, searched))
    for subject in subjects:
        progress(f"Reading the evaluations of {subject.name}")
        subject.evaluations = read_all_evaluations(subject.run, subject.name)
    return subjects, notes


def read_all_evaluations(run: Run, name: str) -> list[Evaluation]:
    """Of every evaluation set of a run."""
    evaluations = []
    for path in run.all_eval_completions:
        matched = SET_NAME.fullmatch(path.name)
        evaluations += read_evaluations(path, name, matched[1] if matched else "")
    return evaluations


def read_answers(path: Path) -> Answers:
    """The columns of a file of completions. Raises LcotError where a line is no completion."""
    index = CompletionsIndex(path)
    index.grow()
    columns, names = index.columns, index.names
    wrong = {Outcome.MISMATCHED.value, Outcome.UNPARSABLE.value, Outcome.TIMED_OUT.value}
    verdicts = np.array([1 if name == Outcome.MATCHED else 0 if name in wrong else -1 for name in names["outcome"]])
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
    for written in (run.record.get("started"), (run.progress or {}).get("started")):
        if isinstance(written, int | float):
            return float(written)
        if isinstance(written, str):
            try:
                return datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()
            except ValueError:
                continue
    return None


def _order(subject: Subject, searched: set[Path]) -> tuple[int, float]:
    """Those that were named keep their place before those that were found, which go by when they were started."""
    if subject.run.folder not in searched:
        return (0, 0.0)
    started = started_at(subject.run)
    times: list[Any] = [entry["time"] for entry in subject.run.metrics[:1] if "time" in entry]
    written = [
        path.stat().st_mtime for path in (*subject.run.all_eval_completions, *subject.run.folder.glob("*.json*"))
    ]
    return (1, started if started is not None else times[0] if times else min(written, default=0.0))
