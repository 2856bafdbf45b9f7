from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.data.gold import gold_text, infer_answer_type, options_in
from lcot_plugin.data.samples import to_sample, verifiable_answer
from lcot_plugin.errors import RecordError
from lcot_plugin.rewards import gold_is_usable
from lcot_plugin.types import RawRecord, RecordFault, Sample, Turn

BYTES = b"an image"


def sample_of(question: str, response: str | None = None, **columns: Any) -> Sample:
    turns = [Turn("user", question)] + ([Turn("assistant", response)] if response is not None else [])
    return to_sample(RawRecord(turns, **columns), None, resolve=lambda image, media_dir: image)


def test_a_record_of_a_long_cot_set() -> None:
    raw = RawRecord(
        turns=[Turn("user", "What is the sum?"), Turn("assistant", "<think>2 + 3</think>\\boxed{5}")],
        images=["a.png", "b.png"],
        gold=5,
        system="Be brief.",
        subset="sums",
    )
    seen = []
    sample = to_sample(raw, Path("media"), resolve=lambda image, folder: seen.append((image, folder)) or BYTES)
    assert seen == [("a.png", Path("media")), ("b.png", Path("media"))]
    assert sample.question == "<image>\n<image>\nWhat is the sum?"
    assert sample.images == [BYTES, BYTES]
    assert sample.trace is not None and (sample.trace.thought, sample.trace.answer) == ("2 + 3", "5")
    assert (sample.gold, sample.answer_type, sample.system, sample.subset) == ("5", "number", "Be brief.", "sums")
    assert sample.history == []


def test_the_default_resolver_finds_bytes() -> None:
    image = b"\x89PNG\r\n\x1a\n"
    assert to_sample(RawRecord([Turn("user", "What?")], images=[image]), None).images == [image]


def test_several_turns() -> None:
    turns = [Turn("user", "What is it?"), Turn("assistant", "An <image> of a cat."), Turn("user", "How many?")]
    sample = to_sample(RawRecord(turns, images=[BYTES]), None, resolve=lambda image, folder: image)
    assert sample.history == [Turn("user", "<image>\nWhat is it?"), Turn("assistant", "An [image] of a cat.")]
    assert (sample.question, sample.trace) == ("How many?", None)
    turns.append(Turn("assistant", "Two."))
    assert (
        to_sample(RawRecord(turns, images=[BYTES]), None, resolve=lambda image, folder: image).history == sample.history
    )


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["system"]])
def test_turns_that_do_not_alternate(roles: list[str]) -> None:
    with pytest.raises(RecordError) as error:
        to_sample(RawRecord([Turn(role, "x") for role in roles]), None)
    assert error.value.fault is RecordFault.MALFORMED


def test_a_thought_in_a_column_of_its_own_and_a_blank_response() -> None:
    sample = sample_of("What?", "B", thought="<image> shows B.")
    assert sample.trace is not None and sample.trace.thought == "[image] shows B."
    assert sample_of("What?", " \n", gold="B").trace is None


@pytest.mark.parametrize(
    ("question", "num_images", "placed"),
    [
        ("What?", 0, "What?"),
        ("\nWhat?", 1, "<image>\nWhat?"),
        ("", 1, "<image>"),
        ("a <image> b <image> c", 2, "a <image> b <image> c"),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", 1, "<image>What?"),
        ("<img><IMG_CONTEXT></img>\nWhat?", 1, "<image>\nWhat?"),
        ("<start_of_image>What?", 1, "<image>What?"),
        ("<Image>What?", 1, "<image>What?"),
        ("<image 1> and <image_2>?", 2, "<image> and <image>?"),
        ("<image 2> or <image 1>?", 2, "<image>\n<image>\n<image 2> or <image 1>?"),
        ("<image 1>, again <image 1>?", 1, "<image>\n<image 1>, again <image 1>?"),
        ("<image>What is <|image_pad|>?", 1, "<image>What is [image_pad]?"),
        (
            "Say <|vision_start|> <IMG_CONTEXT> <image_soft_token>",
            0,
            "Say [vision_start] [IMG_CONTEXT] [image_soft_token]",
        ),
    ],
)
def test_placeholders(question: str, num_images: int, placed: str) -> None:
    assert sample_of(question, images=[BYTES] * num_images).question == placed


@pytest.mark.parametrize(
    ("question", "images", "videos"),
    [
        ("<image>", 0, 0),
        ("<image>", 2, 0),
        ("<image><image>", 1, 0),
        ("<video>", 1, 0),
        ("<video><video>", 0, 1),
        ("<audio>What?", 0, 0),
    ],
)
def test_placeholders_that_differ_from_the_files(question: str, images: int, videos: int) -> None:
    with pytest.raises(RecordError, match="write one for each") as error:
        sample_of(question, images=[BYTES] * images, videos=["a.mp4"] * videos)
    assert error.value.fault is RecordFault.PLACEHOLDERS


def test_videos() -> None:
    sample = sample_of("What?", images=[BYTES], videos=["a.mp4", ["1.png", "2.png"]])
    assert sample.question == "<image>\n<video>\n<video>\nWhat?"
    assert sample.videos == ["a.mp4", ["1.png", "2.png"]]


TOKENS = ["<image>", "<video>", "<audio>", "<|image_pad|>", "<|vision_start|>", "<IMG_CONTEXT>", "<image_soft_token>"]
TOKENS += ["<|video_pad|>", "<|image|>", "<|image>", "<image|>", "<fake_token_around_image>", "<row_1_col_2>", "</img>"]


@given(st.lists(st.sampled_from([*TOKENS, "word", " ", "\n", "<", ">", "|"]), max_size=12).map("".join))
def test_nothing_in_a_response_is_a_placeholder(text: str) -> None:
    sample = sample_of("<image>What?", f"<think>{text}</think>a {text}", images=[BYTES], gold=text)
    assert sample.trace is not None
    written = f"{sample.trace.thought}{sample.trace.conclusion}{sample.gold}"
    assert not [token for token in TOKENS if token.lower() in written.lower()]


def test_a_response_keeps_its_own_tags() -> None:
    text = "<|begin_of_thought|>if a < b and b > c, <b>bold</b> <img src='x'> <|im_end|>"
    trace = sample_of("What?", text + "<|end_of_thought|>B").trace
    assert trace is not None and trace.thought == text.removeprefix("<|begin_of_thought|>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (2.5, "2.5"),
        (True, "true"),
        (["x"], "x"),
        (["x", "x"], "x"),
        ([1, 2], "[1, 2]"),
        ([5, 5], "[5, 5]"),
        ("<answer> 145° </answer>", "145°"),
        ("<think>a</think>\n\n<answer>B</answer>", "B"),
        (r"\boxed{A}", "A"),
        (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        ("2 + 3 = 5.\n#### 5", "5"),
        ("two\nlines", "two\nlines"),
        ("Add. The answer is 5.", "5"),
        ("Yes, it is.", "Yes, it is"),
        (None, None),
        (float("nan"), None),
        ("", None),
        ("  ", None),
        ([], None),
    ],
)
def test_gold_as_text(value: Any, text: str | None) -> None:
    assert gold_text(value) == text


REC = "Give the bounding box of the red ball."


@pytest.mark.parametrize(
    ("gold", "question", "options", "answer_type"),
    [
        ("B", "Which?", [], "choice"),
        ("(B)", "Which?", ["x", "y"], "choice"),
        ("B. 5 cm", "Which?", ["4 cm", "5 cm"], "choice"),
        ("D", "Which?", ["x", "y"], "auto"),
        (None, "Which?", ["x", "y"], "choice"),
        (None, "Which?", [], "auto"),
        ("145°", "What?", [], "number"),
        (r"2\sqrt{3}", "What?", [], "expression"),
        ("(1, 2)", "What?", [], "sequence"),
        ("red ball", "What?", [], "text"),
        ("[1, 2, 30, 40]", REC, [], "boxes"),
        ("[[1, 2, 30, 40], [5, 6, 7, 8]]", REC, [], "boxes"),
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "ball"}]', "Where?", [], "boxes"),
        ("<|box_start|>(1,2),(30,40)<|box_end|>", "Where?", [], "boxes"),
        ("[[1, 2], [30, 40]]", "Give the coordinates of both points.", [], "sequence"),
        ('{"name": "Ann", "age": 5}', "Who?", [], "json"),
        ("[1, 2, 30, 40]", "Sort them.", [], "sequence"),
        ("[4, 3, 2, 1]", REC, [], "sequence"),
        ("[" * 3000, REC, [], "text"),
    ],
)
def test_answer_types(gold: str | None, question: str, options: list[str], answer_type: str) -> None:
    assert infer_answer_type(gold, question, options) == answer_type
    if gold is not None:
        assert gold_is_usable(gold, answer_type)


def test_an_answer_type_of_the_record_counts() -> None:
    assert sample_of("What?", gold="3", answer_type="text").answer_type == "text"
    assert sample_of("What?", gold="B", answer_type="MCQ").answer_type == "choice"
    with pytest.raises(RecordError, match=r"'colour' is unknown; write one of auto, .*boxes"):
        sample_of("What?", gold="3", answer_type="colour")


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("How long?\nA. 4 cm\nB. 5 cm\nPlease think.", ["4 cm", "5 cm"]),
        ("How long? A. 4 cm B. 5 cm", ["4 cm", "5 cm"]),
        ("How long?\n(A) 4 cm; (B) 5 cm; (C) 6 cm.", ["4 cm", "5 cm", "6 cm."]),
        ("哪个?\nA、四\nB、五", ["四", "五"]),
        ("Is A. better?", []),
        ("B. x C. y", []),
        ("A.\nB.\n", []),
        ("A. x C. y", []),
        ("A. old B. older. Which?\nA. new\nB. newer", ["new", "newer"]),
    ],
)
def test_options_in_a_question(question: str, options: list[str]) -> None:
    assert options_in(question) == options


def test_options_in_a_column_are_written_under_the_question() -> None:
    sample = sample_of("How long?", options=["4 cm", "5 cm"], gold="5 cm")
    assert sample.question == "How long?\nA. 4 cm\nB. 5 cm"
    assert (sample.gold, sample.answer_type, sample.options) == ("B", "choice", ["4 cm", "5 cm"])
    lettered = sample_of("How long?\nA. 4 cm\nB. 5 cm", options=["A. 4 cm", "B. 5 cm"], gold="B")
    assert (lettered.question, lettered.options) == (sample.question, sample.options)


def test_letters_in_a_question_are_no_options_where_the_answer_is_a_number() -> None:
    sample = sample_of("From A: (1, 2) to B: (4, 6), how far?", gold="5")
    assert (sample.options, sample.answer_type) == ([], "number")


def test_what_grpo_verifies_against() -> None:
    assert verifiable_answer(sample_of("What?", "<think>a</think>6", gold="5")) == "5"
    assert verifiable_answer(sample_of("What?", "<think>a</think>6")) == "6"
    assert verifiable_answer(sample_of("What?")) is None
