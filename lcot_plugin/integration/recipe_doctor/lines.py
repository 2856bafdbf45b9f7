"""What the doctor says: one finding per line, in the words of `lcot doctor` and `lcot data check`."""

from __future__ import annotations

from dataclasses import dataclass

from lcot_plugin.integration.data_check import GOOD, NOTE, SKIPPED, WRONG

__all__ = ["GOOD", "NOTE", "SKIPPED", "WRONG", "Line", "gib", "millions"]

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


def gib(num_bytes: float) -> str:
    """`12.3 GiB`; `310 MiB` below one."""
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:,.0f} MiB"


def millions(number: float) -> str:
    """`3,146 M`; `0.85 M` below ten."""
    return f"{number / 1e6:,.0f} M" if number >= 1e7 else f"{number / 1e6:,.2f} M"
