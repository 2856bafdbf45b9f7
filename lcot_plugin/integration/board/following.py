"""A run's small files, followed: each look reads what has been added since the one before.

In:  run.json, progress.json, metrics.jsonl and alarms.jsonl of a folder (report.run_log). Out: `FollowedRun`, shared by
     all pages that show the same run. Consumer: board.live.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeGuard

from lcot_plugin.errors import DataError, LcotError
from lcot_plugin.integration.board.failure import read_failure
from lcot_plugin.integration.board.process import STDERR_FILE
from lcot_plugin.report.charts import Mark
from lcot_plugin.report.panels import Panel, run_panels
from lcot_plugin.report.run_log import (
    ALARMS_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    read_json,
    with_all_numbers,
)
from lcot_plugin.report.runs import holds_run, read_run, run_state

MIN_SECONDS = 1.0
"""Between two looks at the files of a run, however many pages ask."""
DRAWING_SHARE = 0.05
"""Of the time that may go into drawing charts: a long run is drawn less often."""
MAX_FOLLOWED = 8
"""Runs that are kept in memory."""
MAX_MARKS = 20


class GrowingFile:
    """The lines of a file to which lines are added; a resumed run cuts it first, or replaces it."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self.version = 0
        """Grows with every change."""
        self._seen: tuple[int, int, int] | None = None
        self._offset = 0
        self._last = b""
        """The line before the offset: it is another one where the file was cut and has grown again."""

    def update(self) -> None:
        """Reads what is new. Raises DataError for a line that is no JSON object."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._reset()
            return
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen == self._seen:
            return
        with self.path.open("rb") as file:
            if self._seen is None or self._seen[0] != status.st_ino or not self._stands(file):
                self._reset()
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        lines = [line for line in whole.splitlines() if line.strip()]
        self.lines += [self._parsed(line) for line in lines]
        if lines:
            self.version += 1
            self._last = whole[whole[:-1].rfind(b"\n") + 1 :]
        self._offset += len(whole)
        self._seen = seen

    def _stands(self, file: Any) -> bool:
        """Whether what was read is still the beginning of the file."""
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) == self._last

    def _reset(self) -> None:
        if self.lines:
            self.version += 1
        self.lines, self._offset, self._last, self._seen = [], 0, b"", None

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.path}: a line is no JSON: {error}. Remove it, or move the file away.") from error
        if not isinstance(value, dict):
            raise DataError(f"{self.path}: a line is {type(value).__name__}, not an object. Remove it.")
        return with_all_numbers(value)


class FollowedRun:
    """One run, for any number of pages. Read its fields after `look`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.record: dict[str, Any] = {}
        """run.json."""
        self.progress: dict[str, Any] | None = None
        self.error = ""
        """What could not be read, in words."""
        self.start_failure = ""
        """Why a run that a Board had started failed before it could say so itself."""
        self._metrics = GrowingFile(folder / METRICS_FILE)
        self._alarms = GrowingFile(folder / ALARMS_FILE)
        self._older: list[dict[str, Any]] | None = None
        self._lock = threading.Lock()
        self._looked_at = -math.inf
        self._stamps: dict[str, Any] = {}
        self._drawn: tuple[Any, list[Panel]] = (None, [])
        self._drawn_at, self._drawing_took = -math.inf, 0.0

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return self._metrics.lines or self._older or []

    @property
    def alarms(self) -> list[dict[str, Any]]:
        return self._alarms.lines

    @property
    def state(self) -> str | None:
        """See `report.runs.run_state`."""
        return run_state(self.progress)

    def look(self) -> None:
        """Reads what is new; never raises for what the files hold, see `error`."""
        with self._lock:
            if time.monotonic() - self._looked_at < MIN_SECONDS:
                return
            try:
                self._read()
                self.error = ""
            except (LcotError, OSError) as error:
                self.error = str(error)
            self._looked_at = time.monotonic()

    def _read(self) -> None:
        for name, attribute in ((RUN_FILE, "record"), (PROGRESS_FILE, "progress")):
            stamp = _stamp(self.folder / name)
            if name not in self._stamps or stamp != self._stamps[name]:
                value = read_json(self.folder / name)
                setattr(self, attribute, value if name == PROGRESS_FILE else value or {})
                self._stamps[name] = stamp
        self._metrics.update()
        self._alarms.update()
        written = (_stamp(self.folder / STDERR_FILE), _stamp(self.folder / PROGRESS_FILE))
        if written != self._stamps.get(STDERR_FILE):
            self._stamps[STDERR_FILE] = written
            self.start_failure = failure_at_start(self.folder)
        if self._older is None and self._is_older():
            self._older = read_run(self.folder).metrics

    def _is_older(self) -> bool:
        """Whether the run is of a version that kept its numbers elsewhere."""
        ours = (METRICS_FILE, RUN_FILE, PROGRESS_FILE)
        return holds_run(self.folder) and not any((self.folder / name).exists() for name in ours)

    def panels(self) -> tuple[Any, list[Panel]]:
        """(what changes with them, the charts), drawn anew where the last drawing is old and long enough ago."""
        with self._lock:
            wanted = (self._metrics.version, self._alarms.version, len(self.metrics))
            now = time.monotonic()
            pause = self._drawing_took / DRAWING_SHARE
            running = self.state in ("running", "stopping")
            if wanted == self._drawn[0] or (running and now - self._drawn_at < pause):
                return self._drawn
            marks = [
                Mark(alarm["step"], str(alarm.get("name"))) for alarm in self.alarms if is_count(alarm.get("step"))
            ]
            stage = self.record.get("stage") or "grpo"
            self._drawn = (wanted, run_panels(self.metrics, stage, marks=marks[-MAX_MARKS:]))
            self._drawn_at, self._drawing_took = now, time.monotonic() - now
            return self._drawn


def failure_at_start(folder: Path) -> str:
    """The error that the process of a Board's run ended with; empty where the run has said anything since, or where
    other words stand behind the error."""
    stderr, progress = _stamp(folder / STDERR_FILE), _stamp(folder / PROGRESS_FILE)
    if stderr is None or (progress is not None and progress[2] > stderr[2]):
        return ""
    failure = read_failure(folder / STDERR_FILE)
    return failure.reason if failure.reason and failure.log.endswith(failure.reason) else ""


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of a file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


_followed: OrderedDict[Path, FollowedRun] = OrderedDict()
_lock = threading.Lock()


def followed_run(folder: Path) -> FollowedRun:
    """The same object for every page that follows `folder`, so that its files are read once."""
    folder = folder.absolute()
    with _lock:
        run = _followed.pop(folder, None) or FollowedRun(folder)
        _followed[folder] = run
        while len(_followed) > MAX_FOLLOWED:
            _followed.popitem(last=False)
    return run
