"""A run that is asked to end: SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 (SLURM's early warning) end it with a checkpoint.

In: signals, which may reach only some of the processes. Out: `StopSignals.received`, on which the trainer acts between
optimizer steps and in the middle of a rollout; `agree` makes it common to all processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
from torch import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 5.0
"""Seconds in which a signal counts as the first one again: torchrun passes on what a terminal or a scheduler has sent
to every process of the run already."""
POLL = 0.5
"""Seconds between two looks at what other processes have received."""
_KEY = "lcot_plugin/stop"


class RunStopped(SystemExit):
    """The run has ended as it was asked to, with a checkpoint.

    Its exit code is 128 + the signal's number, what a shell reports of a process that the signal has killed (143 for
    SIGTERM). Not 0: a scheduler would take the run for finished and not start it again.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopSignals:
    """Takes the signals over while a `with` block lasts."""

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the signal; None where there was none."""
        self._process = os.getpid()
        self._received_at = 0.0
        self._polled_at = 0.0
        self._told = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received, self._told, self._process = None, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return self  # as in a Ray worker: Python lets only the main thread handle signals
        for number in SIGNALS:
            # What somebody else handles (submitit) or has switched off (nohup, `&`) stays as it is.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, as a data loader's worker
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return  # Ctrl-C reaches it too: who has forked it decides, and may need it until the step has ended
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            name = signal.Signals(number).name
            text = f"\n[lcot_plugin] {name}: the run ends after this optimizer step, with a checkpoint. "
            text += f"Once more, after {GRACE:.0f} seconds: at once, without.\n"
            if os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())  # print may be under way
        elif time.monotonic() - self._received_at > GRACE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def poll(self) -> bool:
        """Whether this process or, as far as is known, another one was asked to stop; never waits for the others."""
        if not distributed.is_initialized():
            return self.received is not None
        now = time.monotonic()
        if now - self._polled_at >= POLL and not (self.received and self._told):
            self._polled_at = now
            store = distributed.distributed_c10d._get_default_store()
            if self.received is not None:
                store.set(_KEY, str(self.received))
                self._told = True
            elif store.check([_KEY]):
                self.received, self._received_at, self._told = int(store.get(_KEY)), now, True
        return self.received is not None

    def agree(self, accelerator: Any) -> int | None:
        """The signal that any process had received when it called this. A collective."""
        if accelerator.num_processes == 1:
            return self.received
        self.poll()
        agreed = largest(self.received or 0, accelerator)
        if agreed:  # where none has, one may have arrived meanwhile, and is for the next time
            self.received = agreed
        return agreed or None


def largest(number: int, accelerator: Any) -> int:
    """The largest of all processes' numbers. A collective."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
