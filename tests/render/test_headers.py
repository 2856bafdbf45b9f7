"""Headers instead of images, and the files that must be refused."""

import io
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lcot_plugin.errors import RecordError
from lcot_plugin.render.headers import HeaderImage, read_header
from lcot_plugin.types import RecordFault

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
MODES = [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")] + [("JPEG", "L"), ("JPEG", "CMYK")]


def noise(size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def fault_of(image: str | bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read_header(image)
    return caught.value


@pytest.mark.parametrize("image_format", FORMATS)
def test_size_and_mode_are_those_of_the_decoded_image(image_format: str, tmp_path: Path) -> None:
    contents = encoded(noise(), image_format)
    (tmp_path / "a").write_bytes(contents)
    decoded = Image.open(io.BytesIO(contents))
    for image in (contents, str(tmp_path / "a")):
        header = read_header(image)
        assert (header.size, header.mode) == ((60, 40), decoded.mode)


@pytest.mark.parametrize(("image_format", "mode"), MODES)
def test_every_mode_is_read(image_format: str, mode: str) -> None:
    header = read_header(encoded(Image.new(mode, (30, 20)), image_format))
    assert (header.size, header.mode) == ((30, 20), mode)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animated_image_has_the_size_of_its_frames(image_format: str) -> None:
    frames = [Image.new("RGB", (30, 20), (shade, 0, 0)) for shade in (0, 100, 200)]
    contents = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert read_header(contents).size == (30, 20)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_whole_files_are_not_decoded(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = encoded(noise(), image_format)

    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    for cls in (Image.Image, type(Image.open(io.BytesIO(contents)))):
        monkeypatch.setattr(cls, "load", decode)
    assert read_header(contents).size == (60, 40)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("part", [0.5, 0.9, 0.98])
def test_a_file_that_was_cut_off_is_broken(image_format: str, part: float) -> None:
    contents = encoded(noise(), image_format)
    error = fault_of(contents[: int(len(contents) * part)])
    assert error.fault is RecordFault.BROKEN_IMAGE


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.floats(0, 1))
def test_what_pillow_cannot_decode_is_broken_and_nothing_else(image_format: str, part: float) -> None:
    contents = encoded(noise((20, 20)), image_format)
    contents = contents[: 1 + int(part * (len(contents) - 1))]
    try:
        Image.open(io.BytesIO(contents)).load()
        decodes = True
    except (OSError, SyntaxError, ValueError, EOFError):
        decodes = False
    if decodes:
        assert read_header(contents).size == (20, 20)
    else:
        assert fault_of(contents).fault is RecordFault.BROKEN_IMAGE


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("junk", [b"\x00" * 500, b"\r\n", b"appended by a camera"])
def test_bytes_after_the_end_are_harmless(image_format: str, junk: bytes) -> None:
    assert read_header(encoded(noise(), image_format) + junk).size == (60, 40)


@pytest.mark.parametrize("contents", [b"", b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_broken(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(contents)
    assert fault_of(contents).fault is RecordFault.BROKEN_IMAGE
    error = fault_of(str(path))
    assert error.fault is RecordFault.BROKEN_IMAGE
    assert str(path) in error.detail


def test_a_missing_file_is_missing_and_a_folder_is_broken(tmp_path: Path) -> None:
    assert fault_of(str(tmp_path / "none.png")).fault is RecordFault.MISSING_IMAGE
    assert fault_of(str(tmp_path)).fault is RecordFault.BROKEN_IMAGE


@pytest.mark.parametrize("limit", [2000, 1000])
def test_too_many_pixels_are_refused_without_a_warning(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit Pillow warns (2400 of 2000 pixels), above twice the limit it raises (of 1000)."""
    contents = encoded(noise(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = fault_of(contents)
    assert error.fault is RecordFault.IMAGE_TOO_LARGE
    assert "Scale it down" in error.detail
    assert not caught
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_header(contents).size == (60, 40)


def test_a_header_is_an_image_without_pixels() -> None:
    image = HeaderImage((100, 50), "P")
    assert isinstance(image, Image.Image)
    assert image.resize((20, 30)).size == (20, 30)
    assert image.resize((20, 30)).convert("RGB").mode == "RGB"
    assert (image.copy().size, image.copy().mode) == ((100, 50), "P")


def test_a_side_of_no_pixels_is_refused_as_pillow_refuses_it() -> None:
    for image in (HeaderImage((10, 10)), Image.new("RGB", (10, 10))):
        with pytest.raises(ValueError, match="must be > 0"):
            image.resize((0, 10))


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        Image.Image.tobytes,
        lambda image: image.load(),
        lambda image: image.crop((0, 0, 1, 1)),
        lambda image: image.save(io.BytesIO(), format="PNG"),
        lambda image: image.getpixel((0, 0)),
        lambda image: image.thumbnail((5, 5)),
        lambda image: Image.new("RGB", (100, 50)).paste(image),
        lambda image: image.im,
    ],
)
def test_pixels_cannot_be_read(use: object) -> None:
    with pytest.raises(RuntimeError, match="no pixels"):
        use(HeaderImage((100, 50)))  # type: ignore[operator]


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(encoded(noise(), "WEBP"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    headers = [read_header(str(path)) for _ in range(20)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(headers) == 20
