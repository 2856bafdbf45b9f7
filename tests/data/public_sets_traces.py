"""The sets with long-CoT responses whose thought is told by other signs than `<think>`: sections, steps, a column."""

from __future__ import annotations

from typing import Any

from data.public_sets_sft import FIVE, TWENTY_FOUR
from data.set_fixtures import (
    Expected,
    Pictures,
    PublicSet,
    alpaca,
    from_value,
    openai_like,
    raw_bytes,
    role_content,
    sharegpt,
    text,
)

LLAVA_COT = (
    "<SUMMARY> I will count the shapes of each colour. </SUMMARY>\n\n<CAPTION> The image shows two red cubes and one "
    "blue ball. </CAPTION>\n\n<REASONING> The cubes are red, there are 2 of them. The ball is blue and does not count. "
    "</REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)
MULBERRY = (
    "### Image Description:\nA right triangle with legs 5 and 12.\n\n### Rationales:\nThe third side follows from the "
    "theorem of Pythagoras.\n\n### Let's think step by step.\n\n### Step 1:\n5^2 + 12^2 = 25 + 144 = 169.\n\n### Step "
    "2:\nThe root of 169 is 13.\n\n### The final answer is: 13"
)
RED_CUBES = Expected("How many cubes are red?", images=1, thought=True, answer="2")


def llava_cot(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "clevr-0",
            "image": pictures.path("CLEVR_v1.0/images/train/0.png"),
            "conversations": from_value("How many cubes are red?", LLAVA_COT),
        },
        {
            "id": "clevr-1",
            "image": pictures.path("CLEVR_v1.0/images/train/1.png"),
            "conversations": from_value("Is there a ball?", "Yes.", "How many cubes are red?", LLAVA_COT),
        },
    ]


def wethink(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "problem": "<image>\nHow much is the total?",
            "answer": 42,
            "category": "chart",
            "refined_cot": "The bars are 20 and 22. Together that is 42.",
            "image_path": pictures.path("charts/bars.png"),
            "reward": "rule",
        },
        {
            "problem": "<image>\nWhich animal is it?\nA. cat\nB. dog",
            "answer": "B",
            "category": "photo",
            "refined_cot": "It has a snout and a collar, so it is a dog.",
            "image_path": pictures.path("photos/dog.png"),
            "reward": "rule",
        },
    ]


def mulberry(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "messages": role_content("<image>Question: what is the third side?", MULBERRY),
            "images": [pictures.path("data/geo/1.png")],
        },
        {
            "messages": role_content("<image>Question: and here?", MULBERRY.replace("13", "13.0")),
            "images": [pictures.path("data/geo/2.png")],
        },
    ]


def mm_mathinstruct(pictures: Pictures) -> list[dict[str, Any]]:
    solution = (
        "The legs are 3 and 4 and meet at a right angle. By the theorem of Pythagoras the hypotenuse has length "
        r"sqrt(9 + 16) = sqrt(25) = 5, since lengths are positive. Therefore, the answer is \boxed{5}. A check: 3, 4 "
        "and 5 are the smallest Pythagorean triple."
    )
    return [
        {
            "id": "1",
            "image": pictures.png(),
            "question": "<image>\nHypotenuse?",
            "solution": solution,
            "image_path": "images/1.png",
        },
        {
            "id": "2",
            "image": pictures.png(),
            "question": "Hypotenuse?",
            "solution": solution,
            "image_path": "images/2.png",
        },
    ]


def mmathcot(pictures: Pictures) -> list[dict[str, Any]]:
    output = "Step 1: The sides are equal.\nStep 2: 4 * 6 = 24.\n†Answer: 24"
    return [
        {"image_url": pictures.path("Geo170K/1.png"), "instruction": "What is the perimeter?", "output": output},
        {"image_url": pictures.path("Geo170K/2.png"), "instruction": "Find the perimeter.", "output": output},
    ]


def curr_reft_sft(pictures: Pictures) -> list[dict[str, Any]]:
    response = "<thinking>The legs are 3 and 4; 9 + 16 = 25.</thinking><answer>5</answer>"
    system = {"role": "system", "content": "Think in <thinking> tags, answer in <answer> tags."}
    return [
        {
            "messages": [system, *role_content("<image>Hypotenuse?", response)],
            "images": [pictures.path("images/1.png")],
        },
        {
            "messages": [system, *role_content("<image>Longest side?", response)],
            "images": [pictures.path("images/2.png")],
        },
    ]


TRACE_SETS: tuple[PublicSet, ...] = (
    PublicSet(
        "llava_cot_100k",
        "Xkev/LLaVA-CoT-100k",
        "train.jsonl",
        llava_cot,
        (RED_CUBES, Expected("How many cubes are red?", 1, True, "2", earlier_turns=2)),
        "lcot_conversations",
        sharegpt("image"),
    ),
    PublicSet(
        "wethink_120k",
        "yangjie-cv/WeThink_Multimodal_Reasoning_120K",
        "WeThink.jsonl",
        wethink,
        (Expected("total?", 1, True, "42", 42), Expected("Which animal", 1, True, "B", "B")),
        "lcot_thought",
        alpaca("problem", "answer", "image_path"),
    ),
    PublicSet(
        "mulberry_sft",
        "HuanjinYao/Mulberry-SFT",
        "mulberry_sft.json",
        mulberry,
        (Expected("third side?", 1, True, "13"), Expected("and here?", 1, True, "13.0")),
        "lcot_messages",
        openai_like(),
    ),
    PublicSet(
        "mm_mathinstruct",
        "MathLLMs/MM-MathInstruct",
        "train.parquet",
        mm_mathinstruct,
        # No tags: what comes before the answer is the thought.
        (FIVE, FIVE),
        "lcot_solution",
        alpaca("question", "solution", "image"),
        lambda: {
            "id": text(),
            "image": raw_bytes(),
            "question": text(),
            "solution": text(),
            "image_path": text(),
        },
    ),
    PublicSet(
        "mmathcot_1m",
        "URSA-MATH/MMathCoT-1M",
        "train.jsonl",
        mmathcot,
        (TWENTY_FOUR, TWENTY_FOUR),
        "lcot_instruction",
        {"columns": {"prompt": "instruction", "response": "output", "images": "image_url"}},
    ),
    PublicSet(
        "curr_reft_sft",
        "ZTE-AIM/Curr-ReFT-data",
        "sft.json",
        curr_reft_sft,
        (FIVE, Expected("Longest side?", 1, True, "5")),
        "lcot_messages",
        openai_like(),
    ),
)
