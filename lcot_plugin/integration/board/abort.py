"""Ending a run from LLaMA Board: with a checkpoint when asked once, at once when asked again.

In:  the process that the Board has started. Out: SIGTERM to it, on which a run of ours ends after its optimizer step
     with a checkpoint (survival.stopping), and which the launcher passes on to torchrun; or SIGKILL to it and to all
     that it has started. Consumer: board.process.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from lcot_plugin.survival.checkpoints import newest_whole

DOUBLE_CLICK = 2.0
"""Seconds in which a second press of the button counts as the first one."""


@dataclass
class Abort:
    """What was asked of a process so far."""

    asked_at: float | None = None
    """Of `time.monotonic`; None where nothing was asked."""
    killed: bool = False

    @property
    def asked(self) -> bool:
        return self.asked_at is not None

    def press(self, pid: int) -> None:
        """The first one asks for an end, one that comes later than a double click makes it."""
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            _signal(pid, signal.SIGTERM)
        elif now - self.asked_at > DOUBLE_CLICK:
            self.killed = True
            kill_tree(pid)


def kill_tree(pid: int) -> None:
    """Ends a process and all below it at once; what has ended already is passed over."""
    try:
        root = psutil.Process(pid)
        processes = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        _signal(process.pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def read_arguments(path: Path) -> dict[str, Any]:
    """The YAML file that a run was started with; {} where it cannot be read."""
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return written if isinstance(written, dict) else {}


def stops_with_checkpoint(arguments: dict[str, Any]) -> bool:
    """Whether a run with these arguments is ours, and ends with a checkpoint on SIGTERM."""
    return arguments.get("stage") == "grpo" or bool(arguments.get("length_aware_packing"))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole one of a run."""
    found = newest_whole(folder, lambda line: None)
    return Path(found) if found else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resume_command(folder: Path, arguments: dict[str, Any], checkpoint: Path) -> str:
    """What goes on from the checkpoint in a shell, started where the Board was."""
    words = ["llamafactory-cli", "train", str(folder / "training_args.yaml")]
    if arguments.get("overwrite_output_dir"):
        words.append(f"resume_from_checkpoint={checkpoint}")
    return shlex.join(words)
