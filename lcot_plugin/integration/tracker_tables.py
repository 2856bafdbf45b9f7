"""Completions as the rows that experiment trackers show.

In: lines of completions.jsonl, the run's folder. Out: a `CompletionTable` with one row per completion, pictures as PIL
images; the same as Markdown for a tracker without tables. Consumer: trackers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PICTURE_PIXELS = 512
"""Longer side of a picture as a tracker gets it."""
TEXT_CHARACTERS = 20_000
"""Of a question or a completion, as a tracker gets it; completions.jsonl has the whole."""
PICTURE = "picture"

# C0 and C1 without newline and tab, DEL, and marks that turn the direction of what follows. Lone surrogates, which no
# tracker can store, too.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class CompletionTable:
    """Whole groups of completions, side by side."""

    step: int
    columns: list[str]
    rows: list[list[Any]]
    """Numbers, texts, None; in the column "picture" a PIL image (the problem's images side by side) or None."""
    groups: list[slice]
    """Which rows are one problem's."""

    def values(self, column: str) -> list[Any]:
        """A column, in the order of the rows."""
        place = self.columns.index(column)
        return [row[place] for row in self.rows]


def completion_table(
    lines: Sequence[dict[str, Any]], folder: Path, num_groups: int, warn: Callable[[str], None] = lambda text: None
) -> CompletionTable:
    """The first groups of one rollout, or of one evaluation.

    lines: as `report.completions.completion_line` makes them, those of a group adjacent, of one step. folder: what
    paths of pictures are relative to. warn: is told of pictures that cannot be read.
    """
    groups = first_groups(lines, num_groups)
    shown = [line for group in groups for line in group]
    names = list(dict.fromkeys(name for line in shown for name in line["rewards"]))
    columns = ["step", "source", "record", "sample", PICTURE, "question", "completion", "extracted", "gold", "outcome"]
    columns += [*(f"reward/{name}" for name in names), "reward", "advantage", "ending", "num_tokens"]
    rows: list[list[Any]] = []
    slices = []
    for group in groups:
        picture = side_by_side(group[0]["images"], folder, warn)  # one object per problem: trackers keep it once
        slices.append(slice(len(rows), len(rows) + len(group)))
        for line in group:
            row = [line["step"], line["source"], line["record"], str(line["sample"]), picture]
            row += [readable(line[key]) for key in ("question", "completion", "extracted", "gold")]
            row += [line["outcome"], *(line["rewards"].get(name) for name in names)]
            rows.append([*row, line["reward"], line["advantage"], line["ending"], line["num_tokens"]])
    return CompletionTable(shown[0]["step"] if shown else 0, columns, rows, slices)


def first_groups(lines: Sequence[dict[str, Any]], number: int) -> list[list[dict[str, Any]]]:
    """Lines of so many problems. Samples are numbered from 0 (from `greedy` in an evaluation) in each group."""
    groups: list[list[dict[str, Any]]] = []
    for line in lines:
        if not groups or line["sample"] in (0, "greedy"):
            if len(groups) == number:
                break
            groups.append([])
        groups[-1].append(line)
    return groups


def readable(text: str | None) -> str | None:
    """A model's text as a tracker can store and show it: without control characters, of bounded length."""
    if text is None:
        return None
    text = _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))
    if len(text) <= TEXT_CHARACTERS:
        return text
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def side_by_side(names: Sequence[str], folder: Path, warn: Callable[[str], None]) -> Image.Image | None:
    """The problem's pictures in one, from left to right; None where it has none that can be read."""
    pictures = [picture for picture in (_picture(folder / name, warn) for name in names) if picture is not None]
    if len(pictures) < 2:
        return pictures[0] if pictures else None
    gap = 4
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def _picture(path: Path, warn: Callable[[str], None]) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (PICTURE_PIXELS, PICTURE_PIXELS))
            image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
            return image.convert("RGB")
    except Exception as error:  # decoders raise what they like; the run has read this picture already, or left it out
        warn(f"{path} cannot be shown in the trackers: {error}")
        return None


def markdown(table: CompletionTable, group: slice) -> str:
    """A group as Markdown: its values as a table, its texts as they are in code blocks, which nothing in them ends."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows[group]]
    first = rows[0]
    texts = ("question", "completion", PICTURE, "step", "source", "record", "gold")
    columns = [name for name in table.columns if name not in texts]
    parts = [
        f"### {_cell(first['source'])}, record {first['record']}, step {first['step']}",
        "Question:",
        _code(first["question"]),
        "Gold answer:",
        _code(first["gold"]),
        "\n".join(
            [
                _line(columns),
                _line(["---"] * len(columns)),
                *(_line([_cell(row[name]) for name in columns]) for row in rows),
            ]
        ),
    ]
    for row in rows:
        parts += [f"Completion {row['sample']}:", _code(row["completion"])]
    return "\n\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str | None) -> str:
    """An indented code block: Markdown and HTML in it remain text."""
    if text is None:
        text = "(none)"
    elif not text.strip():  # which no block would show
        text = f"({len(text)} blank characters)"
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _cell(value: Any) -> str:
    """A value in a Markdown table: one short line in which nothing is markup."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    if len(text) > 200:
        text = f"{text[:200]} [{len(text) - 200:,} characters left out]"
    return re.sub(r"[^\w\s.,;:=+/%()-]|_", lambda found: f"&#{ord(found[0])};", text)
