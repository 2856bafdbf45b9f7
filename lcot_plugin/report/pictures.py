"""Pictures of prompts by the names that completions.jsonl gives them in, small data URLs for a page out.

Each is decoded and scaled down once, however many groups show it. What cannot be shown says why: a picture embedded in
the data set of an older run, one that was moved, one that is broken.
"""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

MAX_SIDE = 640
"""Pixels of a shown picture's longer side."""
KEPT_BYTES = 64 << 20
"""Of data URLs that a pool keeps; those that were not used for longest go first."""
DRAWN_COLOURS = 256
"""A picture of no more colours may be a drawing, which is sharper and mostly smaller without loss."""
MAX_EXACT = 1.5
"""Times its size as JPEG that a picture without loss may have."""
QUALITY = 82
"""Of JPEG. WebP is a fifth smaller and takes ten times as long: a page of 20 pictures would take seconds."""


@dataclass(frozen=True)
class Picture:
    """One picture as a page shows it."""

    name: str
    """Without its folders."""
    url: str = ""
    """data:image/jpeg;base64,... or webp; empty where it cannot be shown."""
    width: int = 0
    """Pixels of the picture itself, before it was scaled down."""
    height: int = 0
    missing: str = ""
    """Why not, a key of rollout_texts: `not_kept`, `not_found`, `web_address`, `page_full` or `broken`."""
    detail: str = ""
    """What Pillow says of a broken one."""


class PicturePool:
    """Loads pictures of one run. `page_bytes`: what a page may spend on them in all; None: as much as it takes."""

    def __init__(
        self,
        folder: Path,
        *,
        media_dirs: Sequence[Path] = (),
        max_side: int = MAX_SIDE,
        page_bytes: int | None = None,
    ) -> None:
        """folder: the run's output_dir, where relative paths begin; media_dirs: further places to look in."""
        self.folders = [Path(folder), *media_dirs]
        self.max_side = max_side
        self.page_bytes = page_bytes
        self.spent = 0
        """Bytes of data URLs given out, each time that one was: what they add to a page."""
        self.num_left_out = 0
        """Pictures not given out because the page had no room."""
        self._known: OrderedDict[str, tuple[Any, Picture]] = OrderedDict()
        self._kept = 0

    def picture(self, name: str) -> Picture:
        """Never raises for what is wrong with a picture."""
        found = self._loaded(str(name))
        if self.page_bytes is not None and self.spent + len(found.url) > self.page_bytes:
            self.num_left_out += 1
            return Picture(found.name, width=found.width, height=found.height, missing="page_full")
        self.spent += len(found.url)
        return found

    def _loaded(self, name: str) -> Picture:
        short = name.replace("\\", "/").rstrip("/").rpartition("/")[2][:120]
        if name.startswith("<") or not name:
            return Picture(name[:120], missing="not_kept")
        if "://" in name and not name.startswith("file://"):
            return Picture(short, missing="web_address")
        path = self._path(name.removeprefix("file://"))
        if path is None:
            return Picture(short, missing="not_found")
        try:
            status = path.stat()
        except OSError:  # it has just gone
            return Picture(short, missing="not_found")
        state = (str(path), status.st_size, status.st_mtime_ns)
        if name in self._known and self._known[name][0] == state:
            self._known.move_to_end(name)
            return self._known[name][1]
        picture = _read(path, short, self.max_side)
        self._keep(name, state, picture)
        return picture

    def _path(self, name: str) -> Path | None:
        for folder in self.folders:
            try:
                path = folder / name  # an absolute name stands for itself
                if path.is_file() and os.access(path, os.R_OK):
                    return path
            except (OSError, ValueError):  # too long for a name, or a zero byte in it
                return None
        return None

    def _keep(self, name: str, state: Any, picture: Picture) -> None:
        if name in self._known:
            self._kept -= len(self._known.pop(name)[1].url)
        self._known[name] = (state, picture)
        self._kept += len(picture.url)
        while self._kept > KEPT_BYTES and len(self._known) > 1:
            _, (_, old) = self._known.popitem(last=False)
            self._kept -= len(old.url)


def _read(path: Path, name: str, max_side: int) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata
            with Image.open(path) as image:
                width, height = image.size
                image.draft("RGB", (max_side, max_side))
                shown = image.convert("RGB")  # as a model gets it: without transparency, whatever lies beneath
        may_be_drawing = shown.getcolors(DRAWN_COLOURS) is not None
        # Whole pixels are averaged first: a third of the time, and as good to look at.
        shown.thumbnail((max_side, max_side), reducing_gap=1.0)
        url = _url(shown, "JPEG", quality=QUALITY)
        if may_be_drawing:
            exact = _url(shown, "WEBP", lossless=True, quality=20, method=0)
            url = exact if len(exact) <= MAX_EXACT * len(url) else url  # greys of a photograph are few colours too
    except Exception as error:  # a broken picture may be what the user looks for
        return Picture(name, missing="broken", detail=str(error)[:300] or type(error).__name__)
    return Picture(name, url, width, height)


def _url(image: Any, kind: str, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
