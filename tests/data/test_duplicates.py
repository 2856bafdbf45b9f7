"""Copies are found, look-alikes are not, and what training shares with evaluation is told from what it repeats."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lcot_plugin.data.duplicates import (
    Problem,
    find_duplicates,
    fingerprint,
    near_pairs,
    normalise_question,
    picture_groups,
)
from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault

WORDS = st.integers(0, 2**64 - 1)


def diagram(seed: int) -> Image.Image:
    """A triangle on white paper: as alike as different pictures get."""
    generator = random.Random(seed)
    image = Image.new("RGB", (320, 240), "white")
    corners = [(generator.randrange(20, 300), generator.randrange(20, 220)) for _ in range(3)]
    ImageDraw.Draw(image).polygon(corners, outline="black")
    return image


def encode(image: Image.Image, file_format: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def test_copies_of_a_picture_are_one_group() -> None:
    image = diagram(0)
    copies = [
        encode(image),
        encode(image, "BMP"),
        encode(image, "JPEG", quality=50),
        encode(image.resize((160, 120))),
        encode(image.resize((400, 300))),
    ]
    assert len(set(picture_groups([fingerprint(copy) for copy in copies]).tolist())) == 1


def test_different_pictures_stay_apart_though_their_hashes_are_close() -> None:
    prints = [fingerprint(encode(diagram(seed))) for seed in range(60)]
    hashes = np.unique(np.frombuffer(b"".join(one.gradients for one in prints), np.uint64))
    assert len(near_pairs(hashes)) > 0, "these pictures must be hard ones"
    assert len(set(picture_groups(prints).tolist())) == 60


def test_shape_and_brightness_count() -> None:
    image = diagram(0)
    variants = [image, image.resize((320, 120)), image.point(lambda level: level // 2)]
    blanks = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black")]
    groups = picture_groups([fingerprint(encode(one)) for one in [*variants, *blanks]])
    assert len(set(groups.tolist())) == 5
    whites = [Image.new(mode, (64, 64), "white") for mode in ("RGB", "L")]
    assert len(set(picture_groups([fingerprint(encode(one)) for one in whites]).tolist())) == 1


def test_no_pictures() -> None:
    assert picture_groups([]).tolist() == []


def test_content_is_that_of_the_pixels() -> None:
    image = diagram(1)
    png, bmp = fingerprint(encode(image)), fingerprint(encode(image, "BMP"))
    assert png == bmp
    assert fingerprint(encode(diagram(2))).content != png.content
    assert (png.width, png.height, len(png.gradients), len(png.thumbnail)) == (320, 240, 8, 256)


def test_what_transparency_conceals() -> None:
    drawing = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 10, 10))  # black on nothing, which is black beneath: nothing is to be seen
    assert fingerprint(encode(drawing)).concealed == 127.5
    on_white = Image.new("RGBA", (20, 10), (255, 255, 255, 0))
    on_white.paste((0, 0, 0, 255), (0, 0, 10, 10))
    assert fingerprint(encode(on_white)).concealed == 0.0
    assert fingerprint(encode(diagram(1))).concealed == 0.0


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        (b"", RecordFault.BROKEN_IMAGE),
        (b"no image", RecordFault.BROKEN_IMAGE),
        (encode(diagram(0))[:-60], RecordFault.BROKEN_IMAGE),
        # Whole at both ends, which is all that a look at the header sees.
        (encode(Image.effect_noise((64, 64), 50))[:1500] + encode(diagram(0))[-12:], RecordFault.BROKEN_IMAGE),
        (None, RecordFault.MISSING_IMAGE),
    ],
    ids=["empty", "text", "cut off", "damaged inside", "missing"],
)
def test_images_are_decoded_whole(contents: bytes | None, fault: RecordFault, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        fingerprint(str(tmp_path / "gone.png") if contents is None else contents)
    assert caught.value.fault is fault


def test_an_image_of_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(RecordError) as caught:
        fingerprint(encode(diagram(0)))
    assert caught.value.fault is RecordFault.IMAGE_TOO_LARGE


@given(st.lists(WORDS, max_size=30), st.lists(st.tuples(st.integers(0, 29), st.sets(st.integers(0, 63), max_size=6))))
def test_near_pairs_are_those_of_the_definition(words: list[int], changes: list[tuple[int, set[int]]]) -> None:
    for index, bits in changes:
        if index < len(words):
            words.append(words[index] ^ sum(1 << bit for bit in bits))
    hashes = np.unique(np.array(words, np.uint64))
    values = hashes.tolist()
    expected = [
        [i, j] for i in range(len(values)) for j in range(i + 1, len(values)) if (values[i] ^ values[j]).bit_count() < 5
    ]
    assert near_pairs(hashes).tolist() == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("<image>What is  2 + 3?", "what is 2 + 3", True),
        ("Find x.", "<image>\nFind X", True),
        ("Find 2 x.", "Find 2 x.", True),
        ("What is 2 + 3?", "What is 2 - 3?", False),
        ("Is a < b?", "Is a > b?", False),
    ],
)
def test_questions_are_compared_by_their_words(one: str, other: str, same: bool) -> None:
    assert (normalise_question(one) == normalise_question(other)) is same


def problem(record: int, question: str, *pictures: int, evaluation: bool = False) -> Problem:
    return Problem("test" if evaluation else "train", record, evaluation, question, pictures)


def test_what_training_repeats_and_what_evaluation_shares() -> None:
    repeated = [problem(0, "how many", 1), problem(5, "how many", 1)]
    shared = [problem(1, "which", 2), problem(0, "which", 2, evaluation=True)]
    same_picture = [problem(2, "left", 3), problem(1, "right", 3, evaluation=True)]
    alone = [problem(3, "how many", 4), problem(4, "text only"), problem(2, "how many", 6, evaluation=True)]
    found = find_duplicates([*repeated, *shared, *same_picture, *alone])
    assert found.same_problem == [repeated]
    assert found.shared_problem == [shared]
    assert found.shared_picture == [same_picture]


def test_a_text_only_problem_is_shared_by_its_question() -> None:
    both = [problem(0, "what is 2 + 3"), problem(9, "what is 2 + 3", evaluation=True)]
    assert find_duplicates(both).shared_problem == [both]
    assert find_duplicates(both).same_problem == []
