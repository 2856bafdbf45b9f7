"""Signals: the first is noted, repetitions within the grace are the same one, a later one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcot_plugin.survival import stopping
from lcot_plugin.survival.stopping import GRACE, RunStopped, StopSignals, largest


def test_a_signal_is_noted_and_nothing_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        assert not signals.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun's, after the terminal's
        assert signals.poll()
        assert signals.received == signal.SIGTERM
    assert capfd.readouterr().err.count("SIGTERM: the run ends after this optimizer step, with a checkpoint") == 1


def test_the_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\n"
        "from lcot_plugin.survival import stopping\n"
        "stopping.GRACE = 0.0\n"
        "with stopping.StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('going on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60); print('not here')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM
    assert ended.stdout == "going on\n"
    assert GRACE > 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, 7 << 8)])
def test_a_forked_child_says_nothing(capfd: pytest.CaptureFixture[str], number: int, status: int) -> None:
    """A data loader's worker: SIGTERM ends it, and after Ctrl-C the step that is to end needs its data."""
    with StopSignals() as signals:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitpid(child, 0)[1] == status
        assert signals.received is None
    assert capfd.readouterr().err == ""


def test_what_others_handle_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))  # as submitit does
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.received is None
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_exit_codes(number: int, code: int) -> None:
    stop = RunStopped(number)
    assert stop.code == code
    assert isinstance(stop, SystemExit)


class Accelerator:
    """Of two processes, of which the other one has `others`."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, others: int):
        self.others = others

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([self.others])])


def test_a_signal_of_one_process_is_everybodys() -> None:
    assert StopSignals().agree(Accelerator(0)) is None
    assert StopSignals().agree(Accelerator(signal.SIGTERM)) == signal.SIGTERM
    assert largest(2, Accelerator(1)) == 2
    assert largest(7, SimpleNamespace(num_processes=1)) == 7


def test_a_signal_that_comes_while_processes_agree_is_not_lost() -> None:
    class SlowAccelerator(Accelerator):
        def gather(self, own: torch.Tensor) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().gather(own)

    with StopSignals() as signals:
        assert signals.agree(SlowAccelerator(0)) is None
        assert signals.agree(Accelerator(0)) == signal.SIGTERM


def test_a_process_learns_of_anothers_signal_through_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for it: in the middle of a rollout processes are at different places."""
    kept: dict[str, str] = {}
    store = SimpleNamespace(
        set=kept.__setitem__, get=lambda key: kept[key].encode(), check=lambda keys: all(key in kept for key in keys)
    )
    fake: Any = SimpleNamespace(
        is_initialized=lambda: True, distributed_c10d=SimpleNamespace(_get_default_store=lambda: store)
    )
    monkeypatch.setattr(stopping, "distributed", fake)
    monkeypatch.setattr(stopping, "POLL", 0.0)
    first, second = StopSignals(), StopSignals()
    assert not first.poll() and not second.poll()
    first.received = signal.SIGUSR1
    assert first.poll()
    assert second.poll()
    assert second.received == signal.SIGUSR1
