"""completions.jsonl in, columns of what is filtered and sorted by out; texts stay in the file, by byte offset.

    completions.jsonl --grow--> CompletionsIndex.columns --> completions_table
                      <--save, load--> .completions.jsonl.index.npz beside it

Example, two lines of 1,480 and 1,502 bytes: `offset 0 1480`, `size 1480 1502`, `step 0 0`, `sample 0 1`,
`reward 1.0 0.0`, `completion 612 598`, `completion_end 1240 1225`: the first completion's JSON text is bytes 612 to
1240 of its line.

Lines are read from the newest back, so that the end of a long file can be shown before all of it has been read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import orjson

from lcot_plugin.errors import LcotError
from lcot_plugin.report.run_log import last_line_end

FORMAT = 1
"""Of the saved index; another is ignored."""
BLOCK = 4 << 20
"""Bytes that are read at once; a longer line is read whole."""
MIN_SAVED = 4 << 20
"""Bytes of a file below which its index is not saved: it is made in milliseconds."""
INTEGERS = (
    "offset",
    "size",
    "step",
    "sample",
    "group",
    "record",
    "num_tokens",
    "question",
    "question_end",
    "completion",
    "completion_end",
)
"""int64 columns. `offset`, `size`: the line's place in the file, its line break included; `question` and the like:
bytes within the line; -1 where a value is absent."""
NAMES = ("source", "outcome", "ending")
"""int64 columns of numbers into `names`; the number 0 is the empty name: absent."""
REWARD = "reward"
"""float64 column of totals; `reward/NAME` are those of single rewards; NaN where there is none."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_MISSING = -1


class CompletionsIndex:
    """The columns of the lines between two bytes of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.columns: dict[str, np.ndarray] = {name: np.zeros(0, np.int64) for name in (*INTEGERS, *NAMES)}
        self.columns[REWARD] = np.zeros(0)
        self.names: dict[str, list[str]] = {name: [""] for name in NAMES}
        self.start: int | None = None
        """First indexed byte; None before anything was read."""
        self.end = 0
        """Behind the last indexed byte."""
        self._seen: tuple[int, int, int] | None = None
        self._fingerprint = ""
        self._saved_end = 0

    def __len__(self) -> int:
        return len(self.columns["offset"])

    @property
    def complete(self) -> bool:
        """Whether every whole line that the file had at the last `grow` is indexed."""
        return self.start == 0

    @property
    def share(self) -> float:
        """Of the file's bytes, those that are indexed; 0 to 1."""
        return 1.0 if self.complete or not self.end else (self.end - (self.start or 0)) / self.end

    # Reading

    def grow(self, seconds: float | None = None) -> bool:
        """Takes in what the file has gained, then what came before; returns whether anything changed.

        Stops after about `seconds`; None: goes on to the end. Raises LcotError where a line is not a completion.
        """
        until = math.inf if seconds is None else time.monotonic() + seconds
        try:
            with self.path.open("rb") as file:
                return self._grow(file, until)
        except LcotError:
            self._reset()  # nothing is passed over: the line is named again the next time
            raise
        except FileNotFoundError as error:
            raise LcotError(f"{self.path}: no such file. `grpo_log_completions: true` makes a run write it.") from error
        except OSError as error:
            raise LcotError(f"{self.path} cannot be read: {error.strerror}.") from error

    def _grow(self, file: BinaryIO, until: float) -> bool:
        status = os.fstat(file.fileno())
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen == self._seen and self.complete:
            return False
        before = (self.start, self.end)
        if status.st_size < self.end or _fingerprint(file, self.end) != self._fingerprint:
            self._reset()
        if self.start is None and not self._load(file, status):
            self.start = self.end = last_line_end(file, status.st_size, BLOCK)
        found = []
        while (block := _block_after(file, self.end, status.st_size)) is not None:
            found.append(self._columns_of(block, self.end))
            self.end += len(block)
        self._append(found)
        blocks: list[dict[str, np.ndarray]] = []
        while self.start and (not blocks or time.monotonic() < until):
            block = _block_before(file, self.start)
            self.start -= len(block)
            blocks.append(self._columns_of(block, self.start))
        self._append(blocks[::-1], before=True)
        self._seen = seen
        self._fingerprint = _fingerprint(file, self.end)
        if self.complete and self.end - self._saved_end >= max(MIN_SAVED, self._saved_end // 8):
            self._save(status)
        return (self.start, self.end) != before

    def _append(self, blocks: list[dict[str, np.ndarray]], *, before: bool = False) -> None:
        if not blocks:
            return
        parts = [*blocks, self.columns] if before else [self.columns, *blocks]
        names = dict.fromkeys(name for part in parts for name in part)
        self.columns = {name: np.concatenate([_column(part, name) for part in parts]) for name in names}

    def _columns_of(self, block: bytes, start: int) -> dict[str, np.ndarray]:
        """Of whole lines; `start`: where they begin in the file."""
        integers: dict[str, list[int]] = {name: [] for name in INTEGERS}
        names: dict[str, list[int]] = {name: [] for name in NAMES}
        numbers = {name: {text: number for number, text in enumerate(self.names[name])} for name in NAMES}
        totals: list[float] = []
        rewards: dict[str, list[float]] = {}
        appends = [integers[name].append for name in INTEGERS]
        offset = start
        for line in block.split(b"\n"):
            size = len(line) + 1
            if line.strip():
                values = self._values(line, offset)
                sample = values.get("sample")
                row = (
                    offset,
                    size,
                    values["step"],
                    0 if sample == "greedy" else _integer(sample),
                    _integer(values.get("group")),
                    _integer(values.get("record")),
                    _integer(values.get("num_tokens")),
                    *_text_range(line, b"question"),
                    *_text_range(line, b"completion"),
                )
                for append, value in zip(appends, row, strict=True):
                    append(value)
                for name in NAMES:
                    text = values.get(name) or ""
                    known = numbers[name]
                    if text not in known:
                        known[text] = len(known)
                        self.names[name].append(text)
                    names[name].append(known[text])
                for name, reward in (values.get("rewards") or {}).items():
                    column = rewards.setdefault(name, [])
                    column.extend([math.nan] * (len(totals) - len(column)))
                    column.append(_number(reward))
                totals.append(_number(values.get("reward")))
            offset += size
        columns: dict[str, np.ndarray] = {
            name: np.array(column, np.int64) for name, column in {**integers, **names}.items()
        }
        columns[REWARD] = np.array(totals, np.float64)
        for name, column in rewards.items():
            column.extend([math.nan] * (len(totals) - len(column)))
            columns[f"{REWARD}/{name}"] = np.array(column, np.float64)
        return columns

    def _values(self, line: bytes, offset: int) -> dict[str, Any]:
        try:
            values = parse_line(line)
        except (ValueError, RecursionError) as error:
            raise self._line_error(offset, f"is no JSON ({error})") from error
        if not isinstance(values, dict) or _integer(values.get("step")) < 0:
            raise self._line_error(offset, "is no completion: an object with a whole number `step` is expected")
        if not isinstance(values.get("completion"), str):
            raise self._line_error(offset, "is no completion: it has no text `completion`")
        if not isinstance(values.get("rewards") or {}, dict):
            raise self._line_error(offset, "has `rewards` that are no object of numbers")
        if not all(isinstance(values.get(name) or "", str) for name in NAMES):
            raise self._line_error(offset, f"has something else than text under one of {', '.join(NAMES)}")
        return values

    def _line_error(self, offset: int, what: str) -> LcotError:
        with self.path.open("rb") as file:
            number = 1 + sum(part.count(b"\n") for part in _parts(file, 0, offset))
        return LcotError(f"{self.path}, line {number}: {what}. Remove the line, or choose the file of a run.")

    # The saved index

    @property
    def saved_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.index.npz")

    def _save(self, status: os.stat_result) -> None:
        """Beside the file, at once and whole: several processes may do so. Not at all where the folder is read-only."""
        about = {
            "format": FORMAT,
            "size": status.st_size,
            "mtime": status.st_mtime_ns,
            "end": self.end,
            "fingerprint": self._fingerprint,
            "names": self.names,
            "columns": list(self.columns),
        }
        # By their places: the name of a reward may be none for a file.
        columns = {f"column{place}": column for place, column in enumerate(self.columns.values())}
        with suppress(OSError):
            handle, partial = tempfile.mkstemp(dir=self.path.parent, prefix=self.saved_path.name, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, allow_pickle=False, about=np.frombuffer(orjson.dumps(about), np.uint8), **columns)
                os.chmod(partial, status.st_mode & 0o666)  # for everybody who may read the completions
                os.replace(partial, self.saved_path)
            except BaseException:
                os.unlink(partial)
                raise
        self._saved_end = self.end

    def _load(self, file: BinaryIO, status: os.stat_result) -> bool:
        """Takes the saved index where it fits the file as it is, or as it was before it grew."""
        try:
            with self.saved_path.open("rb") as contents, np.load(contents, allow_pickle=False) as saved:
                about = orjson.loads(saved["about"].tobytes())
                fits = (
                    about["format"] == FORMAT
                    and about["end"] <= about["size"] <= status.st_size
                    and (about["size"] < status.st_size or about["mtime"] == status.st_mtime_ns)
                    and about["fingerprint"] == _fingerprint(file, about["end"])
                )
                if not fits:
                    return False
                columns = {name: saved[f"column{place}"] for place, name in enumerate(about["columns"])}
            names = {name: list(map(str, about["names"][name])) for name in NAMES}
        except (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, BadZipFile, zlib.error):
            return False  # absent, of another version or damaged: it is made anew
        if {*INTEGERS, *NAMES, REWARD} - columns.keys():
            return False
        self.columns, self.names = columns, names
        self.start, self.end, self._saved_end = 0, about["end"], about["end"]
        return True


def parse_line(line: bytes) -> Any:
    """A line as JSON values; also what only Python's own reader takes: NaN, infinities, halves of surrogate pairs."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)


def _column(part: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A reward that a part of the file does not have is NaN there."""
    return part[name] if name in part else np.full(len(part["offset"]), math.nan)


def _integer(value: Any) -> int:
    return value if type(value) is int and abs(value) < 1 << 62 else _MISSING


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 62) else math.nan


def _text_range(line: bytes, key: bytes) -> tuple[int, int]:
    """Where in the line the JSON text of `key` is, without its quotes.

    A quote inside a text is written with a backslash before it, so that neither of the patterns can occur in one.
    """
    start = line.find(b'"' + key + b'": "')
    if start < 0:
        return _text_range_anywhere(line, key)
    start += len(key) + 5
    end = line.find(b'", "', start)
    if end < 0:
        end = _string_end(line, start)
    return start, end


def _text_range_anywhere(line: bytes, key: bytes) -> tuple[int, int]:
    """For lines that something else than this plugin has written, with other spaces."""
    found = re.search(rb'"' + key + rb'"\s*:\s*"', line)
    return (found.end(), _string_end(line, found.end())) if found else (_MISSING, _MISSING)


def _string_end(line: bytes, start: int) -> int:
    found = _STRING.match(line, start - 1)
    return found.end() - 1 if found else start


# Blocks of whole lines


def _parts(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (part := file.read(min(BLOCK, end - start))):
        start += len(part)
        yield part


def _block_after(file: BinaryIO, start: int, size: int) -> bytes | None:
    """Whole lines from `start`; None where there is none yet."""
    length = BLOCK
    while start < size:
        file.seek(start)
        block = file.read(min(length, size - start))
        if (end := block.rfind(b"\n")) >= 0:
            return block[: end + 1]
        if len(block) < length:
            return None
        length *= 2
    return None


def _block_before(file: BinaryIO, end: int) -> bytes:
    """Whole lines up to `end`, which is above 0 and behind a line break."""
    length = BLOCK
    while True:
        start = max(0, end - length)
        file.seek(start)
        block = file.read(end - start)
        if not start:
            return block
        if (found := block.find(b"\n", 0, len(block) - 1)) >= 0:
            return block[found + 1 :]
        length *= 2


def _fingerprint(file: BinaryIO, end: int) -> str:
    """Of the file up to `end`: its first and last bytes and 64 places between. A resumed run writes some lines anew."""
    digest = hashlib.sha256(str(end).encode())
    windows = [(0, 4096), (max(0, end - 4096), 4096), *((end * place // 64, 256) for place in range(64))]
    for start, length in windows if end else []:
        file.seek(start)
        digest.update(file.read(min(length, end - start)))
    return digest.hexdigest()
