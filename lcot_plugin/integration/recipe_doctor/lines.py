"""What the doctor says: one finding per line, in the words of `lcot doctor` and `lcot data check`; and all it knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lcot_plugin.integration.data_check import GOOD, NOTE, SKIPPED, WRONG

__all__ = ["GOOD", "NOTE", "SKIPPED", "WRONG", "Examination", "Line", "duration", "gib", "millions"]

GIB = 2**30
SUBJECT_WIDTH = 22


@dataclass(frozen=True)
class Line:
    """One finding."""

    level: str
    """GOOD; NOTE: the run works, read it; WRONG: the run fails or does not do what the recipe says; SKIPPED."""
    subject: str
    """What was looked at, in a word or two."""
    text: str
    """What was found and, where something is wrong, what to write or do instead."""

    def __str__(self) -> str:
        return f"{self.level:<5}  {self.subject:<{SUBJECT_WIDTH}} {self.text}"

    def as_dict(self) -> dict[str, str]:
        return {"level": self.level, "subject": self.subject, "text": self.text}


@dataclass
class Examination:
    """What is known so far; every step adds findings."""

    config: str
    overrides: tuple[str, ...]
    dry_run: bool
    num_processes: int
    memory: float | None
    """Bytes of a device, where the user or this machine says."""
    num_records: int
    lines: list[Line] = field(default_factory=list)
    estimates: dict[str, Any] = field(default_factory=dict)

    def add(self, *lines: Line) -> None:
        """Prints as it finds."""
        for line in lines:
            print(line, flush=True)
        self.lines += lines


def gib(num_bytes: float) -> str:
    """`12.3 GiB`; `310 MiB` below one."""
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:,.0f} MiB"


def millions(number: float) -> str:
    """`3,146 M`; `0.85 M` below ten."""
    return f"{number / 1e6:,.0f} M" if number >= 1e7 else f"{number / 1e6:,.2f} M"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `17 h 46 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    small = "s" if seconds < 3600 else "min"
    whole, rest = divmod(round(seconds if small == "s" else seconds / 60), 60)
    return f"{whole:,} {'min' if small == 's' else 'h'} {rest} {small}"
