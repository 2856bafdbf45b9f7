"""Where a run stands, said at most once a second, whatever happens how often.

In: states and phases as they change. Out: all of progress.json, given to `write`. Consumer: integration.run_files.

    {"state": "running", "phase": "rollout", "phase_done": 40, "phase_total": 128, "step": 7, "max_steps": 100,
     "started": 1700000000.0, "updated": 1700000123.4, "seconds_per_step": 9.6, "remaining_seconds": 890.1,
     "pid": 4711, "host": "node1", "message": null}

Times are Unix seconds, but for `seconds_per_step` and `remaining_seconds`, which are null until a step has been timed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

LIVING = ("loading", "running", "stopping")
"""States of a run that goes on."""
INTERVAL = 1.0
"""Seconds between two writes."""
WINDOW = 20
"""Steps over which the time of a step is averaged: evaluations and checkpoints among them count."""


class Progress:
    """Kept by the first process of a run. Any thread may call it."""

    def __init__(
        self,
        write: Callable[[dict[str, Any]], None],
        *,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
        interval: float = INTERVAL,
    ):
        """write: must not raise. is_stopping: whether the run has been asked to end."""
        self._write, self.is_stopping, self._clock, self._interval = write, is_stopping, clock, interval
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._changed = False
        self._thread: threading.Thread | None = None
        self._ends: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)
        """(step, time) of the last steps that ended."""
        self.values: dict[str, Any] = {
            "state": "loading",
            "phase": None,
            "phase_done": None,
            "phase_total": None,
            "step": 0,
            "max_steps": None,
            "started": clock(),
            "updated": None,
            "seconds_per_step": None,
            "remaining_seconds": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "message": None,
        }

    def state(self, state: str, message: str | None = None, **values: Any) -> None:
        """Written at once: `loading`, `running`, `stopping`, `finished`, `stopped`, `failed`."""
        with self._lock:
            self.values |= {"state": state, "message": message, **values}
            self._write_now()

    def phase(self, name: str | None, total: int | None = None) -> None:
        """A part of the state begins. total: of what `advance` counts."""
        with self._lock:
            self.values |= {"phase": name, "phase_done": None if total is None else 0, "phase_total": total}
            self._changed = True
            if self._thread is None:  # phases of loading are few
                self._write_now()

    def advance(self, number: int) -> None:
        with self._lock:
            if self.values["phase_done"] is not None:
                self.values["phase_done"] += number
                self._changed = True

    def begin_steps(self, step: int, max_steps: int) -> None:
        """Training begins, or goes on, after `step` steps; from here on a thread writes what has changed."""
        with self._lock:
            self._ends.clear()
            self._ends.append((step, self._clock()))
            self.values |= {"step": step, "max_steps": max_steps}
        self.follow()

    def end_step(self, step: int) -> None:
        with self._lock:
            self._ends.append((step, self._clock()))
            self.values["step"] = step
            self._changed = True

    def follow(self) -> None:
        """Begins to write by itself. Not before the data are loaded: other libraries fork then, and a fork may not take
        a thread with it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="lcot-progress", daemon=True)
            self._thread.start()

    def close(self, state: str, message: str | None = None) -> None:
        """The last word."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.state(state, message, phase=None, phase_done=None, phase_total=None)

    def _follow(self) -> None:
        while not self._ended.wait(self._interval):
            with self._lock:
                if self.values["state"] == "running" and self.is_stopping():
                    self.values["state"], self._changed = "stopping", True
                if self._changed:
                    self._write_now()

    def _write_now(self) -> None:
        now = self._clock()
        self.values["updated"] = now
        self._estimate(now)
        self._changed = False
        self._write(dict(self.values))

    def _estimate(self, now: float) -> None:
        seconds = remaining = None
        if len(self._ends) > 1:
            (first, begun), (last, ended) = self._ends[0], self._ends[-1]
            seconds = (ended - begun) / (last - first) if last > first else None
        if seconds is not None and self.values["max_steps"] is not None:
            left = self.values["max_steps"] - self.values["step"]
            remaining = max(0.0, seconds * left - (now - self._ends[-1][1]))
        if self.values["state"] not in LIVING:
            remaining = None
        self.values |= {"seconds_per_step": seconds, "remaining_seconds": remaining}
