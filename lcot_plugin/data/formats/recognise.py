"""lcot_auto: which format a data set is in, from its first records.

In:  some records (a few dozen are enough) and the user's `columns`.
Out: Recognition: the format, and a sentence for the log that says what decided.

Column names decide where they can. Where they cannot (an `answer` may be the verifiable answer or a worked response, a
last turn may be either too) the contents of all records given do, by majority.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any

from lcot_plugin.data.formats import chats, tables
from lcot_plugin.data.formats.registry import (
    NO_OVERRIDES,
    PREFIX,
    Fields,
    Format,
    format_names,
    get_format,
    is_empty,
)
from lcot_plugin.data.formats.values import as_conversation, is_turns, raw_turns
from lcot_plugin.errors import DataError, RecordError
from lcot_plugin.rewards.extraction import last_boxed

LONGEST_GOLD = 200
"""Characters; a longer answer is a worked response. The golds of the public sets end below 100, their responses are
above 300."""

MIN_WORKED_WORDS = 8
"""Words around a box from which on they are taken for steps."""
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
_THOUGHT_MARKS = re.compile(
    r"<(think|thinking|reasoning|summary|caption)>|^###.*?(step|final answer|rationale|image description)"
    r"|\*\*(final )?answer:?\*\*|\n\s*(step \d|therefore)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_ANSWER_TAGS = re.compile(r"<answer>.*</answer>", re.DOTALL | re.IGNORECASE)
_VERIFIABLE = re.compile(
    r"\s*(?:[\[{].*[\]}]|[A-Z]|-?\d[\d.,/]*\s*[%°]?|yes|no|\$.+\$)\s*\.?\s*", re.DOTALL | re.IGNORECASE
)
"""A box, a list, JSON, a letter, a number, yes or no, a formula. Other short texts may well be meant as responses."""
_OPTION_LETTER = re.compile(r"\s*\(?[A-Ja-j][.):]?\s*")


@dataclass(frozen=True)
class Recognition:
    """What lcot_auto decided."""

    format: Format
    reason: str
    """One sentence for the log."""


def recognise(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str | None] = NO_OVERRIDES) -> Recognition:
    """The format of a data set.

    Args:
        records: the first ones; a few dozen decide well, one may mislead.
        columns: role -> column of dataset_info.json. `response` or `gold` settle what an ambiguous answer is.

    Raises:
        DataError: where no format fits, or none of the records can be read with the one that does; lists the columns
            and the known formats.
    """
    if not records:
        raise DataError("lcot_auto needs at least one record; the data set is empty.")
    _check_roles(columns)
    found = _decide(_Columns(records, columns))
    if found is None:
        raise DataError(
            f"lcot_auto knows no format with the columns {_listing(records)}. Name one in dataset_info.json: "
            f"{_known()}; `columns` says which column plays which role. Or name a function of yours, "
            "path/to/file.py:function."
        )
    name, evidence = found
    chosen = get_format(name)
    # A format that reads none of them was recognised wrongly: better said now than once per record.
    failures = []
    for record in records:
        try:
            chosen.read(record, columns)
        except RecordError as error:
            failures.append(error)
    if len(failures) == len(records):
        raise DataError(
            f"lcot_auto took the data set for {PREFIX}{name} ({evidence}), but {failures[0]}. Where that is another "
            f"format, name it in dataset_info.json: {_names()}."
        )
    return Recognition(chosen, f"lcot_auto: taken for `{name}` ({evidence})")


def _check_roles(columns: Mapping[str, str | None]) -> None:
    """Raises DataError for a role that no format reads."""
    roles = {role for name in format_names() for role in get_format(name).roles}
    for role in columns:
        if role not in roles:
            near = get_close_matches(role, roles, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(roles))}."
            raise DataError(f"columns in dataset_info.json name '{role}', which no format reads: {hint}")


def _names() -> str:
    return ", ".join(PREFIX + name for name in format_names())


def _known() -> str:
    return "; ".join(f"{PREFIX}{name}: {get_format(name).summary}" for name in format_names())


def _listing(records: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(chain.from_iterable(records))) or "(none)"


class _Columns:
    """The records by column."""

    def __init__(self, records: Sequence[Mapping[str, Any]], overrides: Mapping[str, str | None]) -> None:
        self.records = records
        self.overrides = overrides

    def values(self, column: str) -> list[Any]:
        """The column's values that are not empty."""
        found = (Fields(record, {}, {}).value(column) for record in self.records)
        return [value for value in found if not is_empty(value)]

    def first(self, role: str, candidates: Sequence[str]) -> str | None:
        """The column of a role: the user's, else the first candidate that has values and that the user gave no other
        role."""
        if role in self.overrides:
            return self.overrides[role]
        taken = set(self.overrides.values())
        return next((name for name in candidates if name not in taken and self.values(name)), None)

    def share(self, column: str, holds: Callable[[Any], bool]) -> tuple[int, int]:
        """How many of the column's values something holds for, and how many there are."""
        values = self.values(column)
        return sum(map(holds, values)), len(values)


def _decide(columns: _Columns) -> tuple[str, str] | None:
    return _decide_chat(columns) or _decide_table(columns)


def _decide_chat(columns: _Columns) -> tuple[str, str] | None:
    """A format whose question stands in a conversation."""
    texts = columns.first("messages", ("texts",))
    if texts and _mostly(columns.share(texts, _is_pairs)):
        return "finevision", f"column {texts} holds pairs of user and assistant"
    prompt = columns.first("messages", ("prompt",))
    if prompt == "prompt" and _mostly(columns.share(prompt, is_turns)):
        nested = "reward_model.ground_truth"
        gold = nested if columns.values(nested) else columns.first("gold", chats.GOLD_COLUMNS)
        return "verl", "column prompt holds turns" + (f"; {gold} is the verifiable answer" if gold else "")
    candidates = (*chats.MESSAGE_COLUMNS, *chats.CONVERSATION_COLUMNS)
    chosen = columns.overrides.get("messages")
    for column in (chosen,) if chosen else candidates:
        if not _mostly(columns.share(column, is_turns)):
            continue
        short, answered = _verifiable_last_turns(columns, column)
        gold = columns.first("gold", chats.GOLD_COLUMNS)
        if gold is None and answered and (columns.values("accu_reward_method") or short == answered):
            return "vlm_r1", f"the last turn of {column} is the verifiable answer in {short} of {answered} records"
        written_as_from = _mostly(columns.share(column, _starts_from))
        name = "conversations" if column in chats.CONVERSATION_COLUMNS or written_as_from else "messages"
        keys = "from/value" if written_as_from else "role/content"
        return name, f"column {column} holds turns ({keys})" + (f"; {gold} is the verifiable answer" if gold else "")
    return None


def _decide_table(columns: _Columns) -> tuple[str, str] | None:
    """A format whose question and answer stand in columns of their own."""
    question = columns.first("prompt", tables.QUESTION_COLUMNS)
    if question is None:
        return None
    thought = columns.first("thought", tables.THOUGHT_COLUMNS)
    gold = columns.first("gold", tables.GOLD_COLUMNS)
    response = columns.first("response", tables.RESPONSE_COLUMNS)
    options = columns.first("options", tables.OPTION_COLUMNS)
    images = columns.first("images", tables.IMAGE_COLUMNS)

    def found(name: str, *used: str | None, because: str = "") -> tuple[str, str]:
        listed = ", ".join(dict.fromkeys(column for column in (question, *used, images) if column))
        return name, f"columns {listed}" + (f"; {because}" if because else "")

    if question == "instruction" and response is not None:
        return found("instruction", response)
    if thought and gold and "response" not in columns.overrides:
        return found("thought", thought, gold, because=f"{thought} is the chain of thought")
    if gold and (options or any(tables.lettered_options(record) for record in columns.records)):
        # An answer in full can be verified without the options, and its question may have been written to be open.
        if "options" in columns.overrides or _mostly(columns.share(gold, _names_option)):
            return found("choices", options, gold, because=f"{gold} names one of the options")
    else:
        options = None
    left_out = f"; {options} is left out, lcot_choices would show it" if options else ""
    if response == "solution" and "response" not in columns.overrides and _mostly(columns.share(response, _is_tagged)):
        return found("tagged", response, gold, because="solution has <answer> tags")
    if "response" in columns.overrides and response:
        return found("solution", response, gold, because=f"dataset_info.json names {response} as the response")
    if "gold" in columns.overrides and gold and response is None:
        return found("problem", gold, because=f"dataset_info.json names {gold} as the verifiable answer" + left_out)
    if response and response != "solution":
        return found("solution", response, gold)
    ambiguous = response or gold
    if ambiguous is None:
        return None
    worked, total = columns.share(ambiguous, is_worked)
    if _mostly((worked, total)):
        because = f"{ambiguous} is a worked response in {worked} of {total} records"
        return found("solution", ambiguous, gold, because=because + left_out)
    because = f"{gold or ambiguous} is a short verifiable answer"
    if ambiguous == (gold or ambiguous):
        because += f" in {total - worked} of {total} records"
    return found("problem", gold or ambiguous, because=because + left_out)


def is_worked(answer: Any) -> bool:
    """Whether an answer is a worked response rather than a verifiable answer: marks of a thought, or its length."""
    if not isinstance(answer, str):
        return False
    if len(answer) > LONGEST_GOLD or _THOUGHT_MARKS.search(answer) is not None:
        return True
    boxed = last_boxed(answer)
    # Sentences around a box; `The answer is \\boxed{5}` is a gold answer still.
    return boxed is not None and len(_WORD.findall(answer.replace(boxed, ""))) >= MIN_WORKED_WORDS


def _is_tagged(solution: Any) -> bool:
    return isinstance(solution, str) and _ANSWER_TAGS.search(solution) is not None


def _is_pairs(value: Any) -> bool:
    try:
        turns = raw_turns(value, "texts")
    except RecordError:
        return False
    return bool(turns) and all("user" in turn and "assistant" in turn for turn in turns)


def _verifiable_last_turns(columns: _Columns, column: str) -> tuple[int, int]:
    """In how many records the last turn is an assistant's verifiable answer, and in how many it is an assistant's."""
    short = answered = 0
    for value in columns.values(column):
        try:
            turns = as_conversation(value, column).turns
        except RecordError:
            continue
        if turns[-1].role == "assistant":
            answered += 1
            short += len(turns) == 2 and _is_verifiable(turns[-1].content)
    return short, answered


def _is_verifiable(answer: str) -> bool:
    return len(answer) <= LONGEST_GOLD and _VERIFIABLE.fullmatch(answer) is not None


def _names_option(gold: Any) -> bool:
    """Whether a gold answer is an option's letter or number, not the option itself."""
    return isinstance(gold, int) or (isinstance(gold, str) and _OPTION_LETTER.fullmatch(gold) is not None)


def _starts_from(turns: Any) -> bool:
    return is_turns(turns) and "from" in raw_turns(turns, "turns")[0]


def _mostly(share: tuple[int, int]) -> bool:
    holds, total = share
    return 2 * holds > total
