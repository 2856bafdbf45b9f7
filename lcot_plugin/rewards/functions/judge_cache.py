"""Keys and verdicts in, kept in a file that several processes append to; the judge model consumes it.

A line is `{"key": "<sha256>", "correct": true}`. Lines are appended whole, under a lock of the file where the system
has one, and a line that a killed process left unfinished is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from lcot_plugin.errors import RewardError

try:
    import fcntl
except ImportError:  # not on Windows, where an appending write is all the protection there is
    fcntl = None  # type: ignore[assignment]


class JudgeCache:
    """Verdicts by key; unclear ones (None) are kept in memory only, for another run may ask again.

    Raises RewardError where the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._verdicts: dict[str, bool | None] = {}
        self._offset = 0
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                raise RewardError(f"llm_judge: cache {path} cannot be written: {error}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._verdicts

    def get(self, key: str) -> bool | None:
        return self._verdicts.get(key)

    def refresh(self) -> None:
        """Read what other processes have appended."""
        if self._path is None:
            return
        with self._lock, self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                self._offset += len(line)
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    entry = json.loads(line)
                    if isinstance(entry["key"], str) and isinstance(entry["correct"], bool):
                        self._verdicts[entry["key"]] = entry["correct"]

    def put(self, key: str, verdict: bool | None) -> None:
        with self._lock:
            self._verdicts[key] = verdict
            if self._path is None or verdict is None:
                return
            line = json.dumps({"key": key, "correct": verdict}).encode() + b"\n"
            handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    size = os.fstat(handle).st_size
                    if size and os.pread(handle, 1, size - 1) != b"\n":
                        line = b"\n" + line  # ends the line that a killed process left
                os.write(handle, line)
            finally:
                os.close(handle)  # releases the lock
