"""The next rollout's completions, written while this one is trained on (one step off policy).

In: what writes one process's completions of a rollout. Out: the same completions, when their rollout begins. Only the
writing runs beside the training; judging and everything that talks to other processes stays where it was.

    rollout k      written by the policy of rollout k - 1
    train on k     meanwhile rollout k + 1 is written by the policy that rollout k began with
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from lcot_plugin.policy.rollouts import Written


class RolloutAhead:
    """At most one rollout is under way."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout-ahead")
        self._number: int | None = None
        self._written: Future[Written] | None = None

    def begin(self, number: int, write: Callable[[], Written]) -> None:
        """Starts writing rollout `number`, counted over the whole run."""
        assert self._written is None, "a rollout is under way"
        self._number, self._written = number, self._pool.submit(write)

    def take(self, number: int) -> Written | None:
        """The completions of rollout `number`, with the seconds waited for them here; None where that one was not
        begun, as at the start of a run and after a resume. What `write` raised is raised here."""
        if self._written is None:
            return None
        started = time.perf_counter()
        begun, future = self._number, self._written
        self._number = self._written = None
        written = future.result()
        return replace(written, waited=time.perf_counter() - started) if begun == number else None

    def wait(self) -> None:
        """Until nothing is being written: before the servers get other weights. An error waits for `take`."""
        if self._written is not None:
            wait([self._written])
