"""The benchmarks that models are evaluated on, in the schemas of their cards."""

from __future__ import annotations

from typing import Any

from data.set_fixtures import Expected, Pictures, PublicSet, alpaca, number, picture, text


def mathvista(pictures: Pictures) -> list[dict[str, Any]]:
    hint = "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
    whole = "Hint: Please answer the question requiring an integer answer and provide the final value at the end."
    common = {"image": "images/1.jpg", "unit": None, "precision": None}
    return [
        {
            "pid": "1",
            "question": "Which is longer?",
            **common,
            "decoded_image": pictures.struct(),
            "choices": ["AB", "CD"],
            "answer": "CD",
            "question_type": "multi_choice",
            "answer_type": "text",
            "metadata": {"source": "GeoQA+", "task": "geometry problem solving"},
            "query": f"{hint}\nQuestion: Which is longer?\nChoices:\n(A) AB\n(B) CD",
        },
        {
            "pid": "2",
            "question": "How many balls are left?",
            **common,
            "decoded_image": pictures.struct(),
            "choices": None,
            "answer": "4",
            "question_type": "free_form",
            "answer_type": "integer",
            "metadata": {"source": "CLEVR-Math", "task": "math word problem"},
            "query": f"{whole}\nQuestion: How many balls are left?",
        },
    ]


def mathverse(pictures: Pictures) -> list[dict[str, Any]]:
    ask = "Please first conduct reasoning, and then answer the question"
    find = "Find angle ABC.\nChoices:\nA:30\nB:60"
    return [
        {
            "sample_index": "1",
            "problem_index": "1",
            "problem_version": "Text Dominant",
            "question": find,
            "image": pictures.struct(),
            "answer": "B",
            "question_type": "multi-choice",
            "query_wo": f"Please directly answer.\nQuestion: {find}",
            "query_cot": f"{ask} and provide the correct option letter.\nQuestion: {find}",
        },
        {
            "sample_index": "5",
            "problem_index": "2",
            "problem_version": "Vision Only",
            "question": "",
            "image": pictures.struct(),
            "answer": "12",
            "question_type": "free-form",
            "query_wo": "Please directly answer the question in the image.",
            "query_cot": f"{ask} in the image and provide the final value.",
        },
    ]


def dynamath(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "1",
            "question": "What is the slope of the line?",
            "image": "images/1.png",
            "decoded_image": pictures.struct(),
            "ground_truth": "-1.5",
            "answer_type": "float",
            "subject": "algebra",
            "knowledge_level": "high school",
        },
        {
            "id": "2",
            "question": "Is the function even? choice: (A) Yes (B) No",
            "image": "images/2.png",
            "decoded_image": pictures.struct(),
            "ground_truth": "B",
            "answer_type": "multiple choice",
            "subject": "algebra",
            "knowledge_level": "undergraduate",
        },
    ]


def logicvista(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "1",
            "question": "Which figure comes next? Select from A, B and C. (A) (B) (C)",
            "answer": "B",
            "reasoning": "The square turns.",
            "image": pictures.struct(),
            "skill": ["inductive"],
        },
        {
            "id": "2",
            "question": "Which two are alike? Select from A to D.",
            "answer": "A, C",
            "reasoning": "Both have a dot.",
            "image": pictures.struct(),
            "skill": ["deductive"],
        },
    ]


def mmmu(pictures: Pictures) -> list[dict[str, Any]]:
    blank = {f"image_{place}": None for place in range(2, 8)}
    common = {"explanation": "", "img_type": "['Plots']", "topic_difficulty": "Easy", "subfield": "Logic"}
    return [
        {
            "id": "validation_Math_1",
            "question": "<image 1> Which holds?",
            "options": "['$a<b$', '$b<a$']",
            "answer": "A",
            "question_type": "multiple-choice",
            **common,
            "image_1": pictures.struct(),
            **blank,
        },
        {
            "id": "validation_Math_2",
            "question": "<image 1> What is x?",
            "options": "[]",
            "answer": "12",
            "question_type": "open",
            **common,
            "image_1": pictures.struct(),
            **blank,
        },
    ]


BENCHMARK_SETS = (
    PublicSet(
        "mathvista_testmini",
        "AI4Math/MathVista",
        "testmini.parquet",
        mathvista,
        (
            Expected("Question: Which is longer?", 1, gold="CD", options=("AB", "CD")),
            Expected("integer answer", 1, gold="4"),
        ),
        "lcot_choices",
        alpaca("query", "answer", "decoded_image"),
        lambda: {
            **{name: text() for name in ("pid", "question", "image", "unit", "answer", "question_type", "answer_type")},
            "decoded_image": picture(),
            "choices": [text()],
            "precision": number("float64"),
            "metadata": {"source": text(), "task": text()},
            "query": text(),
        },
        columns={"prompt": "query", "options": "choices"},
    ),
    PublicSet(
        "mathverse_testmini",
        "AI4Math/MathVerse",
        "testmini.parquet",
        mathverse,
        (Expected("Find angle ABC.", 1, gold="B"), Expected("in the image", 1, gold="12")),
        "lcot_problem",
        alpaca("query_cot", "answer", "image"),
        lambda: {
            "sample_index": text(),
            "problem_index": text(),
            "problem_version": text(),
            "question": text(),
            "image": picture(),
            "answer": text(),
            "question_type": text(),
            "query_wo": text(),
            "query_cot": text(),
        },
        columns={"prompt": "query_cot"},
    ),
    PublicSet(
        "dynamath",
        "DynaMath/DynaMath_Sample",
        "sample_variant1.parquet",
        dynamath,
        (Expected("slope of the line", 1, gold="-1.5"), Expected("even?", 1, gold="B")),
        "lcot_problem",
        alpaca("question", "ground_truth", "decoded_image"),
        lambda: {
            **{name: text() for name in ("id", "question", "image", "ground_truth", "answer_type", "subject")},
            "decoded_image": picture(),
            "knowledge_level": text(),
        },
        columns={"problem_id": "id"},
        entry="dynamath_1",
    ),
    PublicSet(
        "logicvista",
        "lscpku/LogicVista",
        "test.parquet",
        logicvista,
        (Expected("comes next?", 1, gold="B"), Expected("Which two", 1, gold="A, C")),
        "lcot_problem",
        alpaca("question", "answer", "image"),
        lambda: {
            "id": text(),
            "question": text(),
            "answer": text(),
            "reasoning": text(),
            "image": picture(),
            "skill": [text()],
        },
    ),
    PublicSet(
        "mmmu_validation",
        "lmms-lab/MMMU",
        "validation.parquet",
        mmmu,
        (
            Expected("Which holds?", 1, gold="A", options=("$a<b$", "$b<a$")),
            Expected("What is x?", 1, gold="12"),
        ),
        "lcot_choices",
        alpaca("question", "answer", "image_1"),
        lambda: {
            **{name: text() for name in ("id", "question", "options", "answer", "question_type")},
            **{name: text() for name in ("explanation", "img_type", "topic_difficulty", "subfield")},
            **{f"image_{place}": picture() for place in range(1, 8)},
        },
    ),
)
