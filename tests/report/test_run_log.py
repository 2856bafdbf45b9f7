import errno
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.report.run_log import (
    StepLog,
    iterate_json_lines,
    metric_line,
    read_json,
    read_json_lines,
    read_metrics,
    write_json,
)

# --- lines ------------------------------------------------------------------------------------------------------------


def test_there_is_nothing_in_a_file_that_is_not_there(tmp_path):
    assert read_json_lines(tmp_path / "metrics.jsonl") == []


def test_a_file_is_read_up_to_the_line_that_is_being_written(tmp_path):
    """Cut at every byte, inside characters too: what is whole is read, and nothing else."""
    path = tmp_path / "alarms.jsonl"
    lines = [{"step": 1, "message": "√2 答案"}, {"step": 2, "message": "it is 3\u2028 or so"}]
    StepLog(path).write(lines)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        expected = lines[: (end >= first - 1) + (end >= len(whole) - 1)]  # the newline itself may be missing
        assert read_json_lines(path) == expected, whole[:end]


def test_half_a_number_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n12')
    assert read_json_lines(path) == [{"step": 1}]


@pytest.mark.parametrize("line", [b'{"step": 1', b"\xff\xfe", b"[1]", b"3", b"\x00\x00\x00"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 .*Remove the line"):
        read_json_lines(path)


def test_lines_come_one_at_a_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\n{"step": 1}\nbroken\n')
    lines = iterate_json_lines(path)
    assert [next(lines), next(lines)] == [{"step": 0}, {"step": 1}]
    with pytest.raises(DataError, match="line 4"):
        next(lines)


# --- metrics ----------------------------------------------------------------------------------------------------------


class Scalar:
    """As a tensor of one number."""

    def __float__(self):
        return 0.5


def test_every_number_of_a_log_is_kept_and_nothing_else():
    logs = {"loss": 0.25, "epoch": 0.5, "num": 3, "flag": True, "scalar": Scalar(), "text": "1.0", "none": None}
    logs |= {"list": [1.0], "bytes": b"1", "step": 99}
    assert metric_line(7, 12.3456, logs) == {
        **{"step": 7, "epoch": 0.5, "time": 12.346},
        **{"loss": 0.25, "num": 3, "flag": 1, "scalar": 0.5},
    }


def test_numbers_that_are_not_finite_come_back_and_the_file_is_json(tmp_path):
    log = StepLog(tmp_path / "metrics.jsonl")
    logs = {"loss": math.nan, "kl": math.inf, "grad_norm": -math.inf, "reward": 0.0}
    log.write([metric_line(1, 0.0, logs)])

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads(log.path.read_text(), parse_constant=refuse)
    (line,) = read_metrics(log.path)
    assert math.isnan(line["loss"]) and line["kl"] == math.inf and line["grad_norm"] == -math.inf
    assert line["reward"] == 0.0 and line["epoch"] is None


# --- what a resumed run takes back ------------------------------------------------------------------------------------


@given(steps=st.lists(st.integers(0, 9), max_size=20).map(sorted), at=st.integers(0, 10), cut=st.booleans())
def test_lines_of_later_steps_go_and_earlier_ones_stay_as_they_are(steps, at, cut, tmp_path_factory):
    log = StepLog(tmp_path_factory.mktemp("run") / "alarms.jsonl")
    log.write({"step": step, "number": number} for number, step in enumerate(steps))
    if cut:
        with log.path.open("ab") as file:
            file.write(b'{"step": 0, "numb')
    log.drop_from_step(at)
    kept = [{"step": step, "number": number} for number, step in enumerate(steps) if step < at]
    assert log.path.read_text() == "".join(json.dumps(line) + "\n" for line in kept)


def test_lines_are_kept_by_what_they_say(tmp_path):
    log = StepLog(tmp_path / "metrics.jsonl")
    log.write([{"step": 2}, {"step": 1}, {"step": 3}])
    with log.path.open("ab") as file:
        file.write(b'{"step": 1, "lo')
    log.keep(lambda line: line["step"] < 3)
    assert log.path.read_text() == '{"step": 2}\n{"step": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    StepLog(tmp_path / "none.jsonl").keep(lambda line: True)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("broken", [b"\x00\x00\n", b'{"no_step": 1}\n', b'{"step": "a"}\n', b"[]\n"])
def test_a_line_that_cannot_be_read_is_dropped_and_said(tmp_path, broken):
    """A power cut may leave zeros where a line was."""
    warned = []
    log = StepLog(tmp_path / "metrics.jsonl", warned.append)
    log.path.write_bytes(b'{"step": 0}\n' + broken + b'{"step": 1}\n')
    log.keep(lambda line: True)
    assert log.path.read_text() == '{"step": 0}\n{"step": 1}\n'
    log.path.write_bytes(b'{"step": 0}\n' + broken + b'{"step": 1}\n')
    log.drop_from_step(5)
    assert log.path.read_text() == '{"step": 0}\n'
    assert len(warned) == 2 and all("metrics.jsonl, line 2 cannot be read" in text for text in warned)


def test_of_several_lines_none_is_written_where_one_cannot_be(tmp_path):
    log = StepLog(tmp_path / "run" / "metrics.jsonl")
    log.write([{"step": 0}])

    def lines():
        yield {"step": 1}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        log.write(lines())
    assert log.path.read_text() == '{"step": 0}\n'


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "run" / "progress.json"
    assert read_json(path) is None
    write_json(path, {"state": "läuft"})
    assert read_json(path) == {"state": "läuft"}

    def full(self, text, **_):
        self.write_bytes(text.encode()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError):
        write_json(path, {"state": "finished"})
    assert read_json(path) == {"state": "läuft"}
    assert [item.name for item in path.parent.iterdir()] == ["progress.json"], "no half file is left"


@pytest.mark.parametrize("contents", [b'{"state": ', b"\xff", b"[1, 2]", b""])
def test_a_file_that_is_none_of_ours_is_named(tmp_path, contents):
    (tmp_path / "run.json").write_bytes(contents)
    with pytest.raises(DataError, match=r"run\.json .*Remove it"):
        read_json(tmp_path / "run.json")


# --- what nobody expects ----------------------------------------------------------------------------------------------


def test_half_a_character_in_a_name_is_written_and_read(tmp_path):
    line = {"step": 1, "message": "/data/\udcff.png: 答案"}
    StepLog(tmp_path / "alarms.jsonl").write([line])
    assert read_json_lines(tmp_path / "alarms.jsonl") == [line]
    write_json(tmp_path / "progress.json", line)
    assert read_json(tmp_path / "progress.json") == line


@pytest.mark.parametrize("half", ['{"st', '{"step": 9', "x" * 200_000])
@pytest.mark.parametrize("before", [[], [{"step": 1}, {"step": 2}]])
def test_a_line_is_not_written_on_into_what_a_kill_has_left(tmp_path, half, before):
    path = tmp_path / "metrics.jsonl"
    StepLog(path).write(before)
    with path.open("a") as file:
        file.write(half)
    log = StepLog(path)
    log.write([{"step": 0}])
    log.write([{"step": 3}])
    assert read_json_lines(path) == [*before, {"step": 0}, {"step": 3}]


class Several:
    """As a tensor with several numbers."""

    def __float__(self):
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")


def test_what_is_no_single_number_is_left_out():
    assert metric_line(1, 0.0, {"loss": 0.5, "losses": Several()}) == {"step": 1, "epoch": None, "time": 0, "loss": 0.5}
