"""Seam: `llamafactory.data.collator`. A picture that turns out broken when it is decoded does not stop a run.

Tokenising reads headers and the ends of files only (render/headers.py), so damage in the middle of a file shows when
training first needs the pixels, hours later perhaps. A grey picture of the same size takes its place, so that tokens
and features still agree, and its record is not trained on; `bad_record_policy: error` stops the run instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from types import ModuleType
from typing import Any

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.logging import get_logger
from PIL import Image

from lcot_plugin.errors import DataError, RecordError
from lcot_plugin.render.headers import read_header

logger = get_logger(f"llamafactory.{__name__}")

MEDIA_ERRORS = (ValueError, OSError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError)
"""What Pillow and LLaMA-Factory raise for a picture that cannot be read: broken, of a wrong type, or far too large."""
GREY = (128, 128, 128)


def apply(module: ModuleType) -> None:
    """Has the SFT collator decode pictures by `decode`."""
    collator = module.SFTDataCollatorWith4DAttentionMask
    original = collator.__call__

    def __call__(self: Any, features: list[dict[str, Any]]) -> Any:
        policy = getattr(self.template, "bad_record_policy", "drop")
        return original(self, [with_pictures(feature, policy) for feature in features])

    collator.__call__ = __call__


def with_pictures(feature: dict[str, Any], policy: str) -> dict[str, Any]:
    """A tokenised row with decoded pictures, and without labels where one of them is broken.

    The last label stays, the end of the turn: a step of which every label is masked has no loss, and dividing by its
    number of labels would make the weights NaN.
    """
    if not feature.get("images"):
        return feature
    pictures, faults = decode(feature["images"], policy)
    feature = {**feature, "images": pictures}
    if faults:
        warn_once(f"A record is not trained on, since its picture is broken: {'; '.join(faults)}")
        trained = [index for index, label in enumerate(feature["labels"]) if label != IGNORE_INDEX][-1:]
        feature["labels"] = [
            label if index in trained else IGNORE_INDEX for index, label in enumerate(feature["labels"])
        ]
    return feature


@cache
def warn_once(message: str) -> None:
    """Says it in the first epoch only."""
    logger.warning(message)


def encoded_image(image: Any) -> str | bytes | None:
    """The path or the contents of an aligned image; None for one that is neither."""
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    return image if isinstance(image, (str, bytes)) else None


def decode(images: Sequence[Any], policy: str) -> tuple[list[Image.Image], list[str]]:
    """The pictures with their pixels, a grey one for each that is broken, and what is wrong with those.

    Raises DataError where the policy is `error`, and where not even a size is left (the file is gone).
    """
    pictures, faults = [], []
    for image in images:
        encoded = encoded_image(image)
        try:
            picture = image if isinstance(image, Image.Image) else Image.open(_file(encoded))
            picture.load()
        except MEDIA_ERRORS as error:
            name = encoded if isinstance(encoded, str) else "a picture in the data set"
            fault = f"{name}: {error}"
            if policy == "error":
                raise DataError(f"{fault}. bad_record_policy: drop goes on without such records.") from error
            try:
                assert encoded is not None, "what is no picture was left out in tokenising"
                picture = Image.new("RGB", read_header(encoded, whole=False).size, GREY)
            except RecordError as gone:
                raise DataError(f"{gone} It was there when the data were tokenised.") from error
            faults.append(fault)
        pictures.append(picture)
    return pictures, faults


def _file(image: Any) -> Any:
    return BytesIO(image) if isinstance(image, bytes) else image
