"""What a model wrote stays text, whole or with the number of what is left out."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.report import shown_text
from lcot_plugin.report.rollout_texts import TEXTS
from lcot_plugin.report.shown_text import ShownText, escaped, split_thought, trace_of, visible
from lcot_plugin.report.token_trace import TokenTrace, encode

WORDS = TEXTS["en"]
ANY_TEXT = st.text(st.characters(), max_size=60)  # halves of surrogate pairs among them
MARKUP = st.lists(
    st.sampled_from(["<b>", "</i>", "&lt;", '"', "'", "\n", "\x1b[31m", "\u202e", "é", "日", "</span>", "a", "{0}"])
).map("".join)


class Text(HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def trace(*lengths: int) -> TokenTrace:
    return TokenTrace(
        list(lengths), [-0.05, -0.5, -1.5, -3.0, -6.0] * (len(lengths) // 5) + [-6.0] * (len(lengths) % 5)
    )


# --- escaping ---------------------------------------------------------------------------------------------------------


@given(ANY_TEXT | MARKUP)
def test_any_text_is_text(text: str) -> None:
    page = Text(escaped(text))
    assert not page.elements
    assert page.text == visible(text)
    page.text.encode()  # no half of a pair is left
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page.text)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\u200b\ufeff", "\\u200b\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud83d", "\\ud83d"),
        ("\r\n\t", "\\r\n\t"),
        ("答案 😀 مرحبا", "答案 😀 مرحبا"),
    ],
)
def test_what_steers_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_values_of_a_line_may_be_anything() -> None:
    assert (escaped(None), escaped(3), escaped(["<b>"])) == ("", "3", "[&#x27;&lt;b&gt;&#x27;]")
    assert escaped("x" * 12_000, 5) == "xxxxx\u2026 (+11,995)"


# --- thought and answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thought, answer, opening",
    [
        ("2 + 3 = 5</think>", "\n\n5", "<think>\n"),
        ("<think>a</think>", "b", ""),
        ("<think>a</think> no, <think>b</think>", "c", ""),
        ("◁think▷a◁/think▷", "b", ""),
        ("<|channel|>analysis a <|channel|>final<|message|>", "b", ""),
        ("<REASONING>a</REASONING>", "<CONCLUSION>b</CONCLUSION>", ""),
        ("steps, ", "<answer>5</answer>", ""),
        ("", "<answer>5</answer>", ""),
        ("", "no thought at all", ""),
        ("a</think>", "", "<think>\n"),
    ],
)
def test_thoughts_end_where_they_are_closed(thought: str, answer: str, opening: str) -> None:
    assert split_thought(thought + answer, opening) == (len(thought), True)


@pytest.mark.parametrize("text, opening", [("it goes on", "<think>\n"), ("<think>it goes on", "")])
def test_a_thought_that_is_never_closed(text: str, opening: str) -> None:
    assert split_thought(text, opening) == (len(text), False)


# --- sizes ------------------------------------------------------------------------------------------------------------


@given(ANY_TEXT, st.integers(0, 80), st.integers(0, 60))
def test_parts_are_the_whole_and_the_rest_is_counted(text: str, max_chars: int, cut: int) -> None:
    cut = min(cut, len(text))
    shown = ShownText(text, WORDS, max_chars)
    parts = shown.html(0, cut) + shown.html(cut, len(text))
    notes = re.findall(r'<span class="lcot-cut">([\d,]+) characters left out</span>', parts)
    assert sum(int(note.replace(",", "")) for note in notes) == max(0, len(text) - max_chars)
    hidden = text[: shown.hidden[0]] + text[shown.hidden[1] :]
    assert len(hidden) == min(len(text), max_chars)
    assert html.unescape(re.sub(r'<span class="lcot-cut">.*?</span>', "", parts)) == visible(hidden)


def test_a_megabyte() -> None:
    shown = ShownText("a" * 700_000 + "z" * 300_000, WORDS, 1000).html(0, 1_000_000)
    assert shown.startswith("a" * 750 + "<span") and shown.endswith("</span>" + "z" * 250)
    assert "999,000 characters left out" in shown


# --- tokens -----------------------------------------------------------------------------------------------------------


@given(MARKUP, st.data())
def test_tokens_change_nothing_of_the_text(text: str, data: st.DataObject) -> None:
    lengths, rest = [], len(text)
    while rest and len(lengths) < 30:
        lengths.append(data.draw(st.integers(0, min(rest, 4))))
        rest -= lengths[-1]
    cut = data.draw(st.integers(0, len(text)))
    shown = ShownText(text, WORDS, 10_000, TokenTrace(lengths, [-1.0] * len(lengths)))
    page = Text(shown.html(0, cut) + shown.html(cut, len(text)))
    assert page.text.replace("\u21b5\n", "\n") == visible(text)
    assert {tag for tag, _ in page.elements} <= {"i"}


def test_a_colour_and_a_number_for_every_token() -> None:
    page = Text(ShownText("abcde", WORDS, 100, trace(1, 1, 1, 1, 1)).html(0, 5))
    assert [(values["class"], values["title"]) for _, values in page.elements] == [
        ("lcot-t0", "-0.05 (95.1 %)"),
        ("lcot-t1", "-0.50 (60.7 %)"),
        ("lcot-t2", "-1.50 (22.3 %)"),
        ("lcot-t3", "-3.00 (4.98 %)"),
        ("lcot-t4", "-6.00 (0.248 %)"),
    ]


def test_a_token_across_the_end_of_the_thought_is_in_both() -> None:
    shown = ShownText("abcd", WORDS, 100, trace(1, 2, 1))
    assert [Text(shown.html(*part)).text for part in ((0, 2), (2, 4))] == ["ab", "cd"]
    assert [len(Text(shown.html(*part)).elements) for part in ((0, 2), (2, 4))] == [2, 2]


def test_an_improbable_line_break_is_seen() -> None:
    assert Text(ShownText("\n", WORDS, 100, trace(1)).html(0, 1)).text == "\u21b5\n"


def test_so_many_tokens_are_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_text, "MAX_TOKENS", 8)
    text = "0123456789" * 3
    shown = ShownText(text, WORDS, 100, trace(*[1] * 30))
    page = Text(shown.html(0, 30))
    assert (page.text, len(page.elements), shown.num_uncoloured) == (text, 8, 22)
    assert len(Text(shown.html(0, 15) + shown.html(15, 30)).elements) == 8


def test_tokens_of_a_part_that_is_left_out() -> None:
    shown = ShownText("0123456789" * 10, WORDS, 8, trace(*[1] * 100))
    page = Text(shown.html(0, 100))
    assert page.text == "01234592 characters left out89"
    assert len(page.elements) == 9


def test_a_trace_must_fit_its_text() -> None:
    assert trace_of({"completion": "ab"}) is None
    found = trace_of({"completion": "ab", "trace": encode([1, 1, 0], [-0.5, -1.0, -0.0])})
    assert found is not None and found.lengths == [1, 1, 0]
    for wrong in (encode([3], [-1.0]), "nonsense", "\u00e9", 7):
        with pytest.raises(DataError):
            trace_of({"completion": "ab", "trace": wrong})
