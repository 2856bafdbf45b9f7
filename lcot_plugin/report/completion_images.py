"""Pictures that a data set holds as bytes, kept once beside completions.jsonl so that a viewer can show them.

In: images of prompt records, one after another. Out: files under completion_images/, named by their contents, and their
paths relative to the run's folder. Consumers: report.completions (writes), the rollout viewer (reads).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES_FOLDER = "completion_images"
"""In output_dir."""
_MEMORY = 32
"""Pictures of which the name is remembered, so that the completions of one prompt hash it once."""
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}


class CompletionImages:
    """Writes a picture where it is not there yet. Several processes may share the folder."""

    def __init__(self, folder: Path, warn: Callable[[str], None] = print):
        """folder: the run's output_dir. warn: is told once of a picture that could not be written."""
        self.folder, self.warn = Path(folder), warn
        self.num_lost = 0
        """Pictures for which there was no room."""
        self._names: dict[int, tuple[Any, str | None]] = {}
        """By the object's identity; the object is kept, so that nothing else can have the same."""

    def __call__(self, image: Any) -> str | None:
        """`completion_images/<sha>.png`; None for an image that is a file of its own, or could not be kept."""
        known = self._names.get(id(image))
        if known is not None:
            return known[1]
        name = self._kept(image)
        if len(self._names) >= _MEMORY:
            self._names.clear()
        self._names[id(image)] = (image, name)
        return name

    def _kept(self, image: Any) -> str | None:
        contents = _contents(image)
        if contents is None:
            return None
        name = f"{IMAGES_FOLDER}/{hashlib.sha256(contents).hexdigest()[:32]}.{_suffix(contents)}"
        path = self.folder / name
        if path.exists():
            return name
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(contents)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            self.num_lost += 1
            if self.num_lost == 1:
                self.warn(
                    f"A picture of the data set cannot be kept in {path.parent}: {error}. The viewer will lack it; "
                    "training goes on."
                )
            return None
        return name


def _contents(image: Any) -> bytes | None:
    """What an image's file would hold; None for one that is a file."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, dict):
        path, contents = image.get("path") or "", image.get("bytes")
        is_file = os.path.isabs(path) and os.path.isfile(path)
        return None if contents is None or is_file else bytes(contents)
    if isinstance(image, Image.Image) and not os.path.isfile(getattr(image, "filename", "") or ""):
        buffer = io.BytesIO()
        try:
            image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
            image.save(buffer, format="PNG")
        except Exception:  # a broken picture, read only now: its record is not trained on, and the run goes on
            return None
        return buffer.getvalue()
    return None


def _suffix(contents: bytes) -> str:
    """Of the type that the picture has, whatever it was called; `bin` for what is none."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            kind = image.format or ""
    except Exception:  # decoders raise what they like at what is no picture
        return "bin"
    return _SUFFIXES.get(kind, kind.lower() or "bin")
