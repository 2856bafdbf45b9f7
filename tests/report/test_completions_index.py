"""The index is that of the file as it is: growing, cut short, written anew, with a saved index that may not fit."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_lines import append, completion_line, write, written

from lcot_plugin.errors import LcotError
from lcot_plugin.report import completions_index
from lcot_plugin.report.completions_index import CompletionsIndex, parse_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "completions.jsonl"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lines straddle blocks, and indexes are saved."""
    monkeypatch.setattr(completions_index, "BLOCK", 1000)
    monkeypatch.setattr(completions_index, "MIN_SAVED", 1)


def index_of(path: Path) -> CompletionsIndex:
    index = CompletionsIndex(path)
    index.grow()
    return index


def assert_same(index: CompletionsIndex, other: CompletionsIndex) -> None:
    """Names may have been numbered in another order."""
    assert (index.start, index.end) == (other.start, other.end)
    assert index.columns.keys() == other.columns.keys()
    for name, column in index.columns.items():
        if name in index.names:
            texts = [[names.names[name][code] for code in names.columns[name]] for names in (index, other)]
            assert texts[0] == texts[1], name
        else:
            np.testing.assert_array_equal(column, other.columns[name], name)


def lines_of(path: Path, index: CompletionsIndex) -> list[Any]:
    contents = path.read_bytes()
    places = zip(index.columns["offset"].tolist(), index.columns["size"].tolist(), strict=True)
    return [json.loads(contents[offset : offset + size]) for offset, size in places]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_columns(path: Path) -> None:
    lines = [
        completion_line(4, 0, 1.0, group=7, record=3),
        completion_line(4, "greedy", None, source="", outcome="timed_out", rewards={"format": 0.5, "accuracy": None}),
        {"step": 5, "completion": "x"},
    ]
    index = index_of(write(path, lines))
    columns = index.columns
    assert columns["step"].tolist() == [4, 4, 5]
    assert columns["sample"].tolist() == [0, 0, -1]
    assert columns["group"].tolist() == [7, -1, -1]
    assert columns["record"].tolist() == [3, 0, -1]
    assert [index.names["source"][code] for code in columns["source"]] == ["problems", "", ""]
    assert [index.names["outcome"][code] for code in columns["outcome"]] == ["matched", "timed_out", ""]
    np.testing.assert_array_equal(columns["reward"], [1.0, math.nan, math.nan])
    np.testing.assert_array_equal(columns["reward/accuracy"], [1.0, math.nan, math.nan])
    np.testing.assert_array_equal(columns["reward/format"], [math.nan, 0.5, math.nan])
    assert lines_of(path, index) == lines


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ['", "', '"completion": "', '\\", "completion": "', "\\", '"', '"}', '","completion":"', "\\\\"]
)


@settings(deadline=None, max_examples=200)
@given(question=TEXTS, completion=TEXTS, compact=st.booleans(), last=st.booleans())
def test_the_places_of_texts(question: str, completion: str, compact: bool, last: bool) -> None:
    """Whatever they hold, and however the line is written."""
    values = {"step": 1, "question": question, "completion": completion, "ending": "stopped"}
    if last:
        values.pop("ending")
    line = json.dumps(values, ensure_ascii=False, separators=(",", ":") if compact else None).encode()
    for key in (b"question", b"completion"):
        start, end = completions_index._text_range(line, key)
        assert json.loads(b'"' + line[start:end] + b'"') == values[key.decode()]


def test_what_only_pythons_reader_takes() -> None:
    """json.dumps writes NaN, and one half of a surrogate pair."""
    values = parse_line(json.dumps({"reward": math.nan, "completion": "\ud800", "n": 1 << 70}).encode())
    assert math.isnan(values["reward"]) and values["completion"] == "\ud800" and values["n"] == 1 << 70


@pytest.mark.parametrize(
    "line, what",
    [
        (b"not json", "is no JSON"),
        (b'{"step": 1, "completion": "\xff"}', "is no JSON"),
        (b"[1]", "whole number `step`"),
        (b'{"completion": "x"}', "whole number `step`"),
        (b'{"step": true, "completion": "x"}', "whole number `step`"),
        (b'{"step": -1, "completion": "x"}', "whole number `step`"),
        (b'{"step": 1e3, "completion": "x"}', "whole number `step`"),
        (b'{"step": 9' + b"9" * 40 + b', "completion": "x"}', "whole number `step`"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"step": 1}', "no text `completion`"),
        (b'{"step": 1, "completion": "x", "rewards": [1]}', "no object of numbers"),
        (b'{"step": 1, "completion": "x", "source": 3}', "source, outcome, ending"),
    ],
)
def test_a_line_that_is_no_completion_is_named(path: Path, line: bytes, what: str) -> None:
    path.write_bytes(written([completion_line()] * 2) + line + b"\n" + written([completion_line()]))
    index = CompletionsIndex(path)
    for _ in range(2):  # nothing is passed over the second time
        with pytest.raises(LcotError, match=rf"completions\.jsonl, line 3: .*{what}"):
            index.grow()


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_line_far_from_the_end(path: Path) -> None:
    path.write_bytes(written([completion_line()] * 3) + b"{\n" + written([completion_line()] * 20))
    index = CompletionsIndex(path)
    with pytest.raises(LcotError, match=r"line 4: is no JSON"):
        while index.grow(0):
            pass
    with pytest.raises(LcotError, match=r"line 4: is no JSON"):
        index.grow()


def test_numbers_that_are_too_large(path: Path) -> None:
    """Whatever stands for them, nothing is lost but they."""
    huge = 10**400
    index = index_of(write(path, [completion_line(sample=huge, record=huge, reward=huge, rewards={"a": huge})]))
    assert index.columns["sample"].tolist() == index.columns["record"].tolist() == [-1]
    assert math.isnan(index.columns["reward"][0]) and math.isnan(index.columns["reward/a"][0])


def test_a_file_that_does_not_exist(path: Path) -> None:
    with pytest.raises(LcotError, match="grpo_log_completions"):
        index_of(path)


# --- a file that grows ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LcotError, match="cannot be read"):
        CompletionsIndex(path).grow()


def test_every_cut_of_a_file_is_read_up_to_its_last_line(path: Path) -> None:
    lines = [completion_line(0, 0), completion_line(1, 1, completion="√2" * 400)]
    whole = written(lines)
    first = whole.index(b"\n") + 1
    for end in (0, 1, first - 1, first, first + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:end])
        path.with_name(".completions.jsonl.index.npz").unlink(missing_ok=True)
        assert lines_of(path, index_of(path)) == lines[: whole[:end].count(b"\n")]


@pytest.mark.usefixtures("small_blocks")
def test_following_a_file_is_reading_it_at_once(path: Path) -> None:
    generator = random.Random(0)
    lines = [
        completion_line(step, step % 3, step % 2, source=f"set {step % 5}", completion="x" * generator.randrange(3000))
        for step in range(60)
    ]
    lines[40]["rewards"] = {"late": 2.0}
    whole = written(lines)
    following = CompletionsIndex(path)
    cuts = sorted(generator.sample(range(len(whole)), 12))
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        with path.open("ab") as file:
            file.write(whole[start:end])
        following.grow()
    assert not following.grow()
    path.with_name(".completions.jsonl.index.npz").unlink()
    assert_same(following, index_of(path))
    assert lines_of(path, following) == lines


@pytest.mark.usefixtures("small_blocks")
def test_the_end_of_a_file_first(path: Path) -> None:
    lines = [completion_line(step, completion="x" * 700) for step in range(20)]
    index = CompletionsIndex(write(path, lines))
    assert index.grow(0) and not index.complete and 0 < index.share < 1
    part = lines_of(path, index)
    assert part == lines[-len(part) :]
    append(path, [completion_line(20)])
    while index.grow(0):
        part = lines_of(path, index)
        assert part[-1]["step"] == 20
    assert index.complete and index.share == 1
    assert [line["step"] for line in part] == list(range(21))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("keep", [0, 5, 10, 20])
def test_a_resumed_run_writes_lines_anew(path: Path, keep: int) -> None:
    """As many lines as before, or more: only what they hold tells."""
    old = [completion_line(step, completion="old" * 50) for step in range(20)]
    index = index_of(write(path, old))
    new = [*old[:keep], *(completion_line(step, completion="new" * 50) for step in range(keep, 25))]
    write(path.with_suffix(".tmp"), new).replace(path)
    index.grow()
    assert lines_of(path, index) == new
    assert lines_of(path, index_of(path)) == new


def test_an_empty_file(path: Path) -> None:
    path.touch()
    index = CompletionsIndex(path)
    assert len(index) == 0
    index.grow()
    assert index.complete and index.share == 1
    append(path, [completion_line()])
    index.grow()
    assert len(index) == 1


# --- the saved index --------------------------------------------------------------------------------------------------


def without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(completions_index, "parse_line", read)


@pytest.mark.usefixtures("small_blocks")
def test_a_saved_index_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = index_of(write(path, [completion_line(step, rewards={"a": 1.0}) for step in range(9)]))
    with monkeypatch.context() as patch:
        without_reading(patch)
        loaded = index_of(path)
    assert_same(loaded, made)
    append(path, [completion_line(9, source="another", rewards={"a": 0.0, "/../b\0": 2.0})] * 3)
    loaded = index_of(path)
    assert loaded.columns["step"].tolist() == [*range(10), 9, 9]
    assert loaded.names["source"] == ["", "problems", "another"]
    without_reading(monkeypatch)
    assert index_of(path).columns["reward/a"].tolist() == [1.0] * 9 + [0.0] * 3
    np.testing.assert_array_equal(index_of(path).columns["reward//../b\0"], [math.nan] * 9 + [2.0] * 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("what", ["contents", "size", "time", "format", "damaged", "method", "cut", "text", "empty"])
def test_a_saved_index_that_does_not_fit_is_ignored(path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [completion_line(step) for step in range(9)]
    index = index_of(write(path, lines))
    time = path.stat().st_mtime_ns
    saved = index.saved_path
    match what:
        case "contents":
            lines[4]["step"] = 8
            write(path, lines)
            os.utime(path, ns=(time + 1, time + 1))
        case "size":
            lines = lines[:5]
            write(path, lines)
            os.utime(path, ns=(time, time))
        case "time":
            os.utime(path, ns=(time + 1, time + 1))
        case "format":
            with monkeypatch.context() as patch:
                patch.setattr(completions_index, "FORMAT", 99)
                saved.unlink()
                index_of(path)
        case "damaged":
            contents = bytearray(saved.read_bytes())
            contents[len(contents) // 3 : len(contents) // 2] = b"\xff" * (len(contents) // 2 - len(contents) // 3)
            saved.write_bytes(contents)
        case "method":  # of compression, in the directory at the end: one that nobody has
            contents = bytearray(saved.read_bytes())
            contents[contents.rindex(b"PK\x01\x02") + 10] = 77
            saved.write_bytes(contents)
        case "cut":
            saved.write_bytes(saved.read_bytes()[:-20])
        case "text":
            saved.write_text("an index", encoding="utf-8")
        case "empty":
            saved.write_bytes(b"")
    num_read = []
    real = completions_index.parse_line
    monkeypatch.setattr(completions_index, "parse_line", lambda line: (num_read.append(1), real(line))[1])
    assert lines_of(path, index_of(path)) == lines
    assert len(num_read) == len(lines)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_who_may_read_the_completions_may_read_the_index(path: Path, mode: int) -> None:
    write(path, [completion_line()])
    path.chmod(mode)
    assert index_of(path).saved_path.stat().st_mode & 0o777 == mode


def test_a_small_file_has_no_saved_index(path: Path) -> None:
    index_of(write(path, [completion_line()]))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.usefixtures("small_blocks")
def test_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(completions_index.tempfile, "mkstemp", refuse)
    assert len(index_of(write(path, [completion_line()]))) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def build(path: Path, barrier: Any) -> None:
    completions_index.BLOCK, completions_index.MIN_SAVED = 1000, 1
    index = CompletionsIndex(path)
    barrier.wait()
    index.grow()
    assert len(index) == 200


def test_two_processes_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [completion_line(step) for step in range(200)])
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=build, args=(path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".completions.jsonl.index.npz", path.name]
    without_reading(monkeypatch)
    assert len(index_of(path)) == 200
