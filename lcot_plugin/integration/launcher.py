"""Seam: `llamafactory.launcher`. A signal to `llamafactory-cli train` reaches the processes that train, and so do its
arguments.

With several devices the launcher waits for torchrun in `subprocess.run`. A SIGTERM, which a scheduler or `docker stop`
sends to that one process, ends it alone: torchrun and the training go on without anybody, until they are killed without
a checkpoint. Here it is passed on. torchrun itself kills its processes 30 seconds after it was asked to end them, which
is less than an optimizer step may take: it is given longer, where its version listens. Can go when the launcher
replaces its process by torchrun's.

The launcher also joins torchrun's command and its own arguments by blanks and splits them again, so
`--default_system "Think first"` would arrive as two words, and an empty argument not at all. They are put back as they
were given.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

FORWARDED = {signal.SIGTERM: signal.SIGTERM, signal.SIGUSR1: signal.SIGTERM}
"""What is received: what torchrun gets. It does not know SIGUSR1, which would end it at once."""
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds that torchrun leaves its processes."""


def apply(module: ModuleType) -> None:
    """Has the launcher start torchrun by `run_forwarding`."""
    module.subprocess = _Subprocess(module)


class _Subprocess:
    """The standard module with another `run`."""

    def __init__(self, launcher: ModuleType) -> None:
        self._launcher = launcher

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def run(self, command: Sequence[str], *arguments: Any, **options: Any) -> Any:
        given = [str(self._launcher.__file__), *sys.argv[1:]]
        return run_forwarding(with_arguments(command, given), *arguments, **options)


def with_arguments(command: Sequence[str], given: Sequence[str]) -> list[str]:
    """A command that ends in `given`, joined by blanks and split, with `given` as it is; another one unchanged.

    Example: `torchrun train.py --default_system Think first` with `train.py`, `--default_system`, `Think first`.
    """
    words = " ".join(given).split()
    if list(command[len(command) - len(words) :]) != words:
        return list(command)
    return [*command[: len(command) - len(words)], *given]


def run_forwarding(
    command: Sequence[str], env: Mapping[str, str], check: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """As subprocess.run, but the process gets the signals; exits by 128 + the signal's number where there was one."""
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(FORWARDED[signal.Signals(number)])

    previous = {number: signal.signal(number, forward) for number in FORWARDED}

    def interrupt(number: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-C goes to all processes; who waits must not be gone before them. A second one is for those
        that the first has not ended, or not reached."""
        if process is not None and signal.SIGINT in received:
            process.send_signal(signal.SIGINT)
        received.append(number)

    previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        process = subprocess.Popen(command, env={SHUTDOWN_TIMEOUT: "600", **env})
        if received:
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])
    if check and code:
        raise subprocess.CalledProcessError(code, command)
    return subprocess.CompletedProcess(command, code)
