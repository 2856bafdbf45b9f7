"""Every language says the same."""

from __future__ import annotations

import re
from string import Formatter

import pytest

from lcot_plugin.errors import LcotError
from lcot_plugin.report.completions_table import NOT_JUDGED
from lcot_plugin.report.rollout_texts import TEXTS, texts_of
from lcot_plugin.types import Ending, Outcome


def fields(text: str) -> set[str | None]:
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}


@pytest.mark.parametrize("language", ["ru", "zh", "ko", "ja"])
def test_the_same_texts_with_the_same_fields(language: str) -> None:
    assert list(TEXTS[language]) == list(TEXTS["en"])
    for key, text in TEXTS["en"].items():
        assert fields(TEXTS[language][key]) == fields(text), key
        assert TEXTS[language][key] != text, f"{key} is not translated"
        assert not re.search(r"[<>&]", TEXTS[language][key])


def test_every_outcome_and_ending_has_a_word() -> None:
    assert {*Outcome, *Ending, NOT_JUDGED} <= TEXTS["en"].keys()


def test_an_unknown_language() -> None:
    with pytest.raises(LcotError, match="en, ru, zh, ko, ja"):
        texts_of("fr")
    assert texts_of({"a": "b"}) == {"a": "b"}
