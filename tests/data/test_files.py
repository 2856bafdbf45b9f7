"""JSON files: every layout gives the same records, whatever the chunks; what is broken is named with its line."""

from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.data import files
from lcot_plugin.data.files import iterate_records
from lcot_plugin.errors import DataError

RECORDS: list[dict[str, Any]] = [
    {"problem": "Ümlaut \u2028 and 漢字 and 🙂", "answer": 3},
    {"nested": {"a": [1, 2.5, None, True]}, "brackets": '}] , [{"'},
    {"escaped": 'line\nbreak \\ "quoted"', "empty": {}},
]

LAYOUTS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str]]] = {
    "lines": ("a.jsonl", lambda records: "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)),
    "lines without the last break": ("a.jsonl", lambda records: "\n".join(json.dumps(r) for r in records)),
    "lines with blanks": ("a.jsonl", lambda records: "\n\n".join(json.dumps(r) for r in records) + "\n \n"),
    "lines of another system": ("a.jsonl", lambda records: "\r\n".join(json.dumps(r) for r in records)),
    "lines called json": ("a.json", lambda records: "".join(json.dumps(r) + "\n" for r in records)),
    "array": ("a.json", lambda records: json.dumps(records, ensure_ascii=False)),
    "indented array": ("a.json", lambda records: json.dumps(records, indent=4) + "\n\n"),
    "array after blanks": ("a.json", lambda records: "\n\n  " + json.dumps(records)),
    "array called jsonl": ("a.jsonl", json.dumps),
    "wrapped": ("a.json", lambda records: json.dumps({"data": records})),
    "wrapped and more": ("a.json", lambda records: json.dumps({"records": records, "version": [1, "}"]}, indent=1)),
    "wrapped after more": ("a.json", lambda records: json.dumps({"version": 1, "samples": records})),
    "indented objects": ("a.json", lambda records: "\n".join(json.dumps(r, indent=2) for r in records)),
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(iterate_records(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    name, written = LAYOUTS[layout]
    assert list(iterate_records(write(tmp_path / name, written(RECORDS)))) == RECORDS


@pytest.mark.parametrize("layout", ["lines", "array", "wrapped", "lines called json"])
def test_byte_order_mark_and_gzip(layout: str, tmp_path: Path) -> None:
    name, written = LAYOUTS[layout]
    marked = b"\xef\xbb\xbf" + written(RECORDS).encode()
    assert list(iterate_records(write(tmp_path / name, marked))) == RECORDS
    assert list(iterate_records(write(tmp_path / f"{name}.gz", gzip.compress(marked)))) == RECORDS


@pytest.mark.parametrize("text", ["", "\n \n", "[]", "[ \n]", "\ufeff"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_files_without_records(name: str, text: str, tmp_path: Path) -> None:
    assert list(iterate_records(write(tmp_path / name, text))) == []


def test_one_object_is_one_record(tmp_path: Path) -> None:
    record = {"data": "not a list", "records": [1, 2]}
    assert list(iterate_records(write(tmp_path / "a.json", json.dumps(record)))) == [record]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_not_a_number_and_infinity(name: str, tmp_path: Path) -> None:
    text = '{"a": NaN, "b": -Infinity}' if name == "a.jsonl" else '[{"a": NaN, "b": -Infinity}]'
    (record,) = iterate_records(write(tmp_path / name, text))
    assert math.isnan(record["a"])
    assert record["b"] == -math.inf


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
records = st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), max_size=5)


@given(records, st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_any_records_in_any_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    chunk: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        text = json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode()
        path = write(tmp_path_factory.mktemp("files") / "a.json", text)
        assert list(iterate_records(path)) == records


def test_records_come_before_a_broken_one(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"a": 1}\n{"a": 2}\n{"a": \n'), ("a.json", '[{"a": 1},\n{"a": 2},\n{"a": ]')):
        stream = iterate_records(write(tmp_path / name, text))
        assert [next(stream), next(stream)] == [{"a": 1}, {"a": 2}]
        with pytest.raises(DataError, match=r"line 3: not JSON \(Expecting value"):
            next(stream)


@pytest.mark.parametrize("chunk", [1, 8, 1 << 20])
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": 1} x\n', "line 3: not JSON (Extra data"),
        ("a.jsonl", '{"a": 1}\n{"a": "cut', "line 2: not JSON (Unterminated string"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2: a record is a list; expected an object"),
        ("a.jsonl", '{"a": 1}\n"text"\n', "line 2: a record is a str"),
        ("a.json", '[{"a": 1},\n {"a": 2},\n {"a": "cut', "line 3: not JSON (Unterminated string"),
        ("a.json", '[{"a": 1},\n {"a": 2}', "line 2: not JSON (the array is not closed: the file is cut off)"),
        ("a.json", '[{"a": 1},\n', "the array is not closed"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "line 2: not JSON (expected ',' or ']' between records, not '{')"),
        ("a.json", '[{"a": 1},\n\n{"a" 2}]', "line 3: not JSON (Expecting ':' delimiter)"),
        ("a.json", '[{"a": 1},\n3]', "line 2: a record is a int"),
        ("a.json", '[{"a": 1}]\n{"a": 2}', "line 2: not JSON (more follows after the records)"),
        ("a.json", '{"data": [{"a": 1}]\n', "the object around the records is not closed"),
        ("a.json", '{"data": [{"a": 1}]}\n{"data": []}', "line 2: not JSON (more follows after the records)"),
        ("a.json", '{"data": [{"a": 1}], "v": ', "not JSON (Expecting value)"),
        ("a.json", "hello", "line 1: not JSON (Expecting value)"),
    ],
)
def test_broken_files(
    name: str, text: str, said: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    assert said in error_of(write(tmp_path / name, text))


def test_deep_nesting_is_an_error_with_a_line(tmp_path: Path) -> None:
    deep = '{"a": ' + "[" * 200_000
    assert "line 2: not JSON" in error_of(write(tmp_path / "a.jsonl", "{}\n" + deep))
    assert "line 2: not JSON" in error_of(write(tmp_path / "a.json", "[{},\n" + deep))


def test_other_encodings(tmp_path: Path) -> None:
    latin = '{"a": 1}\n{"a": "é"}\n'.encode("latin-1")
    assert "line 2 or below: not UTF-8" in error_of(write(tmp_path / "a.jsonl", latin))
    assert "not UTF-8" in error_of(write(tmp_path / "a.json", b"[" + latin))
    assert "not UTF-8" in error_of(write(tmp_path / "b.jsonl", '{"a": 1}'.encode("utf-16")))


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz"])
def test_gzip_that_is_none_or_cut_off(name: str, tmp_path: Path) -> None:
    text = json.dumps(RECORDS * 100) if name == "a.json.gz" else f"{json.dumps(RECORDS[0])}\n" * 100
    assert "is not a whole gzip file" in error_of(write(tmp_path / name, gzip.compress(text.encode())[:-20]))
    assert "is not a whole gzip file" in error_of(write(tmp_path / name, b"[{}]"))


@pytest.mark.parametrize("layout", ["array", "wrapped", "lines", "lines called json"])
def test_memory_is_that_of_a_few_chunks(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1 << 14)
    name, written = LAYOUTS[layout]
    path = write(tmp_path / name, written([{"text": "x" * 1000, "number": n} for n in range(5000)]))
    tracemalloc.start()
    try:
        assert sum(1 for _ in iterate_records(path)) == 5000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000 < path.stat().st_size / 5


def test_a_broken_record_does_not_make_the_rest_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1 << 10)
    path = write(tmp_path / "a.json", '[{"a": oops},' + '{"a": "xxxxxxxxxxxxx"},' * 100_000 + "{}]")
    tracemalloc.start()
    try:
        assert "line 1: not JSON (Expecting value)" in error_of(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000
