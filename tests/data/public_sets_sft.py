"""The sets with long-CoT responses in `<think>` tags; public_sets_traces.py has those with other signs of a thought."""

from __future__ import annotations

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
    role_content,
    sharegpt,
    text,
    think,
)

HYPOTENUSE = think(
    "The legs are 3 and 4, and the angle between them is right. So c^2 = 9 + 16 = 25.\n\nWait, is the angle right? "
    "The mark in the corner says so. Hence c = 5.",
    r"The hypotenuse is \boxed{5}.",
)
PERIMETER = think(
    "The <image> shows a square. All four sides are 6, so I add 6 four times, which is 24.",
    r"All sides are equal. \boxed{24}",
)
DERIVATIVE = think("Power rule: the exponent 3 comes down, 3x^2. The constant vanishes.", r"$\boxed{3x^2}$")

VLAA = (
    "<think>\nThe map has 4 rivers: two in the north, two in the south. The question asks for the north only.\n</think>"
    "\n\nIn the north there are two rivers.\n\n**Answer:** 2"
)


def conversations_of(images: Any) -> dict[str, Any]:
    return {"conversations": [{"from": text(), "value": text()}], **images}


def messages_of(**columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": text(), "content": text()}], **columns}


def tbac_sft(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "messages": role_content("<image>What is the hypotenuse?", HYPOTENUSE),
            "images": [pictures.path("images/triangle.png")],
            "solution": "5",
        },
        {
            "messages": role_content("<image>Perimeter?", PERIMETER),
            "images": [pictures.path("images/square.png")],
            "solution": "24",
        },
    ]


def vision_r1_cold_llava(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"image": pictures.path("images/a.png"), "conversations": from_value("<image>\nHypotenuse?", HYPOTENUSE)},
        {"image": pictures.path("images/b.png"), "conversations": from_value("<image>\nPerimeter?", PERIMETER)},
    ]


def vision_r1_cold_users(pictures: Pictures) -> list[dict[str, Any]]:
    names = ("user", "assistant")
    return [
        {
            "images": [pictures.path("images/a.png")],
            "conversations": from_value("<image>Hypotenuse?", HYPOTENUSE, names=names),
        },
        {"images": [], "conversations": from_value("Derivative of x^3 + 1?", DERIVATIVE, names=names)},
    ]


def r1_onevision(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "geo-1",
            "image": pictures.base64(),
            "conversations": from_value("What is the hypotenuse?", HYPOTENUSE),
        },
        {"id": "geo-2", "image": pictures.base64(), "conversations": from_value("<image>\nPerimeter?", PERIMETER)},
    ]


def mmr1_sft(pictures: Pictures) -> list[dict[str, Any]]:
    question = "Think first, then answer.\n<image>\nQuestion: hypotenuse?"
    return [
        {"conversations": from_value(question, HYPOTENUSE), "images": [pictures.path("images/0.png")]},
        {
            "conversations": from_value("<image><image>Which square has perimeter 24?", PERIMETER),
            "images": [pictures.path("images/1.png"), pictures.path("images/2.png", 32, 80)],
        },
    ]


def vlaa_sft(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": 11,
            "image": pictures.path("images/map.png"),
            "question": "How many rivers are in the north?",
            "gt": 2,
            "ds_answer": VLAA,
            "caption": "A map with four rivers.",
        },
        {
            "id": 12,
            "image": pictures.path("images/triangle.png"),
            "question": "Hypotenuse?",
            "gt": "5",
            "ds_answer": HYPOTENUSE,
            "caption": "A right triangle.",
        },
    ]


def cold_start(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"problem": "<image>Hypotenuse?", "answer": HYPOTENUSE, "images": [pictures.struct()]},
        {"problem": "<image>Perimeter?", "answer": PERIMETER, "images": [pictures.struct(40, 40)]},
        {"problem": "Derivative of x^3 + 1?", "answer": DERIVATIVE, "images": []},
    ]


def openmmreasoner_sft(pictures: Pictures) -> list[dict[str, Any]]:
    def part(text: str | None = None, url: str | None = None) -> dict[str, Any]:
        image_url = None if url is None else {"url": url}
        return {"type": "text" if url is None else "image_url", "text": text, "image_url": image_url}

    system = {"role": "system", "content": [part("Think, then answer in a box.")]}
    return [
        {
            "id": "a",
            "messages": [
                system,
                *role_content([part(url=pictures.path("a.png")), part("Hypotenuse?")], [part(HYPOTENUSE)]),
            ],
        },
        {"id": "b", "messages": [system, *role_content([part("Derivative of x^3 + 1?")], [part(DERIVATIVE)])]},
    ]


def mmfinereason(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {"image": pictures.struct(), "question": "<image>Hypotenuse?", "answer": HYPOTENUSE},
        {"image": pictures.struct(), "question": "Perimeter?", "answer": PERIMETER},
    ]


def mmfinereason_rl(pictures: Pictures) -> list[dict[str, Any]]:
    rates = ({"is_consistent": True, "pass_rate": 0.25}, {"is_consistent": True, "pass_rate": 0.75})
    return [{**record, **rate} for record, rate in zip(mmfinereason(pictures), rates, strict=True)]


def honey(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "id": "0",
            "images": [pictures.struct(), pictures.struct()],
            "conversations": from_value("<image>\n<image>\nWhich is the square of perimeter 24?", PERIMETER),
            "source": "geo",
        },
        {
            "id": "1",
            "images": [pictures.struct()],
            "conversations": from_value("<image>\nColour?", "Green.", "And the hypotenuse?", HYPOTENUSE),
            "source": "geo",
        },
        {
            "id": "2",
            "images": [],
            "conversations": from_value("Derivative of x^3 + 1?", DERIVATIVE),
            "source": "text",
        },
    ]


def finevision(pictures: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "images": [pictures.struct()],
            "texts": [{"user": "How many cubes?", "assistant": "3"}, {"user": "And balls?", "assistant": "1"}],
            "source": "clevr",
            "relevance_ratings": [5, 5],
        },
        {
            "images": [pictures.struct(), pictures.struct()],
            "texts": [{"user": "Which one is darker?", "assistant": "The first."}],
            "source": "pairs",
            "relevance_ratings": [4],
        },
    ]


def openthoughts3(_: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "difficulty": None,
            "source": "math",
            "domain": "math",
            "conversations": from_value("Derivative of x^3 + 1?", "<think>Power rule." + DERIVATIVE[7:]),
        },
        {
            "difficulty": 7,
            "source": "math",
            "domain": "math",
            "conversations": from_value("Legs 3 and 4: hypotenuse?", HYPOTENUSE),
        },
    ]


def mixture_of_thoughts(_: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "messages": role_content("Derivative of x^3 + 1?", DERIVATIVE),
            "num_tokens": 30,
            "source": "math",
        },
        {"messages": role_content("Legs 3 and 4: hypotenuse?", HYPOTENUSE), "num_tokens": 60, "source": "math"},
    ]


def openr1_math(_: Pictures) -> list[dict[str, Any]]:
    return [
        {
            "problem": "Legs 3 and 4: hypotenuse?",
            "solution": "By Pythagoras, 5.",
            "answer": "5",
            "source": "olympiads",
            "messages": role_content("Legs 3 and 4: hypotenuse?", HYPOTENUSE),
        },
        {
            "problem": "Derivative of x^3 + 1?",
            "solution": "Power rule.",
            "answer": "3x^2",
            "source": "cn_k12",
            "messages": role_content("Derivative of x^3 + 1?", DERIVATIVE),
        },
    ]


def only_messages(_: Pictures) -> list[dict[str, Any]]:
    system = {"role": "system", "content": "Think in <think> tags."}
    return [
        {"messages": [system, *role_content("Legs 3 and 4: hypotenuse?", HYPOTENUSE)]},
        {"messages": role_content("Derivative of x^3 + 1?", DERIVATIVE)},
    ]


FIVE = Expected("ypotenuse?", images=1, thought=True, answer="5")
TWENTY_FOUR = Expected("erimeter", images=1, thought=True, answer="24")
SLOPE = Expected("Derivative of x^3 + 1?", thought=True, answer="3x^2")
SIDE = Expected("Legs 3 and 4", thought=True, answer="5")


def _parts_features() -> dict[str, Any]:
    part = {"type": text(), "text": text(), "image_url": {"url": text()}}
    return {"id": text(), "messages": [{"role": text(), "content": [part]}]}


SFT_SETS: tuple[PublicSet, ...] = (
    PublicSet(
        "tbac_vlr1_sft",
        "TencentBAC/TBAC-VLR1-7B-SFT-DATA",
        "SFT.jsonl",
        tbac_sft,
        (
            Expected("hypotenuse?", 1, True, "5", "5"),
            Expected("Perimeter?", 1, True, "24", "24"),
        ),
        "lcot_messages",
        openai_like(),
    ),
    PublicSet(
        "vision_r1_cold_llava_cot",
        "Osilly/Vision-R1-cold",
        "vision_r1_llava_cot_full.json",
        vision_r1_cold_llava,
        (FIVE, TWENTY_FOUR),
        "lcot_conversations",
        sharegpt("image"),
    ),
    PublicSet(
        "vision_r1_cold_mulberry",
        "Osilly/Vision-R1-cold",
        "vision_r1_mulberry_sft_full.json",
        vision_r1_cold_users,
        (FIVE, SLOPE),
        "lcot_conversations",
        {**sharegpt(), "tags": {"user_tag": "user", "assistant_tag": "assistant"}},
    ),
    PublicSet(
        "r1_onevision",
        "Fancy-MLLM/R1-Onevision",
        "train.parquet",
        r1_onevision,
        (FIVE, TWENTY_FOUR),
        "lcot_conversations",
        sharegpt("image"),
        lambda: {"id": text(), "image": text(), **conversations_of({})},
    ),
    PublicSet(
        "mmr1_sft",
        "MMR1/MMR1-SFT",
        "sft.json",
        mmr1_sft,
        (FIVE, Expected("Which square", 2, True, "24")),
        "lcot_conversations",
        sharegpt(),
    ),
    PublicSet(
        "vlaa_thinking_sft",
        "UCSC-VLAA/VLAA-Thinking",
        "VLAA-Thinking-SFT-126K.json",
        vlaa_sft,
        (Expected("How many rivers", 1, True, "2", 2), Expected("Hypotenuse?", 1, True, "5", "5")),
        "lcot_solution",
        alpaca("question", "ds_answer", "image"),
        columns={"response": "ds_answer", "gold": "gt"},
    ),
    PublicSet(
        "multimodal_cold_start",
        "WaltonFuture/Multimodal-Cold-Start",
        "train.parquet",
        cold_start,
        (FIVE, TWENTY_FOUR, SLOPE),
        "lcot_solution",
        alpaca("problem", "answer", "images"),
        lambda: {"problem": text(), "answer": text(), "images": [picture()]},
        columns={"prompt": "problem", "response": "answer", "images": "images"},
    ),
    PublicSet(
        "openmmreasoner_sft",
        "OpenMMReasoner/OpenMMReasoner-SFT-874K",
        "train.parquet",
        openmmreasoner_sft,
        (FIVE, SLOPE),
        "lcot_messages",
        openai_like(None),
        _parts_features,
    ),
    PublicSet(
        "mmfinereason",
        "OpenDataArena/MMFineReason-1.8M-Qwen3-VL-235B-Thinking",
        "train.parquet",
        mmfinereason,
        (FIVE, TWENTY_FOUR),
        "lcot_solution",
        alpaca("question", "answer", "image"),
        lambda: {"image": picture(), "question": text(), "answer": text()},
    ),
    PublicSet(
        "mmfinereason_rl",
        "OpenDataArena/MMFineReason-1.8M-Qwen3-VL-235B-Thinking",
        "rl.parquet",
        mmfinereason_rl,
        (FIVE, TWENTY_FOUR),
        "lcot_solution",
        alpaca("question", "answer", "image"),
        lambda: {
            "image": picture(),
            "question": text(),
            "answer": text(),
            "is_consistent": number("bool"),
            "pass_rate": number("float64"),
        },
    ),
    PublicSet(
        "honey_data_15m",
        "Open-Bee/Honey-Data-15M",
        "train.parquet",
        honey,
        (
            Expected("Which is the square", 2, True, "24"),
            Expected("And the hypotenuse?", 1, True, "5", earlier_turns=2),
            SLOPE,
        ),
        "lcot_conversations",
        sharegpt(),
        lambda: {"id": text(), "images": [picture()], **conversations_of({}), "source": text()},
    ),
    PublicSet(
        "finevision",
        "HuggingFaceM4/FineVision",
        "train.parquet",
        finevision,
        (Expected("And balls?", 1, answer="1", earlier_turns=2), Expected("darker", 2, answer="The first")),
        "lcot_finevision",
        {
            **sharegpt(messages="texts"),
            "tags": {"role_tag": "user", "content_tag": "assistant"},
        },
        lambda: {
            "images": [picture()],
            "texts": [{"user": text(), "assistant": text()}],
            "source": text(),
            "relevance_ratings": [number()],
        },
        entry="finevision_geomverse",
    ),
    PublicSet(
        "openthoughts3",
        "open-thoughts/OpenThoughts3-1.2M",
        "train.parquet",
        openthoughts3,
        (SLOPE, SIDE),
        "lcot_conversations",
        sharegpt(None),
        lambda: {"difficulty": number(), "source": text(), "domain": text(), **conversations_of({})},
    ),
    PublicSet(
        "mixture_of_thoughts",
        "open-r1/Mixture-of-Thoughts",
        "train.parquet",
        mixture_of_thoughts,
        (SLOPE, SIDE),
        "lcot_messages",
        openai_like(None),
        lambda: messages_of(num_tokens=number(), source=text()),
    ),
    PublicSet(
        "openr1_math_220k",
        "open-r1/OpenR1-Math-220k",
        "train.parquet",
        openr1_math,
        (
            Expected("Legs 3 and 4", thought=True, answer="5", gold="5"),
            Expected("Derivative", thought=True, answer="3x^2", gold="3x^2"),
        ),
        "lcot_messages",
        openai_like(None),
        lambda: messages_of(problem=text(), solution=text(), answer=text(), source=text()),
    ),
    PublicSet(
        "openthoughts_114k",
        "llamafactory/OpenThoughts-114k",
        "train.jsonl",
        only_messages,
        (SIDE, SLOPE),
        "lcot_messages",
        openai_like(None),
    ),
    PublicSet(
        "openr1_math_94k",
        "llamafactory/OpenR1-Math-94k",
        "train.jsonl",
        only_messages,
        (SIDE, SLOPE),
        "lcot_messages",
        openai_like(None),
    ),
)
