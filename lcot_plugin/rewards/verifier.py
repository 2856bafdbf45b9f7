"""Scoring requests in, verdicts out, in order; the scorer, the evaluation and the data check consume them.

Easy comparisons (numbers, choices, text) are made in this process. What needs algebra goes to worker processes, each
killed and replaced when an item overruns its deadline: a timeout that leaves the work running is not one. Workers are
fresh interpreters, never forks, so that a process with CUDA contexts and torch threads may start them, from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lcot_plugin.errors import ArgumentError, DataError, RewardError
from lcot_plugin.rewards.answers import check_answer_type, judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place, extract_answer
from lcot_plugin.rewards.kinds import NeedsSolver
from lcot_plugin.types import Outcome, ScoringRequest, Verdict

START_SECONDS = 120.0
"""For a worker to import sympy, on a busy machine with a cold disk."""


class Worker:
    """One worker process, spoken to by one thread at a time."""

    def __init__(self) -> None:
        import lcot_plugin

        search_path = [os.environ.get("PYTHONPATH", ""), str(Path(lcot_plugin.__file__).parent.parent)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
            "LCOT_PLUGIN": "0",  # nothing of LLaMA-Factory runs there
            "PYTHONIOENCODING": "utf-8",
        }
        # -P: a user's random.py in the working directory must not shadow the standard library's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lcot_plugin.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            encoding="utf-8",
        )
        # A reader thread, because a pipe cannot be read with a timeout on every platform.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()
        try:
            greeting = self._receive(START_SECONDS) or {}
        except queue.Empty:
            greeting = {"error": f"no sign of life after {START_SECONDS:.0f} s"}
        if "ready" not in greeting:
            self.kill()
            raise RewardError(
                f"the answer verifier's worker did not start ({greeting.get('error', 'it ended at once')}); "
                f"`{sys.executable} -P -m lcot_plugin.rewards.worker` shows why, `pip install math-verify` installs it"
            )

    def judge(self, found: Found | None, gold: str, answer_type: str, seconds: float) -> Outcome:
        """The outcome, or TIMED_OUT (GOLD_UNPARSABLE where the gold answer itself overran), after which the worker is
        dead; `alive` tells."""
        request = {
            "answer": found.answer if found else None,
            "place": found.place.value if found else None,
            "gold": gold,
            "answer_type": answer_type,
            "seconds": seconds,
        }
        gold_readable = False
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            deadline = time.monotonic() + seconds
            while (reply := self._receive(max(0.0, deadline - time.monotonic()))) is not None:
                if "outcome" in reply:
                    return Outcome(reply["outcome"])
                gold_readable = reply["gold_readable"]
        except (queue.Empty, BrokenPipeError):
            pass
        # Out of time, or dead of what it was given (out of memory, a crash in an extension): the same to the caller.
        self.kill()
        return Outcome.TIMED_OUT if gold_readable else Outcome.GOLD_UNPARSABLE

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and reap it."""
        self._process.kill()
        self._process.wait()
        # Python aborts where it ends while a daemon thread holds a pipe's lock. The pipe is closed now, but for what a
        # child of the process may hold open.
        self._reader.join(timeout=1.0)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the line that killed it may still be in the buffer
            self._process.stdin.close()

    def disown(self) -> None:
        """Forget a process that belongs to the parent of this forked process."""
        self._process.returncode = 0

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next reply, None where the worker has ended; queue.Empty when the time is up."""
        line = self._lines.get(timeout=seconds)
        return None if line is None else json.loads(line)


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


class Verifier:
    """Verifies answers; safe from threads and in forked children, where it starts workers of its own.

    deadline_seconds: for one item in a worker, start of the process not counted. num_workers: processes at most,
    started when first needed; default: two, one on a machine with fewer than four cores.
    """

    def __init__(self, deadline_seconds: float = 5.0, num_workers: int | None = None) -> None:
        if deadline_seconds <= 0:
            raise ArgumentError(f"deadline_seconds is {deadline_seconds}; write a positive number of seconds")
        if num_workers is not None and num_workers < 1:
            raise ArgumentError(f"num_workers is {num_workers}; write 1 or more")
        self.deadline_seconds = deadline_seconds
        self.num_workers = num_workers or (2 if (os.cpu_count() or 1) >= 4 else 1)
        self._open_seats()
        _live_verifiers.add(self)

    def _open_seats(self) -> None:
        self._pid = os.getpid()
        self._workers: set[Worker] = set()
        # A seat is a worker that waits for work, or None: the right to start one.
        self._seats: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.num_workers):
            self._seats.put(None)

    def verify(self, prediction: str, gold: str, *, answer_type: str = "auto") -> Verdict:
        """The verdict on one completion; see the function `verify`."""
        return self.verify_batch([ScoringRequest(prediction, gold, answer_type=answer_type)])[0]

    def verify_batch(self, requests: Sequence[ScoringRequest]) -> list[Verdict]:
        """One verdict per request, in order.

        Raises RewardError for an unknown answer type, and where a worker cannot be started; never for what a
        completion says.
        """
        if self._pid != os.getpid():
            self._forget_parent()
        verdicts: list[Verdict | None] = []
        pending: queue.SimpleQueue[tuple[int, Found | None]] = queue.SimpleQueue()
        num_pending = 0
        for index, request in enumerate(requests):
            check_answer_type(request.answer_type)
            found = extract_answer(request.completion)
            gold = read_gold(request.gold, request.answer_type)
            try:
                outcome = Outcome.GOLD_UNPARSABLE if gold is None else judge(gold, found)
                verdicts.append(_verdict(request, found, outcome))
            except NeedsSolver:
                verdicts.append(None)
                pending.put((index, found))
                num_pending += 1

        failures: list[Exception] = []

        def drain() -> None:
            while not failures:
                try:
                    index, found = pending.get_nowait()
                except queue.Empty:
                    return
                request = requests[index]
                try:
                    outcome = self._judge_in_worker(found, request.gold, request.answer_type)
                except Exception as failure:
                    failures.append(failure)  # raised below, in the caller's thread
                    return
                verdicts[index] = _verdict(request, found, outcome)

        _run_in_threads(drain, min(self.num_workers, num_pending))
        if failures:
            raise failures[0]
        assert all(verdict is not None for verdict in verdicts)
        return verdicts  # type: ignore[return-value]

    def _judge_in_worker(self, found: Found | None, gold: str, answer_type: str) -> Outcome:
        worker = self._seats.get()
        try:
            if worker is None or not worker.alive:
                if worker is not None:
                    self._retire(worker)
                worker = None
                worker = Worker()
                self._workers.add(worker)
            return worker.judge(found, gold, answer_type, self.deadline_seconds)
        finally:
            if worker is not None and not worker.alive:
                self._retire(worker)
                worker = None
            self._seats.put(worker)

    def _retire(self, worker: Worker) -> None:
        worker.kill()
        self._workers.discard(worker)

    def _forget_parent(self) -> None:
        for worker in self._workers:
            worker.disown()
        self._open_seats()

    def close(self) -> None:
        """Kill the workers; the verifier starts new ones when it is used again."""
        if self._pid != os.getpid():
            self._forget_parent()
        for worker in list(self._workers):
            self._retire(worker)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_live_verifiers: weakref.WeakSet[Verifier] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for verifier in list(_live_verifiers):
        verifier.close()


def _run_in_threads(work: Callable[[], None], num_threads: int) -> None:
    """`work` in this thread for one, else in `num_threads` of them, until all have returned."""
    if num_threads <= 1:
        return work()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _verdict(request: ScoringRequest, found: Found | None, outcome: Outcome) -> Verdict:
    gold = read_gold(request.gold, request.answer_type)
    kind = gold.kind if gold else request.answer_type
    return Verdict(outcome, found.answer if found else None, request.gold, kind)


_shared: Verifier | None = None


def shared_verifier() -> Verifier:
    """The process's own verifier, made at first use."""
    global _shared
    if _shared is None:
        _shared = Verifier()
    return _shared


def verify(prediction: str, gold: str, *, answer_type: str = "auto") -> Verdict:
    r"""Whether the answer that `prediction` states equals `gold`.

    prediction: a completion, or just an answer; what stands in `<think>...</think>` does not count. gold: the right
    answer, in any dress (`B`, `\frac{1}{2}`, `5 cm`, `yes`). answer_type: number, choice, text, expression, sequence,
    or auto to infer it from `gold`.

    Never raises for what a prediction says, and never takes longer than five seconds after the worker has started.
    Raises RewardError for an unknown answer_type.
    """
    return shared_verifier().verify(prediction, gold, answer_type=answer_type)


def gold_is_usable(gold: str | None, answer_type: str = "auto", *, verifier: Verifier | None = None) -> bool:
    """Whether `gold` can be read as an answer of `answer_type`, and a completion that boxes it is matched.

    Raises DataError where there is no gold answer at all; the caller adds the file and the record.
    """
    if gold is None or not gold.strip():
        raise DataError("the gold answer is empty; give the record a short answer that can be compared, or drop it")
    reading = read_gold(gold, answer_type)
    if reading is None:
        return False
    # An answer that no gold answer is written as, so that expressions reach the solver.
    probe = Found("-987654321/123456791", Place.BOXED)
    verifier = verifier or shared_verifier()
    return (
        verifier.verify(rf"\boxed{{{gold}}}", gold, answer_type=answer_type).matched
        and verifier.verify(probe.answer, gold, answer_type=answer_type).outcome is not Outcome.GOLD_UNPARSABLE
    )
