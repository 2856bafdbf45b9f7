"""The live view: what a page is sent, when, and in which words."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcot_plugin.integration.board import following, live
from lcot_plugin.integration.board.failure import Failure
from lcot_plugin.integration.board.live import Shown, changes, duration, seconds_of
from lcot_plugin.integration.board.process import STDERR_FILE, BoardRun, Ending
from lcot_plugin.report.run_log import ALARMS_FILE, METRICS_FILE, PROGRESS_FILE, RUN_FILE, write_json

LANGUAGES = ("en", "ru", "zh", "ko", "ja")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(following, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(following, "DRAWING_SHARE", 1e9)
    monkeypatch.chdir(tmp_path)


def engine(run: BoardRun | None = None) -> Any:
    return SimpleNamespace(runner=SimpleNamespace(_lcot_run=run))


def own_run(folder: Path, **changed: Any) -> BoardRun:
    process = SimpleNamespace(poll=lambda: None, pid=os.getpid())
    values = dict(process=process, folder=folder, lang="en", trains=True, arguments={"stage": "grpo"})
    return BoardRun(**{**values, **changed})


def write_run(folder: Path, *, state: str = "running", steps: int = 3, **progress: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_FILE, {"format": 1, "stage": "grpo"})
    lines = [{"step": step, "reward": step / 10, "loss": 0.1} for step in range(1, steps + 1)]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = {"state": state, "step": steps, "max_steps": 10, "pid": os.getpid(), "updated": time.time(), "phase": None}
    write_json(folder / PROGRESS_FILE, {**said, **progress})
    return folder


def is_skip(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1


def test_a_page_is_sent_everything_once_and_then_what_changes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page, status, alarms, panels, *_ = changes(engine(), Shown(), str(folder), "en")
    assert "Running" in status and "step 3 of 10" in status and "<progress" in status
    assert "<svg" in panels
    assert is_skip(alarms), "there are none, and there were none"
    assert all(map(is_skip, changes(engine(), page, str(folder), "en")))

    write_json(folder / PROGRESS_FILE, {"state": "running", "step": 4, "max_steps": 10, "pid": os.getpid()})
    page, status, alarms, panels, *_ = changes(engine(), page, str(folder), "en")
    assert "step 4 of 10" in status
    assert is_skip(panels)

    with (folder / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "reward": 0.4}\n')
    (folder / ALARMS_FILE).write_text('{"step": 4, "name": "n", "message": "<b>bad", "advice": "do this"}\n')
    page, status, alarms, panels, *_ = changes(engine(), page, str(folder), "en")
    assert is_skip(status)
    assert "&lt;b&gt;bad do this" in alarms
    assert "<svg" in panels


def test_a_reloaded_page_and_a_second_one_are_sent_everything(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = changes(engine(), Shown(), str(folder), "en")
    second = changes(engine(), Shown(), str(folder), "en")
    assert first[1:] == second[1:]
    assert all(map(is_skip, changes(engine(), first[0], str(folder), "en")))


def test_another_run_and_another_language_are_shown_at_once(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", steps=7)
    page, *_ = changes(engine(), Shown(), str(one), "en")
    page, status, _, panels, *_ = changes(engine(), page, str(two), "en")
    assert "step 7 of 10" in status and "<svg" in panels
    status = changes(engine(), page, str(two), "zh")[1]
    assert "运行中" in status


def test_without_a_run_it_says_what_to_do() -> None:
    page, status, alarms, *_ = changes(engine(), Shown(), "", "en")
    assert "Press Start" in status
    assert is_skip(alarms)
    assert all(map(is_skip, changes(engine(), page, "", "en")))


def test_a_run_that_goes_on_while_the_board_was_restarted_is_followed(tmp_path: Path) -> None:
    write_run(tmp_path / "saves/m/full/old", state="finished")
    folder = write_run(tmp_path / "saves/m/full/now")
    page, status, *_ = changes(engine(), Shown(), "", "en")
    assert page.folder is not None and page.folder.absolute() == folder
    assert f"kill {os.getpid()}" in status
    write_json(folder / PROGRESS_FILE, {"state": "finished", "step": 10, "max_steps": 10})
    status = changes(engine(), page, "", "en")[1]
    assert "Finished" in status and "kill" not in status, "it stays on the page"


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        ({"stage": "grpo", "trains": True}, True),
        ({"stage": "sft", "trains": True, "arguments": {"length_aware_packing": True}}, True),
        ({"stage": "sft", "trains": True, "arguments": {"length_aware_packing": False}}, False),
        ({"stage": "grpo", "trains": False}, False),
        ({"stage": "sft", "arguments": "none"}, False),
    ],
)
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_checkpoint_is_promised_only_where_one_is_written(
    tmp_path: Path, record: dict[str, Any], kept: bool, lang: str
) -> None:
    folder = write_run(tmp_path / "run")
    write_json(folder / RUN_FILE, {"format": 1, **record})
    status = changes(engine(), Shown(), str(folder), lang)[1]
    said, other = ("live_elsewhere", "live_elsewhere_at_once")[:: 1 if kept else -1]
    assert live.text(said, lang, pid=os.getpid(), where="") in status
    assert live.text(other, lang, pid=os.getpid(), where="") not in status


def test_the_name_of_the_board_s_own_run_is_no_folder() -> None:
    names = live.SENTENCES["live_own"]
    assert [live.chosen_folder(name) for name in (None, live.OWN_RUN, *names)] == [""] * (2 + len(names))
    assert live.chosen_folder("saves/run") == "saves/run"


def test_a_killed_run_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", pid=2**22 + 1, remaining_seconds=70.0)
    status = changes(engine(), Shown(), str(folder), "en")[1]
    assert 'data-state="killed"' in status
    assert "about 1 min" not in status


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("state", ["loading", "running", "stopping", "finished", "stopped", "failed"])
def test_every_state_has_words_in_every_language(tmp_path: Path, state: str, lang: str) -> None:
    progress = {"phase": "rollout", "phase_done": 3, "phase_total": 8, "seconds_per_step": 9.5}
    folder = write_run(tmp_path / "run", state=state, remaining_seconds=70.0, message="a <message>", **progress)
    status = changes(engine(), Shown(), str(folder), lang)[1]
    assert f'data-state="{state}"' in status
    assert "a &lt;message&gt;" in status
    assert ("3/8" in status) == (state in live.LIVING)


def test_the_board_s_own_run_before_it_has_written_anything(tmp_path: Path) -> None:
    run = own_run(tmp_path / "saves/new")
    _, status, _, panels, *_ = changes(engine(run), Shown(), "", "en")
    assert 'data-state="starting"' in status
    assert "Nothing has been logged" in panels


def test_what_an_earlier_run_in_the_folder_said_is_not_taken_for_this_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state="stopped", updated=time.time() - 100)
    assert 'data-state="starting"' in changes(engine(own_run(folder)), Shown(), "", "en")[1]
    write_run(folder, state="running", updated=time.time() + 1)
    assert 'data-state="running"' in changes(engine(own_run(folder)), Shown(), "", "en")[1]


def test_abort_is_told_on_every_page(tmp_path: Path) -> None:
    run = own_run(write_run(tmp_path / "run", updated=time.time() + 1))
    run.abort.asked_at = time.monotonic()
    status = changes(engine(run), Shown(), "", "en")[1]
    assert 'data-state="stopping"' in status and "Asked to stop" in status
    run.ending = Ending(143, "Stopped; its checkpoint is there.", "")
    status = changes(engine(run), Shown(), "", "en")[1]
    assert 'data-state="stopped"' in status and "its checkpoint is there" in status


def test_a_run_that_failed_at_the_start_says_why(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run")
    run.ending = Ending(1, "It failed.", "", Failure("the key <x> does not exist", "log"))
    status = changes(engine(run), Shown(), "", "en")[1]
    assert 'data-state="failed"' in status
    assert "the key &lt;x&gt; does not exist" in status


def test_a_run_that_failed_at_the_start_says_why_after_a_restart_of_the_board_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / STDERR_FILE).write_text(
        "words\nTraceback (most recent call last):\n  File 'x'\nValueError: no such <key>\n"
    )
    status = changes(engine(), Shown(), str(folder), "en")[1]
    assert 'data-state="failed"' in status and "no such &lt;key&gt;" in status
    with (folder / STDERR_FILE).open("a") as file:
        file.write("[INFO|2026-11-23] it was caught, and training goes on\n")
    assert 'data-state="unknown"' in changes(engine(), Shown(), str(folder), "en")[1]


def test_the_charts_that_tell_less_are_folded(tmp_path: Path) -> None:
    names = ("reward", "accuracy", "loss", "learning_rate", "grad_norm", "entropy", "kl", "completions/length")
    folder = write_run(tmp_path / "run")
    (folder / METRICS_FILE).write_text(
        "".join(json.dumps({"step": s, **dict.fromkeys(names, s)}) + "\n" for s in (1, 2))
    )
    *_, panels, more, box = changes(engine(), Shown(), str(folder), "en")
    assert panels.count("<svg") == live.FIRST_CHARTS
    assert more.count("<svg") >= 1 and box["visible"]
    assert "Loss" in panels + more


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / PROGRESS_FILE).write_text("{")
    status = changes(engine(), Shown(), str(folder), "en")[1]
    assert "cannot be read" in status and PROGRESS_FILE in status


def test_alarms_are_counted_when_there_are_many() -> None:
    alarms = [{"step": step, "name": "n", "message": f"alarm {step}", "advice": None} for step in range(20)]
    page = live.alarms_html(alarms, "en")
    assert "alarm 19" in page and "alarm 13" not in page
    assert "14 earlier" in page


def test_the_last_word_of_a_quiet_run_is_dated(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", updated=time.time() - 200)
    assert "last sign of life 3 min ago" in changes(engine(), Shown(), str(folder), "en")[1]


def test_choices_are_the_runs_that_are_found(tmp_path: Path) -> None:
    write_run(tmp_path / "saves/m/full/a")
    assert [value for _, value in live.run_choices("ru")] == [live.OWN_RUN, "saves/m/full/a"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (4.23, "4.2 s"), (45.4, "45 s"), (200, "3 min 20 s"), (180, "3 min"), (3000, "50 min"),
     (7500, "2 h 5 min")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_moments() -> None:
    assert seconds_of("1970-01-01T00:01:00Z") == seconds_of("1970-01-01T00:01:00+00:00") == seconds_of(60) == 60.0
    assert seconds_of(None) is seconds_of("soon") is None


@pytest.mark.parametrize("written", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "\ud800"])
def test_what_cannot_be_a_folder_is_told(written: str) -> None:
    _, status, alarms, panels, *_ = changes(engine(), Shown(), written, "en")
    assert "No run yet" not in status and ": " in status
    assert (is_skip(alarms), is_skip(panels)) == (True, True)


@pytest.mark.parametrize("value", [None, True, -1, 10**400, float("nan"), "x", [], [1], {"a": 1}])
@pytest.mark.parametrize("name", [RUN_FILE, PROGRESS_FILE, METRICS_FILE, ALARMS_FILE])
def test_nothing_that_a_file_may_hold_ends_the_view(tmp_path: Path, name: str, value: Any) -> None:
    folder = write_run(tmp_path / "saves/a")
    known = {RUN_FILE: ["stage", "format"], PROGRESS_FILE: list(json.loads((folder / PROGRESS_FILE).read_text()))}
    fields = known.get(name, ["step", "message", "name", "advice", "reward"])
    for content in ({"step": 1, "pid": os.getpid(), field: value} for field in fields):
        (folder / name).write_text(json.dumps(content) + "\n")
        assert "data-state=" in changes(engine(), Shown(), str(folder), "ru")[1]
    (folder / name).write_text(json.dumps(value) + "\n")
    assert "data-state=" in changes(engine(), Shown(), str(folder), "en")[1]
    (folder / name).unlink()
    (folder / name).mkdir()
    assert "data-state=" in changes(engine(), Shown(), str(folder), "en")[1]


def test_charts_speak_the_language_of_the_page(tmp_path: Path) -> None:
    folder = str(write_run(tmp_path / "saves/a"))
    shown, *_, panels, _, _ = changes(engine(), Shown(), folder, "en")
    assert "<b>Reward</b>" in panels
    assert "<b>奖励</b>" in changes(engine(), shown, folder, "zh")[3]
