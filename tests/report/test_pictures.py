"""A picture is decoded once, small enough for a page; one that cannot be shown says why."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from lcot_plugin.report import pictures
from lcot_plugin.report.pictures import Picture, PicturePool


def shown(picture: Picture) -> Image.Image:
    kind, _, contents = picture.url.partition(",")
    assert kind in ("data:image/jpeg;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(contents))).convert("RGB")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.jpg"
    Image.effect_noise((1600, 400), 80).convert("RGB").save(path)
    return path


def test_scaled_down_with_its_true_size(noise: Path) -> None:
    picture = PicturePool(noise.parent, max_side=320).picture("noise.jpg")
    assert (picture.name, picture.width, picture.height, picture.missing) == ("noise.jpg", 1600, 400, "")
    assert shown(picture).size == (320, 80)
    assert len(picture.url) < 40_000
    assert picture.url.startswith("data:image/jpeg")  # though it has no more than 256 greys


def test_a_small_drawing_is_kept_exactly_and_as_a_model_gets_it(tmp_path: Path) -> None:
    image = Image.new("RGBA", (60, 40), (40, 50, 60, 0))
    image.paste((200, 10, 10, 255), (10, 10, 30, 30))
    image.save(tmp_path / "drawing.png")
    picture = PicturePool(tmp_path).picture("drawing.png")
    assert picture.url.startswith("data:image/webp")
    copy = shown(picture)
    assert (copy.size, copy.getpixel((0, 0)), copy.getpixel((20, 20))) == ((60, 40), (40, 50, 60), (200, 10, 10))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16", "F"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.tiff")
    assert shown(PicturePool(tmp_path).picture("a.tiff")).size == (8, 8)


def test_each_is_decoded_once_until_it_changes(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = pictures._read, []
    monkeypatch.setattr(pictures, "_read", lambda *values: (opened.append(values[0]), read(*values))[1])
    pool = PicturePool(noise.parent)
    assert pool.picture("noise.jpg") == pool.picture("noise.jpg") == pool.picture("noise.jpg")
    assert len(opened) == 1
    Image.new("RGB", (5, 5)).save(noise)
    os.utime(noise, ns=(1, 1))
    assert pool.picture("noise.jpg").width == 5


def test_what_is_kept_is_bounded(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PicturePool(noise.parent)
    size = len(pool.picture("noise.jpg").url)
    monkeypatch.setattr(pictures, "KEPT_BYTES", 2 * size)
    for number in range(5):
        (noise.parent / f"{number}.jpg").write_bytes(noise.read_bytes())
        pool.picture(f"{number}.jpg")
    assert list(pool._known) == ["3.jpg", "4.jpg"] and pool._kept == 2 * size


def test_a_page_has_so_much_room(noise: Path) -> None:
    """The same picture twice takes its room twice."""
    size = len(PicturePool(noise.parent).picture("noise.jpg").url)
    pool = PicturePool(noise.parent, page_bytes=2 * size)
    assert [pool.picture("noise.jpg").missing for _ in range(4)] == ["", "", "page_full", "page_full"]
    assert (pool.spent, pool.num_left_out) == (2 * size, 2)


def test_places_to_look_in(noise: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("noise.jpg", str(noise), f"file://{noise}"):
        assert PicturePool(tmp_path / "run", media_dirs=[tmp_path]).picture(name).url
    assert PicturePool(tmp_path / "run").picture("noise.jpg").missing == "not_found"


@pytest.mark.parametrize(
    "name, missing",
    [
        ("<bytes in the data set>", "not_kept"),
        ("", "not_kept"),
        ("gone/a.png", "not_found"),
        (".", "not_found"),
        ("a\0b", "not_found"),
        ("a" * 5000, "not_found"),
        ("https://example.org/a.png", "web_address"),
        ("data://x", "web_address"),
        ("text.png", "broken"),
        ("empty.png", "broken"),
        ("cut.jpg", "broken"),
        ("bomb.png", "broken"),
    ],
)
def test_what_cannot_be_shown(
    tmp_path: Path, noise: Path, name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpg").write_bytes(noise.read_bytes()[:3000])
    picture = PicturePool(tmp_path).picture(name)
    assert (picture.missing, picture.url) == (missing, "")
    assert len(picture.name) <= 120 and bool(picture.detail) == (missing == "broken")
