"""Formats whose question and answer stand in columns of their own.

In:  records such as `{"problem": "<image>Find x.", "answer": "3", "images": [...]}`.
Out: RawRecord with one user turn, and an assistant's where the set has responses.
"""

from __future__ import annotations

import re
from typing import Any

from lcot_plugin.data.formats.registry import Fields, Format, malformed, register_format
from lcot_plugin.data.formats.values import (
    ASSISTANT,
    USER,
    Media,
    as_content,
    as_media,
    as_options,
    as_text,
    in_order_of_mention,
    join_lines,
    raw_turns,
    show,
)
from lcot_plugin.types import RawRecord, Turn

QUESTION_COLUMNS = ("problem", "question", "prompt", "query", "instruction")
IMAGE_COLUMNS = (
    *("decoded_image", "images", "image", "image_bytes", "image_path", "image_paths", "image_url", "image_urls", "img"),
)
"""`decoded_image` first: sets that have it write into `image` where it came from."""
NUMBERED_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
"""Columns of sets that give every image one of its own."""
THOUGHT_COLUMNS = (
    *("refined_cot", "cot", "chain_of_thought", "thinking", "thought", "reasoning", "reasoning_content", "rationale"),
)
RESPONSE_COLUMNS = (
    *("response", "output", "ds_answer", "qwen3vl_235b_thinking_response", "solution", "completion", "long_answer"),
)
GOLD_COLUMNS = ("gold", "answer", "ground_truth", "gt", "final_answer", "original_answer", "label", "target")
OPTION_COLUMNS = ("choices", "options")
LETTERED_OPTIONS = tuple(
    tuple(prefix + letter for letter in letters)
    for prefix in ("", "option_", "options_", "choice_", "opt_")
    for letters in ("ABCDEFGHIJ", "abcdefghij")
    if prefix or letters.isupper()  # single small letters are numbers of an equation more often than options
)
"""Names of the columns of sets that give every option one of its own."""
SUBSET_COLUMNS = ("source", "data_source", "source_dataset", "dataset", "category", "task", "subject")

MEDIA_ROLES: dict[str, tuple[str, ...]] = {"images": IMAGE_COLUMNS, "videos": ("videos", "video")}
COMMON_ROLES: dict[str, tuple[str, ...]] = {
    **MEDIA_ROLES,
    "system": ("system", "system_prompt"),
    "answer_type": (),
    "match": (),
    "problem_id": (),
    "subset": SUBSET_COLUMNS,
}

_ANSWER_TAGS = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)
_THOUGHT_TAG = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])[.):]?")


def common(fields: Fields) -> dict[str, Any]:
    """The roles that every format has and reads alike, but for the media."""
    system, answer_type, subset = fields.get("system"), fields.get("answer_type"), fields.get("subset")
    return {
        "system": None if system is None else as_text(system, "system"),
        "answer_type": "auto" if answer_type is None else str(answer_type),
        "match": fields.get("match"),
        "subset": subset if isinstance(subset, str) else "",
    }


def media(fields: Fields, role: str, placed: Media) -> list[Any]:
    """Images or videos of a record: the parts' own and the column's."""
    column = fields.column(role)
    in_column = as_media(fields.value(column), column, frames=role == "videos") if column else []
    return placed.with_column(column or role, in_column)


def _record(fields: Fields, *, query: str | None = None, response: str | None = None, **roles: Any) -> RawRecord:
    column, question = fields.need("prompt")
    images, videos = Media(), Media()
    content = join_lines([as_content(question, column, images, videos), query or ""])
    pictures = media(fields, "images", images)
    if not pictures and NUMBERED_IMAGES[0] in fields.record:
        pictures = [item for name in NUMBERED_IMAGES for item in as_media(fields.record.get(name), name)]
    content, pictures = in_order_of_mention(content, pictures)
    turns = [*_history(fields), Turn(USER, content)]
    if response is not None:
        turns.append(Turn(ASSISTANT, response))
    return RawRecord(
        turns=turns,
        images=pictures,
        videos=media(fields, "videos", videos),
        **{**common(fields), **roles},
    )


def _history(fields: Fields) -> list[Turn]:
    column = fields.column("history")
    turns: list[Turn] = []
    for pair in fields.value(column) if column else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise malformed(f"column '{column}' has {show(pair)}; expected [question, answer]")
        turns += [Turn(USER, as_text(pair[0], str(column))), Turn(ASSISTANT, as_text(pair[1], str(column)))]
    return turns


def _problem(fields: Fields) -> RawRecord:
    response = _text(fields, "response")
    return _record(fields, response=response, gold=fields.get("gold"))


def _solution(fields: Fields) -> RawRecord:
    # In this order: `answer` is the response where nothing else is, else the gold answer.
    response = _text(fields, "response")
    return _record(fields, response=response, gold=fields.get("gold"), thought=_text(fields, "thought"))


def _instruction(fields: Fields) -> RawRecord:
    query = _text(fields, "query")
    response = _text(fields, "response")
    return _record(fields, query=query, response=response, gold=fields.get("gold"))


def _thought_and_answer(fields: Fields) -> RawRecord:
    thought = _text(fields, "thought")
    gold = fields.get("gold")
    response = _text(fields, "response")
    answer = _options(fields, gold)
    if response is None and gold is not None:
        response = as_text(answer["gold"], "answer")
    return _record(fields, response=response, thought=thought, **answer)


def _text(fields: Fields, role: str) -> str | None:
    column = fields.column(role)
    return None if column is None else as_text(fields.value(column), column)


def _tagged(fields: Fields) -> RawRecord:
    solution = fields.get("response")
    if solution is not None and not isinstance(solution, str):
        return _record(fields, gold=solution)
    tags = _ANSWER_TAGS.findall(solution or "")
    gold = fields.get("gold")
    if gold is None and solution is not None:
        gold = tags[-1] if tags else solution
    return _record(fields, response=solution if solution and _THOUGHT_TAG.search(solution) else None, gold=gold)


def _choices(fields: Fields) -> RawRecord:
    hint = _text(fields, "query")
    gold = fields.get("gold")
    response = _text(fields, "response")
    return _record(fields, query=hint, response=response, **_options(fields, gold))


def _options(fields: Fields, gold: Any) -> dict[str, Any]:
    """Options, and the gold answer as a letter where it says which of them is right."""
    column = fields.column("options")
    options = as_options(fields.value(column), column) if column else lettered_options(fields.record)
    if not options or gold is None:
        return {"options": options, "gold": gold}
    gold = _letter_of(gold, options)
    letter = _LETTER.fullmatch(gold.strip()) if isinstance(gold, str) else None
    if letter is None or ord(letter[1]) - ord("A") >= len(options) or fields.column("answer_type"):
        return {"options": options, "gold": gold}
    return {"options": options, "gold": gold, "answer_type": "choice"}


def lettered_options(record: Any) -> list[str]:
    """Options of the columns `A`, `B`... or `option_a`, `option_b`...; empty where there are none."""
    for names in LETTERED_OPTIONS:
        if names[0] in record and names[1] in record:
            return [as_text(record[name], name) for name in names if record.get(name) is not None]
    return []


def _letter_of(gold: Any, options: list[str]) -> Any:
    """An option's number, counted from 0, as its letter; anything else as it is."""
    if not isinstance(gold, int) or isinstance(gold, bool):
        return gold
    if not 0 <= gold < len(options):
        raise malformed(f"the answer is option {gold}, counted from 0; there are {len(options)} options")
    return chr(ord("A") + gold)


def _pairs(fields: Fields) -> RawRecord:
    column, texts = fields.need("messages")
    images, videos = Media(), Media()
    turns = []
    for pair in raw_turns(texts, column):
        if "user" not in pair or "assistant" not in pair:
            raise malformed(f"column '{column}' has {show(dict(pair))}; expected {{'user', 'assistant'}}")
        turns.append(Turn(USER, as_content(pair["user"], column, images, videos)))
        turns.append(Turn(ASSISTANT, as_content(pair["assistant"], column, images, videos)))
    if not turns:
        raise malformed(f"column '{column}' has no turns")
    return RawRecord(
        turns=turns if turns[-1].content else turns[:-1],
        images=media(fields, "images", images),
        videos=media(fields, "videos", videos),
        **common(fields),
    )


register_format(
    Format(
        "problem",
        "question and verifiable answer (problem/question, answer, images)",
        {
            "prompt": QUESTION_COLUMNS,
            "gold": (*GOLD_COLUMNS, "solution"),
            "response": (),
            "history": (),
            **COMMON_ROLES,
        },
        _problem,
    )
)
register_format(
    Format(
        "solution",
        "question and worked response (problem/question, solution/response or a long answer, images)",
        {
            "prompt": QUESTION_COLUMNS,
            "response": (*RESPONSE_COLUMNS, "answer"),
            "gold": GOLD_COLUMNS,
            "thought": (),
            "history": (),
            **COMMON_ROLES,
        },
        _solution,
    )
)
register_format(
    Format(
        "thought",
        "question, chain of thought in its own column, answer (problem, refined_cot/cot/thinking, answer)",
        {
            "prompt": QUESTION_COLUMNS,
            "thought": THOUGHT_COLUMNS,
            "gold": GOLD_COLUMNS,
            "response": ("response", "output"),
            "options": OPTION_COLUMNS,
            "history": (),
            **COMMON_ROLES,
        },
        _thought_and_answer,
    )
)
register_format(
    Format(
        "tagged",
        "question and solution in tags (problem, solution: '<answer>5</answer>', with or without <think> before it)",
        {
            "prompt": QUESTION_COLUMNS,
            "response": ("solution", "response", "answer"),
            "gold": ("original_answer", "gold", "ground_truth", "gt", "final_answer", "answer"),
            "history": (),
            **COMMON_ROLES,
        },
        _tagged,
    )
)
register_format(
    Format(
        "choices",
        "question, options in their own column or columns, answer (question, choices/options/A,B,C,D, answer)",
        {
            "prompt": QUESTION_COLUMNS,
            "query": ("hint", "context", "passage"),
            "options": OPTION_COLUMNS,
            "gold": ("answer", "gold", "correct_answer", "label", "target"),
            "response": (),
            "history": (),
            **COMMON_ROLES,
        },
        _choices,
    )
)
register_format(
    Format(
        "instruction",
        "alpaca (instruction, input, output, image_url/images)",
        {
            "prompt": ("instruction", "prompt", "question"),
            "query": ("input",),
            "response": ("output", "response"),
            "gold": GOLD_COLUMNS,
            "history": ("history",),
            **COMMON_ROLES,
        },
        _instruction,
    )
)
register_format(
    Format(
        "finevision",
        "turns in pairs (texts: [{user, assistant}], images)",
        {"messages": ("texts",), **COMMON_ROLES},
        _pairs,
    )
)
