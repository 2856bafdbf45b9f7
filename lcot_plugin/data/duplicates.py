"""Pictures and questions in, records that say the same out; `lcot data check` consumes it.

    picture --fingerprint--> content hash, 64-bit gradient hash, 16x16 thumbnail
    fingerprints --picture_groups--> one number per picture, equal for copies, also scaled and recompressed ones
    questions and picture numbers --find_duplicates--> groups of records, and what training shares with evaluation

The hash finds candidates quickly, the thumbnail confirms them: diagrams on white paper share most of a gradient hash.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault

MAX_DISTANCE = 4
"""Bits of 64 in which two copies may differ."""
MIN_STEP = 2
"""Grey levels (of 255) between neighbours that count as a gradient; what JPEG does to white paper is less."""
THUMBNAIL = 16
"""Pixels on a side."""
MIN_CORRELATION = 0.97
"""Between the thumbnails of two copies. Copies at JPEG quality 40 or a third of the size reach 0.98, different
diagrams 0.83; the same figure with another small label reaches 0.99 too, which no thumbnail can tell apart."""
MIN_CONTRAST = 1.0
"""Standard deviation in grey levels below which a thumbnail is blank, and has no correlation."""
MAX_BRIGHTNESS_DIFFERENCE = 8
"""Grey levels between the means of two copies."""
BANDS = (11, 11, 11, 11, 10, 10)
"""Bits of each part of a hash; two hashes that differ in 4 bits agree in 2 of the 6 parts at least."""
BATCH = 20_000
"""Pairs compared at once; bounds the memory."""
MAX_ASPECT_DIFFERENCE = 0.05
"""Between the logarithms of width by height: scaling keeps the shape but for a rounded pixel."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture."""

    content: str
    """Hexadecimal hash of the decoded pixels, of their size and mode."""
    gradients: bytes
    """8 bytes, 64 bits: whether the picture gets brighter from left to right, on a grid of 8 by 8."""
    thumbnail: bytes
    """16 by 16 grey levels."""
    width: int
    height: int
    concealed: float
    """Grey levels, on average, between the picture on white and what a model gets, which is made with
    `convert("RGB")`: transparent pixels in the colour that lies beneath, black as a rule. 0 without transparency."""


def fingerprint(image: str | bytes) -> Fingerprint:
    """Decodes a picture whole. `image`: a path, or the contents of a file.

    Raises RecordError: MISSING_IMAGE, IMAGE_TOO_LARGE or BROKEN_IMAGE.
    """
    name = image if isinstance(image, str) else f"an image of {len(image)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about metadata
            with Image.open(image if isinstance(image, str) else io.BytesIO(image)) as picture:
                picture.load()
                return _fingerprint(picture)
    except FileNotFoundError:
        raise RecordError(RecordFault.MISSING_IMAGE, f"{name} does not exist.") from None
    except Image.DecompressionBombError as error:
        raise RecordError(RecordFault.IMAGE_TOO_LARGE, f"{name}: {error}") from error
    except Exception as error:  # Pillow's readers pass on whatever a malformed file provokes in them
        raise RecordError(RecordFault.BROKEN_IMAGE, f"{name} cannot be decoded: {error}") from error


def _fingerprint(picture: Image.Image) -> Fingerprint:
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    grey = picture.convert("L")
    grid = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (grid[:, 1:] - grid[:, :-1] > MIN_STEP).ravel()
    return Fingerprint(
        content=digest.hexdigest()[:32],
        gradients=np.packbits(bits).tobytes(),
        thumbnail=grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes(),
        width=picture.width,
        height=picture.height,
        concealed=_concealed(picture),
    )


def _concealed(picture: Image.Image) -> float:
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return 0.0
    over = picture.convert("RGBA")
    paper = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    seen, meant = (np.asarray(image.convert("RGB").convert("L"), np.int16) for image in (picture, paper))
    return float(np.abs(seen - meant).mean())


def near_pairs(hashes: NDArray[np.uint64], max_distance: int = MAX_DISTANCE) -> NDArray[np.int64]:
    """[K, 2] indices i < j of the hashes that differ in at most `max_distance` (at most 4) of their 64 bits.

    `hashes`: [N] distinct values. Only hashes that agree in two of six parts are compared, so that the work grows
    with the number of look-alikes rather than with N squared.
    """
    assert 0 <= max_distance <= MAX_DISTANCE
    starts = np.cumsum((0, *BANDS))[:-1]
    parts = [(hashes >> np.uint64(start)) & np.uint64(2**size - 1) for start, size in zip(starts, BANDS, strict=True)]
    found = [np.empty((0, 2), np.int64)]
    for one, other in itertools.combinations(parts, 2):
        key = (one << np.uint64(max(BANDS))) | other
        order = np.argsort(key, kind="stable")
        key = key[order]
        # Sorted, those that agree stand side by side: each is compared with the next, the one after it...
        places, step = np.arange(len(key)), 1
        while len(places := places[places + step < len(key)]):
            places = places[key[places] == key[places + step]]
            left, right = order[places], order[places + step]
            close = _num_ones(hashes[left] ^ hashes[right]) <= max_distance
            found.append(np.sort(np.stack([left[close], right[close]], axis=1), axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def _num_ones(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return _ONES[values.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


_ONES = np.array([value.bit_count() for value in range(2**16)], np.uint8)


def picture_groups(pictures: Sequence[Fingerprint]) -> NDArray[np.int64]:
    """[N] a number per picture, the same for pictures that look the same."""
    if not pictures:
        return np.empty(0, np.int64)
    _, first, exact = np.unique([picture.content for picture in pictures], return_index=True, return_inverse=True)
    distinct = [pictures[index] for index in first]
    hashes = np.frombuffer(b"".join(picture.gradients for picture in distinct), np.uint64)
    values, bucket_of = np.unique(hashes, return_inverse=True)
    order = np.argsort(bucket_of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(bucket_of))[:-1])
    groups, looks = Groups(len(distinct)), Looks(distinct)
    for left, right in _batches(members, near_pairs(values)):
        alike = looks.alike(left, right)
        for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
            groups.join(one, other)
    return np.array([groups.root(index) for index in exact.tolist()], np.int64)


def _batches(
    members: list[NDArray[np.int64]], near: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of pictures whose hashes are equal or close, some ten thousand at a time.

    members: pictures of each hash. near: [K, 2] hashes that are close.
    """
    lefts: list[NDArray[np.int64]] = []
    rights: list[NDArray[np.int64]] = []
    size = 0
    for bucket, others in itertools.chain(
        ((bucket, bucket) for bucket in members if len(bucket) > 1),
        ((members[one], members[other]) for one, other in near.tolist()),
    ):
        for index in bucket.tolist():
            right = others[others > index] if bucket is others else others
            lefts.append(np.full(len(right), index))
            rights.append(right)
            size += len(right)
            if size >= BATCH:
                yield np.concatenate(lefts), np.concatenate(rights)
                lefts, rights, size = [], [], 0
    if size:
        yield np.concatenate(lefts), np.concatenate(rights)


class Looks:
    """Thumbnails and shapes of pictures, ready to be compared."""

    def __init__(self, pictures: Sequence[Fingerprint]) -> None:
        self.aspects = np.log([picture.width / picture.height for picture in pictures])
        thumbnails = np.stack([np.frombuffer(picture.thumbnail, np.uint8) for picture in pictures]).astype(np.float32)
        self.brightness = thumbnails.mean(axis=1)
        deviations = thumbnails - self.brightness[:, None]
        contrast = deviations.std(axis=1)
        self.blank = contrast < MIN_CONTRAST
        self.normed = deviations / (np.maximum(contrast, MIN_CONTRAST) * THUMBNAIL)[:, None]

    def alike(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each picture of `left` looks like the one in the same place of `right`."""
        same = np.abs(self.brightness[left] - self.brightness[right]) < MAX_BRIGHTNESS_DIFFERENCE
        same &= np.abs(self.aspects[left] - self.aspects[right]) < MAX_ASPECT_DIFFERENCE
        same &= self.blank[left] == self.blank[right]
        rows = np.flatnonzero(same & ~self.blank[left])
        correlation = np.einsum("ij,ij->i", self.normed[left[rows]], self.normed[right[rows]])
        same[rows] = correlation > MIN_CORRELATION
        return same


class Groups:
    """Disjoint sets of 0..size-1."""

    def __init__(self, size: int) -> None:
        self.parents = list(range(size))

    def root(self, item: int) -> int:
        """The smallest member of the item's set."""
        while self.parents[item] != item:
            self.parents[item] = self.parents[self.parents[item]]
            item = self.parents[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = sorted((self.root(one), self.root(other)))
        self.parents[other] = one


def normalise_question(text: str) -> str:
    """Letters and digits in lower case with the operators of formulas, one space between words; no placeholders."""
    text = re.sub(r"<(?:image|video|audio)>", " ", text)
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+|[+\-*/^=<>%]", text))


@dataclass(frozen=True)
class Problem:
    """What identifies a record as a problem."""

    source: str
    """Name of its data set."""
    record: int
    evaluation: bool
    """Whether the run evaluates on it."""
    question: str
    """Normalised."""
    pictures: tuple[int, ...]
    """Of `picture_groups`, in order."""
    gold: str | None = None
    pixels: tuple[str, ...] = ()
    """`Fingerprint.content` of the pictures, in order: equal only where every pixel is."""

    @property
    def place(self) -> str:
        return f"{self.source} record {self.record}"


@dataclass(frozen=True)
class Duplicates:
    """Groups of two records or more, each in the order of the records."""

    same_problem: list[list[Problem]]
    """Question and pictures, within training or within evaluation."""
    shared_problem: list[list[Problem]]
    """Question and pictures, in training and in evaluation."""
    shared_picture: list[list[Problem]]
    """A picture, in training and in evaluation, with other questions; no group of `shared_problem` again."""


def find_duplicates(problems: Iterable[Problem]) -> Duplicates:
    """Compares all records of a run."""
    problems = list(problems)
    by_problem = _grouped((problem, (problem.question, problem.pictures)) for problem in problems)
    shared = [group for group in by_problem if _is_shared(group)]
    same = [part for group in by_problem for part in _by_side(group) if len(part) > 1]
    known = {(problem.question, problem.pictures) for group in shared for problem in group}
    by_picture = _grouped(
        (problem, picture)
        for problem in problems
        if (problem.question, problem.pictures) not in known
        for picture in set(problem.pictures)
    )
    return Duplicates(same, shared, [group for group in by_picture if _is_shared(group)])


def _grouped(keyed: Iterable[tuple[Problem, Hashable]]) -> list[list[Problem]]:
    groups: dict[Hashable, list[Problem]] = defaultdict(list)
    for problem, key in keyed:
        groups[key].append(problem)
    return [group for group in groups.values() if len(group) > 1]


def _by_side(group: list[Problem]) -> list[list[Problem]]:
    return [[problem for problem in group if problem.evaluation is side] for side in (False, True)]


def _is_shared(group: list[Problem]) -> bool:
    return all(_by_side(group))
