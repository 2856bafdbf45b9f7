"""A reward for models with random weights, which are never right: completions must differ in it to be trained on."""

from __future__ import annotations

from typing import Any


def by_first_token(completion_ids: list[list[int]], **arguments: Any) -> list[float]:
    """1 for every completion whose first token's id is even."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]
