"""The sets whose questions come with options to choose from, in columns of their own."""

from __future__ import annotations

from typing import Any

from data.set_fixtures import Expected, Pictures, PublicSet, alpaca, number, picture, text


def scienceqa(pictures: Pictures) -> list[dict[str, Any]]:
    rest = {"task": "closed choice", "grade": "grade5", "subject": "natural science", "lecture": "", "solution": ""}
    return [
        {
            "image": pictures.struct(),
            "question": "Which is the predator?",
            "choices": ["hare", "fox"],
            "answer": 1,
            "hint": "Look at the food web.",
            **rest,
        },
        {"image": None, "question": "Which is a metal?", "choices": ["iron", "salt"], "answer": 0, "hint": "", **rest},
    ]


def mathvision(pictures: Pictures) -> list[dict[str, Any]]:
    def record(question: str, options: list[str], answer: str) -> dict[str, Any]:
        return {
            "id": "1",
            "question": question,
            "options": options,
            "image": "images/1.jpg",
            "decoded_image": pictures.struct(),
            "answer": answer,
            "solution": None,
            "level": 1,
            "subject": "counting",
        }

    return [
        record("How many are black?\n<image1>", ["1", "2", "3"], "B"),
        record("Which part fits?\n<image1>", ["A", "B", "C"], "C"),
        record("What is the sum?\n<image1>", [], "12"),
    ]


def mmmu(pictures: Pictures) -> list[dict[str, Any]]:
    def record(question: str, options: str, answer: str, *images: dict[str, Any]) -> dict[str, Any]:
        columns = {f"image_{number}": None for number in range(1, 8)}
        columns |= {f"image_{number}": image for number, image in enumerate(images, start=1)}
        kind = "multiple-choice" if options != "[]" else "open"
        rest = {"explanation": "", "answer": answer, "question_type": kind}
        return {"id": "validation_Math_1", "question": question, "options": options, **columns, **rest}

    return [
        record("Does <image 2> follow from <image 1>? See <image 2>.", "['Yes', 'No']", "A", *_two(pictures)),
        record("<image 1> What is x?", "['7', '8', '9']", "C", pictures.struct()),
        record("<image 1> What is y?", "[]", "12", pictures.struct()),
    ]


def _two(pictures: Pictures) -> tuple[dict[str, Any], dict[str, Any]]:
    return pictures.struct(), pictures.struct(32, 80)


def lettered(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "image": pictures.base64(),
            "question": "Which?",
            "A": "one",
            "B": "two",
            "C": "three",
            "D": None,
            "answer": "C",
        },
        {
            "image": pictures.base64(),
            "question": "And here?",
            "A": "one",
            "B": "two",
            "C": "x",
            "D": "y",
            "answer": "D",
        },
    ]


CHOICE_SETS: tuple[PublicSet, ...] = (
    PublicSet(
        "scienceqa",
        "derek-thomas/ScienceQA",
        "train.parquet",
        scienceqa,
        (
            Expected("Which is the predator?", 1, gold="B", options=("hare", "fox")),
            Expected("Which is a metal?", gold="A", options=("iron", "salt")),
        ),
        "lcot_choices",
        alpaca("question", "answer", "image", query="hint"),
        lambda: {
            "image": picture(),
            "question": text(),
            "choices": [text()],
            "answer": number("int8"),
            **{name: text() for name in ("hint", "task", "grade", "subject", "lecture", "solution")},
        },
    ),
    PublicSet(
        "mathvision_test",
        "MathLLMs/MathVision",
        "test.parquet",
        mathvision,
        (
            Expected("How many are black?", 1, gold="B", options=("1", "2", "3")),
            Expected("Which part fits?", 1, gold="C", options=("A", "B", "C")),
            Expected("What is the sum?", 1, gold="12"),
        ),
        "lcot_choices",
        alpaca("question", "answer", "decoded_image"),
        lambda: {
            "id": text(),
            "question": text(),
            "options": [text()],
            "image": text(),
            "decoded_image": picture(),
            "answer": text(),
            "solution": text(),
            "level": number(),
            "subject": text(),
        },
    ),
    PublicSet(
        "mmmu_math",
        "MMMU/MMMU",
        "validation.parquet",
        mmmu,
        (
            Expected("Does <image> follow from <image>? See (image 2).", 2, gold="A", options=("Yes", "No")),
            Expected("<image> What is x?", 1, gold="C", options=("7", "8", "9")),
            Expected("<image> What is y?", 1, gold="12"),
        ),
        "lcot_choices",
        alpaca("question", "answer", "image_1"),
        lambda: {
            **{name: text() for name in ("id", "question", "options", "explanation", "answer", "question_type")},
            **{f"image_{number}": picture() for number in range(1, 8)},
        },
    ),
    PublicSet(
        "lettered_options",
        "",
        "train.jsonl",
        lettered,
        (
            Expected("Which?", 1, gold="C", options=("one", "two", "three")),
            Expected("And here?", 1, gold="D", options=("one", "two", "x", "y")),
        ),
        "lcot_choices",
        alpaca("question", "answer", "image"),
    ),
)
