"""The small files of a run, followed as they grow."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from lcot_plugin.errors import DataError
from lcot_plugin.integration.board import following
from lcot_plugin.integration.board.following import FollowedRun, GrowingFile, followed_run
from lcot_plugin.report.run_log import ALARMS_FILE, METRICS_FILE, PROGRESS_FILE, RUN_FILE, StepLog, write_json


def write(path: Path, *lines: Any, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MIN_SECONDS", 0.0)


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / METRICS_FILE
    write(path, {"step": 1}, {"step": 2})
    file = GrowingFile(path)
    file.update()
    parsed: list[bytes] = []
    original = file._parsed
    monkeypatch.setattr(file, "_parsed", lambda line: (parsed.append(line), original(line))[1])
    version = file.version
    file.update()
    assert (parsed, file.version) == ([], version)
    write(path, {"step": 3, "kl": "NaN"})
    file.update()
    assert len(parsed) == 1
    assert [line["step"] for line in file.lines] == [1, 2, 3]
    assert math.isnan(file.lines[-1]["kl"])
    assert file.version != version


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 1}\n{"step": 2, "a": "\xc3')
    file = GrowingFile(path)
    file.update()
    assert [line["step"] for line in file.lines] == [1]
    with path.open("ab") as opened:
        opened.write(b'\xa9"}\n')
    file.update()
    assert file.lines[1] == {"step": 2, "a": "é"}


def test_a_resumed_run_takes_lines_back(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    write(path, *({"step": step, "run": 1} for step in range(1, 6)))
    file = GrowingFile(path)
    file.update()
    log = StepLog(path)
    log.drop_from_step(3)
    log.write({"step": step, "run": 2} for step in range(3, 9))  # longer than before: only the contents tell
    file.update()
    assert [(line["step"], line["run"]) for line in file.lines] == [
        (1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2)
    ]  # fmt: skip


def test_a_replaced_and_a_removed_file(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    write(path, {"step": 1}, {"step": 2})
    file = GrowingFile(path)
    file.update()
    write(tmp_path / "other", {"step": 7}, mode="w")
    os.replace(tmp_path / "other", path)
    file.update()
    assert file.lines == [{"step": 7}]
    path.unlink()
    file.update()
    assert file.lines == []


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text("{oh\n")
    with pytest.raises(DataError, match=METRICS_FILE):
        GrowingFile(path).update()
    run = FollowedRun(tmp_path)
    run.look()
    assert METRICS_FILE in run.error
    path.unlink()
    run.look()
    assert run.error == ""


def test_charts_are_drawn_once_for_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / RUN_FILE, {"format": 1, "stage": "grpo"})
    write(tmp_path / METRICS_FILE, {"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2})
    drawn: list[int] = []
    original = following.run_panels
    monkeypatch.setattr(
        following, "run_panels", lambda metrics, *a, **k: (drawn.append(len(metrics)), original(metrics, *a, **k))[1]
    )
    run = followed_run(tmp_path)
    assert followed_run(tmp_path / ".") is not None
    for _ in range(3):
        run.look()
        _, panels = run.panels()
    assert drawn == [2]
    assert panels and "<svg" in panels[0].svg
    write(tmp_path / METRICS_FILE, {"step": 3, "reward": 0.3})
    write(tmp_path / ALARMS_FILE, {"step": 3, "name": "zero_variance", "message": "m", "advice": None})
    run.look()
    run.panels()
    assert drawn == [2, 3]
    assert followed_run(tmp_path) is run


def test_a_run_that_draws_slowly_is_drawn_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / METRICS_FILE, {"step": 1, "reward": 0.1})
    write_json(tmp_path / PROGRESS_FILE, {"state": "running", "pid": os.getpid()})
    now = [100.0]
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])

    def slow(metrics: list[Any], *_: Any, **__: Any) -> list[Any]:
        now[0] += 1.0
        return [len(metrics)]

    monkeypatch.setattr(following, "run_panels", slow)
    run = FollowedRun(tmp_path)
    run.look()
    assert run.panels()[1] == [1]
    write(tmp_path / METRICS_FILE, {"step": 2, "reward": 0.1})
    run.look()
    assert run.panels()[1] == [1]
    now[0] += 20.0
    assert run.panels()[1] == [2]
    write(tmp_path / METRICS_FILE, {"step": 3, "reward": 0.1})
    write_json(tmp_path / PROGRESS_FILE, {"state": "finished"})
    run.look()
    assert run.panels()[1] == [3], "what a finished run wrote last is shown"


def test_an_older_run_is_drawn_from_its_log(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", {"current_steps": 5, "total_steps": 10, "loss": 0.5, "lr": 1e-4})
    run = FollowedRun(tmp_path)
    run.look()
    assert run.metrics[0]["step"] == 5
    assert run.state is None
