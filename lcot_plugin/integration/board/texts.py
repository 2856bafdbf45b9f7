"""Texts of the controls in the Board's five languages.

In: the tables `texts_<language>`. Out: `LOCALES`, entries for LLaMA-Factory's dictionary of that name; `alert`, what is
said of wrong input. Consumers: `page`, `panels`, integration.webui.
"""

from __future__ import annotations

from typing import Any

from lcot_plugin.integration.board import texts_en, texts_ja, texts_ko, texts_ru, texts_zh

LANGUAGES = {"en": texts_en, "ru": texts_ru, "zh": texts_zh, "ko": texts_ko, "ja": texts_ja}


def _properties(language: str, name: str) -> dict[str, str]:
    table = LANGUAGES[language]
    if name in table.BOXES:
        return {"label": table.BOXES[name]}
    label, info = table.CONTROLS[name]
    return {"label": label, "info": info}


LOCALES: dict[str, dict[str, dict[str, str]]] = {
    name: {language: _properties(language, name) for language in LANGUAGES}
    for name in (*texts_en.BOXES, *texts_en.CONTROLS)
}
"""Component name -> language -> properties."""


def start(name: str) -> dict[str, str]:
    """What a component is created with; the Board sets its language when a page is opened."""
    return LOCALES[name]["en"]


def alert(name: str, language: str | None, **values: Any) -> str:
    """A sentence; English where the language is not one of the Board's."""
    return LANGUAGES.get(language or "en", texts_en).ALERTS[name].format(**values)
