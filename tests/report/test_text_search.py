"""A search by bytes finds what a search in the parsed texts finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_lines import completion_line, write

from lcot_plugin.report import text_search
from lcot_plugin.report.completions_index import CompletionsIndex
from lcot_plugin.report.text_search import rows_with_text


def search(path: Path, text: str, rows: list[int] | None = None) -> list[int]:
    index = CompletionsIndex(path)
    index.grow()
    chosen = np.arange(len(index)) if rows is None else np.array(rows, np.int64)
    return chosen[rows_with_text(path, index.columns, chosen, text)].tolist()


ALPHABET = 'ab"\\n\n\tu0001f\x1f/ \u00e9\u65e5{}:,'


@settings(deadline=None, max_examples=300)
@given(
    texts=st.lists(st.tuples(st.text(ALPHABET, max_size=12), st.text(ALPHABET, max_size=12)), min_size=1, max_size=6),
    needle=st.text(ALPHABET, min_size=1, max_size=3),
    chunk=st.integers(1, 2000),
)
def test_as_in_the_parsed_texts(
    texts: list[tuple[str, str]], needle: str, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "completions.jsonl"
    write(path, [completion_line(question=question, completion=completion) for question, completion in texts])
    expected = [row for row, pair in enumerate(texts) if any(needle in text for text in pair)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_search, "CHUNK", chunk)
        assert search(path, needle) == expected


@pytest.mark.parametrize(
    "needle, text, found",
    [
        ("AREA", "the area", True),
        ("area", "The AREA", True),
        ("Ответ", "ответ", True),
        ("ответ", "ОТВЕТ", True),  # noqa: RUF001
        ("ответ", "Ответ", True),
        ("答案", "所以答案是三", True),
        ("\\boxed{3}", "so \\boxed{3}.", True),
        ('say "x"', 'I say "X" now', True),
        ("nthe", "line\nthe next", False),
        ("e\nt", "line\nthe next", True),
        ("b\\n", "a\\b\\nu", True),
        ("problems", "no such word in the texts", False),
        ("stopped", "nor this", False),
    ],
)
def test_what_is_found(tmp_path: Path, needle: str, text: str, found: bool) -> None:
    path = write(tmp_path / "completions.jsonl", [completion_line(completion=text)])
    assert search(path, needle) == [0] * found


def test_escaped_as_other_programs_write(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_bytes(b'{"step":0,"completion":"so \\u7b54\\u6848"}\n{"step":0,"completion":"none"}\n')
    assert search(path, "\u7b54\u6848") == [0]
    assert search(path, "7b54") == []


def test_only_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    lines = [completion_line(completion="word" if row % 2 else "other") for row in range(9)]
    path = write(tmp_path / "completions.jsonl", lines)
    assert search(path, "word") == [1, 3, 5, 7]
    assert search(path, "word", [0, 3, 4, 8]) == [3]
    assert search(path, "word", [0, 2]) == []
    assert search(path, "word", []) == []
