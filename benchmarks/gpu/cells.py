"""A cell of a table: one side of one comparison, measured in a process of its own and kept in a file.

In: a part's name and a job, a dictionary that JSON can hold. Out: `{"status": ..., ...figures}`, read back by a later
run, so that an interrupted benchmark goes on where it stopped. A side that runs out of memory, fails or hangs is a
status of its cell and ends nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run.py")

OK = "ok"
OUT_OF_MEMORY = "out of memory"
FAILED = "failed"
MISSING = "not there"
"""What a side needs is not installed or was not named."""
MEMORY_ERRORS = ("out of memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    part: str
    name: str
    """Within its part; of a file name's characters."""
    job: dict[str, Any]
    """What the part's `measure` is given."""
    missing: str = ""
    """Why it cannot be measured here; empty where it can."""
    allocator: str = "expandable_segments:True"
    """PYTORCH_ALLOC_CONF where the user has set none; empty for torch's own."""

    @property
    def label(self) -> str:
        return f"{self.part}_{self.name}"


Measured = tuple[Cell, dict[str, Any]]


def environment(device: str, allocator: str = "") -> dict[str, str]:
    """Of a measuring process: one GPU, no network, the caller's allocator settings where there are any."""
    own = dict(os.environ)
    visible = own.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if device != "cpu" else ""
    own |= {
        "CUDA_VISIBLE_DEVICES": visible,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "LLAMAFACTORY_VERBOSITY": "WARN",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), own.get("PYTHONPATH", "")]),
    }
    if allocator and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & own.keys():
        own["PYTORCH_ALLOC_CONF"] = allocator
    return own


def measure(cell: Cell, folder: Path, hardware: dict[str, Any], minutes: float) -> dict[str, Any]:
    """The figures of a cell, from its file where the same job was measured on the same device before."""
    file = folder / "cells" / f"{cell.label}.json"
    asked = json.loads(json.dumps({"job": cell.job, "name": hardware["name"], "torch": hardware.get("torch")}))
    if file.exists():
        kept = json.loads(file.read_text())
        if kept["asked"] == asked and kept["result"]["status"] != FAILED:
            return kept["result"]
    if cell.missing:
        return {"status": MISSING, "why": cell.missing}
    file.parent.mkdir(parents=True, exist_ok=True)
    result = in_a_process(cell, folder, hardware["device"], minutes)
    file.write_text(json.dumps({"asked": asked, "result": result}, indent=1))
    return result


def in_a_process(cell: Cell, folder: Path, device: str, minutes: float) -> dict[str, Any]:
    """Runs a cell to its end, or to the end of its time, with everything that it has started."""
    log, job, answer = (folder / "logs" / f"{cell.label}.{end}" for end in ("log", "job.json", "answer.json"))
    log.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    job.write_text(json.dumps({"part": cell.part, "job": cell.job, "answer": str(answer)}))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(RUN), "--cell", str(job)],
            env={**environment(device, cell.allocator), **cell.job.get("environment", {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(minutes * 60)
        except BaseException as error:  # its time is over, or the user presses Ctrl-C: nothing may go on behind
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {"status": FAILED, "why": f"no result after {minutes:g} minutes, see {log}"}
    if answer.exists():
        return json.loads(answer.read_text())
    if code == KILLED:
        return {"status": OUT_OF_MEMORY, "why": "the system killed the process: the machine's memory was full"}
    return {"status": FAILED, "why": f"ended with code {code}: {last_line(log)} (see {log})"}


def answer_cell(job_file: Path, measures: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> int:
    """Entry of a cell's process: measures, and writes the figures or why there are none; 1 where it failed."""
    job = json.loads(job_file.read_text())
    try:
        result = {"status": OK, **measures[job["part"]](job["job"])}
    except Exception as error:
        result = status_of(error)
        if result["status"] == FAILED:
            Path(job["answer"]).write_text(json.dumps(result))
            raise
    Path(job["answer"]).write_text(json.dumps(result))
    return 0


def status_of(error: BaseException) -> dict[str, Any]:
    """Too little memory, whichever library says so and whatever wraps it, is told from other errors."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, MemoryError) or any(text in str(chain) for text in MEMORY_ERRORS):
            return {"status": OUT_OF_MEMORY, "why": first_line(chain)}
        chain = chain.__cause__ or chain.__context__
    return {"status": FAILED, "why": first_line(error)}


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
