"""What stands in a column, whichever schema it is of: images, contents in parts, conversations, options.

In:  a value as JSON, parquet or `datasets` gives it.
Out: plain text with `<image>` where a picture stood, lists of media, turns; RecordError(MALFORMED) names the column.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcot_plugin.data.formats.registry import is_empty, malformed
from lcot_plugin.types import Turn

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    "user": USER,
    "human": USER,
    "question": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "chatbot": ASSISTANT,
    "answer": ASSISTANT,
    "system": SYSTEM,
    "developer": SYSTEM,
}
"""A turn's role as data sets write it -> ours."""

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
THOUGHT_KEYS = ("reasoning_content", "thinking")
"""Where a turn has its thought beside its content."""

_NUMBERED = re.compile(r"<image[ _]?(\d+)>")
"""`<image 1>`, `<image1>`: how sets with several images per question refer to one of them."""

SHOWN = 80
"""Characters of a value that an error shows."""


def show(value: Any) -> str:
    """A value for an error: its type and how it begins; of bytes only how many."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}"


def as_text(value: Any, column: str) -> str:
    """Text as it is, a number in its JSON form."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) or _is_numbers(value):
        return json.dumps(value)
    raise malformed(f"column '{column}' has {show(value)}; expected text")


def as_media(value: Any, column: str, *, frames: bool = False) -> list[Any]:
    """Images or videos of a column as a list: one or several; None, empty texts and empty structs are none.

    `frames`: a list within the list is one video, its frames; else lists are joined.
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        if frames and any(isinstance(part, list) for part in value):
            return [as_media(part, column) for part in value if part]
        return [item for part in value for item in as_media(part, column)]
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            return as_media(_parse(stripped, column), column)
        return [value] if stripped else []
    if isinstance(value, bytes):
        return [value] if value else []
    if isinstance(value, Mapping):
        if value.keys() & {"bytes", "path"}:
            return [] if value.get("bytes") is None and not value.get("path") else [value]
        if "url" in value:
            return as_media(value["url"], column)
    elif hasattr(value, "size") and hasattr(value, "mode"):  # a PIL image, without importing PIL
        return [value]
    raise malformed(
        f"column '{column}' has {show(value)}; expected a path, base64 text, bytes, {{'bytes', 'path'}}, a PIL image "
        "or a list of these"
    )


@dataclass
class Media:
    """The pictures or films that a conversation's parts mention, in order."""

    placed: list[list[Any]] = field(default_factory=list)
    """One list per part, empty where the part marks the place only."""

    def with_column(self, column: str, in_column: list[Any]) -> list[Any]:
        """The parts' own media; a part without any takes the next of the record's column.

        Raises:
            RecordError: MALFORMED where parts and column both have media and their numbers differ.
        """
        own = [item for part in self.placed for item in part]
        if not own:
            return in_column
        bare = sum(not part for part in self.placed)
        if not bare:
            # Sets that write their media twice, in the parts and in a column, mean the same ones.
            if in_column and len(in_column) != len(own):
                raise malformed(f"column '{column}' has {len(in_column)} media, the conversation's parts {len(own)}")
            return own
        if len(in_column) != bare:
            raise malformed(f"column '{column}' has {len(in_column)} media for {bare} parts without one of their own")
        rest = iter(in_column)
        return [item for part in self.placed for item in (part or [next(rest)])]


@dataclass
class Conversation:
    """A conversation, read."""

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None
    thought: str | None = None
    """Of the last turn, where it has a key of its own."""
    images: Media = field(default_factory=Media)
    videos: Media = field(default_factory=Media)


def as_content(content: Any, column: str, images: Media, videos: Media) -> str:
    """A turn's content as text: parts are joined, `<image>` and `<video>` stand in for media, which are collected."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list | tuple) or _is_numbers(content):
        return as_text(content, column)
    return "".join(_part(part, column, images, videos) for part in content)


def _part(part: Any, column: str, images: Media, videos: Media) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        kind = str(part.get("type") or next((key for key in ("text", "image", "video") if part.get(key)), ""))
        kind = kind.removeprefix("input_").removeprefix("output_").removesuffix("_url")
        if kind == "text":
            return as_text(part["text"] if part.get("text") is not None else "", column)
        if kind in ("image", "video"):
            value = next((part[key] for key in _media_keys(kind) if not is_empty(part.get(key))), None)
            found = as_media(value, column)
            if kind == "image":
                images.placed.append(found)
            else:  # a list is the frames of one video
                videos.placed.append([found] if isinstance(value, list) else found)
            return f"<{kind}>"
    raise malformed(f"column '{column}' has the part {show(part)}; expected type text, image, image_url or video")


def _media_keys(kind: str) -> tuple[str, ...]:
    return (kind, f"{kind}_url", "url", "path", "bytes")


def as_conversation(value: Any, column: str) -> Conversation:
    """A list of turns, `role`/`content` or `from`/`value`, or its JSON text.

    The system turn is taken out; an assistant's turn without content at the end is left out (a prompt to be answered).

    Raises:
        RecordError: MALFORMED for anything but turns, for a role that is no speaker, and for turns out of order.
    """
    conversation = Conversation()
    for number, turn in enumerate(raw_turns(value, column)):
        role, content = _role_and_content(turn, column)
        text = as_content(content, column, conversation.images, conversation.videos)
        if role == SYSTEM:
            if number:
                raise malformed(f"column '{column}' has a system turn at place {number}; expected it first")
            conversation.system = text or None
            continue
        thought = next((turn[key] for key in THOUGHT_KEYS if isinstance(turn.get(key), str) and turn[key]), None)
        if role == ASSISTANT and not text and not thought:
            continue
        expected = ASSISTANT if len(conversation.turns) % 2 else USER
        if role != expected:
            raise malformed(f"column '{column}' has a turn of {role} at place {number}; expected {expected}")
        conversation.turns.append(Turn(role, text))
        conversation.thought = thought
    if not conversation.turns:
        raise malformed(f"column '{column}' has no turn of a user")
    return conversation


def raw_turns(value: Any, column: str) -> list[Mapping[str, Any]]:
    """The turns as they are written: a list of objects, its JSON text, or the columns `datasets` makes of it."""
    if isinstance(value, str):
        value = _parse(value, column)
    if isinstance(value, Mapping) and value and all(isinstance(item, list) for item in value.values()):
        # `datasets` reads a Sequence of structs as a struct of lists.
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise malformed(f"column '{column}' has {show(value)}; expected a list of turns such as {{'role', 'content'}}")
    return list(value)


def _role_and_content(turn: Mapping[str, Any], column: str) -> tuple[str, Any]:
    role_key = next((key for key in ROLE_KEYS if turn.get(key) is not None), None)
    content_key = next((key for key in CONTENT_KEYS if key in turn), None)
    if role_key is None or content_key is None:
        raise malformed(f"column '{column}' has the turn {show(dict(turn))}; expected role/content or from/value")
    role = ROLES.get(str(turn[role_key]).strip().lower())
    if role is None:
        raise malformed(
            f"column '{column}' has a turn of {turn[role_key]!r}; expected a user, an assistant or a system turn"
        )
    return role, turn[content_key]


def is_turns(value: Any) -> bool:
    """Whether a value reads as a conversation: a list of turns, or its JSON text."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return False
        try:
            value = json.loads(value)
        except ValueError:
            return False
    if isinstance(value, Mapping):
        value = [value] if all(isinstance(item, list) for item in value.values()) else None
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, Mapping) and any(k in turn for k in ROLE_KEYS) and any(k in turn for k in CONTENT_KEYS)
            for turn in value
        )
    )


def as_options(value: Any, column: str) -> list[str]:
    """The options of a question: a list, its text, `{"A": ...}` or `{"label": [...], "text": [...]}`."""
    if isinstance(value, str):
        value = _parse(value, column)
    if isinstance(value, Mapping):
        texts = value.get("text")
        # parquet gives every option of every record a key; those a question lacks are None.
        value = texts if isinstance(texts, list) else [value[key] for key in sorted(value)]
        value = [option for option in value if option is not None]
    if not isinstance(value, list | tuple):
        raise malformed(f"column '{column}' has {show(value)}; expected a list of options")
    return [as_text(option, column) for option in value]


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, int | float) or _is_numbers(item) for item in value)


def _parse(text: str, column: str) -> Any:
    """JSON, or Python's own notation, which sets saved with `str` have."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise malformed(f"column '{column}' has {show(text)}; expected a list, or one written as JSON") from None


def in_order_of_mention(text: str, images: list[Any]) -> tuple[str, list[Any]]:
    """`<image 2> ... <image 1>` as `<image> ... <image>` with the images in that order.

    An image mentioned again is named (image 2) there; one not mentioned comes first. Text without such references, or
    with one to an image that the record lacks, stays as it is.
    """
    numbers = list(dict.fromkeys(int(number) for number in _NUMBERED.findall(text))) if images else []
    if not numbers or not all(1 <= number <= len(images) for number in numbers):
        return text, images
    seen: set[str] = set()

    def place(reference: re.Match[str]) -> str:
        if reference[1] in seen:
            return f"(image {reference[1]})"
        seen.add(reference[1])
        return "<image>"

    others = [number for number in range(1, len(images) + 1) if number not in numbers]
    placed = "<image>" * len(others) + _NUMBERED.sub(place, text)
    return placed, [images[number - 1] for number in [*others, *numbers]]


def join_lines(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part)
