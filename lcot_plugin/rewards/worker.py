"""The process that may hang: `python -P -m lcot_plugin.rewards.worker`, one JSON line in, JSON lines out.

    out  {"ready": true}                                                  or {"error": "..."} and exit
    in   {"answer": "2*sqrt(3)", "place": "boxed", "gold": "2\\\\sqrt{3}", "answer_type": "auto", "seconds": 5.0}
    out  {"gold_readable": true}                                          (so that a hang is blamed on the right side)
    out  {"outcome": "matched"}

`verifier.Verifier` starts it, kills it at an item's deadline and starts another. It ends at the end of its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.types import Outcome

MEMORY_BYTES = 4 << 30
"""Address space of a worker: a giant factorial may not take the trainer's memory with it."""
_GRACE_SECONDS = 5.0
"""How long a worker outlives its deadline where its parent died and cannot kill it."""


def main() -> int:
    """Answer requests until standard input ends; 1 where math-verify cannot be imported."""
    # Libraries print; the protocol keeps the real standard output to itself.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**fields: object) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes our input
    try:
        from lcot_plugin.rewards.expressions import MathVerifySolver
    except ImportError as error:
        reply(error=f"{type(error).__name__}: {error}")
        return 1
    _cap_memory()
    solver = MathVerifySolver()
    reply(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        _self_destruct_after(request["seconds"] + _GRACE_SECONDS)
        gold = read_gold(request["gold"], request["answer_type"])
        readable = gold is not None and all(solver.readable(expression) for expression in gold.expressions)
        reply(gold_readable=readable)
        if gold is None or not readable:
            outcome = Outcome.GOLD_UNPARSABLE
        else:
            answer = request["answer"]
            found = None if answer is None else Found(answer, Place(request["place"]))
            outcome = judge(gold, found, solver=solver)
        _self_destruct_after(0.0)
        reply(outcome=outcome.value)
    return 0


def _cap_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no limit to set
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _self_destruct_after(seconds: float) -> None:
    """Have the kernel end this process in `seconds`, 0 to call it off.

    The default action of SIGALRM needs no interpreter: it works inside one long integer power, which holds the GIL.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    sys.exit(main())
