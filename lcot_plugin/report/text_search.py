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
    starts, sizes = columns["offset"][rows], columns["size"][rows]
    # [2, rows] bytes of the file
    begins = np.stack([starts + columns[field][rows] for field in FIELDS])
    ends = np.stack([starts + columns[f"{field}_end"][rows] for field in FIELDS])
    with path.open("rb") as file:
        first = 0
        while first < len(rows):
            base = int(starts[first])
            until = max(int(np.searchsorted(starts + sizes, base + CHUNK, "right")), first + 1)
            file.seek(base)
            chunk = file.read(int(starts[until - 1] + sizes[until - 1]) - base).lower()
            part = slice(first, until)
            places = [(array[..., part] - base).tolist() for array in (starts, begins, ends)]
            for needle in needles:
                for row in _rows_of_hits(chunk, needle, *places):
                    found[first + row] = True
            first = until
    return found


def _rows_of_hits(
    chunk: bytes, needle: bytes, starts: list[int], begins: list[list[int]], ends: list[list[int]]
) -> list[int]:
    """The rows of a chunk whose fields hold the needle. starts: [rows]; begins, ends: [fields][rows]."""
    rows, place = [], 0
    while (hit := chunk.find(needle, place)) >= 0:
        row = bisect_right(starts, hit) - 1
        fields = range(len(begins))
        if any(begins[field][row] <= hit and hit + len(needle) <= ends[field][row] for field in fields):
            if _in_escape(chunk, hit):
                place = hit + 1
                continue
            rows.append(row)
        else:  # in another value, or in a row that is not asked for: on to where a field begins
            ahead = [begins[field][row] for field in fields if begins[field][row] > hit]
            if ahead:
                place = min(ahead)
                continue
        if row + 1 == len(starts):
            break
        place = starts[row + 1]
    return rows


def _in_escape(chunk: bytes, place: int) -> bool:
    return b"\\" in chunk[max(0, place - 5) : place] and bool(_IN_ESCAPE.search(chunk, max(0, place - 64), place))


def _needles(text: str) -> list[bytes]:
    """As JSON writes them, in lower case: with the characters themselves and, as other programs do, escaped."""
    variants = [text] if text.isascii() else [text, text.lower(), text.upper(), text.capitalize()]
    written = [json.dumps(variant, ensure_ascii=ascii)[1:-1] for variant in variants for ascii in (False, True)]
    return list(dict.fromkeys(needle.encode("utf-8", "surrogatepass").lower() for needle in written))
