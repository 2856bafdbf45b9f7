import json
import os
import subprocess
import sys

import pytest

from lcot_plugin.errors import DataError
from lcot_plugin.report.runs import MAX_DEPTH, find_runs, holds_run, read_run, run_state


def write(path, value, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in value) if lines else json.dumps(value))


def touch(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_everything_of_a_run_is_read(tmp_path):
    folder = tmp_path / "grpo"
    write(folder / "run.json", {"format": 1, "stage": "grpo"})
    write(folder / "metrics.jsonl", [{"step": 1, "loss": 0.5}, {"step": 1, "kl": "NaN"}], lines=True)
    write(folder / "alarms.jsonl", [{"step": 1, "name": "kl_explosion"}], lines=True)
    write(folder / "progress.json", {"state": "finished"})
    write(folder / "data_report.json", {"problems": {}})
    write(folder / "train_results.json", {"train_loss": 0.1})
    write(folder / "eval_results.json", {"eval_accuracy": 50.0})
    for name in ("completions.jsonl", "eval_geometry_completions.jsonl", "eval_algebra_completions.jsonl"):
        write(folder / name, [], lines=True)
    run = read_run(folder)
    assert (run.name, run.state, run.record["stage"]) == ("grpo", "finished", "grpo")
    assert run.metrics[0] == {"step": 1, "loss": 0.5} and run.metrics[1]["kl"] != run.metrics[1]["kl"]
    assert run.alarms == [{"step": 1, "name": "kl_explosion"}]
    assert run.completions == folder / "completions.jsonl"
    assert [path.name for path in run.all_eval_completions] == [
        "eval_algebra_completions.jsonl",
        "eval_geometry_completions.jsonl",
    ]
    assert run.eval_completions == run.all_eval_completions[0]
    assert run.results == {"train_loss": 0.1, "eval_accuracy": 50.0} and run.data_report == {"problems": {}}


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "progress.json", "completions.jsonl", "trainer_log.jsonl"]
)
def test_a_run_may_lack_everything_else(tmp_path, name):
    write(tmp_path / name, {} if name.endswith(".json") else [], lines=name.endswith("l"))
    run = read_run(tmp_path)
    assert (run.metrics, run.alarms, run.results, run.data_report) == ([], [], {}, None)
    assert run.eval_completions is None and run.all_eval_completions == []


def test_a_run_that_only_evaluated(tmp_path):
    write(tmp_path / "eval_completions.jsonl", [], lines=True)
    assert read_run(tmp_path).eval_completions == tmp_path / "eval_completions.jsonl"


def test_a_running_run_ends_in_half_a_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_run(tmp_path).metrics == [{"step": 1}]


def test_an_older_run_has_the_trainers_history(tmp_path):
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "eval_accuracy": 3.0}, {"no": "step"}]
    write(tmp_path / "trainer_state.json", {"log_history": history})
    write(tmp_path / "trainer_log.jsonl", [{"current_steps": 9}], lines=True)
    assert read_run(tmp_path).metrics == history[:2]
    write(tmp_path / "metrics.jsonl", [{"step": 7}], lines=True)
    assert read_run(tmp_path).metrics == [{"step": 7}]


def test_an_older_run_that_was_killed_has_that_of_its_last_checkpoint(tmp_path):
    write(tmp_path / "trainer_log.jsonl", [], lines=True)
    for step in (2, 10):
        path = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        write(path, {"log_history": [{"step": step}]})
        os.utime(path, (step, step))
    assert read_run(tmp_path).metrics == [{"step": 10}]


def test_an_older_run_without_checkpoints_has_llamafactorys_log(tmp_path):
    lines = [{"current_steps": 3, "total_steps": 5, "loss": 0.5, "lr": 1e-5, "elapsed_time": "0:01"}, {"epoch": 1.0}]
    write(tmp_path / "trainer_log.jsonl", lines, lines=True)
    assert read_run(tmp_path).metrics == [{"step": 3, "max_steps": 5, "loss": 0.5, "learning_rate": 1e-5}]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_run_is_named(tmp_path, make):
    folder = tmp_path / "other"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match=r"other .*output_dir"):
        read_run(folder)


def test_a_run_of_a_later_version_is_refused(tmp_path):
    write(tmp_path / "run.json", {"format": 99})
    with pytest.raises(DataError, match="update the package"):
        read_run(tmp_path)


def test_the_name_of_the_folder_one_stands_in(tmp_path, monkeypatch):
    write(tmp_path / "grpo" / "run.json", {})
    monkeypatch.chdir(tmp_path / "grpo")
    assert read_run(".").name == "grpo"


# --- is it alive? -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["loading", "running", "stopping"])
def test_a_run_whose_process_is_gone_was_killed(state):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        process.wait(timeout=60)
        assert run_state({"state": state, "pid": process.pid}) == "killed"
        assert run_state({"state": state, "pid": os.getpid()}) == state
        assert run_state({"state": state, "pid": process.pid, "host": "another machine"}) == state
    finally:
        process.wait(timeout=60)


def test_a_process_that_nobody_has_asked_for_yet_is_gone_too():
    process = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    try:
        process.stdout.read()  # until it has ended; its number stays taken
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert run_state({"state": "running", "pid": process.pid}) == "killed"
    finally:
        process.communicate(timeout=60)


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_how_a_run_ended_is_its_own_word(state):
    assert run_state({"state": state, "pid": -1}) == state
    assert run_state(None) is None


@pytest.mark.parametrize("pid", [None, 0, -1, "12"])
def test_a_process_that_cannot_be_is_gone(pid):
    assert run_state({"state": "running", "pid": pid}) == "killed"


# --- finding ----------------------------------------------------------------------------------------------------------


def test_runs_are_found_the_newest_first(tmp_path):
    touch(tmp_path / "old" / "run.json", 100)
    touch(tmp_path / "a" / "b" / "new" / "metrics.jsonl", 300)
    touch(tmp_path / "eval" / "eval_set_completions.jsonl", 200)
    (tmp_path / "empty").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == ["new", "eval", "old"]
    assert find_runs(tmp_path / "old") == [tmp_path / "old"], "the root itself"
    assert find_runs(tmp_path / "not there") == []


def test_what_a_run_holds_is_no_run(tmp_path):
    touch(tmp_path / "run" / "run.json", 100)
    for name in ("checkpoint-3", "incomplete_checkpoints/checkpoint-4", ".cache", "completion_images"):
        touch(tmp_path / "run" / name / "metrics.jsonl", 200)
    assert find_runs(tmp_path) == [tmp_path / "run"]


def test_the_search_ends(tmp_path):
    deep = tmp_path
    for number in range(MAX_DEPTH + 2):
        touch(deep / "run.json", number)
        deep = deep / "deeper"
    (tmp_path / "deeper" / "loop").symlink_to(tmp_path)
    assert len(find_runs(tmp_path)) == MAX_DEPTH + 1
    assert holds_run(tmp_path) and not holds_run(tmp_path / "deeper" / "not there")


# --- what nobody expects ----------------------------------------------------------------------------------------------


def test_a_new_run_does_not_show_the_curves_of_the_one_before(tmp_path):
    write(tmp_path / "trainer_state.json", {"log_history": [{"step": 1, "loss": 0.5}]})
    write(tmp_path / "run.json", {"format": 1, "trains": True})
    assert read_run(tmp_path).metrics == []
    write(tmp_path / "run.json", {"format": 1, "trains": False})
    assert read_run(tmp_path).metrics == [{"step": 1, "loss": 0.5}], "it evaluates what was trained there"


def test_a_file_of_another_programs_run_has_another_format(tmp_path):
    write(tmp_path / "run.json", {"format": "csv"})
    assert read_run(tmp_path).record == {"format": "csv"}


def test_a_checkpoint_may_go_while_it_is_looked_for(tmp_path, monkeypatch):
    gone = tmp_path / "checkpoint-5" / "trainer_state.json"
    monkeypatch.setattr(type(gone), "glob", lambda self, pattern: [gone] if pattern.startswith("checkpoint") else [])
    write(tmp_path / "trainer_log.jsonl", [{"current_steps": 1, "loss": 0.5}], lines=True)
    assert read_run(tmp_path).metrics == [{"step": 1, "loss": 0.5}]


def test_of_a_checkpoint_that_a_kill_has_cut_the_one_before_it_is_read(tmp_path):
    for step, end in ((2, None), (4, -9)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = json.dumps({"log_history": [{"step": step, "loss": 1.0}]})
        (folder / "trainer_state.json").write_text(state[:end])
        os.utime(folder / "trainer_state.json", (step, step))
    (tmp_path / "trainer_log.jsonl").write_text("")
    assert [line["step"] for line in read_run(tmp_path).metrics] == [2]


def test_a_number_that_is_no_process_is_gone():
    assert run_state({"state": "running", "pid": 2**70}) == "killed"


def test_a_folder_of_another_user_hides_no_run(tmp_path, monkeypatch):
    """Root may read everything: what the system says to others is said here in its place."""
    for name in ("mine", "theirs"):
        touch(tmp_path / name / "run.json", 1)
    is_file, access = type(tmp_path).is_file, os.access

    def forbidden(path):
        if "theirs" in path.parts:
            raise PermissionError(path)
        return is_file(path)

    monkeypatch.setattr(type(tmp_path), "is_file", forbidden)
    monkeypatch.setattr(os, "access", lambda path, mode: "theirs" not in str(path) and access(path, mode))
    assert find_runs(tmp_path) == [tmp_path / "mine"]
