"""A record is shown as it is written, but for what nobody can read."""

from __future__ import annotations

import io
import json

from PIL import Image

from lcot_plugin.report.raw_view import raw_text


def test_contents_become_sizes() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG")
    contents = buffer.getvalue()
    record = {
        "question": "How many? " * 1000,
        "images": [{"bytes": contents, "path": "a.png"}, b"broken", "data:image/png;base64," + "A" * 9000],
        "answer": 5,
    }
    shown = json.loads(raw_text(record))
    assert (shown["question"], shown["answer"]) == (record["question"], 5)
    assert shown["images"] == [
        {"bytes": f"<image of 30 x 20 pixels, {len(contents)} bytes>", "path": "a.png"},
        "<6 bytes>",
        "<data:image/png;base64,AA..., 9,022 characters>",
    ]
