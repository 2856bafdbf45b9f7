"""Images without their pixels: size and mode from a file's header, and whether the file is whole.

In: a path or the bytes of an encoded image. Out: HeaderImage, which LLaMA-Factory's plugins resize and convert as they
do a real image, and from which render.counting counts tokens. Consumer: integration.token_counting's callers.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any, BinaryIO, NoReturn

from PIL import Image

from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault

TAIL = 4096
"""Bytes read from the end of a file."""

PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
"""The last chunk of every PNG: no data, its name, its checksum."""
JPEG_END = b"\xff\xd9"
GIF_END = b"\x3b"
PADDING = b"\x00\r\n\t "
"""What writers append to a finished file."""


class HeaderImage(Image.Image):
    """An image that has a size and a mode but no pixels.

    `resize`, `convert` and `copy` give another one, refusing the sizes that Pillow refuses; everything that needs
    pixels raises RuntimeError, so that a count can never come from pixels that are not there.
    """

    def __init__(self, size: tuple[int, int], mode: str = "RGB") -> None:
        """`size`: width and height in pixels."""
        super().__init__()
        self._size = size
        self._mode = mode

    def resize(self, size: Any, *args: Any, **kwargs: Any) -> HeaderImage:
        """Raises ValueError for a side of 0, as Pillow does: very long images shrink to that."""
        width, height = size
        if width < 1 or height < 1:
            raise ValueError("height and width must be > 0")
        return HeaderImage((width, height), self.mode)

    def convert(self, mode: str | None = None, *args: Any, **kwargs: Any) -> HeaderImage:
        return HeaderImage(self.size, mode or "RGB")

    def copy(self) -> HeaderImage:
        return HeaderImage(self.size, self.mode)

    def load(self) -> NoReturn:
        raise RuntimeError("HeaderImage has no pixels: decode the image itself to read them.")

    @property  # type: ignore[misc]
    def im(self) -> NoReturn:  # type: ignore[override]
        self.load()


def read_header(image: str | bytes, whole: bool = True) -> HeaderImage:
    """Size and mode of an encoded image, decoding it only where its end does not show that it is whole.

    `whole`: whether it must be; False asks for nothing but the header.

    `image`: a path, or the contents of a file. Raises RecordError: MISSING_IMAGE, BROKEN_IMAGE (empty, of an unknown
    type, cut off) or IMAGE_TOO_LARGE (above `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(image, bytes):
        return _read(io.BytesIO(image), f"an image of {len(image)} bytes", whole)
    try:
        with open(image, "rb") as file:
            return _read(file, image, whole)
    except FileNotFoundError:
        raise RecordError(RecordFault.MISSING_IMAGE, f"{image} does not exist.") from None
    except OSError as error:
        raise RecordError(RecordFault.BROKEN_IMAGE, f"{image} cannot be read: {error.strerror or error}.") from error


def _read(file: BinaryIO, name: str, whole: bool) -> HeaderImage:
    length = file.seek(0, os.SEEK_END)
    if length == 0:
        raise RecordError(RecordFault.BROKEN_IMAGE, f"{name} is empty.")
    file.seek(max(0, length - TAIL))
    tail = file.read()
    file.seek(0)
    with warnings.catch_warnings():
        # Remarks about the file's metadata; above the limit of pixels Pillow would only warn, here it is a fault.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(file)
            _check_pixels(picture.size, name)
            if whole and not _ends_whole(picture.format, file, length, tail):
                file.seek(0)
                picture = Image.open(file)
                picture.load()
        except RecordError:
            raise
        except Image.DecompressionBombError as error:
            raise RecordError(RecordFault.IMAGE_TOO_LARGE, f"{name}: {error} {SHRINK}") from error
        except Image.UnidentifiedImageError:
            raise RecordError(
                RecordFault.BROKEN_IMAGE, f"{name} is not an image of a type that Pillow {Image.__version__} reads."
            ) from None
        except Exception as error:  # Pillow's readers pass on whatever a malformed file provokes in them
            raise RecordError(RecordFault.BROKEN_IMAGE, f"{name} is cut off or damaged: {error}") from error
    return HeaderImage(picture.size, picture.mode)


SHRINK = "Scale it down before training; image_max_pixels only applies once an image is decoded."


def _check_pixels(size: tuple[int, int], name: str) -> None:
    """Raises RecordError for more pixels than Pillow takes for harmless."""
    width, height = size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise RecordError(
            RecordFault.IMAGE_TOO_LARGE,
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} million pixels, over Pillow's limit of "
            f"{Image.MAX_IMAGE_PIXELS / 1e6:.1f} million. {SHRINK}",
        )


def _ends_whole(image_format: str | None, file: BinaryIO, length: int, tail: bytes) -> bool:
    """Whether the end of the file shows that nothing is missing; False where only decoding can tell."""
    match image_format:
        case "PNG":
            return PNG_END in tail
        case "JPEG" | "MPO":
            return tail.rstrip(PADDING).endswith(JPEG_END)
        case "GIF":
            return tail.rstrip(PADDING).endswith(GIF_END)
        case "WEBP":  # RIFF: four letters, then the length of what follows
            file.seek(4)
            return length >= 8 + int.from_bytes(file.read(4), "little")
        case _:
            return False
