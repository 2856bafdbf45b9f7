"""A text that a person types in, which completions hold it out; reads the file, keeps nothing.

The bytes of the file are searched as they are, JSON's escapes included: parsing 100,000 lines takes a second, this a
fifth of one.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from pathlib import Path

import numpy as np

CHUNK = 2 << 20
"""Bytes that are read and searched at once, more where one line is longer; small enough for a processor's cache."""
FIELDS = ("question", "completion")
_IN_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\(?:u[0-9a-f]{0,3})?$")
"""Before a place that belongs to an escape: the n of a line break, the digits of a control character."""


def rows_with_text(path: Path, columns: dict[str, np.ndarray], rows: np.ndarray, text: str) -> np.ndarray:
    """[len(rows)] bool: whether a row's question or completion holds `text`.

    Case does not matter for a to z; other alphabets are found as typed, in lower case, in upper case and capitalised.
    columns: completions_index's. rows: increasing.
    """
    found = np.zeros(len(rows), bool)
    needles = _needles(text)
    starts = columns["offset"][rows]
    line_ends = starts + columns["size"][rows]
    # [rows, fields] bytes of the file, in their order; of a row without the text an empty range
    begins = starts[:, None] + np.stack([columns[field][rows] for field in FIELDS], axis=1)
    ends = starts[:, None] + np.stack([columns[f"{field}_end"][rows] for field in FIELDS], axis=1)
    order = np.argsort(begins, axis=1)
    begins, ends = np.take_along_axis(begins, order, 1), np.take_along_axis(ends, order, 1)
    with path.open("rb") as file:
        first = 0
        while first < len(rows):
            base = int(starts[first])
            until = max(int(np.searchsorted(line_ends, base + CHUNK, "right")), first + 1)
            file.seek(base)
            chunk = file.read(int(line_ends[until - 1]) - base).lower()
            places = [(array[first:until] - base).ravel().tolist() for array in (begins, ends)]
            for needle in needles:
                found[[first + row for row in _rows_of_hits(chunk, needle, *places)]] = True
            first = until
    return found


def _rows_of_hits(chunk: bytes, needle: bytes, begins: list[int], ends: list[int]) -> list[int]:
    """The rows of a chunk whose fields hold the needle. begins, ends: of every row's fields, one row after another."""
    found: list[int] = []
    field, place, length, num_fields = 0, begins[0], len(needle), len(FIELDS)
    while (hit := chunk.find(needle, max(0, place))) >= 0:
        field = bisect_right(begins, hit, field) - 1
        if hit + length <= ends[field]:
            if _in_escape(chunk, hit):
                place = hit + 1
                continue
            row = field // num_fields
            found.append(row)
            field = (row + 1) * num_fields
        else:  # in another value, or in a row that is not asked for
            field += 1
        if field == len(begins):
            break
        place = begins[field]
    return found


def _in_escape(chunk: bytes, place: int) -> bool:
    return b"\\" in chunk[max(0, place - 5) : place] and bool(_IN_ESCAPE.search(chunk, max(0, place - 64), place))


def _needles(text: str) -> list[bytes]:
    """As JSON writes them, in lower case: with the characters themselves and, as other programs do, escaped."""
    variants = [text] if text.isascii() else [text, text.lower(), text.upper(), text.capitalize()]
    written = [json.dumps(variant, ensure_ascii=ascii)[1:-1] for variant in variants for ascii in (False, True)]
    return list(dict.fromkeys(needle.encode("utf-8", "surrogatepass").lower() for needle in written))
