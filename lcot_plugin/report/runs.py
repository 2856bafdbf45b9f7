"""A run's folder in, everything that it keeps of itself out. Works on runs that are older, still running, or killed.

In: an output_dir. Out: `Run`, whose fields are empty where the run lacks the file. Consumers: the report, the Board's
live view and rollout viewer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lcot_plugin.errors import DataError
from lcot_plugin.report.completions import COMPLETIONS_FILE
from lcot_plugin.report.data import DATA_REPORT_FILE
from lcot_plugin.report.panels import is_finite
from lcot_plugin.report.progress import LIVING
from lcot_plugin.report.run_log import (
    ALARMS_FILE,
    FORMAT,
    METRICS_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    iterate_json_lines,
    read_json,
    read_json_lines,
    read_metrics,
)

EVAL_COMPLETIONS_FILE = f"eval_{COMPLETIONS_FILE}"
MAX_DEPTH = 4
"""Folders below the root in which runs are looked for."""
_MARKS = (RUN_FILE, METRICS_FILE, PROGRESS_FILE, COMPLETIONS_FILE, EVAL_COMPLETIONS_FILE, "trainer_log.jsonl")
"""A folder with any of these holds a run."""
_NOT_RUNS = ("checkpoint-", "incomplete_checkpoints", "completion_images", ".", "__")


@dataclass
class Run:
    """One run, as its files tell it."""

    folder: Path
    record: dict[str, Any]
    """run.json; {} where there is none."""
    metrics: list[dict[str, Any]]
    """One entry per log, in order: `step`, `epoch`, `time` (Unix seconds; an older run lacks it) and numbers by name,
    which may be inf or NaN. Those of evaluations have keys `eval_...`."""
    alarms: list[dict[str, Any]]
    """`step`, `name`, `message`, `advice` (may be None)."""
    progress: dict[str, Any] | None
    completions: Path | None
    """Of training; follow it by lines, it may hold gigabytes."""
    eval_completions: Path | None
    """Of the only, or the first, evaluation set."""
    data_report: dict[str, Any] | None
    results: dict[str, Any]
    """What the end of training and of evaluation said: `eval_accuracy`..."""
    all_eval_completions: list[Path] = field(default_factory=list)
    """One file per evaluation set."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def state(self) -> str | None:
        """See `run_state`."""
        return run_state(self.progress)


def read_run(folder: Path) -> Run:
    """Everything of a run but its completions. Raises DataError for a folder without any run, and for broken files."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the output_dir of a run.")
    evaluated = eval_completion_files(folder)
    if not holds_run(folder) and not evaluated:
        raise DataError(f"{folder} holds no run: none of {', '.join(_MARKS)} is there. Name the output_dir of a run.")
    record = read_json(folder / RUN_FILE) or {}
    version = record.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise DataError(
            f"{folder / RUN_FILE} was written by a later lcot_plugin (format {version}, this one reads "
            f"{FORMAT}): update the package."
        )
    completions = folder / COMPLETIONS_FILE
    return Run(
        folder=folder,
        record=record,
        metrics=_metrics(folder, record),
        alarms=read_json_lines(folder / ALARMS_FILE),
        progress=read_json(folder / PROGRESS_FILE),
        completions=completions if completions.is_file() else None,
        eval_completions=evaluated[0] if evaluated else None,
        data_report=read_json(folder / DATA_REPORT_FILE),
        results=_results(folder),
        all_eval_completions=evaluated,
    )


def run_state(progress: dict[str, Any] | None) -> str | None:
    """`loading`, `running`, `stopping`, `finished`, `stopped` (by a signal, with a checkpoint) or `failed`; `killed`
    where the process that says it is alive is not there any more. None where the run says nothing.

    Of a process on another machine only its own word is known.
    """
    if progress is None:
        return None
    state = progress.get("state")
    here = progress.get("host") in (None, socket.gethostname())
    return "killed" if state in LIVING and here and not _is_alive(progress.get("pid")) else state


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter of a number that no process can have
        return False
    except PermissionError:
        return True  # of another user
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Ended, but not yet asked for by its parent: a Board that still reads its output."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # no /proc on this system
    return status.rpartition(")")[2].split()[:1] == ["Z"]


def eval_completion_files(folder: Path) -> list[Path]:
    """`eval_completions.jsonl`, or one `eval_NAME_completions.jsonl` per evaluation set."""
    return sorted(folder.glob(f"eval*_{COMPLETIONS_FILE}"))


def holds_run(folder: Path) -> bool:
    """Whether any file of a run lies in this very folder."""
    return any((folder / name).is_file() for name in _MARKS) or bool(eval_completion_files(folder))


def find_runs(root: Path) -> list[Path]:
    """The folders at or below `root`, at most MAX_DEPTH deep, that hold a run; the one that last wrote comes first.

    Links to folders are not followed, and what cannot be read is passed over.
    """
    found = [(_last_written(folder), folder) for folder in _folders(Path(root), MAX_DEPTH) if holds_run(folder)]
    return [folder for _, folder in sorted(found, key=lambda pair: (-pair[0], str(pair[1])))]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if not os.access(root, os.R_OK | os.X_OK) or not root.is_dir():
        return
    yield root
    if depth == 0:
        return
    try:
        entries = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in entries:
        if not name.startswith(_NOT_RUNS):
            yield from _folders(root / name, depth - 1)


def _last_written(folder: Path) -> float:
    return max(map(modified, [*(folder / name for name in _MARKS), *eval_completion_files(folder)]), default=0.0)


def reward_weights(record: Mapping[str, Any]) -> dict[str, float]:
    """By reward, as run.json says them; empty where it does not."""
    plan = record.get("plan")
    names, weights = (plan.get(key) if isinstance(plan, dict) else None for key in ("rewards", "reward_weights"))
    if not isinstance(names, list) or not isinstance(weights, list) or len(names) != len(weights):
        return {}
    pairs = zip(map(str, names), weights, strict=True)
    return {name: float(weight) for name, weight in pairs if is_finite(weight)}


def media_folders(record: Mapping[str, Any]) -> list[Path]:
    """Where relative paths of pictures may begin besides the run's folder, as run.json says it."""
    arguments = record.get("arguments")
    named = [arguments.get(key) for key in ("media_dir", "dataset_dir")] if isinstance(arguments, dict) else []
    return [Path(folder) for folder in (*named, ".") if isinstance(folder, str) and folder]


def seconds_of(moment: Any) -> float | None:
    """Unix seconds of a number or an ISO text; None for anything else."""
    if is_finite(moment):
        return float(moment)
    try:
        return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
    except ValueError:
        return None


def modified(path: Path) -> float:
    """Unix seconds; 0 of a file that is not there, or not any more."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _metrics(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of an older version's files only where they are this run's: a run that has just begun in their folder has
    a record, and no metrics yet."""
    found = read_metrics(folder / METRICS_FILE)
    return found if found or record.get("trains") else list(_older_metrics(folder))


def _older_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Of a run before there was metrics.jsonl: the trainer's own history, else LLaMA-Factory's log."""
    # Of a checkpoint that a running run has just removed, nothing is left to be read.
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=modified)
    for path in (folder / "trainer_state.json", *reversed(states)):
        try:
            state = read_json(path)
        except DataError:  # cut by a kill: the one before it, or the log, tells nearly as much
            continue
        if state is not None:
            yield from (line for line in state.get("log_history") or () if isinstance(line.get("step"), int))
            return
    for line in iterate_json_lines(folder / "trainer_log.jsonl"):
        renamed = {_OLDER_NAMES.get(name, name): value for name, value in line.items()}
        if isinstance(renamed.get("step"), int):
            yield {name: value for name, value in renamed.items() if isinstance(value, int | float)}


_OLDER_NAMES = {"current_steps": "step", "lr": "learning_rate", "total_steps": "max_steps"}


def _results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("train_results.json", "eval_results.json", "all_results.json"):
        found |= read_json(folder / name) or {}
    return found
