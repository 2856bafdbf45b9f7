"""The sets with verifiable answers, without responses or beside them."""

from __future__ import annotations

import json
from typing import Any

from data.set_fixtures import (
    Expected,
    Pictures,
    PublicSet,
    alpaca,
    from_value,
    number,
    openai_like,
    picture,
    raw_bytes,
    role_content,
    sharegpt,
    text,
)


def vlaa_grpo(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"id": 1, "image": pictures.path("images/a.png"), "question": "How many rivers?", "gt": 2},
        {"id": 2, "image": pictures.path("images/b.png"), "question": "Which city?", "gt": "Ulm"},
    ]


def curr_reft_rl(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "problem": "<image>Hypotenuse?",
            "solution": "<answer>5</answer>",
            "task": "math",
            "image": pictures.path("a.png"),
        },
        {"problem": "Colour?\nA. red\nB. blue", "solution": "<answer> B </answer>", "task": "cls", "image": ""},
    ]


def tbac_rl(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "messages": role_content("<image>Hypotenuse?"),
            "images": [pictures.path("images/a.png")],
            "solution": "5",
        },
        {
            "messages": role_content("<image>Area of the circle?"),
            "images": [pictures.path("images/b.png")],
            "solution": r"\frac{9\pi}{4}",
        },
    ]


def geometry3k(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "images": [pictures.struct()],
            "problem": "<image>Find x.",
            "answer": "3",
            "id": 0,
            "choices": ["1", "2", "3", "4"],
            "ground_truth": "C",
        },
        {
            "images": [pictures.struct()],
            "problem": "<image>Find the area.",
            "answer": r"2 \sqrt { 3 }",
            "id": 1,
            "choices": [r"2 \sqrt { 3 }", "3", "4", "5"],
            "ground_truth": "A",
        },
    ]


def math12k(_: Pictures) -> list[dict[str, Any]]:
    return [
        {"problem": "Compute $1/2+1/4$.", "answer": r"\frac{3}{4}"},
        {"problem": "What is 6 times 7?", "answer": "42"},
    ]


def open_r1_8k(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "image": pictures.struct(),
            "problem": "What is the hypotenuse?",
            "solution": "<think>9 + 16 = 25, so it is 5.</think>\n\n<answer>5</answer>",
            "original_question": "hypotenuse?",
            "original_answer": "5",
        },
        {
            "image": pictures.struct(),
            "problem": "Which animal?\nA. cat\nB. dog",
            "solution": "<think>It barks.</think>\n\n<answer>B</answer>",
            "original_question": "animal?",
            "original_answer": "The answer is B",
        },
    ]


def r1v(answers: tuple[str, str]) -> Any:
    def records(pictures: Pictures) -> list[dict[str, Any]]:
        return [
            {"image": pictures.struct(), "problem": "How large is it?", "solution": f"<answer> {answer} </answer>"}
            for answer in answers
        ]

    return records


def mmk12(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "k-1",
            "question": "Which force acts?\nA. gravity\nB. none",
            "answer": "A",
            "subject": "physics",
            "image": pictures.struct(),
        },
        {"id": "k-2", "question": "<image>What is x?", "answer": "7", "subject": "math", "image": pictures.struct()},
    ]


def mm_eureka(pictures: Pictures) -> list[dict[str, Any]]:
    def message(question: str, name: str) -> str:
        content = [{"type": "image", "image": pictures.url(name)}, {"type": "text", "text": question}]
        return json.dumps([{"role": "system", "content": "Solve it."}, {"role": "user", "content": content}])

    return [
        {"id": "0", "message": message("What is x?", "images/0.png"), "answer": "$7$"},
        {"id": "1", "message": message("What is the area?", "images/1.png"), "answer": r"$2\sqrt{3}$"},
    ]


def virl39k(pictures: Pictures) -> list[dict[str, Any]]:
    def record(question: str, answer: str, *images: str) -> dict[str, Any]:
        return {
            "question": question,
            "answer": answer,
            "PassRate_32BTrained": 0.5,
            "PassRate_7BBase": None,
            "category": "GradeSchool",
            "source": "Processed",
            "qid": f"q-{len(images)}",
            "image": list(images),
        }

    return [
        record("<image>\nWhich?\nA. 1\nB. 2", r"\boxed{A}", pictures.path("images/1.png")),
        record("<image><image>Sum?", r"\boxed{12}", pictures.path("images/2.png"), pictures.path("images/3.png")),
        record("What is 3 times 5?", r"\boxed{15}"),
    ]


def problem_images(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"problem": "<image>Find x.", "answer": "7", "images": [pictures.struct()]},
        {"problem": "<image><image>Which one?\nA. left\nB. right", "answer": "B", "images": [pictures.struct()] * 2},
        {"problem": "What is 3 times 5?", "answer": "15", "images": []},
    ]


def openmmreasoner_rl(pictures: Pictures) -> list[dict[str, Any]]:
    def record(question: str, gold: str, *images: dict[str, Any]) -> dict[str, Any]:
        return {
            "data_source": "geo",
            "prompt": [{"role": "system", "content": "Think first."}, *role_content(question)],
            "images": list(images),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"index": "0", "split": "train"},
        }

    return [record("<image>What is x?", "7", pictures.struct()), record("What is 3 times 5?", "15")]


def thinklite(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"id": "0", "problem": "<image>What is x?", "answer": "7", "image": pictures.png()},
        {"id": "1", "problem": "Which animal?", "answer": "dog", "image": pictures.png()},
    ]


def rec(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": 1,
            "image": pictures.path("coco/1.png"),
            "conversations": from_value("<image>Where is the dog? Give the box.", "[10, 20, 30, 40]"),
        },
        {
            "id": 2,
            "image": [pictures.path("coco/2.png")],
            "conversations": from_value("<image>Where is the cat? Give the box.", "[1.5,2,3,4]"),
        },
    ]


def counting(pictures: Pictures) -> list[dict[str, Any]]:
    answers: tuple[Any, Any] = (3, '{"cubes": 2}')
    return [
        {
            "id": index,
            "image": pictures.path(f"clevr/{index}.png"),
            "conversations": [
                {"from": "human", "value": "<image>How many cubes?"},
                {"from": "gpt", "value": answer},
            ],
            "accu_reward_method": "default",
        }
        for index, answer in enumerate(answers)
    ]


def openai_parts(pictures: Pictures) -> list[dict[str, Any]]:
    def image(name: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pictures.base64()}", "detail": name}}

    answer = "<think>Two legs, 9 + 16 = 25.</think>\\boxed{5}"
    both = [{"type": "text", "text": "Compare "}, image("low"), {"type": "text", "text": " with "}, image("high")]
    qwen = [{"type": "image", "image": pictures.path("a.png")}, {"type": "text", "text": "Hypotenuse?"}]
    return [
        {"messages": role_content(both, "They differ."), "label": "x"},
        {"messages": role_content(qwen, [{"type": "text", "text": answer}])},
        {"messages": role_content("Legs 3 and 4?", answer)},
    ]


GOLD_ONLY: dict[str, Any] = {"columns": {"prompt": "problem", "response": "answer", "images": "images"}}
PROBLEM_IMAGES = (
    Expected("Find x.", 1, gold="7"),
    Expected("Which one?", 2, gold="B"),
    Expected("3 times 5", gold="15"),
)


def _problem_images_set(name: str, hub_id: str) -> PublicSet:
    return PublicSet(
        name,
        hub_id,
        "train.parquet",
        problem_images,
        PROBLEM_IMAGES,
        "lcot_problem",
        GOLD_ONLY,
        lambda: {"problem": text(), "answer": text(), "images": [picture()]},
    )


def _r1v_set(name: str, hub_id: str, answers: tuple[str, str]) -> PublicSet:
    return PublicSet(
        name,
        hub_id,
        "train.parquet",
        r1v(answers),
        tuple(Expected("How large is it?", 1, gold=answer) for answer in answers),
        "lcot_tagged",
        alpaca("problem", "solution", "image"),
        lambda: {"image": picture(), "problem": text(), "solution": text()},
    )


def _geometry3k_features() -> dict[str, Any]:
    return {
        "images": [picture()],
        "problem": text(),
        "answer": text(),
        "id": number(),
        "choices": [text()],
        "ground_truth": text(),
    }


def _mm_eureka_set(name: str, hub_id: str) -> PublicSet:
    golds = ("$7$", r"$2\sqrt{3}$")
    return PublicSet(
        name,
        hub_id,
        "dataset.jsonl",
        mm_eureka,
        tuple(Expected("What is", 1, gold=gold) for gold in golds),
        "lcot_messages",
        {**openai_like(None, messages="message"), "formatting": "openai"},
    )


RL_SETS: tuple[PublicSet, ...] = (
    PublicSet(
        "vlaa_thinking_grpo",
        "UCSC-VLAA/VLAA-Thinking",
        "VLAA-Thinking-GRPO-25K.json",
        vlaa_grpo,
        (Expected("How many rivers?", 1, gold=2), Expected("Which city?", 1, gold="Ulm")),
        "lcot_problem",
        alpaca("question", "gt", "image"),
        columns={"gold": "gt"},
    ),
    PublicSet(
        "curr_reft_rl",
        "ZTE-AIM/Curr-ReFT-data",
        "rl.json",
        curr_reft_rl,
        (Expected("Hypotenuse?", 1, gold="5"), Expected("Colour?", gold="B")),
        "lcot_tagged",
        alpaca("problem", "solution", "image"),
    ),
    PublicSet(
        "tbac_vlr1_rl",
        "TencentBAC/TBAC-VLR1-7B-SFT-DATA",
        "RL.jsonl",
        tbac_rl,
        (Expected("Hypotenuse?", 1, gold="5"), Expected("Area", 1, gold=r"\frac{9\pi}{4}")),
        "lcot_messages",
        openai_like(),
    ),
    PublicSet(
        "geometry3k",
        "hiyouga/geometry3k",
        "train.parquet",
        geometry3k,
        (Expected("Find x.", 1, gold="3"), Expected("Find the area.", 1, gold=r"2 \sqrt { 3 }")),
        "lcot_problem",
        GOLD_ONLY,
        _geometry3k_features,
        columns={"prompt": "problem", "images": "images", "gold": "answer"},
    ),
    PublicSet(
        "math12k",
        "hiyouga/math12k",
        "train.parquet",
        math12k,
        (Expected("Compute", gold=r"\frac{3}{4}"), Expected("6 times 7", gold="42")),
        "lcot_problem",
        alpaca("problem", "answer"),
        lambda: {"problem": text(), "answer": text()},
    ),
    PublicSet(
        "multimodal_open_r1_8k",
        "lmms-lab/multimodal-open-r1-8k-verified",
        "train.parquet",
        open_r1_8k,
        (Expected("hypotenuse?", 1, True, "5", "5"), Expected("Which animal?", 1, True, "B", "The answer is B")),
        "lcot_tagged",
        alpaca("problem", "solution", "image"),
        lambda: {
            "image": picture(),
            "problem": text(),
            "solution": text(),
            "original_question": text(),
            "original_answer": text(),
        },
    ),
    _r1v_set("geoqa_r1v", "leonardPKU/GEOQA_R1V_Train_8K", ("145°", "3√2")),
    _r1v_set("clevr_cogen_a", "leonardPKU/clevr_cogen_a_train", ("3", "10")),
    PublicSet(
        "mmk12",
        "FanqingM/MMK12",
        "train.parquet",
        mmk12,
        (Expected("Which force", 1, gold="A"), Expected("What is x?", 1, gold="7")),
        "lcot_problem",
        alpaca("question", "answer", "image"),
        lambda: {"id": text(), "question": text(), "answer": text(), "subject": text(), "image": picture()},
    ),
    _mm_eureka_set("mm_eureka", "FanqingM/MM-Eureka-Dataset"),
    _mm_eureka_set("vermulti", "VLM-Reasoner/VerMulti"),
    PublicSet(
        "virl39k",
        "TIGER-Lab/ViRL39K",
        "39Krelease.parquet",
        virl39k,
        (
            Expected("Which?", 1, gold=r"\boxed{A}"),
            Expected("Sum?", 2, gold=r"\boxed{12}"),
            Expected("3 times 5", gold=r"\boxed{15}"),
        ),
        "lcot_problem",
        alpaca("question", "answer", "image"),
        lambda: {
            "question": text(),
            "answer": text(),
            "PassRate_32BTrained": number("float64"),
            "PassRate_7BBase": number("float64"),
            "category": text(),
            "source": text(),
            "qid": text(),
            "image": [text()],
        },
    ),
    _problem_images_set("papo_virl39k", "PAPOGalaxy/PAPO_ViRL39K_train"),
    _problem_images_set("r1_sharevl_52k", "HuanjinYao/R1-ShareVL-52K"),
    _problem_images_set("mmr1_rl", "MMR1/MMR1-RL"),
    _problem_images_set("multimodal_rl_data", "WaltonFuture/Multimodal-RL-Data"),
    _problem_images_set("vision_r1_rl", "Osilly/Vision-R1-rl"),
    PublicSet(
        "openmmreasoner_rl",
        "OpenMMReasoner/OpenMMReasoner-RL-74K",
        "train.parquet",
        openmmreasoner_rl,
        (Expected("What is x?", 1, gold="7"), Expected("3 times 5", gold="15")),
        "lcot_verl",
        openai_like(messages="prompt"),
        lambda: {
            "data_source": text(),
            "prompt": [{"role": text(), "content": text()}],
            "images": [picture()],
            "ability": text(),
            "reward_model": {"style": text(), "ground_truth": text()},
            "extra_info": {"index": text(), "split": text()},
        },
    ),
    PublicSet(
        "thinklite_vl_hard_11k",
        "russwang/ThinkLite-VL-hard-11k",
        "train.parquet",
        thinklite,
        (Expected("What is x?", 1, gold="7"), Expected("Which animal?", 1, gold="dog")),
        "lcot_problem",
        alpaca("problem", "answer", "image"),
        lambda: {"id": text(), "problem": text(), "answer": text(), "image": raw_bytes()},
    ),
    PublicSet(
        "vlm_r1_rec",
        "omlab/VLM-R1",
        "rec.jsonl",
        rec,
        (Expected("dog?", 1, gold="[10, 20, 30, 40]"), Expected("cat?", 1, gold="[1.5,2,3,4]")),
        "lcot_vlm_r1",
        sharegpt("image"),
    ),
    PublicSet(
        "vlm_r1_counting",
        "omlab/VLM-R1",
        "counting.jsonl",
        counting,
        (Expected("How many cubes?", 1, gold=3), Expected("How many cubes?", 1, gold='{"cubes": 2}')),
        "lcot_vlm_r1",
        sharegpt("image"),
    ),
    PublicSet(
        "openai_parts",
        "",
        "train.jsonl",
        openai_parts,
        (
            Expected("Compare <image> with <image>", 2, answer="They differ"),
            Expected("<image>Hypotenuse?", 1, True, "5"),
            Expected("Legs 3 and 4?", thought=True, answer="5"),
        ),
        "lcot_messages",
        {**openai_like(None), "formatting": "openai"},
    ),
)
