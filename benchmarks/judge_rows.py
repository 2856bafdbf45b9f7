"""A tokenised record, decoded, and the record that it was made from in; what it has lost or gained out.

What benchmarks/public_sets.py judges both sides by. Nothing of lcot_plugin is used, so that it is no judge of its own.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from data.set_fixtures import Expected

KINDS = ("right", "altered", "lost", "crashed")
END_TOKEN = "<|im_end|>"
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")
WRAPPING = re.compile(r"\\boxed\{(.*)\}|\$(.*)\$|<answer>\s*(.*?)\s*</answer>", re.DOTALL)
LENGTH_OF_CONCLUSION = 200
"""Characters at the end of a response among which the final answer must stand."""
SHARE_OF_WORDS = 0.9
"""Of the words of a record's reasoning that its response must have; delimiters and headings may go."""


@dataclass
class Row:
    """One tokenised record, decoded."""

    prompt: str
    response: str
    """The last stretch of tokens with loss; empty in GRPO."""
    images: list[int]
    """Which of the set's pictures each image is, by its colour; -1 for one that does not open."""
    gold: str | None


def judge(
    rows: list[Row], expected: Sequence[Expected], records: list[dict[str, Any]], folder: Path, stage: str
) -> list[str]:
    """Per record of a run that went through: `right`, `lost`, or what was altered.

    Rows come in the order of their records; where some are missing, the reading with the most right ones counts.
    """
    if len(rows) > len(records):
        return ["more rows than records"] * len(records)
    readings = []
    for kept in combinations(range(len(records)), len(rows)):
        verdicts = ["lost"] * len(records)
        for number, row in zip(kept, rows, strict=True):
            faults = faults_of(row, expected[number], records[number], stage)
            if not faults and row.images != pictures_of(records[number], folder):
                faults.append("images of another record")
            verdicts[number] = ", ".join(faults) or "right"
        readings.append(verdicts)
    return max(readings, key=lambda verdicts: (verdicts.count("right"), -sum(map(len, verdicts))))


def kind_of(verdict: str) -> str:
    return verdict if verdict in KINDS else "altered"


def faults_of(row: Row, expected: Expected, record: dict[str, Any], stage: str) -> list[str]:
    """What a decoded record has lost or gained."""
    faults = []
    text = row.prompt + row.response
    question = expected.question.replace("<image>", "") if expected.question not in row.prompt else expected.question
    last_turn = row.prompt.rsplit("<|im_start|>user", 1)[-1]
    if question not in last_turn:
        faults.append("question lost")
    elif question != expected.question:
        faults.append("image places lost")
    if text.count("<image>") != expected.images or len(row.images) != expected.images:
        missing = min(text.count("<image>"), len(row.images)) < expected.images
        faults.append("image missing" if missing else "image added")
    if -1 in row.images:
        faults.append("image unreadable")
    if any(option not in last_turn for option in expected.options):
        faults.append("options lost")
    if row.prompt.count("<|im_start|>assistant") - 1 != expected.earlier_turns // 2:
        faults.append("earlier turns lost")
    if "detailed thinking off" in row.prompt:
        faults.append('"detailed thinking off" added')
    system = system_of(record)
    if system and system not in row.prompt:
        faults.append("system prompt lost")
    if stage == "grpo":
        wanted = expected.gold if expected.gold is not None else expected.answer
        if wanted is not None and not same_answer(str(wanted), row.gold):
            faults.append(f"gold {row.gold!r} for {wanted!r}")
        return faults
    return faults + faults_of_response(row.response, expected, record)


def pictures_of(record: dict[str, Any], folder: Path) -> list[int]:
    """The numbers of a record's pictures, in the order in which its question shows them."""
    found = [number_of(image) for value in leaves(record) for image in media_in(value, folder)]
    shown = dict.fromkeys(re.findall(r"<image ?(\d)>", str(record.get("question"))))
    return [found[int(number) - 1] for number in shown] or found


def media_in(value: Any, folder: Path) -> Iterator[str | bytes]:
    """The pictures that a text is, names or holds."""
    if isinstance(value, bytes):
        yield value
    if not isinstance(value, str):
        return
    if value.endswith(".png") and (folder / value).is_file():
        yield str(folder / value)
    elif match := re.fullmatch(r"(?:data:image/png;base64,)?(iVBORw0KGgo[\w+/=]+)", value):
        yield base64.b64decode(match[1])
    else:
        yield from re.findall(r"file://([^\"]+\.png)", value)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def faults_of_response(response: str, expected: Expected, record: dict[str, Any]) -> list[str]:
    faults = []
    if not response.rstrip().endswith(END_TOKEN):
        faults.append("end token lost")
    text = response.replace(END_TOKEN, "").strip()
    if EMPTY_THOUGHT.search(text):
        faults.append("empty thought added")
    if expected.thought:
        words = set(re.findall(r"\w+", reasoning_of(record).lower()))
        kept = words & set(re.findall(r"\w+", text.lower()))
        if len(kept) < SHARE_OF_WORDS * len(words):
            faults.append("thought lost")
    wanted = expected.answer if expected.answer is not None else expected.gold
    if wanted is None:
        return faults
    conclusion = re.split(r"</think(?:ing)?>|<CONCLUSION>", text)[-1][-LENGTH_OF_CONCLUSION:]
    if not re.search(rf"(?<![\w.]){re.escape(str(wanted))}(?!\w|\.\d)", conclusion):
        faults.append("answer lost")
    return faults


def reasoning_of(record: dict[str, Any]) -> str:
    """The longest text of a record, without tags; base64 has no spaces."""
    longest = max((text for text in texts_in(record) if " " in text), key=len, default="")
    return re.sub(r"</?\w+>|^#+ .*?:|\*\*\w+:\*\*", " ", longest, flags=re.MULTILINE)


def texts_in(value: Any) -> Iterator[str]:
    return (leaf for leaf in leaves(value) if isinstance(leaf, str))


def system_of(record: dict[str, Any]) -> str:
    """The text of a record's system turn, whatever column it is in."""
    for turns in record.values():
        if isinstance(turns, str) and turns.startswith('[{"role"'):
            turns = json.loads(turns)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
            return next(texts_in({**turns[0], "role": 0, "type": 0, "content": contents(turns[0]["content"])}), "")
    return ""


def contents(content: Any) -> Any:
    return [part.get("text") for part in content] if isinstance(content, list) else content


def same_answer(wanted: str, gold: str | None) -> bool:
    """Whether the gold answer is the record's, apart from its wrapping; `The answer is B` may have become B."""
    return gold is not None and unwrapped(gold) == unwrapped(wanted.removeprefix("The answer is "))


def unwrapped(answer: str) -> str:
    return WRAPPING.sub(lambda match: next(filter(None, match.groups()), ""), answer.strip())


def number_of(image: Any) -> int:
    """Which picture of its set this is: the k-th has the red value 37 k mod 256."""
    from PIL import Image

    if isinstance(image, dict):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if not isinstance(image, Image.Image):
        try:
            image = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        except (OSError, ValueError):
            return -1
    red, green, _ = image.convert("RGB").getpixel((image.width - 1, 0))
    return red * pow(37, -1, 256) % 256 if green == 200 else -1
