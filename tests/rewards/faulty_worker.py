"""A worker whose solver has the fault that a number in the answer stands for, run in place of the verifier's own.

The zygote is started with this file's name as its module.
"""

import os
import sys
import time
from pathlib import Path

from lcot_plugin.rewards import worker

FAULTS = {
    "901": "sleep",
    "902": "spin",
    "903": "exit",
    "904": "raise",
    "905": "print",
    "906": "allocate",
    "907": "grow",
    "908": "once",
}
"""Numbers, because nothing but mathematics reaches a solver."""


class FaultySolver:
    """Says that equal texts are equal."""

    def readable(self, expression: str) -> bool:
        self._do(expression)
        return True

    def equal(self, gold: str, answer: str) -> bool:
        self._do(answer)
        return gold == answer

    def _do(self, text: str) -> None:
        faults = {fault for number, fault in FAULTS.items() if number in text}
        if "sleep" in faults:
            time.sleep(600)
        if "spin" in faults:
            9 ** (9**9)  # one call into C, which holds the interpreter's lock
        if "exit" in faults:
            os._exit(0)
        if "raise" in faults:
            raise RuntimeError("a fault of the solver")
        if "print" in faults:
            print("words of a library")
            print("words of a library", file=sys.stderr)
        if "allocate" in faults:
            held = bytearray(8 << 30)
            held[::4096] = b"x" * len(held[::4096])
        if "grow" in faults:
            held = bytearray(worker.MAX_GROWTH_BYTES + (64 << 20))
            held[::4096] = b"x" * len(held[::4096])
        if "once" in faults:  # dies the first time only
            marker = Path(os.environ["FAULTY_WORKER_MARKER"])
            if not marker.exists():
                marker.touch()
                os._exit(1)


if __name__ == "__main__":
    sys.exit(worker.main(FaultySolver))
