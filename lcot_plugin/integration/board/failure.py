"""Why a run has failed, in words: what its process wrote to stderr in, the reason and the end of it out.

In: the end of a file that holds log lines, progress bars that draw over themselves, and tracebacks of one or several
processes. Out: `Failure`. Consumer: board.process.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MAX_READ = 256 * 1024
"""Bytes at the end of the file that are looked at."""
MAX_REASON = 3000
MAX_LOG = 12_000
"""Characters that are shown; what is left out is counted."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Halves of characters among them, which gradio cannot send: names of files and models' words may hold some."""
_BAR = re.compile(r"\d+%\|.*\| *\d+/\d+|^\s*\d+it \[")
_RANK = re.compile(r"^\[rank\d+\]: ?")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)
_LOGGED = re.compile(r"\[[A-Z]+[| ]|\{'|\d{4}-\d\d-\d\d |[A-Z]\d{4} ")
"""How lines of loggers begin: an exception that was caught has no blank line behind it."""
_OF_THE_LAUNCHER = ("ChildFailedError", "CalledProcessError")
"""torchrun's and the launcher's word that another process has failed; that one's own traceback tells why."""
_ELSEWHERE = "Another process"
"""How the errors begin of processes that end because another one has failed."""
_PLAIN = ("ValueError", "ArgumentError", "DataError", "RecordError", "RewardError", "RolloutError", "FaultError")
"""Errors whose message is a sentence for the user: their name adds nothing."""


@dataclass(frozen=True)
class Failure:
    """What is known of a failed run."""

    reason: str
    """The message of the error that ended it; empty where none was written."""
    log: str
    """The last lines, without progress bars and control characters."""


def read_failure(path: Path) -> Failure:
    """The reason and the last lines of a file; both empty where there is none."""
    return explain(tail(path))


def tail(path: Path, max_bytes: int = MAX_READ) -> str:
    """The end of a text file, from the beginning of a line on; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            content = file.read()
    except OSError:
        return ""
    if size > max_bytes:
        content = content.partition(b"\n")[2] or content
    return content.decode("utf-8", errors="replace")


def explain(written: str) -> Failure:
    """written: what a process wrote to stderr, or the end of it."""
    lines = readable_lines(written)
    return Failure(_shortened(_reason(lines), MAX_REASON), _end(lines))


def readable_lines(written: str) -> list[str]:
    """The lines as a terminal would leave them, without bars, colours, and the ranks that torchrun puts before them."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = _CONTROL.sub("", _ANSI.sub("", line.rstrip("\r").rpartition("\r")[2]))
        if not _BAR.search(shown):
            lines.append(_RANK.sub("", shown))
    return lines


def _reason(lines: list[str]) -> str:
    """The last exception that is not the launcher's own."""
    found = [error for error in _exceptions(lines) if _short(error[0]) not in _OF_THE_LAUNCHER]
    if not found:
        return ""
    own = [error for error in found if not error[1].startswith(_ELSEWHERE)]
    name, message = (own or found)[-1]
    return message if message and _short(name) in _PLAIN else f"{_short(name)}: {message}".removesuffix(": ")


def _exceptions(lines: list[str]) -> list[tuple[str, str]]:
    """(name, message) at the end of every traceback."""
    found = []
    place = 0
    while place < len(lines):
        place += 1
        if lines[place - 1].strip() != _TRACEBACK:
            continue
        while place < len(lines) and (not lines[place].strip() or lines[place][0] in " \t|+"):
            place += 1
        message: list[str] = []
        while place < len(lines) and lines[place].strip() != _TRACEBACK and not lines[place].startswith(_CHAINED):
            if message and _LOGGED.match(lines[place]):
                break
            message.append(lines[place])
            place += 1
            if len(message) > 1 and not lines[place - 1].strip():
                break  # a log line may follow; messages of several paragraphs keep their first one
        match = _EXCEPTION.match("\n".join(message).strip())
        if match:
            found.append((match[1], (match[2] or "").strip()))
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _end(lines: list[str]) -> str:
    text = "\n".join(lines).strip()
    if len(text) <= MAX_LOG:
        return text
    kept = text[-MAX_LOG:].partition("\n")[2] or text[-MAX_LOG:]
    return f"[{len(text) - len(kept):,} characters before this are left out]\n{kept}"


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\n[{len(text) - limit:,} more characters]"


def printable(text: str, limit: int) -> str:
    """`text` without control characters, at most `limit` characters of it, what is left out counted."""
    return _shortened(_CONTROL.sub("", _ANSI.sub("", text)), limit)


def block_quote(text: str) -> str:
    """`text` as a quotation in Markdown that wraps, whatever it holds."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$&:/@])", r"\\\1", text)
    return "\n".join(f"> {line}  " for line in escaped.split("\n"))


def fenced(text: str, language: str = "text") -> str:
    """`text` as a code block of Markdown, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
