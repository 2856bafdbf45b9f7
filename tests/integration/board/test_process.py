"""The Board's process: real processes that stand in for a training, followed as the Board's pages follow them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from lcot_plugin.integration.board import abort, process
from lcot_plugin.integration.board.process import STDERR_FILE, LoggedProcess, run_of, settle_if_ended

LANGUAGES = ("en", "ru", "zh", "ko", "ja")
STOPS = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    folder = pathlib.Path("checkpoint-3")
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", file=sys.stderr, flush=True)
time.sleep(20)
"""
DOES_NOT_STOP = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
print("ready", child.pid, file=sys.stderr, flush=True)
time.sleep(20)
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from llamafactory.webui import runner

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "POLL", 0.05)
    monkeypatch.setattr(runner.gr, "Info", lambda message: None)
    monkeypatch.setattr(runner, "torch_gc", lambda: None)
    return runner


Start = Callable[..., Any]


@pytest.fixture
def start(module: Any, tmp_path: Path) -> Iterator[Start]:
    """`start(code)`: a Runner whose training is that Python program."""
    started: list[LoggedProcess] = []

    def start(code: str, *, lang: str = "en", trains: bool = True, **arguments: Any) -> Any:
        folder = tmp_path / "saves/run"
        folder.mkdir(parents=True, exist_ok=True)
        written = {"stage": "grpo", **arguments}
        (folder / "training_args.yaml").write_text(yaml.safe_dump(written))
        runner = module.Runner(SimpleNamespace(get_elem_by_id=lambda name: name))
        runner.running_data = {
            **{"top.lang": lang, "top.model_name": "m", "top.finetuning_type": "full"},
            **{"train.output_dir": "run", "eval.output_dir": "run"},
        }
        runner.do_train = trains
        env = {**os.environ, process.WORKDIR: str(folder)}
        runner.trainer = module.Popen([sys.executable, "-c", code], env=env, cwd=folder, stderr=-1, text=True)
        started.append(runner.trainer)
        return runner

    yield start
    for each in started:
        abort.kill_tree(each.pid)
        each.wait()


def wait_for(runner: Any, word: str) -> str:
    path = runner.trainer.folder / STDERR_FILE
    while word not in (said := path.read_text()):
        assert runner.trainer.poll() is None, said
        time.sleep(0.02)
    return said


def box(updates: list[dict[str, Any]], kind: str = "train") -> str:
    return updates[-1][f"{kind}.output_box"]


def test_the_board_starts_our_process(module: Any) -> None:
    assert module.Popen is LoggedProcess


def test_programs_of_the_board_s_own_environment_come_first(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    runner = start("import os, sys; sys.stderr.write(os.environ['PATH'])")
    assert runner.trainer.communicate()[1] == f"{Path(sys.executable).parent}:/usr/bin"


def test_a_process_that_nobody_reads_does_not_stand_still(start: Start) -> None:
    runner = start("import sys; sys.stderr.write('x' * 300_000 + '\\nend\\n')")
    assert runner.trainer.wait(60) == 0
    assert runner.trainer.communicate()[1].endswith("end\n")
    assert (runner.trainer.folder / STDERR_FILE).stat().st_size == 300_005


def test_a_run_that_ends_well_leaves_the_board_free(start: Start) -> None:
    runner = start("pass")
    updates = list(runner.monitor())
    assert "Finished" in box(updates)
    assert (runner.running, runner.trainer, runner.aborted) == (False, None, False)
    assert run_of(runner).ending.code == 0


def test_a_failure_is_told_in_words(start: Start) -> None:
    runner = start("raise ValueError('no such key: *grpo_x*')")
    text = box(list(runner.monitor()))
    assert "**The run has failed.** Exit code 1." in text
    assert r"> no such key\: \*grpo\_x\*" in text
    assert "Traceback (most recent call last)" in text
    assert STDERR_FILE in text
    assert run_of(runner).ending.failure.reason == "no such key: *grpo_x*"
    assert not runner.running


def test_a_process_that_the_system_killed(start: Start) -> None:
    runner = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "no memory left" in box(list(runner.monitor()))


def test_two_pages_follow_one_run_to_its_end(start: Start) -> None:
    runner = start("import time; time.sleep(1); raise KeyError('k')")
    first, second = runner.monitor(), runner.monitor()
    next(first), next(second)
    texts = [box(list(first)), box(list(second))]
    assert texts[0] == texts[1]
    assert "KeyError" in texts[0]


def test_a_page_that_is_loaded_after_the_end_is_told_it(start: Start) -> None:
    runner = start("raise ValueError('oh')")
    page = runner.monitor()
    next(page)
    page.close()  # the browser's tab is closed
    runner.trainer.wait()
    assert runner.running
    assert "oh" in box(list(runner.monitor()))
    assert not runner.running


def test_a_run_that_ended_with_no_page_open_does_not_block_the_next(start: Start, module: Any) -> None:
    runner = start("pass")
    page = runner.monitor()
    next(page)
    page.close()
    runner.trainer.wait()
    settle_if_ended(runner)
    assert not runner.running
    assert run_of(runner).ending.code == 0


def test_a_second_page_does_not_forget_that_abort_was_pressed(start: Start) -> None:
    runner = start(STOPS)
    page = runner.monitor()
    next(page)
    wait_for(runner, "ready")
    runner.set_abort()
    updates = list(runner.monitor())
    text = box(updates)
    assert "Asked to stop" in updates[0]["train.output_box"]
    assert "failed" not in text and "as it was asked to" in text


@pytest.mark.parametrize("lang", LANGUAGES)
def test_abort_ends_a_run_with_a_checkpoint_and_says_where(start: Start, lang: str) -> None:
    runner = start(STOPS, lang=lang)
    page = runner.monitor()
    next(page)
    wait_for(runner, "ready")
    runner.set_abort()
    updates = list(page)
    run = run_of(runner)
    assert updates[0]["train.output_box"] == process.text("abort_waiting", lang)
    assert process.text("end_stopped", lang) in box(updates)
    assert f"```text\n{run.folder / 'checkpoint-3'}\n```" in box(updates)
    assert f"llamafactory-cli train {run.folder / 'training_args.yaml'}\n" in box(updates)
    assert str(run.folder / "checkpoint-3") in run.ending.headline
    assert run.ending.code == 143
    assert not runner.running and not runner.aborted


def test_with_overwrite_output_dir_the_checkpoint_is_named_to_resume_from(start: Start) -> None:
    runner = start(STOPS, overwrite_output_dir=True)
    page = runner.monitor()
    next(page)
    wait_for(runner, "ready")
    runner.set_abort()
    said = box(list(page))
    assert f"resume_from_checkpoint={run_of(runner).folder / 'checkpoint-3'}" in said
    assert "Start would begin anew" in said


def test_a_run_that_somebody_else_ended_is_no_failure(start: Start) -> None:
    runner = start(STOPS)
    page = runner.monitor()
    next(page)
    wait_for(runner, "ready")
    runner.trainer.send_signal(signal.SIGTERM)
    text = box(list(page))
    assert "failed" not in text and "checkpoint-3" in text


def test_abort_before_anything_was_trained(start: Start) -> None:
    runner = start("import sys, time; print('ready', file=sys.stderr, flush=True); time.sleep(20)")
    page = runner.monitor()
    next(page)
    wait_for(runner, "ready")
    runner.set_abort()
    text = box(list(page))
    assert "There is no checkpoint" in text
    assert "llamafactory-cli train" not in text


def test_a_second_abort_ends_all_processes_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = start(DOES_NOT_STOP)
    page = runner.monitor()
    next(page)
    child = psutil.Process(int(wait_for(runner, "ready").split()[1]))
    runner.set_abort()
    runner.set_abort()  # a double click
    assert runner.trainer.poll() is None
    monkeypatch.setattr(abort, "DOUBLE_CLICK", 0.0)
    runner.set_abort()
    text = box(list(page))
    assert "ended at once" in text
    assert psutil.wait_procs([child], timeout=20)[0] == [child]
    assert run_of(runner).ending.failure is None


@pytest.mark.parametrize("arguments", [{"stage": "dpo"}, {"stage": "sft"}])
def test_other_stages_are_aborted_as_before(
    start: Start, module: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    pressed: list[int] = []
    monkeypatch.setattr(module, "abort_process", pressed.append)
    runner = start("import time; time.sleep(20)", **arguments)
    page = runner.monitor()
    next(page)
    runner.set_abort()
    assert pressed == [runner.trainer.pid]
    assert "wait for terminating" in next(page)["train.output_box"]
    abort.kill_tree(runner.trainer.pid)
    assert "Finished" in box(list(page)), "what LLaMA-Factory says then"


def test_packed_sft_ends_with_a_checkpoint_too() -> None:
    assert abort.stops_with_checkpoint({"stage": "sft", "length_aware_packing": True})
    assert not abort.stops_with_checkpoint({"stage": "sft"})


def test_an_evaluation_shows_its_results(start: Start) -> None:
    runner = start("open('all_results.json', 'w').write('{\"accuracy\": 0.5}')", trains=False)
    assert '"accuracy": 0.5' in box(list(runner.monitor()), "eval")


def test_the_log_of_an_earlier_run_is_not_shown_as_this_one_s(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "saves/run/running_log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("old words")
    os.utime(log, (1, 1))
    runner = start("import time; time.sleep(20)")
    assert next(runner.monitor())["train.output_box"] == "Starting"
    log.write_text("new words")
    run_of(runner).abort.asked_at = None
    assert "new words" in next(runner.monitor())["train.output_box"]


def test_a_shell_can_run_what_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    command = abort.resume_command(folder, {}, folder / "checkpoint-1")
    assert command == f"llamafactory-cli train '{folder}/training_args.yaml'"
    assert abort.read_arguments(folder / "none.yaml") == {}
