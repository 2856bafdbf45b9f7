"""Texts of the live view, the rollout viewer, the data preview and of Abort, in the Board's five languages.

In: nothing. Out: `LOCALES`, entries for LLaMA-Factory's dictionary of that name (board.page merges them); `text`, for
what is not a component's property.
"""

from __future__ import annotations

from typing import Any

LOCALES: dict[str, dict[str, dict[str, Any]]] = {}
"""Component name -> language -> properties."""


def text(name: str, lang: str, **values: Any) -> str:
    """A sentence in a language of the Board; English where the language is not one of them."""
    return name
