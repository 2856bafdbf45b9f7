"""Images as data sets write them, found or refused."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lcot_plugin.data.images import resolve_image
from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault


def encoded(image_format: str, size: tuple[int, int] = (1, 1)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format=image_format)
    return buffer.getvalue()


PNG = encoded("PNG")
BASE64_PNG = base64.b64encode(PNG).decode()


@pytest.fixture
def media_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    for name in ("a.png", "images/a.png", "images/deep/b.png", "my pictures/c d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return folder


def fault_of(value: Any, media_dir: Path | None) -> RecordError:
    with pytest.raises(RecordError) as caught:
        resolve_image(value, media_dir)
    return caught.value


@pytest.mark.parametrize("path", ["images/a.png", "./images/../images/a.png", " images/a.png\n", Path("images/a.png")])
def test_a_relative_path_is_found_under_media_dir(path: str | Path, media_dir: Path) -> None:
    assert resolve_image(path, media_dir) == str(media_dir / "images/a.png")


def test_a_relative_media_dir_gives_absolute_paths(media_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(media_dir.parent)
    assert resolve_image("a.png", Path("media")) == str(media_dir / "a.png")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/mnt/x/images/a.png", "images/a.png"),  # the longest end that exists, not a.png
        ("file:///mnt/x/images/a.png", "images/a.png"),
        ("/home/author/deep/b.png", None),
        ("/home/author/other/a.png", "a.png"),
        ("file:///mnt/my%20pictures/c%20d.png", "my pictures/c d.png"),
    ],
)
def test_paths_of_another_machine_are_found_by_their_ends(path: str, found: str | None, media_dir: Path) -> None:
    if found:
        assert resolve_image(path, media_dir) == str(media_dir / found)
    else:
        assert fault_of(path, media_dir).fault is RecordFault.MISSING_IMAGE


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "../media2/a.png", "../none.png", ".."])
def test_a_path_may_not_leave_media_dir(path: str, media_dir: Path) -> None:
    error = fault_of(path, media_dir)
    assert error.fault is RecordFault.OUTSIDE_MEDIA_DIR
    assert "set media_dir to the images' folder" in error.detail


def test_an_absolute_path_must_be_under_media_dir(media_dir: Path) -> None:
    inside, outside = media_dir / "images/a.png", media_dir.parent / "secret.png"
    assert resolve_image(str(inside), media_dir) == str(inside)
    assert fault_of(str(outside), media_dir).fault is RecordFault.OUTSIDE_MEDIA_DIR
    assert fault_of(f"file://{outside}", media_dir).fault is RecordFault.OUTSIDE_MEDIA_DIR
    assert fault_of(f"{media_dir}/../secret.png", media_dir).fault is RecordFault.OUTSIDE_MEDIA_DIR


def test_a_file_of_the_same_name_does_not_stand_in_for_one_outside(media_dir: Path) -> None:
    (media_dir.parent / "a.png").write_bytes(b"another")
    assert fault_of(str(media_dir.parent / "a.png"), media_dir).fault is RecordFault.OUTSIDE_MEDIA_DIR


def test_a_folder_whose_name_begins_alike_is_outside(media_dir: Path) -> None:
    twin = media_dir.with_name("media2")
    twin.mkdir()
    (twin / "only.png").write_bytes(PNG)
    assert fault_of(str(twin / "only.png"), media_dir).fault is RecordFault.OUTSIDE_MEDIA_DIR


def test_links_are_followed(media_dir: Path, tmp_path: Path) -> None:
    (media_dir / "linked.png").symlink_to(tmp_path / "secret.png")
    (media_dir / "folder").symlink_to(media_dir / "images")
    linked = tmp_path / "link"
    linked.symlink_to(media_dir)
    assert resolve_image("linked.png", media_dir) == str(media_dir / "linked.png")
    assert resolve_image("folder/a.png", media_dir) == str(media_dir / "folder/a.png")
    assert resolve_image("a.png", linked) == str(linked / "a.png")
    assert resolve_image(str(media_dir / "a.png"), linked) == str(media_dir / "a.png")


def test_without_media_dir_any_path_will_do(media_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(media_dir / "images")
    assert resolve_image("a.png", None) == str(media_dir / "images/a.png")
    assert resolve_image("../a.png", None) == str(media_dir / "a.png")
    assert resolve_image(str(media_dir.parent / "secret.png"), None) == str(media_dir.parent / "secret.png")
    assert "set media_dir" in fault_of("b.png", None).detail


@pytest.mark.parametrize("path", ["images/none.png", "images", "/mnt/none.png", "a\0.png", "x" * 300])
def test_a_missing_file_is_named(path: str, media_dir: Path) -> None:
    error = fault_of(path, media_dir)
    assert error.fault is RecordFault.MISSING_IMAGE
    assert path in error.detail


def test_a_missing_media_dir_is_named(tmp_path: Path) -> None:
    for path in ("a.png", "/mnt/a.png"):
        error = fault_of(path, tmp_path / "nowhere")
        assert error.fault is RecordFault.MISSING_IMAGE
        assert f"media_dir {tmp_path / 'nowhere'} does not exist" in error.detail


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://example.org/a.png", "s3://bucket/a.png"])
def test_urls_are_not_fetched(url: str, media_dir: Path) -> None:
    error = fault_of({"type": "image_url", "image_url": {"url": url}}, media_dir)
    assert error.fault is RecordFault.MISSING_IMAGE
    assert "download it first" in error.detail


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        {"bytes": PNG, "path": "images/a.png"},
        {"bytes": PNG, "path": None},
        {"image": PNG},
        [PNG],
        ({"type": "image", "image": {"bytes": PNG}},),
        f"data:image/png;base64,{BASE64_PNG}",
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64_PNG}"}},
        {"url": f"data:image/png;base64,{BASE64_PNG.rstrip('=')}"},
        BASE64_PNG,
        "\n".join(BASE64_PNG[start : start + 76] for start in range(0, len(BASE64_PNG), 76)),
    ],
)
def test_contents_come_out_as_bytes(value: Any, media_dir: Path) -> None:
    assert resolve_image(value, media_dir) == PNG


@pytest.mark.parametrize(
    "value", [{"bytes": None, "path": "a.png"}, {"path": "a.png"}, {"image_url": {"url": "a.png"}}]
)
def test_a_path_is_unwrapped(value: Any, media_dir: Path) -> None:
    assert resolve_image(value, media_dir) == str(media_dir / "a.png")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_bare_base64_is_told_by_what_it_decodes_to(image_format: str, media_dir: Path) -> None:
    contents = encoded(image_format, (20, 20))
    assert resolve_image(base64.b64encode(contents).decode(), media_dir) == contents


@given(st.text(alphabet="abcdefgABCDEFG0123456789/+", min_size=40, max_size=200))
def test_a_long_path_is_not_taken_for_base64(path: str) -> None:
    assert fault_of(path, Path("/nonexistent")).fault in {
        RecordFault.MISSING_IMAGE,
        RecordFault.OUTSIDE_MEDIA_DIR,
    }


@pytest.mark.parametrize(
    "value",
    [
        "data:image/png;base64,@@@@",
        "data:image/png;base64,",
        "data:image/svg+xml,<svg/>",
        f"data:image/png;base64,{BASE64_PNG[:21]}",
        "x" * 5000,
        3,
        object(),
        {"width": 3},
        ["a.png", "a.png"],
        [],
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_image_is_broken(value: Any, media_dir: Path) -> None:
    error = fault_of(value, media_dir)
    assert error.fault is RecordFault.BROKEN_IMAGE
    assert len(error.detail) < 400


@pytest.mark.parametrize("value", [None, "", "  ", {"bytes": None, "path": None}, [None]])
def test_no_image_is_missing(value: Any, media_dir: Path) -> None:
    assert fault_of(value, media_dir).fault is RecordFault.MISSING_IMAGE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I"])
def test_a_pil_image_keeps_its_pixels(mode: str, media_dir: Path) -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 0)).convert("L" if mode == "LA" else "RGB").convert(mode)
    contents = resolve_image(image, media_dir)
    assert isinstance(contents, bytes)
    decoded = Image.open(io.BytesIO(contents))
    assert decoded.size == (3, 2)
    assert decoded.convert("RGB").tobytes() == image.convert("RGB").tobytes()
