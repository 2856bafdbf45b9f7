"""Boxes are read in every dress that the models wear, and nothing that hedges or is malformed is paid for."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.answers import check_answer_type, judge, read_gold
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.boxes import MAX_BOXES, Scale, read_boxes
from lcot_plugin.rewards.kinds.overlap import Box
from lcot_plugin.types import MatchSettings, Outcome

PICTURE = MatchSettings(image_size=(640, 480))


def outcome(gold: str, answer: str, settings: MatchSettings = MatchSettings()) -> Outcome:  # noqa: B008 (immutable)
    read = read_gold(gold, "boxes", settings)
    return judge(read, Found(answer, Place.TAG), settings) if read is not None else Outcome.GOLD_UNPARSABLE


def matches(gold: str, answer: str, settings: MatchSettings = MatchSettings()) -> bool:  # noqa: B008 (immutable)
    return outcome(gold, answer, settings) is Outcome.MATCHED


@pytest.mark.parametrize(
    "text",
    [
        "[10, 20, 30, 40]",
        "[10 20 30 40]",
        "[10.0,20.00,3e1,40.]",
        "(10, 20, 30, 40)",
        "（10，20，30，40）",  # noqa: RUF001
        "10, 20, 30, 40",
        "10 20 30 40",
        "(10, 20), (30, 40)",
        "(10,20) (30,40)",
        "(10, 20) to (30, 40)",
        "((10, 20), (30, 40))",
        "[[10, 20], [30, 40]]",
        "[[10, 20, 30, 40]]",
        "x1=10, y1=20, x2=30, y2=40",
        "(x1: 10, y1: 20, x2: 30, y2: 40)",
        "xmin = 10, ymin = 20, xmax = 30, ymax = 40",
        r"$[10, 20, 30, 40]$",
        r"\left[10,\, 20,\, 30,\, 40\right]",
        r"\boxed{[10, 20, 30, 40]}",
        "**[10, 20, 30, 40]**",
        "`[10, 20, 30, 40]`.",
        "Box 1: [10, 20, 30, 40]",
        "Box No. 1: [10, 20, 30, 40]",
        "The bounding box is [10, 20, 30, 40].",
        "边界框是[10, 20, 30, 40]。",
        "```json\n[10, 20, 30, 40]\n```",
        "Here it is: ```[10, 20, 30, 40]```",
        '{"bbox_2d": [10, 20, 30, 40]}',
        '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40]}\n]\n```',
        'The box: [{"bbox_2d": [10, 20, 30, 40], "confidence": 0.9}]',
        '{"bbox": [[10, 20], [30, 40]]}',
        '{"x1": 10, "y1": 20, "x2": 30, "y2": 40}',
        '{"boxes": [[10, 20, 30, 40]]}',
        '{"answer": [10, 20, 30, 40]}',
        "[{'bbox_2d': [10, 20, 30, 40]}]",
    ],
)
def test_a_box_in_numbers_as_written(text: str) -> None:
    read = read_boxes(text)
    assert read is not None
    assert (read.boxes, read.scale) == ((Box(10, 20, 30, 40),), Scale.AS_WRITTEN)


@pytest.mark.parametrize(
    "text",
    [
        "<|box_start|>(10,20),(30,40)<|box_end|>",
        "<box>(10,20),(30,40)</box>",
        "<box>[[10, 20, 30, 40]]</box>",
        "The box is <box>[10, 20, 30, 40]</box>.",
        '[{"box_2d": [20, 10, 40, 30]}]',
    ],
)
def test_a_box_in_thousandths(text: str) -> None:
    read = read_boxes(text)
    assert read is not None
    assert (read.boxes, read.scale) == ((Box(10, 20, 30, 40),), Scale.THOUSANDTHS)


def test_location_tokens_are_1024ths_with_y_first() -> None:
    read = read_boxes("<loc0256><loc0128><loc0512><loc0384> cat ; <loc0000><loc0000><loc1023><loc1023> the sofa")
    assert read is not None and read.scale is Scale.FRACTION
    assert read.boxes == (Box(0.125, 0.25, 0.375, 0.5, "cat"), Box(0, 0, 1023 / 1024, 1023 / 1024, "the sofa"))
    assert read_boxes("<loc0256><loc0128><loc0512><loc1024>") is None
    assert read_boxes("<loc0256><loc0128><loc0512>") is None


@pytest.mark.parametrize("text", ["[0.1, 0.2, .5, 0.6]", "<box>[[0.1, 0.2, 0.5, 0.6]]</box>"])
def test_numbers_up_to_one_are_fractions(text: str) -> None:
    read = read_boxes(text)
    assert read is not None
    assert (read.boxes, read.scale) == ((Box(0.1, 0.2, 0.5, 0.6),), Scale.FRACTION)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8], "label": "dog"}]', ["cat", "dog"]),
        ('{"cat": [1, 2, 3, 4], "dog": [5, 6, 7, 8]}', ["cat", "dog"]),
        ("<ref>cat</ref><box>[[1, 2, 3, 4]]</box> <ref>dog</ref><box>[[5, 6, 7, 8]]</box>", ["cat", "dog"]),
        ("<ref>cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", ["cat", "cat"]),
        (
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
            "<|box_start|>(5,6),(7,8)<|box_end|>",
            ["cat", "cat"],
        ),
        ("1. cat: [1, 2, 3, 4]\n2. dog: [5, 6, 7, 8]", ["cat", "dog"]),
        ("The man in the hat is at [1, 2, 3, 4] and the dog is at [5, 6, 7, 8].", ["man in the hat", "dog"]),
        ("[1, 2, 3, 4], [5, 6, 7, 8]", ["", ""]),
        ("[(1, 2, 3, 4), (5, 6, 7, 8)]", ["", ""]),
        ("[1, 2, 3, 4] is the cat.", ["cat"]),
    ],
)
def test_several_boxes_and_their_labels(text: str, labels: list[str]) -> None:
    read = read_boxes(text)
    assert read is not None
    assert [box.label for box in read.boxes] == labels
    assert [box.x1 for box in read.boxes] == [1, 5][: len(labels)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[1, 2, 3, 4",
        "[1,, 2, 3, 4]",
        "[1, 2, 3, x]",
        "[NaN, 2, 3, 4]",
        "[1, 2, 3, Infinity]",
        "[true, 2, 3, 4]",
        '["1", "2", "3", "4"]',
        "1, 2, 3, 4, 5",
        "the numbers 1, 2, 3, 4",
        "[1, 2, 3, 4] or [5, 6, 7, 8]",
        "either [1, 2, 3, 4] or so",
        "not [1, 2, 3, 4]",
        "There is no cat at [1, 2, 3, 4]",
        "maybe [1, 2, 3, 4]",
        "[1, 2, 3, 4] is wrong. It is elsewhere",
        "不是[1, 2, 3, 4]",
        "没有猫[1, 2, 3, 4]",
        "[1, 2, 3, 4] (cat)",
        "[1, 2, 3, 4] [5, 6]",
        "[1, 2, 3, 4] 10, 20, 30, 40",
        "[1, 2, 3, 4] is the cat and [5, 6, 7, 8] the dog",
        "(1, 2), (3, 4), (5, 6)",
        '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}',
        '{"bbox_2d": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]}',
        '{"bbox_2d": [1, 2, 3, 4], "alternative": [5, 6, 7, 8]}',
        '[{"bbox_2d": [1, 2, 3, 4]}, {"label": "cat"}]',
        '{"bbox_2d": [1, 2, 3]}',
        "```json\n[1, 2, 3, 4]\n``` or ```json\n[5, 6, 7, 8]\n```",
        "<box>[[1, 2, 3, 4]]",
        "<box>[[1, 2, 3]]</box>",
        "<box>[[1, 2, 3, 4]]</box> or <box>[[5, 6, 7, 8]]</box>",
        "[" * 4000,
        '{"bbox_2d": ' * 300,
        "[[1,2,3,4]," * 200,
        str([[1, 2, 3, 4]] * (MAX_BOXES + 1)),
        "[1, 2, 3, 4]" + " " * 5000 + "x" * 5000,
    ],
)
def test_what_states_no_boxes(text: str) -> None:
    assert read_boxes(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "settings"),
    [
        ("[10, 20, 30, 40]", "[11, 20, 30, 41]", MatchSettings()),
        ("[10, 20, 30, 40]", "<|box_start|>(10,20),(30,40)<|box_end|>", MatchSettings()),
        ("[0.1, 0.2, 0.5, 0.6]", "[0.1, 0.2, 0.5, 0.6]", MatchSettings()),
        ("[0.1, 0.2, 0.5, 0.6]", "<box>[[100, 200, 500, 600]]</box>", MatchSettings()),
        ("[64, 48, 320, 240]", "[0.1, 0.1, 0.5, 0.5]", PICTURE),
        ("[0.1, 0.1, 0.5, 0.5]", "[64, 48, 320, 240]", PICTURE),
        ("[64, 48, 320, 240]", "<box>[[100, 100, 500, 500]]</box>", PICTURE),
        ("[64, 48, 320, 240]", "<loc0102><loc0102><loc0512><loc0512>", PICTURE),
        ("[64, 48, 320, 240]", '{"box_2d": [100, 100, 500, 500]}', PICTURE),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "the cat"}', "[10, 20, 30, 40]", MatchSettings()),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "the cat"}', "The cat is at [10, 20, 30, 40].", MatchSettings()),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", "(5, 6), (7, 8) and (1, 2), (3, 4)", MatchSettings()),
        ("[10, 20, 30, 40]", "[20, 20, 30, 40]", MatchSettings()),
        ("[10, 20, 30, 40]", "[12, 20, 30, 40]", MatchSettings(min_iou=0.9)),
    ],
)
def test_same_boxes(gold: str, answer: str, settings: MatchSettings) -> None:
    assert matches(gold, answer, settings)


@pytest.mark.parametrize(
    ("gold", "answer", "settings"),
    [
        ("[10, 20, 30, 40]", "[20.1, 20, 30, 40]", MatchSettings()),
        ("[10, 20, 30, 40]", "[12.1, 20, 30, 40]", MatchSettings(min_iou=0.9)),
        ("[10, 20, 30, 40]", "[30, 40, 10, 20]", MatchSettings()),
        ("[10, 20, 30, 40]", "[30, 20, 10, 40]", MatchSettings()),
        ("[10, 20, 100, 40]", "[20, 10, 40, 100]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 20, 20]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 30, 40], [10, 20, 30, 40]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 30, 40], [50, 60, 70, 80]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 30]", MatchSettings()),
        ("[10, 20, 30, 40]", "[0.1, 0.2, 0.3, 0.4]", MatchSettings()),
        ("[640, 480, 1640, 1480]", "<box>[[640, 480, 1000, 1000]]</box>", MatchSettings()),
        ("[10, 20, 30, 40]", "[-1e400, -1e400, 1e400, 1e400]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 30, 1e400]", MatchSettings()),
        ("[10, 20, 30, 40]", "[10, 20, 30, 1e999999999]", MatchSettings()),
        ("[10, 20, 30, 40]", "[-inf, -inf, inf, inf]", MatchSettings()),
        ("[10, 20, 30, 40]", "[0, 0, 0, 0]", MatchSettings()),
        ("[64, 48, 320, 240]", "[64, 48, 320, 240] or [0, 0, 1, 1]", PICTURE),
        ("[64, 48, 320, 240]", "<box>[[64, 48, 320, 240]]</box>", PICTURE),
        ("[64, 48, 320, 240]", "[0.1, 0.1, 0.5, 0.5]", MatchSettings()),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat"}', '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}', PICTURE),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat"}', "dog: [10, 20, 30, 40]", PICTURE),
        (
            '[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8], "label": "dog"}]',
            '[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}, {"bbox_2d": [5, 6, 7, 8], "label": "cat"}]',
            MatchSettings(),
        ),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", "[[1, 2, 3, 4], [1, 2, 3, 4]]", MatchSettings()),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", "[1, 2, 3, 4]", MatchSettings()),
    ],
)
def test_other_boxes(gold: str, answer: str, settings: MatchSettings) -> None:
    assert outcome(gold, answer, settings) is Outcome.MISMATCHED


@pytest.mark.parametrize(
    "gold", ["[30, 40, 10, 20]", "[10, 20, 10, 40]", "[0, 0, 0, 0]", "[0, 0, 1e400, 5]", "[1, 2, 3]", "a cat"]
)
def test_impossible_gold_boxes_are_refused(gold: str) -> None:
    assert outcome(gold, gold) is Outcome.GOLD_UNPARSABLE


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ('{"bbox_2d": [1, 2, 3, 4], "label": "cat"}', "boxes"),
        ('[{"bbox": [1, 2, 3, 4]}]', "boxes"),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "boxes"),
        ("<loc0001><loc0002><loc0003><loc0004>", "boxes"),
        ("[1, 2, 3, 4]", "sequence"),
        ("(1, 2), (3, 4)", "sequence"),
    ],
)
def test_only_an_unmistakable_dress_is_inferred(gold: str, kind: str) -> None:
    read = read_gold(gold)
    assert read is not None
    # Brackets of numbers may be a list, a tuple or coordinates; which of these is not decided here.
    assert (read.kind == "boxes") is (kind == "boxes")


@pytest.mark.parametrize("name", ["boxes", "bbox", "box", "grounding", "detection", "BBox"])
def test_names_of_the_kind(name: str) -> None:
    assert check_answer_type(name) == "boxes"
    with pytest.raises(RewardError, match="is unknown"):
        check_answer_type("circle")


EDGES = st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(1, 99), st.integers(1, 99)).map(
    lambda numbers: [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
)


@hypothesis_settings(deadline=None)
@given(st.lists(EDGES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_boxes_match_themselves_in_every_dress_and_order(edges: list[list[int]], random: object) -> None:
    gold = json.dumps([{"bbox_2d": box} for box in edges])
    shuffled = edges[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    dresses = [
        json.dumps(shuffled),
        ", ".join(f"({x1}, {y1}), ({x2}, {y2})" for x1, y1, x2, y2 in shuffled),
        "".join(f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>" for x1, y1, x2, y2 in shuffled),
        "<box>" + json.dumps(shuffled) + "</box>",
        json.dumps([{"box_2d": [y1, x1, y2, x2], "label": "thing"} for x1, y1, x2, y2 in shuffled]),
    ]
    assert [matches(gold, dress) for dress in dresses] == [True] * len(dresses)
    moved = [[x1 + 1000, y1, x2 + 1000, y2] for x1, y1, x2, y2 in shuffled]
    assert not matches(gold, json.dumps(moved))
    assert not matches(gold, json.dumps([*shuffled, [0, 0, 5, 5]]))


@hypothesis_settings(deadline=None)
@given(st.text(alphabet='[](){}<>loc0123456789.,;:"boxref/|_- eE+x=to`\\', max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    read = read_boxes(text)
    assert read is None or read.boxes


def test_a_gold_answer_travels_to_the_worker() -> None:
    gold = read_gold('{"bbox_2d": [1, 2, 3, 4], "label": "cat"}')
    assert pickle.loads(pickle.dumps(gold)) == gold
