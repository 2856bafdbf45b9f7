"""JSON files, record by record, with flat memory.

In:  .jsonl, or .json with one object per line, an array of objects, or an array wrapped as `{"data": [...]}`; each may
     be gzipped (.gz) and may begin with a byte order mark.
Out: one dict per record; DataError names the file and the line of what is not JSON.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from lcot_plugin.errors import DataError

_Peekable = Any
"""An open file, or gzip file, of bytes, whose beginning can be read without consuming it."""

CHUNK = 1 << 20
"""Bytes read at a time; a record longer than that doubles it."""

WRAPPERS = ("data", "records", "examples", "samples")
"""Keys under which a file that is one object may hold its records."""

_WRAPPED = re.compile(rf'\s*\{{\s*"(?:{"|".join(WRAPPERS)})"\s*:\s*\[')
_SPACE = re.compile(r"\s*")
_NEAR_END = 16
"""Characters: a literal, number or escape that the buffer's end cuts is reported that far before it at most."""


def iterate_records(
    path: Path, broken_line: Callable[[DataError], dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """The records of a JSON file, one at a time; a file is never held whole.

    NaN and Infinity are read as Python's json does. Blank lines are skipped. `broken_line`: gives a record in the place
    of a line of a .jsonl file that is none; where an array is broken, what follows cannot be told.

    Raises:
        DataError: for what is not JSON, not UTF-8, cut off, or not an object; names file and line.
    """
    try:
        with _open(path) as file:
            lines = ".jsonl" in path.suffixes or ".ndjson" in path.suffixes
            yield from (
                _lines(path, file, broken_line) if lines and not _is_array(file) else _Stream(path, file).records()
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): download it again.") from error


def _open(path: Path) -> _Peekable:
    file: _Peekable = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115  the caller closes it
    if file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
    return file


def _is_array(file: _Peekable) -> bool:
    """Some files called .jsonl are arrays; a line that is an array could be no record."""
    return file.peek(64)[:64].lstrip()[:1] == b"["


def _lines(
    path: Path, file: _Peekable, broken_line: Callable[[DataError], dict[str, Any]] | None
) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        try:
            yield _record(path, number, line)
        except DataError as error:
            if broken_line is None:
                raise
            yield broken_line(error)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        _not_utf8(path, number, error)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}). It begins {_shown(line)}.") from error
    if type(record) is not dict:
        _not_an_object(path, number, record)
    return record


class _Stream:
    """JSON values of a file one after the other, decoded from a buffer that is filled as needed."""

    def __init__(self, path: Path, file: _Peekable) -> None:
        self._path = path
        self._file = file
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._position = 0
        self._line = 1
        """Of the buffer's beginning."""
        self._ended = False

    def records(self) -> Iterator[dict[str, Any]]:
        self._fill(64)
        if self._next() == "[":
            yield from self._array()
            self._expect_end()
        elif match := _WRAPPED.match(self._buffer, self._position):
            self._position = match.end() - 1
            yield from self._array()
            self._finish_wrapper()
        else:
            yield from self._objects()

    def _objects(self) -> Iterator[dict[str, Any]]:
        """One object after the other; an only one may hold the records under a key."""
        first = None
        count = 0
        while self._next():
            record = self._value()
            count += 1
            if count == 1:
                first = record
                continue
            if first is not None:
                yield first
                first = None
            yield record
        if first is None:
            return
        wrapped = next((first[key] for key in WRAPPERS if _is_records(first.get(key))), None)
        yield from wrapped if wrapped is not None else [first]

    def _array(self) -> Iterator[dict[str, Any]]:
        self._position += 1
        if self._next() == "]":
            self._position += 1
            return
        while True:
            if not self._next():
                self._fail("the array is not closed: the file is cut off")
            yield self._value()
            separator = self._next()
            if not separator:
                self._fail("the array is not closed: the file is cut off")
            if separator not in ",]":
                self._fail(f"expected ',' or ']' between records, not {separator!r}")
            self._position += 1
            if separator == "]":
                return

    def _finish_wrapper(self) -> None:
        """What follows the records of a wrapped array must close the object, else records may follow unseen."""
        separator = self._next()
        if separator not in (",", "}"):
            self._fail("the object around the records is not closed: the file is cut off")
        if separator == ",":
            # What else the object has is read as an object of its own, its separator made the opening brace.
            self._buffer = "{" + self._buffer[self._position + 1 :]
            self._position = 0
            self._value()
        else:
            self._position += 1
        self._expect_end()

    def _expect_end(self) -> None:
        if self._next():
            self._fail("more follows after the records")

    def _next(self) -> str:
        """The next character that is no space, which becomes the position; empty at the file's end."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if self._ended:
                return ""
            self._fill(CHUNK)

    def _value(self) -> dict[str, Any]:
        """The object at the position, which moves behind it."""
        amount = CHUNK
        while True:
            try:
                value, end = self._decode(self._buffer, self._position)
            except RecursionError as error:
                self._fail(str(error))
            except ValueError as error:
                if self._ended or not self._may_continue(error):
                    self._fail(str(error), getattr(error, "pos", self._position))
                self._fill(amount)
                amount *= 2  # so that a record of many megabytes is not decoded from its beginning once per chunk
                continue
            if type(value) is not dict:
                _not_an_object(self._path, self._line_of(self._position), value)
            self._position = end
            return value

    def _may_continue(self, error: ValueError) -> bool:
        """Whether the error may only come from the buffer's end."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - _NEAR_END

    def _fill(self, amount: int) -> None:
        """Drops what is read and adds `amount` bytes of text."""
        self._line += self._buffer.count("\n", 0, self._position)
        try:
            read = self._file.read(amount)
            more = self._characters.decode(read, final=not read)
        except UnicodeDecodeError as error:
            _not_utf8(self._path, self._line, error)
        self._ended = not read
        self._buffer = self._buffer[self._position :] + more
        self._position = 0

    def _line_of(self, position: int) -> int:
        return self._line + self._buffer.count("\n", 0, position)

    def _fail(self, reason: str, position: int | None = None) -> NoReturn:
        line = self._line_of(self._position if position is None else position)
        shown = self._buffer[self._position : self._position + 60]
        # The decoder's own line and column count from the buffer's beginning.
        reason = re.sub(r": line \d+ column \d+ \(char \d+\)$", "", reason)
        raise DataError(f"{self._path}, line {line}: not JSON ({reason}). The record begins {shown!r}.")


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is dict for item in value)


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", errors="replace"))


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> NoReturn:
    raise DataError(f"{path}, line {line} or below: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _not_an_object(path: Path, line: int, value: Any) -> NoReturn:
    raise DataError(f"{path}, line {line}: a record is a {type(value).__name__}; expected an object with columns.")
