"""Formats whose question stands in a conversation.

In:  records such as `{"conversations": [{"from": "human", "value": "<image>..."}], "image": "a.png"}`.
Out: RawRecord; the system turn is taken out, parts of contents become text, their images join the record's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lcot_plugin.data.formats.registry import Fields, Format, malformed, register_format
from lcot_plugin.data.formats.tables import COMMON_ROLES, common, media
from lcot_plugin.data.formats.values import (
    ASSISTANT,
    CONTENT_KEYS,
    USER,
    Conversation,
    as_conversation,
    as_options,
    as_text,
    raw_turns,
)
from lcot_plugin.types import RawRecord, Turn

CONVERSATION_COLUMNS = ("conversations", "conversation")
MESSAGE_COLUMNS = ("messages", "message")
GOLD_COLUMNS = ("gold", "ground_truth", "gt", "answer", "final_answer", "solution")

_BOX = re.compile(r"\s*\[\s*-?\d[\d.]*\s*(?:,\s*-?\d[\d.]*\s*){3}\]\s*")


def _record(fields: Fields, conversation: Conversation, **roles: Any) -> RawRecord:
    shared = common(fields)
    options = fields.column("options")
    return RawRecord(
        turns=conversation.turns,
        images=media(fields, "images", conversation.images),
        videos=media(fields, "videos", conversation.videos),
        thought=conversation.thought,
        options=as_options(fields.value(options), options) if options else [],
        **{**shared, "system": conversation.system or shared["system"], **roles},
    )


def _chat(fields: Fields) -> RawRecord:
    column, value = fields.need("messages")
    conversation = as_conversation(value, column)
    response = fields.column("response")
    if response is not None:
        if conversation.turns[-1].role == ASSISTANT:
            raise malformed(f"column '{column}' ends with a response, and column '{response}' is one too")
        conversation.turns.append(Turn(ASSISTANT, as_text(fields.value(response), response)))
    thought = fields.column("thought")
    if thought is not None:
        conversation.thought = as_text(fields.value(thought), thought)
    return _record(fields, conversation, gold=fields.get("gold"))


def _prompt(fields: Fields) -> RawRecord:
    column, value = fields.need("messages")
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [{"role": USER, "content": value}]
    conversation = as_conversation(value, column)
    completion = fields.column("response")
    if completion is not None:
        answer = fields.value(completion)
        if isinstance(answer, str):
            answer = [{"role": ASSISTANT, "content": answer}]
        conversation = as_conversation([*raw_turns(value, column), *raw_turns(answer, completion)], column)
    return _record(fields, conversation, gold=fields.get("gold"))


def _answered_by_gold(fields: Fields) -> RawRecord:
    column, value = fields.need("messages")
    turns = raw_turns(value, column)
    conversation = as_conversation(turns, column)
    gold = fields.get("gold")
    if conversation.turns[-1].role == ASSISTANT:
        conversation.turns.pop()
        if gold is None:
            gold = next(turns[-1][key] for key in CONTENT_KEYS if key in turns[-1])  # a number stays one
    elif gold is None:
        raise malformed(f"column '{column}' ends with the question; expected the answer as a last turn")
    roles = {"answer_type": "boxes"} if _is_box(gold) else {}
    return _record(fields, conversation, gold=gold, **roles)


def _is_box(gold: Any) -> bool:
    if isinstance(gold, str):
        return _BOX.fullmatch(gold) is not None
    return isinstance(gold, list) and len(gold) == 4 and all(isinstance(edge, int | float) for edge in gold)


def _chat_roles(columns: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    optional = {"response": (), "thought": (), "options": ()}
    return {"messages": columns, "gold": GOLD_COLUMNS, **optional, **COMMON_ROLES}


register_format(
    Format(
        "conversations",
        "turns in the column conversations (from/value or role/content), image(s), an answer in its own column or none",
        _chat_roles((*CONVERSATION_COLUMNS, *MESSAGE_COLUMNS)),
        _chat,
    )
)
register_format(
    Format(
        "messages",
        "turns in the column messages or message (role/content, contents in parts, or JSON text of these), images, an "
        "answer in its own column or none",
        _chat_roles((*MESSAGE_COLUMNS, *CONVERSATION_COLUMNS)),
        _chat,
    )
)
register_format(
    Format(
        "verl",
        "turns in the column prompt, answer in reward_model.ground_truth or answer, images",
        {
            "messages": ("prompt",),
            "gold": ("reward_model.ground_truth", *GOLD_COLUMNS, "extra_info.answer"),
            "response": ("completion",),
            "options": (),
            **COMMON_ROLES,
        },
        _prompt,
    )
)
register_format(
    Format(
        "vlm_r1",
        "conversations whose last turn is the verifiable answer itself (a box, a number, a letter), image(s)",
        {"messages": (*CONVERSATION_COLUMNS, *MESSAGE_COLUMNS), "gold": (), "options": (), **COMMON_ROLES},
        _answered_by_gold,
    )
)
