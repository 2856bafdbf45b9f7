"""A cell is measured in a process of its own; whatever becomes of it is a status and no end of the benchmark."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import cells
from benchmarks.gpu.cells import FAILED, MISSING, OK, OUT_OF_MEMORY, Cell, environment, measure, status_of

HARDWARE = {"name": "some GPU", "device": "cpu", "torch": "2.14"}
TOY = """
import os, signal, sys, time
from pathlib import Path
from benchmarks.gpu.cells import answer_cell

def act(job):
    with Path(job["runs"]).open("a") as runs:
        runs.write("x")
    if job["kind"] == "full":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    if job["kind"] == "wrapped":
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("the loader's worker is gone") from error
    if job["kind"] == "wrong":
        raise ValueError("no such key")
    if job["kind"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["kind"] == "left":
        print("Segmentation fault")
        os._exit(7)
    if job["kind"] == "hangs":
        time.sleep(600)
    return {"seconds": [1.5]}

sys.exit(answer_cell(Path(sys.argv[2]), {"toy": act}))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`toy(kind)` measures a cell of this kind; `toy.runs()` says how many processes there were."""
    script, runs = tmp_path / "toy.py", tmp_path / "runs"
    script.write_text(TOY)
    runs.write_text("")
    monkeypatch.setattr(cells, "RUN", script)

    def measured(kind: str, minutes: float = 2.0, hardware: dict[str, Any] = HARDWARE, **job: Any) -> dict[str, Any]:
        return measure(Cell("toy", kind, {"kind": kind, "runs": str(runs), **job}), tmp_path, hardware, minutes)

    measured.runs = lambda: len(runs.read_text())
    return measured


def test_figures_are_kept_and_measured_once(toy):
    assert toy("fine") == toy("fine") == {"status": OK, "seconds": [1.5]}
    assert toy.runs() == 1
    toy("fine", budget=8192)
    toy("fine", budget=8192, hardware={**HARDWARE, "name": "another GPU"})
    assert toy.runs() == 3, "another job and another GPU are measured anew"


@pytest.mark.parametrize("kind", ["full", "wrapped", "killed"])
def test_too_little_memory_is_a_row_and_is_kept(toy, kind):
    assert toy(kind)["status"] == OUT_OF_MEMORY
    assert toy(kind)["status"] == OUT_OF_MEMORY
    assert toy.runs() == 1


@pytest.mark.parametrize(
    ("kind", "why"), [("wrong", "ValueError: no such key"), ("left", "ended with code 7: Segmentation fault")]
)
def test_what_fails_says_why_and_is_tried_again(toy, kind, why):
    assert toy(kind)["status"] == FAILED
    assert why in toy(kind)["why"]
    assert toy.runs() == 2


def test_what_hangs_is_ended(toy):
    assert "no result after 0.001 minutes" in toy("hangs", minutes=0.001)["why"]


def test_what_is_not_there_starts_nothing(tmp_path):
    result = measure(Cell("toy", "other", {}, missing="needs --vllm-python"), tmp_path, HARDWARE, 1)
    assert result == {"status": MISSING, "why": "needs --vllm-python"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("CUDA error: out of memory", OUT_OF_MEMORY),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", OUT_OF_MEMORY),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", OUT_OF_MEMORY),
        ("CUDA error: an illegal memory access was encountered", FAILED),
    ],
)
def test_memory_errors_are_told_from_others(text, status):
    assert status_of(RuntimeError(text))["status"] == status


def test_a_process_sees_one_gpu_or_none(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert environment("cuda", "expandable_segments:True")["CUDA_VISIBLE_DEVICES"] == "2"
    assert environment("cuda", "expandable_segments:True")["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.8")
    assert "PYTORCH_ALLOC_CONF" not in environment("cuda", "expandable_segments:True")


def test_a_cells_file_holds_what_was_asked(toy, tmp_path):
    toy("fine")
    [file] = (tmp_path / "cells").iterdir()
    kept = json.loads(file.read_text())
    assert kept["asked"]["job"]["kind"] == "fine" and kept["asked"]["name"] == "some GPU"
