"""Runs a server and sees to it that nothing of it is left behind.

    python -I lcot_launch.py PARENT GRACE COMMAND [ARGUMENT...]

In: the process id of the training, which has started this process in a session of its own, and the seconds that the
server may take to end. Out: the server's exit code.

Whatever the server starts stays in the session. All of it ends when the server ends, when this process gets SIGTERM,
and when the training is gone, even if that was killed: asked first (SIGTERM), killed after GRACE seconds. The kernel's
parent-death signal alone would not do: it comes when the *thread* ends that started a process, and it reaches one
process only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

POLL_SECONDS = 0.2
KILL_SECONDS = 5.0
"""How long killed processes are waited for: those in the middle of a device call take a moment."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""Numbers of prctl(2)."""


def main(arguments: list[str]) -> int:
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: asked.append(received))
    libc = ctypes.CDLL(None)
    # What the server leaves behind becomes a child of this process, which can then see it end.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def end_with_this_process() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    server = subprocess.Popen(command, preexec_fn=end_with_this_process)
    codes: dict[int, int] = {}
    while server.pid not in codes and not asked and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
        codes |= reap()
    codes |= end_session(os.getpid(), grace)
    server.returncode = codes.get(server.pid, -signal.SIGKILL)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def reap() -> dict[int, int]:
    """Exit codes, by process id, of the children that have ended since the last call."""
    codes: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def end_session(session: int, grace: float) -> dict[int, int]:
    """Ends this process's session but for itself; exit codes of the children among those that ended."""
    codes: dict[int, int] = {}
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        signal_session(session, number)
        deadline = time.monotonic() + seconds
        while members(session) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
            codes |= reap()
    return codes


def signal_session(session: int, number: int) -> None:
    """Sends a signal to every process of a session but this one."""
    for pid in members(session):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def members(session: int) -> list[int]:
    """The processes of a session but this one."""
    found = []
    for name in os.listdir("/proc"):
        # A process may end between the listing and the question.
        with suppress(ProcessLookupError, PermissionError):
            if name.isdigit() and int(name) != os.getpid() and os.getsid(int(name)) == session:
                found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
