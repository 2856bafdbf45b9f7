r"""The kind `boxes`: rectangles in a picture, in the dresses of the vision-language models, compared by overlap.

    [10, 20, 30, 40]    [[10, 20], [30, 40]]    (10,20),(30,40)    x1=10, y1=20, x2=30, y2=40    10 20 30 40
    [{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]     Qwen2.5-VL's JSON, in a code fence or not
    <|box_start|>(10,20),(30,40)<|box_end|>             Qwen2-VL, thousandths of the picture
    <ref>cat</ref><box>[[10, 20, 30, 40]]</box>         InternVL, thousandths too
    <loc0020><loc0010><loc0040><loc0030> cat            PaliGemma, y before x, 1024ths
    {"box_2d": [20, 10, 40, 30]}                        Gemini, y before x, thousandths

A box runs from its upper left to its lower right corner. With the corners swapped it is empty, as evaluations of
detection take it: a gold answer is refused, a stated one overlaps nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from itertools import dropwhile
from typing import Any

from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, Solver
from lcot_plugin.rewards.kinds.dress import balanced_end, inline, undress
from lcot_plugin.rewards.kinds.json_answers import NEGATION, JsonObject, read_json, without_fence
from lcot_plugin.rewards.kinds.overlap import Box, all_paired
from lcot_plugin.types import MatchSettings

MAX_BOXES = 100
"""Per answer, as many as COCO's evaluation counts per picture; pairing takes the square of it."""


class Scale(StrEnum):
    """What the numbers of one side count."""

    AS_WRITTEN = "as written"
    """Pixels, or whatever the question asked for."""
    FRACTION = "fraction"
    """0 to 1 of the picture's width and height."""
    THOUSANDTHS = "thousandths"
    """0 to 1000 of them."""


@dataclass(frozen=True)
class Boxes:
    """The value of a gold answer of this kind."""

    boxes: tuple[Box, ...]
    """At least one."""
    scale: Scale


Reading = list[tuple[Box, Scale]]

_NUMBER = r"[+-]?(?:\d{1,12}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?"
_NEXT = r"(?: ?[,;] ?| )"
_PAIR = rf"[\[(] ?{_NUMBER}{_NEXT}{_NUMBER} ?[\])]"
_FOUR = _NEXT.join([_NUMBER] * 4)
_NAMES = (r"x_?1|x_?min|left", r"y_?1|y_?min|top", r"x_?2|x_?max|right", r"y_?2|y_?max|bottom")
_NAMED = _NEXT.join(rf"(?:{name}) ?[=:] ?{_NUMBER}" for name in _NAMES)
_WRITTEN = re.compile(
    rf"[\[(] ?{_FOUR} ?[\])]|{_PAIR} ?(?:,|;|-|to|and)? ?{_PAIR}|[\[(]? ?{_NAMED} ?[\])]?", re.IGNORECASE
)
_VALUE = re.compile(rf"(?<![\w.]){_NUMBER}(?![\w.])")
_BARE = re.compile(_FOUR)
_LOCATED = re.compile(r"<loc(\d{4})>\s?<loc(\d{4})>\s?<loc(\d{4})>\s?<loc(\d{4})>([^<>;]*);?")
_TAGGED = re.compile(
    r"(?:(?:<ref>|<\|object_ref_start\|>)([^<>]*)(?:</ref>|<\|object_ref_end\|>))?\s?"
    r"(?:<box>|<\|box_start\|>)([^<>]*)(?:</box>|<\|box_end\|>)"
)
_UNMISTAKABLE = re.compile(r'"(?:bbox|bbox_2d|box_2d)"\s*:|<box>|<\|box_start\|>|<loc\d{4}>')
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d")
_EDGE_KEYS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_LABEL_KEYS = ("label", "name", "category", "class", "object")
_SAYS_NOTHING = frozenset(
    re.findall(
        r"\w+",
        "the a an is are at of in its it for and with here there this these box boxes bounding bbox bboxes "
        "coordinate coordinates region location located position object objects answer final detected found image "
        "picture as follows following pixels on no",
    )
)
_CHINESE_SAYS_NOTHING = re.compile("边界框|坐标|位置|答案|物体|目标|图中|[框的是为在]")


def read_boxes(text: str) -> Boxes | None:
    """The boxes that `text` states, impossible ones too; None where it states none, or hedges, or holds brackets and
    numbers that are no boxes."""
    content = without_fence(undress(text))
    if content is None or len(content) > MAX_ANSWER_CHARS:
        return None
    # Python's quotes are no JSON; a box in them is where it is all the same.
    value = read_json(content if '"' in content else content.replace("'", '"'))
    if value is not None and (content.startswith("[") or "{" in content):
        found = _from_json(value[0])
    elif "<" in content:
        found = _located(content) if "<loc" in content else _tagged(content)
    else:
        found = _written(inline(content))
    scales = {scale for _, scale in found}
    if len(scales) != 1 or len(found) > MAX_BOXES:
        return None
    boxes = tuple(box for box, _ in found)
    small = all(abs(edge) <= 1 for box in boxes for edge in (box.x1, box.y1, box.x2, box.y2))
    return Boxes(boxes, Scale.FRACTION if small else scales.pop())


def in_one_scale(
    gold: Boxes, answer: Boxes, image_size: tuple[int, int] | None
) -> tuple[Sequence[Box], Sequence[Box]] | None:
    """Both sides in a common scale; None where there is none without guessing.

    Numbers as written are pixels of `image_size`, (width, height). Without it they cannot be compared with fractions,
    and with thousandths only where they may be such themselves.
    """
    if gold.scale is answer.scale:
        return gold.boxes, answer.boxes
    scales = {gold.scale, answer.scale}
    if Scale.AS_WRITTEN in scales and image_size is None:
        edges = (edge for side in (gold, answer) for box in side.boxes for edge in (box.x1, box.y1, box.x2, box.y2))
        if Scale.FRACTION in scales or not all(0 <= edge <= 1000 for edge in edges):
            return None
        return gold.boxes, answer.boxes
    return _fractions(gold, image_size), _fractions(answer, image_size)


def _fractions(side: Boxes, image_size: tuple[int, int] | None) -> list[Box]:
    units: dict[Scale, tuple[int, int]] = {Scale.FRACTION: (1, 1), Scale.THOUSANDTHS: (1000, 1000)}
    if image_size is not None:
        units[Scale.AS_WRITTEN] = image_size
    width, height = units[side.scale]
    return [
        replace(box, x1=box.x1 / width, y1=box.y1 / height, x2=box.x2 / width, y2=box.y2 / height) for box in side.boxes
    ]


def _from_json(value: Any) -> Reading:
    """The boxes of a JSON value; empty where any part of it is no box."""
    if edges := _corners(value):
        return [(Box(*edges), Scale.AS_WRITTEN)]
    if isinstance(value, tuple):
        parts = [_from_json(item) for item in value[: MAX_BOXES + 1]]
        return [item for part in parts for item in part] if all(parts) else []
    return _from_object(value) if isinstance(value, JsonObject) else []


def _from_object(value: JsonObject) -> Reading:
    keys = [key for key, _ in value.items]
    label = next((text for key in _LABEL_KEYS if isinstance(text := value.get(key), str)), "")
    for names in _EDGE_KEYS:
        if set(names) <= set(keys):
            edges = _corners(tuple(value.get(name) for name in names))
            return [(Box(*edges, label), Scale.AS_WRITTEN)] if edges else []
    boxed = [key for key in keys if key in _BOX_KEYS]
    if boxed and any(_corners(item) for key, item in value.items if key != boxed[0]):
        return []
    if boxed:
        edges = _corners(value.get(boxed[0]))
        if edges is None:
            return []
        if boxed[0] == "box_2d":
            return [(Box(edges[1], edges[0], edges[3], edges[2], label), Scale.THOUSANDTHS)]
        return [(Box(*edges, label), Scale.AS_WRITTEN)]
    # {"cat": [1, 2, 3, 4]}, {"boxes": [...]}: a key that says something is the label.
    found = []
    for key, item in value.items:
        part = _from_json(item)
        if not part:
            return []
        found += [(replace(box, label=box.label or _meaning(key)), scale) for box, scale in part]
    return found


def _corners(value: Any) -> tuple[float, float, float, float] | None:
    """Four numbers, or two corners of two."""
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and [len(item) for item in value if isinstance(item, tuple)] == [2, 2]
    ):
        value = tuple(number for corner in value if isinstance(corner, tuple) for number in corner)
    if not isinstance(value, tuple) or len(value) != 4 or not all(isinstance(item, Fraction) for item in value):
        return None
    x1, y1, x2, y2 = (_float(item) for item in value)
    return x1, y1, x2, y2


def _float(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _located(text: str) -> Reading:
    """PaliGemma's `<loc0020><loc0010><loc0040><loc0030> cat ; ...`: y1, x1, y2, x2 in 1024ths."""
    found = []
    for _, match in _with_words(_LOCATED, text):
        y1, x1, y2, x2 = (int(digits) / 1024 for digits in match.groups()[:4])
        if max(y1, x1, y2, x2) >= 1:
            return []
        found.append((Box(x1, y1, x2, y2, match[5].strip()), Scale.FRACTION))
    return found


def _tagged(text: str) -> Reading:
    """InternVL's and Qwen's tags. Boxes that follow one another without a name share the last one."""
    found: Reading = []
    label = ""
    for words, match in _with_words(_TAGGED, text):
        label = (match[1] or "").strip() or words or label
        inside = _written(match[2].strip())
        if not inside:
            return []
        found += [(replace(box, label=label), Scale.THOUSANDTHS) for box, _ in inside]
    return found


def _written(text: str) -> Reading:
    """Four numbers or two corners in brackets, once or more, with few words between them; or four bare numbers."""
    if _BARE.fullmatch(text):
        return [(_box_of(text), Scale.AS_WRITTEN)]
    for _ in range(2):  # brackets around a list of boxes
        inner = text[1:-1].strip()
        if text[:1] in ("[", "(") and inner[:1] in ("[", "(") and balanced_end(text, 0) == len(text):
            text = inner
    return [(_box_of(match.group(), words), Scale.AS_WRITTEN) for words, match in _with_words(_WRITTEN, text)]


def _box_of(text: str, label: str = "") -> Box:
    named = re.sub(r"[xy]_?[12]", "", text, flags=re.IGNORECASE)
    x1, y1, x2, y2 = (float(number) for number in _VALUE.findall(named))
    return Box(x1, y1, x2, y2, label)


def _with_words(pattern: re.Pattern[str], text: str) -> list[tuple[str, re.Match[str]]]:
    """Every match, and the words before it that may name what is there; empty where the rest of the text is not only
    words, or takes back what it says."""
    matches = list(pattern.finditer(text))
    starts = [0, *(match.end() for match in matches)]
    ends = [*(match.start() for match in matches), len(text)]
    rest = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    if any(re.search(r"[\[\](){}<>]|\d\D+\d", part) or NEGATION.search(part) for part in rest):
        return []
    words = [_meaning(part) for part in rest]
    if words[-1]:
        # "[1, 2, 3, 4] is the cat": with several boxes, whose name is whose is a guess.
        if len(matches) > 1:
            return []
        words[0] = words[0] or words[-1]
    return list(zip(words, matches, strict=False))


def _meaning(text: str) -> str:
    """What `text` names, without the words around it that say nothing: `The cat is at` names `cat`."""
    text = _CHINESE_SAYS_NOTHING.sub(" ", re.sub(r"^\W*\d+[.)]\s", "", text))
    words = re.findall(r"[^\W_]+", text)
    words = list(dropwhile(lambda word: word.isdecimal() or word.lower() in _SAYS_NOTHING, words))
    while words and words[-1].lower() in _SAYS_NOTHING:
        words.pop()
    return " ".join(words)


def read(text: str, settings: MatchSettings) -> Gold | None:
    """The boxes that `text` states; None where one of them is impossible."""
    value = read_boxes(text)
    return Gold("boxes", text, value) if value is not None and all(box.valid for box in value.boxes) else None


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """The boxes that `text` states in a dress that nothing else wears; `[1, 2, 3, 4]` may be a list."""
    return read(text, settings) if _UNMISTAKABLE.search(text) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` states as many boxes, each of which is one of the gold boxes."""
    answer = read_boxes(found.answer)
    if answer is None:
        return None
    sides = in_one_scale(gold.value, answer, settings.image_size)
    return sides is not None and all_paired(*sides, settings.min_iou)


KIND = Kind(read, compare, infer)
