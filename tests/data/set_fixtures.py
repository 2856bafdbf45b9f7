"""What the stand-ins of public data sets are made of: their pictures, files and what their records say.

The sets themselves are in public_sets_*.py; take them from public_sets.py. Each has what makes the real one hard: a
missing `<image>`, numbers for answers, prompts without responses, contents in parts, base64, file URLs, a thought that
says `<image>`, text-only and multi-image records side by side.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


class Pictures:
    """Makes a set's pictures, each another, in the form that the set has them in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def png(self, width: int = 64, height: int = 48) -> bytes:
        self.made += 1
        picture = Image.new("RGB", (width, height), (37 * self.made % 256, 200, 91 * self.made % 256))
        ImageDraw.Draw(picture).line([(0, 0), (width - 1, height - 1)], fill="black", width=3)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def path(self, name: str, width: int = 64, height: int = 48) -> str:
        """Written to the set's folder; relative to it."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.png(width, height))
        return name

    def url(self, name: str) -> str:
        return f"file://{(self.folder / self.path(name)).resolve().as_posix()}"

    def struct(self, width: int = 64, height: int = 48) -> dict[str, Any]:
        """As parquet has the feature Image."""
        return {"bytes": self.png(width, height), "path": None}

    def base64(self) -> str:
        return base64.b64encode(self.png()).decode()


@dataclass(frozen=True)
class Expected:
    """What one record says."""

    question: str
    """A part of the last user turn."""
    images: int = 0
    thought: bool = False
    answer: str | None = None
    """The response's short final answer; None where the record has no response, or one without an answer."""
    gold: Any = None
    """As the record has it."""
    options: tuple[str, ...] = ()
    earlier_turns: int = 0


@dataclass(frozen=True)
class PublicSet:
    """One data set: its schema and what its records say."""

    name: str
    hub_id: str
    file: str
    """Name of the file to write; its ending is its type."""
    records: Callable[[Pictures], list[dict[str, Any]]]
    expected: tuple[Expected, ...]
    formatting: str
    plain: dict[str, Any]
    """How a user of LLaMA-Factory alone would describe the file in dataset_info.json."""
    features: Callable[[], dict[str, Any]] | None = None
    """Columns of a parquet file as arguments of `datasets.Features`."""
    columns: dict[str, str] = field(default_factory=dict)
    entry: str = ""
    """The entry of the shipped dataset_info.json that it stands for; `name` where empty."""

    @property
    def entry_name(self) -> str:
        return self.entry or self.name

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes file and pictures into `folder` and returns the entry for a dataset_info.json there."""
        folder.mkdir(parents=True, exist_ok=True)
        records = self.records(Pictures(folder))
        path = folder / self.file
        if path.suffix == ".parquet":
            assert self.features is not None
            write_parquet(path, records, self.features())
        elif path.suffix == ".json":
            path.write_text(json.dumps(records, ensure_ascii=False, indent=2), encoding="utf-8")
        else:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            path.write_text("".join(lines), encoding="utf-8")
        entry: dict[str, Any] = {"file_name": self.file, "formatting": self.formatting}
        return {**entry, "columns": self.columns} if self.columns else entry

    def plain_entry(self) -> dict[str, Any]:
        """The entry without this plugin; call after `write`."""
        return {"file_name": self.file, **self.plain}

    def read(self, folder: Path) -> list[dict[str, Any]]:
        """The records of a written set, as JSON or parquet gives them."""
        path = folder / self.file
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write_parquet(path: Path, records: list[dict[str, Any]], features: dict[str, Any]) -> None:
    """With the features in the file's metadata, as `push_to_hub` writes them."""
    import pyarrow
    from datasets import Features
    from pyarrow import parquet

    schema = Features(features).arrow_schema
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)


def text() -> Any:
    from datasets import Value

    return Value("string")


def number(kind: str = "int64") -> Any:
    from datasets import Value

    return Value(kind)


def picture() -> Any:
    from datasets import Image as ImageFeature

    return ImageFeature()


def raw_bytes() -> Any:
    from datasets import Value

    return Value("binary")


SHAREGPT_ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
"""The tags of LLaMA-Factory's own example with images, which people copy; it has no system_tag."""


def sharegpt(images: str | None = "images", *, messages: str = "conversations") -> dict[str, Any]:
    columns = {"messages": messages, **({"images": images} if images else {})}
    return {"formatting": "sharegpt", "columns": columns}


def openai_like(images: str | None = "images", *, messages: str = "messages") -> dict[str, Any]:
    return {**sharegpt(images, messages=messages), "tags": SHAREGPT_ROLES}


def alpaca(prompt: str, response: str, images: str | None = None, **columns: str) -> dict[str, Any]:
    given = {"prompt": prompt, "response": response, **columns, **({"images": images} if images else {})}
    return {"columns": given}


def think(thought: str, conclusion: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n{conclusion}"


def from_value(*turns: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": names[number % 2], "value": turn} for number, turn in enumerate(turns)]


def role_content(*turns: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
