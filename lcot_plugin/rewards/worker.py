"""The processes that may hang: `python -P -m lcot_plugin.rewards.worker` is the zygote, workers are forks of it.

The zygote imports sympy once, which takes seconds, and then forks a worker, which takes milliseconds, whenever the
parent asks for one. Nothing here reads standard input: the zygote's is its control socket.

    control  out  {"ready": true}                            or {"error": "..."} and exit
             in   8 bytes: FORK, with one end of a new channel, or the pid of a worker to kill and reap
    channel  out  8 bytes: the pid, from the zygote          (the end of the channel where the fork failed)
             in   {"found": {...}, "gold": "2\\\\sqrt{3}", "answer_type": "auto", "settings": {...}, "seconds": 5.0}
             out  {"gold_readable": true}                    (so that a hang is blamed on the right side)
             out  {"outcome": "matched", "last": false}      (last: the worker ends now, to give its memory back)

Both ends of the protocol are `pool`'s to keep. A worker ends with its channel, the zygote with its control socket,
whatever becomes of the parent.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import stat
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.base import Solver
from lcot_plugin.types import MatchSettings, Outcome

MESSAGE = struct.Struct("<q")
FORK = 0
"""The message that asks for a worker; every other one is a pid."""

MEMORY_BYTES = 2 << 30
"""Address space of a worker: a giant factorial may not take the trainer's memory with it."""
MAX_ITEMS = 1000
"""A worker is replaced after so many: sympy keeps caches."""
MAX_GROWTH_BYTES = 256 << 20
"""A worker is replaced when it has at one time held so much more than at its start."""
_GRACE_SECONDS = 5.0
"""How long a worker outlives its deadline where nobody is left to kill it."""
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def math_verify_solver() -> Solver:
    """The solver, its grammar and sympy loaded and warm: what is loaded here is loaded once for all workers."""
    from lcot_plugin.rewards.mathematics.expressions import MathVerifySolver

    solver = MathVerifySolver()
    solver.equal(r"\frac{\sqrt{x}}{2} + 1", r"1 + \frac{x}{2\sqrt{x}}")
    return solver


def main(load_solver: Callable[[], Solver] = math_verify_solver) -> int:
    """Be the zygote until the control socket ends; 1 where the solver cannot be loaded."""
    # What the parent ignores or blocks is inherited. Ctrl-C is the parent's to handle, and so is a scheduler's signal
    # to all processes of a run: the parent still has answers to judge, and this process ends with the parent. Zombies
    # must stay until they are reaped, because until then nobody else gets their pid.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    control = None
    if stat.S_ISSOCK(os.fstat(0).st_mode):
        control = socket.socket(fileno=os.dup(0))
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
    try:
        solver = load_solver()
    except Exception as error:  # said to the parent; its words are for the user
        traceback.print_exc()
        if control is not None:
            _send(control, error=f"{type(error).__name__}: {error}")
        return 1
    if control is None:
        print("The answer verifier's worker can start here; only the verifier can use it.", file=sys.stderr)
        return 0
    gc.collect()
    gc.freeze()  # a collection in a worker would write to, and so copy, every page that it shares with the zygote
    _send(control, ready=True)
    _fork_workers(control, solver)
    return 0


def _fork_workers(control: socket.socket, solver: Solver) -> None:
    workers: set[int] = set()
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE.size, 1)
        except ConnectionResetError:
            message = b""
        if len(message) < MESSAGE.size:  # the parent has closed the verifier, or has died
            for pid in workers:
                _kill(pid)
            return
        (pid,) = MESSAGE.unpack(message)
        if pid != FORK:
            if pid in workers:
                workers.remove(pid)
                _kill(pid)
            continue
        with socket.socket(fileno=descriptors[0]) as channel:
            try:
                pid = os.fork()
            except OSError:
                continue  # out of memory or of processes: the parent sees the channel end
            if pid == 0:
                status = 1
                try:
                    control.close()
                    _work(channel, solver)
                    status = 0
                finally:
                    os._exit(status)
            workers.add(pid)
            with contextlib.suppress(BrokenPipeError):
                channel.sendall(MESSAGE.pack(pid))


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # our own child and not yet reaped, so that the pid is nobody else's
    os.waitpid(pid, 0)


def _work(channel: socket.socket, solver: Solver) -> None:
    _limit_memory()
    max_bytes = _peak_bytes() + MAX_GROWTH_BYTES
    with channel.makefile("rb") as lines:
        for number, line in enumerate(lines, start=1):
            request = json.loads(line)
            _self_destruct_after(request["seconds"] + _GRACE_SECONDS)
            outcome = _outcome(channel, request, solver)
            _self_destruct_after(0.0)
            last = number >= MAX_ITEMS or _peak_bytes() > max_bytes
            _send(channel, outcome=outcome.value, last=last)
            if last:
                return


def _outcome(channel: socket.socket, request: dict[str, Any], solver: Solver) -> Outcome:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["settings"].items()
    }
    settings = MatchSettings(**values)
    gold, readable = None, False
    # Whatever a solver raises here, want of memory too, is the gold answer's; what an answer causes is `judge`'s.
    with contextlib.suppress(Exception):
        gold = read_gold(request["gold"], request["answer_type"], settings)
        readable = gold is not None and all(solver.readable(expression) for expression in gold.expressions)
    _send(channel, gold_readable=readable)
    if gold is None or not readable:
        return Outcome.GOLD_UNPARSABLE
    found = request["found"]
    if found is not None:
        found = Found(**{**found, "place": Place(found["place"])})
    return judge(gold, found, settings, solver)


def _send(channel: socket.socket, **fields: object) -> None:
    channel.sendall(json.dumps(fields).encode() + b"\n")


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses a limit below what is mapped already
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    # Where the system itself runs out of memory, Linux shall take this process and not the training.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _self_destruct_after(seconds: float) -> None:
    """Have the kernel end this process in `seconds`, 0 to call it off.

    The default action of SIGALRM needs no interpreter: it works inside one long integer power, which holds the GIL.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    sys.exit(main())
