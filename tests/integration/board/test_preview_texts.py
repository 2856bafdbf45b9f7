"""The words of a record's page in the Board's languages."""

import string
from pathlib import Path

import pytest
from PIL import Image

from lcot_plugin.integration.board.preview_texts import TRANSLATED, words_of
from lcot_plugin.integration.board.view_texts import LANGUAGES
from lcot_plugin.report.token_view import WORDS, Piece, RecordView, to_html


def fields(words: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(words) if name}


def test_every_word_of_the_page_is_translated() -> None:
    assert set(TRANSLATED) == set(WORDS)
    for english, translated in TRANSLATED.items():
        assert len(translated) == len(LANGUAGES) - 1
        assert all(fields(words) == fields(english) for words in translated), english
        assert english not in translated
    assert words_of("fr") == words_of("en") == {words: words for words in WORDS}


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_no_english_word_is_left_on_the_page(lang: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    pieces = [Piece("", [9, 9], False, "image"), Piece("5", [5], True)]
    content = dict(
        question="6", thought="7", answer="8", gold="9", verdict="0", findings=["1"], template="2", notes=["3"]
    )
    views = [
        RecordView("4", 5, pieces, images=[str(tmp_path / "1.png"), (tmp_path / "1.png").read_bytes()], **content),  # type: ignore[arg-type]
        RecordView("4", 5, [], raw="{}"),
    ]
    for page in (to_html(view, words_of(lang), lang=lang) for view in views):
        assert f'<html lang="{lang}">' in page
        body = page.partition("<body>")[2].partition("<script>")[0]
        for words in WORDS:
            literal = max(("".join(part[0]) for part in string.Formatter().parse(words)), key=len).strip(" ,:")
            assert f">{literal}<" not in body and f" {literal} " not in body, words
