"""Completions as rows and as Markdown: what a model wrote stays text, in TensorBoard's own renderer too."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lcot_plugin.integration.tracker_tables import (
    PICTURE_PIXELS,
    TEXT_CHARACTERS,
    completion_table,
    first_groups,
    markdown,
    readable,
    side_by_side,
)


def line(sample: Any = 0, **changes: Any) -> dict[str, Any]:
    """One line of completions.jsonl."""
    return {
        "step": 3,
        "sample": sample,
        "source": "problems",
        "record": 7,
        "question": "<image>How many?",
        "images": [],
        "completion": r"\boxed{3}",
        "ending": "stopped",
        "num_tokens": 5,
        "extracted": "3",
        "gold": "3",
        "outcome": "matched",
        "rewards": {"accuracy": 1.0, "format": None},
        "reward": 1.0,
        "advantage": 0.5,
        **changes,
    }


def test_a_row_has_everything_that_is_known_of_a_completion(tmp_path: Path) -> None:
    table = completion_table([line(0), line(1, reward=None, rewards={"accuracy": None, "format": 0.2})], tmp_path, 1)
    assert table.step == 3
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        "step": 3,
        "source": "problems",
        "record": 7,
        "sample": "1",
        "picture": None,
        "question": "<image>How many?",
        "completion": r"\boxed{3}",
        "extracted": "3",
        "gold": "3",
        "outcome": "matched",
        "ending": "stopped",
        "num_tokens": 5,
        "reward/accuracy": None,
        "reward/format": 0.2,
        "reward": None,
        "advantage": 0.5,
    }


@pytest.mark.parametrize("first", [0, "greedy"])
def test_groups_are_whole_and_no_more_than_asked_for(first: Any, tmp_path: Path) -> None:
    lines = [line(sample, record=record) for record in range(3) for sample in (first, 1, 2)]
    assert [[row["record"] for row in group] for group in first_groups(lines, 2)] == [[0] * 3, [1] * 3]
    table = completion_table(lines, tmp_path, 2)
    assert table.groups == [slice(0, 3), slice(3, 6)]
    assert table.values("record") == [0, 0, 0, 1, 1, 1]
    assert first_groups(lines[:2], 5) == [lines[:2]], "fewer than asked for are all of them"


def test_no_lines_are_no_rows(tmp_path: Path) -> None:
    assert completion_table([], tmp_path, 2).rows == []


def test_pictures_stand_side_by_side_and_are_scaled_down(tmp_path: Path) -> None:
    Image.new("RGB", (2 * PICTURE_PIXELS, PICTURE_PIXELS), "red").save(tmp_path / "wide.png")
    Image.new("RGBA", (30, 40), (0, 0, 255, 255)).save(tmp_path / "small.png")
    sheet = side_by_side(["wide.png", str(tmp_path / "small.png")], tmp_path, pytest.fail)
    assert sheet is not None
    assert sheet.size == (PICTURE_PIXELS + 4 + 30, PICTURE_PIXELS // 2)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((PICTURE_PIXELS + 4, 39)) == (0, 0, 255)
    assert sheet.getpixel((PICTURE_PIXELS + 4, 40)) == (255, 255, 255), "nothing is below the smaller one"


def test_a_group_shares_its_picture(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    table = completion_table([line(sample, images=["a.png"]) for sample in range(2)], tmp_path, 1)
    first, second = table.values("picture")
    assert first is second and first.size == (8, 8)


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    told: list[str] = []
    assert side_by_side(["broken.png", "<bytes in the data set>"], tmp_path, told.append) is None
    assert len(told) == 2 and str(tmp_path / "broken.png") in told[0]


def test_long_texts_keep_head_and_tail_and_say_what_is_left_out() -> None:
    text = readable("a" * TEXT_CHARACTERS + "b" * 1_000)
    assert text is not None
    assert text.startswith("a" * 100) and text.endswith("b" * 100)
    assert "[1,000 characters left out]" in text
    assert readable("a" * TEXT_CHARACTERS) == "a" * TEXT_CHARACTERS


def test_control_characters_go() -> None:
    assert readable("a\x1b[31m\x00b\r\nc\td\u202e\ud800") == "a\ufffd[31m\ufffdb\nc\td\ufffd\ufffd"
    assert readable(None) is None


# TensorBoard's Text page


def shown(completion: str, **changes: Any) -> str:
    """HTML of a group, as TensorBoard's own renderer makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own html5lib's
        from tensorboard.plugin_util import markdown_to_safe_html

    table = completion_table([line(0, completion=completion, **changes)], Path(), 1)
    return markdown_to_safe_html(markdown(table, table.groups[0]))


def code_blocks(page: str) -> list[str]:
    return [html.unescape(code) for code in re.findall(r"<pre><code>(.*?)\n?</code></pre>", page, re.DOTALL)]


@pytest.mark.parametrize(
    "text",
    [
        "# heading\n\n![](http://example.com/x.png) [a](http://example.com)",
        "```\nfenced\n```\n\n~~~\nx",
        "<script>alert(1)</script>\n<img src=x>\n</code></pre><h1>out</h1>",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "- item\n\n1. one\n> quote\n***",
        "[id]: http://example.com\n\n<!-- comment",
        "&lt;b&gt; &amp; <b>",
        "text\n\n    indented",
    ],
)
def test_nothing_that_a_model_writes_is_markup(text: str) -> None:
    page = shown(text, question=text)
    question, _, completion = code_blocks(page)
    assert question == completion == text
    assert not re.search(r"<(img|script|a|h1|ul|ol|blockquote|hr)\b", page)


@given(st.text(alphabet="ab \n`~#|*_<>&[]()!-=\\\t:/.1\u2028", max_size=60))
def test_any_text_is_one_block_of_code(text: str) -> None:
    *_, completion = code_blocks(shown(text))
    if text.strip():
        assert completion.split() == text.split(), "but for spaces in blank lines nothing is lost"
    else:
        assert completion == f"({len(text)} blank characters)"


def test_values_in_the_table_are_text(tmp_path: Path) -> None:
    page = shown("x", extracted="![](x) | </td>\n<b>_c_</b> `d`", source="my_set")
    assert "<img" not in page and "<b>" not in page and "<em>" not in page
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert cells == ["0", "![](x) | </td> <b>_c_</b> `d`", "matched", "1", "", "1", "0.5", "stopped", "5"]
    assert "my_set, record 7, step 3" in html.unescape(page)
    assert "characters left out" in shown("x", extracted="9" * 300)
