"""Where an image of a record is: a file under media_dir, or bytes.

In: an image as data sets write it (see `types.RawRecord.images`). Out: the absolute path of an existing file, or the
contents of one; nothing is decoded here but base64. Consumer: data.samples; render.headers looks inside.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault

WRAPPERS = ("bytes", "image", "image_url", "url", "path")
"""Keys under which a dict holds an image, in the order in which they are tried."""
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
MIN_BASE64 = 40
"""Characters; the smallest images (a GIF of one pixel) have about 48."""
MAX_PATH = 4096
"""Characters; longer ones are no path on any system."""
MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*")
"""How files of the common types begin: PNG, JPEG, GIF, WebP, TIFF (two byte orders). BMP and AVIF: `_is_image`."""
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def resolve_image(value: Any, media_dir: Path | None) -> str | bytes:
    """The absolute path of the image's file, or its contents.

    `media_dir`: the folder that paths are relative to and may not leave. None: paths are relative to the working
    directory and may be anywhere. Absolute paths and `file://` URLs of another machine are looked for under
    `media_dir` by their ends, the longest first: `/mnt/x/images/a.png` as `images/a.png`, then `a.png`.

    Raises RecordError: MISSING_IMAGE, OUTSIDE_MEDIA_DIR or BROKEN_IMAGE (base64 that is none, a value of another type).
    """
    match value:
        case bytes():
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case str():
            return _resolve_text(value.strip(), media_dir)
        case os.PathLike():
            return _resolve_path(os.fspath(value), media_dir)
        case Image.Image():
            return _encode(value)
        case Mapping():
            for key in WRAPPERS:
                if value.get(key) is not None:
                    return resolve_image(value[key], media_dir)
            if set(value) & set(WRAPPERS):
                raise RecordError(RecordFault.MISSING_IMAGE, f"none given: {dict(value)}")
        case list() | tuple() if len(value) == 1:
            return resolve_image(value[0], media_dir)
        case list() | tuple():
            raise RecordError(RecordFault.BROKEN_IMAGE, f"a list of {len(value)} where one image is expected.")
        case None:
            raise RecordError(RecordFault.MISSING_IMAGE, "none given.")
    raise RecordError(
        RecordFault.BROKEN_IMAGE,
        f"{_shorten(repr(value))} of type {type(value).__name__} is not an image: give a path, base64, bytes, a dict "
        "with `bytes` or `path`, or a PIL image.",
    )


def candidate_paths(value: Any, media_dir: Path | None) -> list[str]:
    """The files of which `resolve_image` takes the first that exists; empty for an image that is no path."""
    match value:
        case Mapping():
            return next((candidate_paths(value[key], media_dir) for key in WRAPPERS if value.get(key) is not None), [])
        case list() | tuple() if len(value) == 1:
            return candidate_paths(value[0], media_dir)
        case os.PathLike():
            value = os.fspath(value)
    if not isinstance(value, str) or len(value) > MAX_PATH:
        return []
    path = unquote(urlsplit(value.strip()).path) if value.strip().startswith("file://") else value.strip()
    root = os.path.abspath(media_dir or "")
    found = os.path.normpath(os.path.join(root, path))
    if media_dir is None or not os.path.isabs(path):
        return [found]
    return [found, *_ends_under(found, root)]


def _ends_under(path: str, root: str) -> list[str]:
    """`/mnt/x/a.png` as `<root>/mnt/x/a.png`, `<root>/x/a.png`, `<root>/a.png`."""
    parts = PurePosixPath(path).parts
    return [os.path.join(root, *parts[start:]) for start in range(1, len(parts))]


def _resolve_text(text: str, media_dir: Path | None) -> str | bytes:
    if not text:
        raise RecordError(RecordFault.MISSING_IMAGE, "an empty path.")
    if text.startswith("data:"):
        header, _, payload = text.partition(",")
        if not header.endswith(";base64"):
            raise RecordError(RecordFault.BROKEN_IMAGE, f"{_shorten(text)} is a data URL that is not base64.")
        return _decode_base64(payload)
    if _is_base64_image(text):
        return _decode_base64(text)
    if len(text) > MAX_PATH:
        raise RecordError(
            RecordFault.BROKEN_IMAGE, f"{_shorten(text)} ({len(text)} characters) is neither a path nor base64."
        )
    if text.startswith("file://"):
        return _resolve_path(unquote(urlsplit(text).path), media_dir)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise RecordError(
            RecordFault.MISSING_IMAGE,
            f"{_shorten(text)} is a URL: download it first, and write the path of the file in the record.",
        )
    return _resolve_path(text, media_dir)


def _resolve_path(path: str, media_dir: Path | None) -> str:
    """Decided on the normalised text of the path, so that links inside media_dir may point anywhere."""
    if media_dir is None:
        found = os.path.abspath(path)
        if os.path.isfile(found):
            return found
        raise RecordError(RecordFault.MISSING_IMAGE, f"{found} does not exist: check the path, or set media_dir.")

    root = os.path.abspath(media_dir)
    found = os.path.normpath(os.path.join(root, path))
    inside = _is_under(found, root) or _is_under(found, os.path.realpath(root))
    exists = os.path.isfile(found)
    if inside and exists:
        return found
    if not os.path.isdir(root):
        raise RecordError(
            RecordFault.MISSING_IMAGE, f"{path}: media_dir {root} does not exist; set media_dir to the images' folder."
        )
    if not inside and (exists or not os.path.isabs(path)):
        raise RecordError(
            RecordFault.OUTSIDE_MEDIA_DIR,
            f"{path} leads out of media_dir {root}: move the image there, or set media_dir to the images' folder.",
        )
    if os.path.isabs(path):
        for candidate in _ends_under(found, root):
            if os.path.isfile(candidate):
                return candidate
        searched = f"neither it nor an end of it under media_dir {root} exists"
    else:
        searched = f"{found} does not exist"
    raise RecordError(
        RecordFault.MISSING_IMAGE, f"{path}: {searched}; check that media_dir is the folder that paths start from."
    )


def _is_under(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_base64_image(text: str) -> bool:
    """Whether a text is an image in base64 and not a path, by its alphabet and what its first bytes decode to."""
    if len(text) < MIN_BASE64 or not BASE64.fullmatch(text, endpos=MIN_BASE64):
        return False
    start = "".join(text[:MIN_BASE64].split())
    return _is_image(base64.b64decode(start[: len(start) // 4 * 4])) and BASE64.fullmatch(text) is not None


def _is_image(start: bytes) -> bool:
    is_bitmap = start.startswith(b"BM") and start[6:10] == bytes(4)
    return start.startswith(MAGIC) or is_bitmap or start[4:8] == b"ftyp"


def _decode_base64(text: str) -> bytes:
    compact = "".join(text.split()).rstrip("=")
    try:
        contents = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except binascii.Error as error:
        raise RecordError(RecordFault.BROKEN_IMAGE, f"{_shorten(text)} is not valid base64: {error}.") from error
    if not contents:
        raise RecordError(RecordFault.BROKEN_IMAGE, "base64 of no bytes at all.")
    return contents


def _encode(image: Image.Image) -> bytes:
    """As a PNG, which keeps every pixel; modes that PNG lacks (CMYK, F, I...) become RGB."""
    buffer = io.BytesIO()
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
