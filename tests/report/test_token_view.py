"""Tokens become whole characters, images are folded, and nothing in the data can steer a terminal or a browser."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lcot_plugin.report.token_view import Piece, RecordView, data_url, to_html, to_terminal, token_pieces, visible

IMAGE = 1000


def decode_bytes(ids: list[int]) -> str:
    """A tokenizer of single bytes."""
    return bytes(ids).decode(errors="replace")


def decode_stripping(ids: list[int]) -> str:
    """Words with a space in front, of which the first loses its own, as SentencePiece tokenizers decode."""
    return "".join(f" {'abcdef'[token]}" for token in ids)[1:]


@given(st.text(max_size=20), st.integers(0, 5), st.text(max_size=20))
def test_no_token_and_no_character_is_lost(prompt: str, num_image_tokens: int, response: str) -> None:
    before, after = list(prompt.encode("utf-8", "replace")), list(response.encode("utf-8", "replace"))
    ids = [*before, *[IMAGE] * num_image_tokens, *after]
    trained = [False] * (len(before) + num_image_tokens) + [True] * len(after)
    pieces = token_pieces(ids, trained, decode_bytes, {IMAGE: "image"})
    assert [token for piece in pieces for token in piece.token_ids] == ids
    assert [piece.trained for piece in pieces for _ in piece.token_ids] == trained
    texts = {side: "".join(piece.text for piece in pieces if piece.trained is side) for side in (False, True)}
    assert texts == {False: decode_bytes(before), True: decode_bytes(after)}
    folded = [len(piece.token_ids) for piece in pieces if piece.placeholder == "image"]
    assert folded == [num_image_tokens] * bool(num_image_tokens)


def test_tokens_of_one_character_are_one_piece() -> None:
    ids = list("a日".encode())
    pieces = token_pieces(ids, [True] * 4, decode_bytes, {})
    assert [(piece.text, len(piece.token_ids)) for piece in pieces] == [("a", 1), ("日", 3)]


def test_a_character_that_the_loss_mask_cuts() -> None:
    pieces = token_pieces(list("日".encode()), [False, True, True], decode_bytes, {})
    assert [piece.trained for piece in pieces] == [False, True]


def test_spaces_that_a_tokenizer_strips_are_kept() -> None:
    pieces = token_pieces([0, 1, 2], [False] * 3, decode_stripping, {})
    assert "".join(piece.text for piece in pieces) == "a b c"


def test_two_kinds_of_media_are_two_runs() -> None:
    pieces = token_pieces([IMAGE, IMAGE, 2000], [False] * 3, decode_bytes, {IMAGE: "image", 2000: "video"})
    assert [(piece.placeholder, len(piece.token_ids)) for piece in pieces] == [("image", 2), ("video", 1)]


@pytest.fixture
def view() -> RecordView:
    buffer = io.BytesIO()
    Image.new("RGB", (1800, 600), "red").save(buffer, "PNG")
    return RecordView(
        source="problems",
        record=3,
        pieces=[
            Piece("<b>How many?", [5, 6], False),
            Piece("", [IMAGE] * 752, False, "image"),
            Piece("\n", [7], False),
            Piece("Three\x1b[31m & \u202eno", [8], True),
        ],
        question="<script>alert('question')</script>",
        images=[buffer.getvalue(), "gone/<i>.png"],
        thought="1 < 2",
        answer="\\boxed{3}",
        gold="3",
        answer_type="number",
        verdict="matched",
        findings=["answer contradicts gold: it states 4 (kept)"],
        cutoff_len=2048,
    )


def test_terminal_with_and_without_colours(view: RecordView) -> None:
    plain = to_terminal(view, colour=False)
    assert "\x1b" not in plain and "\u202e" not in plain
    assert "756 tokens: 1 in the loss, 752 of images; cutoff_len 2,048" in plain
    assert "[755 tokens not in the loss]\n<b>How many?[image: 752 tokens]\n" in plain
    assert plain.endswith("[1 tokens in the loss]\nThree\\x1b[31m & \\u202eno\n")
    assert "gold: 3 (number)" in plain and "finding: answer contradicts gold" in plain
    coloured = to_terminal(view, colour=True)
    assert "\x1b[36m[image: 752 tokens]\x1b[0m" in coloured
    assert "\x1b[32mThree\\x1b[31m & \\u202eno\x1b[0m" in coloured


def test_control_characters_are_written_out() -> None:
    assert visible("a\tb\nc\x1b]0;title\x07\x9b\r") == "a\tb\nc\\x1b]0;title\\x07\\x9b\\r"


class Page(html.parser.HTMLParser):
    """What a browser would take from the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_escapes_everything(view: RecordView) -> None:
    page = Page(to_html(view))
    assert [tag for tag, _ in page.tags if tag in ("script", "b")] == ["script"], "the page's own and no other"
    assert "<script>alert('question')</script>" in page.texts
    assert "1 < 2" in page.texts
    assert any("gone/<i>.png" in text for text in page.texts)
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert [str(source).partition(",")[0] for source in sources] == ["data:image/png;base64"]
    tokens = [attrs for tag, attrs in page.tags if tag == "span" and "title" in attrs]
    assert [(token["class"], token["title"]) for token in tokens] == [
        ("n", "id 5 6"),
        ("f", f"id 752 x {IMAGE}"),
        ("n", "id 7"),
        ("y", "id 8"),
    ]


def test_embedded_images_are_scaled_down(view: RecordView, tmp_path: Path) -> None:
    contents = view.images[0]
    assert isinstance(contents, bytes)
    url, size = data_url(contents)
    assert size == (1800, 600)
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == (900, 300)
    noise = tmp_path / "photo.png"
    Image.effect_noise((300, 300), 60).save(noise)
    assert data_url(str(noise))[0].startswith("data:image/jpeg"), "what JPEG makes smaller"


def test_a_record_without_tokens_is_shown_as_it_stands() -> None:
    reason = ["missing image: a.png does not exist (dropped)"]
    left_out = RecordView("problems", 3, [], findings=reason, raw='{"q": "<b>\x1b"}', notes=["read as lcot_tagged"])
    text = to_terminal(left_out, colour=True)
    assert text.startswith("problems, record 3\nleft out: no tokens\ndata set: read as lcot_tagged\nfinding: missing")
    assert text.endswith('\n\n{"q": "<b>\\x1b"}\n')
    page = Page(to_html(left_out))
    assert '{"q": "<b>\\x1b"}' in page.texts and "Tokens" not in page.texts
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]


def test_half_a_character_can_be_printed_and_saved() -> None:
    left_out = RecordView("problems", 3, [], question="\ud83d?", findings=["a \udcff"], raw='{"q": "\ud83d"}')
    for text in (to_terminal(left_out, colour=False), to_html(left_out)):
        assert "\\ud83d" in text.encode().decode() and "\\udcff" in text


def test_where_a_gold_answer_is_from(view: RecordView) -> None:
    stated = dataclasses.replace(view, gold_origin="taken from the response")
    assert "gold: 3 (taken from the response)" in to_terminal(stated, colour=False)
