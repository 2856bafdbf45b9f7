"""The files that a run keeps of itself in its output_dir, as files: their names, how they are written and read.

In: plain values of the first process. Out: JSON that a report, a page that follows the run, or `jq` can read at any
time, also while it is written and after a kill. Consumers: integration.run_record (writes), report.runs (reads a run).

    run.json        what was started: arguments, versions, hardware           written once, at the start
    metrics.jsonl   {"step": 3, "epoch": 0.5, "time": 1.7e9, "loss": 0.1, ...}   a line per log
    alarms.jsonl    {"step": 3, "name", "message", "advice"}                  a line per alarm
    progress.json   where the run stands                                      replaced as a whole
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lcot_plugin.errors import DataError

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
ALARMS_FILE = "alarms.jsonl"
PROGRESS_FILE = "progress.json"
FORMAT = 1
"""Of run.json; a reader refuses a larger one."""

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers: they are written as these words, and `with_all_numbers` turns them back."""
SURROGATES = "backslashreplace"
r"""How half a character is written, as in the name of a file that is no UTF-8: as \udcff, which in JSON is itself."""
_BLOCK = 1 << 16


# Lines


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file; [] where there is none. See `iterate_json_lines`."""
    return list(iterate_json_lines(path))


def iterate_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time; nothing where there is no file.

    A last line without its newline is one that is being written, or that a kill has cut: it is left out unless it is
    whole. Raises DataError for any other line that is no JSON object.
    """
    if not Path(path).is_file():
        return
    with Path(path).open("rb") as file:  # bytes: a line may be cut inside a character
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:  # of Unicode too
                if not line.endswith(b"\n"):
                    return
                raise DataError(
                    f"{path}, line {number} is no JSON: {error}. Remove the line, or move the file away."
                ) from error
            if not isinstance(value, dict):
                if not line.endswith(b"\n"):
                    return  # a cut number is a number
                raise DataError(f"{path}, line {number} is {type(value).__name__}, not an object. Remove the line.")
            yield value


def last_line_end(file: BinaryIO, size: int, block: int = _BLOCK) -> int:
    """Behind the last line break among the first `size` bytes; 0 where there is none. A line that is being written, or
    that a kill has cut short, has none yet. block: bytes that are read at once."""
    while size:
        start = max(0, size - block)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, numbers that are not finite among them as floats."""
    return [with_all_numbers(line) for line in iterate_json_lines(path)]


def with_all_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as it was logged: words that stand for numbers that are not finite are these."""
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in line.items()}


def metric_line(step: int, seconds: float, logs: Mapping[str, Any]) -> dict[str, Any]:
    """One log of a trainer as a line of metrics.jsonl: everything in it that is a number.

    seconds: Unix time. Texts, lists and the like are left out.
    """
    line: dict[str, Any] = {"step": step, "epoch": logs.get("epoch"), "time": round(seconds, 3)}
    for name, value in logs.items():
        number = _number(value)
        if number is not None and name not in ("step", "time"):
            line[name] = number
    return line


def _number(value: Any) -> int | float | str | None:
    if isinstance(value, bool | int):
        return int(value)
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several numbers
        return None
    if number is None or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


class StepLog:
    """Appends lines to a file, each with its step, and takes back those that a resumed run will write again."""

    def __init__(self, path: Path, warn: Callable[[str], None] = print):
        """warn: is told of lines that are dropped since they cannot be read."""
        self.path, self.warn = Path(path), warn
        self._is_whole = False
        """Whether the file is known to end with a whole line."""

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """All of the lines, or none where the disk is full (OSError)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_whole:
            self._cut_half_line()
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8", errors=SURROGATES) as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, size)
            raise

    def _cut_half_line(self) -> None:
        """Removes what a kill has left of a line: the next one would be written on into it."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                end = file.seek(0, os.SEEK_END)
                kept = last_line_end(file, end)
                if kept < end:
                    file.truncate(kept)
        self._is_whole = True

    def drop_from_step(self, step: int) -> None:
        """Cuts the file before the first line of `step` or later ones, or of which a kill has left a part."""
        if not self.path.exists():
            return
        kept = 0
        with self.path.open("rb") as file:  # bytes: a line may be cut inside a character
            for number, line in enumerate(file, start=1):
                found = _step_of(line)
                if found is None and line.endswith(b"\n"):
                    self._warn_of(number, self.path.stat().st_size - kept)
                if found is None or found >= step:
                    break
                kept += len(line)
        if kept < self.path.stat().st_size:
            os.truncate(self.path, kept)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leaves only the lines for which `wanted` says so, in their order; the file is replaced at once."""
        if not self.path.exists():
            return
        kept = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if _step_of(line) is None:
                    if line.endswith(b"\n"):
                        self._warn_of(number, len(line))
                elif wanted(json.loads(line)):
                    kept.append(line)
        partial = self.path.with_name(f"{self.path.name}.tmp")
        partial.write_bytes(b"".join(kept))
        partial.replace(self.path)

    def _warn_of(self, number: int, num_bytes: int) -> None:
        self.warn(f"{self.path}, line {number} cannot be read: {num_bytes:,} bytes are dropped.")


def _step_of(line: bytes) -> int | None:
    """None of a line that is cut short, or is none of ours."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else None


# Files that are replaced as a whole


def write_json(path: Path, value: Any) -> None:
    """Replaces a file at once: a reader sees the old one or the new one, never half of either.

    Raises OSError, and leaves the old file, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        partial.write_text(text, encoding="utf-8", errors=SURROGATES)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file. Raises DataError for anything else."""
    try:
        value = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}. Remove it, or copy it again from its run.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, not an object. Remove it.")
    return value
