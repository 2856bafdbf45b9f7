"""Comparisons in, rulings out, made by worker processes that are killed at a deadline; the verifier consumes them.

    this process --control socket: fork, and one end of a new channel--> zygote (has imported sympy) --fork--> worker
    this process <--channel: JSON lines--> worker

A timeout that leaves the work running is not one, so that the process is what ends; and since the next one is a fork
of the zygote, it costs milliseconds and not an import of sympy. Every worker has a channel of its own: no reply of a
killed one can be taken for another's.

The zygote is a fresh interpreter and never a fork of this process, which may hold CUDA contexts, threads and locks.
It is not of multiprocessing either: that imports the user's `__main__` again, refuses to start children in the
daemonic workers of a data loader, and shares one fork server with whoever else in the process uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.worker import FORK, MESSAGE
from lcot_plugin.types import MatchSettings, Outcome

WORKER_MODULE = "lcot_plugin.rewards.worker"
START_SECONDS = 120.0
"""For the zygote to import sympy, on a busy machine with a cold disk."""
MAX_STARTS = 3
"""Zygotes that may die one after the other before it is an error."""


@dataclass(frozen=True)
class Comparison:
    """What a worker judges. Hashable: equal ones have the same outcome."""

    found: Found | None
    gold: str
    answer_type: str
    settings: MatchSettings

    @property
    def num_chars(self) -> int:
        """What it holds, in characters."""
        texts = (self.found.answer if self.found else "", self.gold, *self.settings.options)
        return sum(map(len, texts))


@dataclass(frozen=True)
class Ruling:
    """What came of a comparison in a worker."""

    outcome: Outcome
    """TIMED_OUT where the worker did not answer, GOLD_UNPARSABLE where its deadline met it reading the gold answer."""
    overran: bool = False
    """Whether the deadline is why it did not."""


class ZygoteLost(Exception):
    """The zygote has died, or does not answer."""


class Pool:
    """At most `num_workers` worker processes, started when first needed. Safe from threads and in forked children.

    module: what the zygote runs.
    """

    def __init__(self, num_workers: int, module: str = WORKER_MODULE) -> None:
        self.num_workers = num_workers
        self._module = module
        self._start_over()
        _live_pools.add(self)

    def _start_over(self) -> None:
        # A seat is a worker that waits for work, or None: the right to start one.
        self._seats: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.num_workers):
            self._seats.put(None)
        self._zygote: Zygote | None = None
        self._zygote_lock = threading.Lock()
        # Also when this pool is dropped unclosed, and at exit: a finaliser is called once, and must not hold the pool.
        self._shut = weakref.finalize(self, _shut, self._seats, None)

    def judge(self, comparison: Comparison, seconds: float) -> Ruling:
        """What a worker says of `comparison` in `seconds`, the start of a process not counted.

        A worker that dies of something else (most likely the system's want of memory) is replaced once. Raises
        RewardError where none can be started.
        """
        reply, gold_readable = Reply(), False
        worker = self._seats.get()
        try:  # at once: an interruption before it would lose the seat
            for _ in range(2):
                if worker is None:
                    worker = self._start_worker()
                reply = worker.judge(comparison, seconds - reply.seconds)
                gold_readable |= reply.gold_readable
                if reply.outcome is not None and not reply.last:
                    return Ruling(reply.outcome)
                worker.end()
                worker = None
                if reply.outcome is not None:
                    return Ruling(reply.outcome)
                if reply.overran:
                    break
            # Only the deadline may be the gold answer's fault; a death is most likely the system's.
            of_gold = reply.overran and not gold_readable
            return Ruling(Outcome.GOLD_UNPARSABLE if of_gold else Outcome.TIMED_OUT, reply.overran)
        except BaseException:  # Ctrl-C: a reply may still come, and the next item must not get it
            if worker is not None:
                worker.end()
                worker = None
            raise
        finally:
            self._seats.put(worker)

    def _start_worker(self) -> Worker:
        for _ in range(MAX_STARTS):
            with self._zygote_lock:  # held while the zygote starts: all threads want the same one
                if self._zygote is None:
                    try:
                        self._zygote = Zygote(self._module)
                    except ZygoteLost:
                        continue
                    self._shut.detach()
                    self._shut = weakref.finalize(self, _shut, self._seats, self._zygote)
                zygote = self._zygote
            try:
                return zygote.fork()
            except ZygoteLost:
                with self._zygote_lock:
                    if self._zygote is zygote:
                        self._zygote = None
                        zygote.stop()
        raise RewardError(
            f"the answer verifier's workers cannot be forked: {MAX_STARTS} processes that fork them ended or failed, "
            "most likely for want of memory or of processes (`ulimit -u`, the container's limits); free some"
        )

    def close(self) -> None:
        """End all processes; new ones are started when the pool is used again."""
        with self._zygote_lock:
            _shut(self._seats, self._zygote)
            self._zygote = None

    def _disown(self) -> None:
        self._shut.detach()
        self._start_over()


def _shut(seats: queue.LifoQueue[Worker | None], zygote: Zygote | None) -> None:
    # A worker in use is not here: its thread sees the channel end, because the zygote ends all its workers.
    idle = []
    with contextlib.suppress(queue.Empty):
        while True:
            idle.append(seats.get_nowait())
    for worker in idle:
        if worker is not None:
            worker.end()
        seats.put(None)
    if zygote is not None:
        zygote.stop()


class Zygote:
    """The process that workers are forked from. Raises RewardError where it cannot start, ZygoteLost where something
    killed it while it started."""

    def __init__(self, module: str) -> None:
        import lcot_plugin

        if not hasattr(os, "fork"):
            raise RewardError(
                f"answers that need algebra are compared in forked processes, which {sys.platform} has not; "
                "use Linux, macOS or WSL"
            )
        search_path = [os.environ.get("PYTHONPATH", ""), str(Path(lcot_plugin.__file__).parent.parent)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
            "PYTHONHASHSEED": "0",  # the order of a set of symbols is the same in every run
            "LCOT_PLUGIN": "0",  # nothing of LLaMA-Factory runs there
        }
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        _open_sockets.add(self._control)
        # -P: a user's random.py in the working directory must not shadow the standard library's.
        command = [sys.executable, "-P", "-m", module]
        nowhere = subprocess.DEVNULL
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=nowhere,
                    stderr=nowhere,
                    env=environment,
                    # torchrun and terminals signal a whole group, and it ignores no signal before it has imported.
                    process_group=0,
                )
        except BaseException:
            self._control.close()
            raise
        _live_zygotes.add(self)
        try:
            greeting = _Lines(self._control).read(time.monotonic() + START_SECONDS) or {"error": "it ended at once"}
        except TimeoutError:
            greeting = {"error": f"no sign of life after {START_SECONDS:.0f} s"}
        except BaseException:
            self._process.kill()
            self.stop()
            raise
        if "ready" not in greeting:
            if self._ended_by_a_signal():
                self.stop()
                raise ZygoteLost
            self._process.kill()
            self.stop()
            raise RewardError(
                f"the answer verifier's worker did not start ({greeting['error']}); `{' '.join(command)}` shows why, "
                "`pip install math-verify` installs it"
            )

    def _ended_by_a_signal(self) -> bool:
        try:
            return self._process.wait(timeout=1.0) < 0
        except subprocess.TimeoutExpired:
            return False

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> Worker:
        """A new worker. Raises ZygoteLost where there is no answer."""
        ours, theirs = socket.socketpair()
        _open_sockets.add(ours)
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [MESSAGE.pack(FORK)], [theirs.fileno()])
            ours.settimeout(START_SECONDS)
            greeting = ours.recv(MESSAGE.size)
        except OSError as error:  # a time-out is one too
            ours.close()
            raise ZygoteLost from error
        except BaseException:
            ours.close()
            raise
        if len(greeting) < MESSAGE.size:
            ours.close()
            raise ZygoteLost
        return Worker(self, ours, *MESSAGE.unpack(greeting))

    def kill_worker(self, pid: int) -> None:
        """Have a worker killed and reaped, before any later fork."""
        with contextlib.suppress(OSError), self._lock:
            # Workers of a zygote that is gone end themselves, some seconds after their deadline.
            self._control.sendall(MESSAGE.pack(pid))

    def stop(self) -> None:
        """End it and its workers."""
        with self._lock:
            self._control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _disown(self) -> None:
        self._process.returncode = 0  # it belongs to the parent of this forked process


@dataclass
class Reply:
    """What a worker has said of one comparison, so far."""

    gold_readable: bool = False
    outcome: Outcome | None = None
    last: bool = False
    """Whether the worker ends after this one."""
    overran: bool = False
    seconds: float = 0.0
    """What it took."""


class Worker:
    """One worker process, spoken to by one thread at a time."""

    def __init__(self, zygote: Zygote, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self._channel = channel
        self._lines = _Lines(channel)

    def judge(self, comparison: Comparison, seconds: float) -> Reply:
        """The reply; where its outcome is None the worker is of no more use: it overran, or has died."""
        request = {
            "found": vars(comparison.found) if comparison.found else None,
            "gold": comparison.gold,
            "answer_type": comparison.answer_type,
            "settings": vars(comparison.settings),
            "seconds": seconds,
        }
        start = time.monotonic()
        reply = Reply()
        try:
            self._channel.settimeout(max(seconds, 0.001))
            # ASCII: a lone surrogate survives.
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            while reply.outcome is None and (line := self._lines.read(start + seconds)) is not None:
                reply.gold_readable = line.get("gold_readable", reply.gold_readable)
                reply.outcome = Outcome(line["outcome"]) if "outcome" in line else None
                reply.last = line.get("last", False)
        except TimeoutError:
            reply.overran = True
        except ConnectionError:
            pass
        reply.seconds = time.monotonic() - start
        return reply

    def end(self) -> None:
        """Kill it."""
        self._channel.close()
        self._zygote.kill_worker(self.pid)


class _Lines:
    """JSON lines from a socket."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._buffer = b""

    def read(self, deadline: float) -> dict[str, Any] | None:
        """The next one, None at the end; TimeoutError when time.monotonic() has passed `deadline`."""
        while b"\n" not in self._buffer:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError
            self._source.settimeout(seconds)
            received = self._source.recv(1 << 16)
            if not received:
                return None
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


_live_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_live_zygotes: weakref.WeakSet[Zygote] = weakref.WeakSet()
_open_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Let go of what is the parent's.

    A copy of a socket kept open here would keep the parent's processes from seeing it end; and a lock may have been
    held by a thread that this process has not.
    """
    for each in list(_open_sockets):
        each.close()
    for zygote in list(_live_zygotes):
        zygote._disown()
    for pool in list(_live_pools):
        pool._disown()


if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to let go
    os.register_at_fork(after_in_child=_after_fork_in_child)
