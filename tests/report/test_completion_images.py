import io
import re

import pytest
from PIL import Image

from lcot_plugin.report.completion_images import IMAGES_FOLDER, CompletionImages


def encoded(kind="PNG", color=(200, 10, 10), size=(4, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    return CompletionImages(tmp_path / "out", warn=pytest.fail)


def kept(images):
    return sorted(path.name for path in (images.folder / IMAGES_FOLDER).glob("*"))


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_bytes_become_a_file_of_their_type(images, kind, suffix):
    contents = encoded(kind)
    name = images({"bytes": contents, "path": "called_otherwise.bmp"})
    assert re.fullmatch(rf"{IMAGES_FOLDER}/[0-9a-f]{{32}}\.{suffix}", name)
    assert (images.folder / name).read_bytes() == contents


def test_the_same_picture_is_kept_once(images):
    names = {images({"bytes": encoded(), "path": None}), images(encoded()), images(bytearray(encoded()))}
    other = CompletionImages(images.folder, warn=pytest.fail)  # of another process, or of a resumed run
    names.add(other({"bytes": encoded()}))
    assert len(names) == 1 and len(kept(images)) == 1
    images(encoded(color=(0, 0, 0)))
    assert len(kept(images)) == 2


def test_a_file_that_is_there_already_is_not_written_again(images):
    name = images(encoded())
    (images.folder / name).write_bytes(b"as it was")
    assert CompletionImages(images.folder)(encoded()) == name
    assert (images.folder / name).read_bytes() == b"as it was"


def test_files_of_their_own_are_not_copied(images, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    assert images(str(path)) is None
    assert images({"path": str(path), "bytes": encoded()}) is None
    assert images({"path": str(path), "bytes": None}) is None
    with Image.open(path) as picture:
        assert images(picture) is None
    assert not images.folder.exists()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "F"])
def test_decoded_pictures_are_encoded(images, mode):
    name = images(Image.new(mode, (5, 2)))
    with Image.open(images.folder / name) as picture:
        assert picture.size == (5, 2) and picture.format == "PNG"


@pytest.mark.parametrize("contents", [b"", b"no picture", encoded()[:20]])
def test_what_is_no_picture_is_kept_as_it_is(images, contents):
    assert images(contents).endswith(".bin")


@pytest.mark.parametrize("value", [None, 3, {}, {"url": "x"}])
def test_what_is_neither_has_no_name(images, value):
    assert images(value) is None


def test_the_name_of_a_picture_is_remembered_only_as_long_as_it_lives(images):
    """Other pictures may come to lie at the same place of memory."""
    for number in range(200):
        contents = encoded(color=(number, 0, 0))
        assert (images.folder / images(contents)).read_bytes() == contents
    assert len(images._names) <= 32


def test_no_room_is_said_once_and_ends_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / IMAGES_FOLDER).write_text("in the way")
    warned = []
    images = CompletionImages(tmp_path / "out", warned.append)
    assert images(encoded()) is None and images(encoded(color=(1, 2, 3))) is None
    assert images.num_lost == 2 and len(warned) == 1 and "training goes on" in warned[0]


def test_a_picture_that_proves_broken_ends_nothing(images):
    picture = Image.open(io.BytesIO(encoded(size=(64, 64), color=(1, 2, 3))[:80]))  # read only when it is used
    assert images(picture) is None
