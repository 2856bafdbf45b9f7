"""torchrun's processes get the arguments that LLaMA-Factory's launcher was given."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lcot_plugin.integration import launcher as seam
from lcot_plugin.integration.launcher import with_arguments

GIVEN = ["train file.py", "--default_system", "Think first,  then\nanswer", "--empty", "", "--plain", "x"]
TORCHRUN = ["torchrun", "--nnodes", "1"]


def test_arguments_come_back_as_they_were_given() -> None:
    split = " ".join(GIVEN).split()
    assert split != GIVEN
    assert with_arguments([*TORCHRUN, *split], GIVEN) == [*TORCHRUN, *GIVEN]


def test_a_command_that_does_not_end_in_them_stays() -> None:
    assert with_arguments([*TORCHRUN, "other.py"], GIVEN) == [*TORCHRUN, "other.py"]
    assert with_arguments(["x"], GIVEN) == ["x"]


def test_the_launcher_starts_torchrun_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory import launcher

    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(seam.subprocess, "Popen", Process)
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    monkeypatch.setattr(launcher, "__file__", "/a folder/launcher.py")
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", "train", *GIVEN[1:]])
    with pytest.raises(SystemExit) as ended:
        launcher.launch()
    assert ended.value.code == 0
    (command,) = started
    torchrun, rest = command[: -len(GIVEN)], command[-len(GIVEN) :]
    assert torchrun[0] == "torchrun" and "--master_port" in torchrun
    assert rest == ["/a folder/launcher.py", *GIVEN[1:]]
