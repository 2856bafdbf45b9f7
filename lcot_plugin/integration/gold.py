"""Gold answers as text: a column's value of any JSON type, or the answer of a worked solution."""

from __future__ import annotations

import json
from typing import Any

from lcot_plugin.rewards import extract_answer


def gold_text(value: Any) -> str | None:
    """A gold answer of any JSON type as text: 3 gives "3", ["x"] gives "x"; None and blanks give None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.strip() or None


def answer_of_response(response: list[dict[str, str]]) -> str | None:
    """The final answer of a worked solution, for sets that have no column of their own for it."""
    found = extract_answer(response[0]["content"]) if response else None
    return gold_text(found.answer) if found else None
