"""A record as it stands in its file in, text that fits a screen out; for `lcot data show` of a record that is left out.

Pictures become their sizes: nobody reads base64.
"""

from __future__ import annotations

import io
import json
import warnings
from typing import Any

from PIL import Image

MAX_TEXT = 4000
"""Characters of a text without a space, above which it is contents and not words."""


def raw_text(record: dict[str, Any]) -> str:
    """The record as JSON."""
    return json.dumps(_readable(record), ensure_ascii=False, indent=2, default=str)


def _readable(value: Any) -> Any:
    match value:
        case dict():
            return {key: _readable(item) for key, item in value.items()}
        case list() | tuple():
            return [_readable(item) for item in value]
        case bytes():
            return f"<{_pixels(value)}{len(value):,} bytes>"
        case str() if len(value) > MAX_TEXT and " " not in value[:MAX_TEXT]:
            return f"<{value[:24]}..., {len(value):,} characters>"
    return value


def _pixels(contents: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata
            with Image.open(io.BytesIO(contents)) as picture:
                return f"image of {picture.width} x {picture.height} pixels, "
    except Exception:  # a broken image is what the user came to see
        return ""
