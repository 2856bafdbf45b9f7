r"""A gold answer of any JSON type in, its text, its kind and the question's options out; `samples` consumes them.

145, "<answer> 145° </answer>", r"\boxed{145°}", "$145°$", ["145°"]   ->   a number
"B", "(B)", "B. 5 cm", and "5 cm" where that is option B              ->   the choice B
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from lcot_plugin.data.traces import bare_answer, read_answer
from lcot_plugin.errors import RecordError, RewardError
from lcot_plugin.rewards import answers
from lcot_plugin.rewards.answers import read_gold
from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS
from lcot_plugin.rewards.kinds.choices import read_choice
from lcot_plugin.rewards.kinds.texts import normalise_text
from lcot_plugin.types import RecordFault

LETTERS = "ABCDEFGHIJ"

_OPTION_MARK = re.compile(r"(?:(?<=\s)|(?<=[,;:，；：])|^)(?:\(\s?([A-J])\s?\)|([A-J])[.):：、])", re.MULTILINE)  # noqa: RUF001
_LETTERED = re.compile(r"\s*(?:\(\s?([A-J])\s?\)|([A-J])[.):])\s*")
_ASKS_FOR_BOXES = re.compile(r"bounding|bbox|\bbox(?:es)?\b|coordinate|locat|region|detect", re.IGNORECASE)


def gold_text(value: Any) -> str | None:
    r"""A gold answer as the verifier takes it: text, without tags, box and math delimiters around it.

    3 gives "3", ["x"] gives "x", true gives "true", [1, 2] gives "[1, 2]"; a worked solution gives its final answer;
    None, NaN and blanks give None.
    """
    if isinstance(value, (list, tuple)) and (len(value) == 1 or (value and _agree(value))):
        value = value[0]
    if value is None or value in ([], {}) or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    return read_answer(value) or bare_answer(value) or None


def infer_answer_type(gold: str | None, question: str, options: Sequence[str]) -> str:
    """The kind of `gold`, as in `Sample.answer_type`; auto where nothing tells."""
    if gold is None:
        return "choice" if options else "auto"
    if _is_boxes(gold, question):
        return "boxes"
    letter = read_choice(gold)
    if letter is not None and options:
        return "choice" if LETTERS.index(letter) < len(options) else "auto"
    read = read_gold(gold) if len(gold) <= MAX_ANSWER_CHARS else None
    return read.kind if read is not None else "auto"


def check_answer_type(answer_type: str) -> str:
    """The answer type that a record names, by the plugin's word for it. RecordError where it is unknown."""
    try:
        return answers.check_answer_type(answer_type)
    except RewardError as error:
        raise RecordError(RecordFault.MALFORMED, str(error)) from None


def options_in(question: str) -> list[str]:
    """Options that stand in the question's text: `A. 5 cm B. 6 cm`, `(A) 5 cm`, one per line or all in one.

    Empty where there are not two or more, in order from A. Where there are several such lists, the last counts.
    """
    runs: list[list[re.Match[str]]] = []
    for mark in _OPTION_MARK.finditer(question):
        letter = mark[1] or mark[2]
        if letter == "A":
            runs.append([mark])
        elif runs and len(runs[-1]) < len(LETTERS) and letter == LETTERS[len(runs[-1])]:
            runs[-1].append(mark)
    run = next((run for run in reversed(runs) if len(run) > 1), [])
    ends = [mark.start() for mark in run[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip() for mark, end in zip(run, ends, strict=False)]
    if texts:
        texts[-1] = texts[-1].partition("\n")[0]
    texts = [text.strip().rstrip(",;，；").rstrip() for text in texts]  # noqa: RUF001
    return texts if all(texts) else []


def without_letters(options: Sequence[Any]) -> list[str]:
    """Options as text, without the letters where each carries its own, in order: `A. 5 cm` is `5 cm`."""
    texts = [gold_text(option) or "" if not isinstance(option, str) else option.strip() for option in options]
    marks = [_LETTERED.match(text) for text in texts]
    if all(mark and (mark[1] or mark[2]) == letter for mark, letter in zip(marks, LETTERS, strict=False)):
        return [text[mark.end() :] for text, mark in zip(texts, marks, strict=True) if mark]
    return texts


def option_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text `answer` is; None where it is none or several."""
    wanted = normalise_text(answer)
    letters = [letter for letter, option in zip(LETTERS, options, strict=False) if normalise_text(option) == wanted]
    return letters[0] if wanted and len(letters) == 1 else None


def _agree(values: Sequence[Any]) -> bool:
    """Whether annotators all wrote the same text; [5, 5] is a pair."""
    return all(isinstance(value, str) and value == values[0] for value in values)


def _is_boxes(gold: str, question: str) -> bool:
    """Whether `gold` is boxes: in a dress of their own, or as `[x1, y1, x2, y2]` where the question asks for boxes."""
    if len(gold) > MAX_ANSWER_CHARS or read_gold(gold, "boxes") is None:
        return False
    read = read_gold(gold)
    if read is not None and read.kind == "boxes":
        return True
    if not gold.startswith("[") or _ASKS_FOR_BOXES.search(question) is None:
        return False
    try:
        value = json.loads(gold)
    except ValueError:
        return False
    return all(_is_box(item) for item in (value if isinstance(value[0], list) else [value]))


def _is_box(value: Any) -> bool:
    """Four numbers: the upper left corner, then a lower right one."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
        return False
    return value[0] < value[2] and value[1] < value[3]
