"""Texts of the views in the Board's five languages."""

import string

import pytest

from lcot_plugin.integration.board.view_sentences import SENTENCES
from lcot_plugin.integration.board.view_texts import LANGUAGES, LOCALES, ORDERS, text


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_says_the_same_in_every_language(name: str) -> None:
    sentences = SENTENCES[name]
    assert len(sentences) == len(LANGUAGES)
    assert all(sentence.strip() for sentence in sentences)
    assert {frozenset(fields(sentence)) for sentence in sentences} == {frozenset(fields(sentences[0]))}
    assert len(set(sentences)) >= 4, "Chinese and Japanese may be one word; the others are not"


def test_components_have_the_same_properties_in_every_language() -> None:
    for name, entry in LOCALES.items():
        assert tuple(entry) == LANGUAGES, name
        assert len({tuple(properties) for properties in entry.values()}) == 1, name
    for properties in LOCALES["viewer_order"].values():
        assert [value for _, value in properties["choices"]] == list(ORDERS)


def test_the_board_s_names_for_its_buttons_are_the_ones_that_are_named() -> None:
    from llamafactory.webui.locales import LOCALES as BOARD

    for lang in LANGUAGES:
        assert BOARD["stop_btn"][lang]["value"] in text("abort_waiting", lang)
        assert BOARD["start_btn"][lang]["value"] in text("end_resume", lang, name="x")
        assert LOCALES["viewer_show_btn"][lang]["value"] in text("viewer_reading", lang, percent=1)


def test_an_unknown_language_is_english() -> None:
    assert text("state_running", "fr") == "Running"
    assert text("step", "en", step=3) == "step 3"
