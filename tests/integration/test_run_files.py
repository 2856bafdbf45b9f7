"""The files of a run: from callbacks alone, and from real runs that end, are stopped, killed and resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from recipe_runs import grpo_recipe, run
from transformers import TrainerControl, TrainerState
from twins import write_problems

from lcot_plugin.integration.run_files import MAX_MESSAGE, NoFiles, RunFiles, ending, logged_before, run_files
from lcot_plugin.policy.health import Alarm
from lcot_plugin.report.run_log import (
    ALARMS_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    StepLog,
    read_json,
    read_json_lines,
    read_metrics,
    write_json,
)
from lcot_plugin.report.runs import find_runs, read_run
from lcot_plugin.report.token_trace import decode
from lcot_plugin.survival.stopping import RunStopped

# --- callbacks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RunFiles]:
    files = RunFiles(tmp_path, pytest.fail)
    yield files
    files.progress.close("finished")


def state(step: int = 0, history: tuple[dict[str, Any], ...] = ()) -> TrainerState:
    return TrainerState(global_step=step, max_steps=9, log_history=list(history), is_world_process_zero=True)


def progress(files: RunFiles) -> dict[str, Any]:
    files.progress.state(files.progress.values["state"])
    return read_json(files.folder / "progress.json") or {}


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_json_lines(path)]


def test_logs_and_alarms_become_lines(files: RunFiles, tmp_path: Path) -> None:
    files.begin({"trains": True})
    files.on_train_begin(None, state(), None)
    files.on_log(None, state(1), None, logs={"loss": float("nan"), "epoch": 0.5, "name": "x"})
    files.on_log(None, state(1), None, logs={"eval_accuracy": 50.0, "epoch": 0.5})
    files.alarm(Alarm("kl_explosion", "KL is 3.", 1, "Lower it."))
    files.alarm(Alarm("old", "KL is 3.", 2))
    assert [set(line) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        {"step", "epoch", "time", "loss"},
        {"step", "epoch", "time", "eval_accuracy"},
    ]
    assert read_json_lines(tmp_path / "alarms.jsonl") == [
        {"step": 1, "name": "kl_explosion", "message": "KL is 3.", "advice": "Lower it."},
        {"step": 2, "name": "old", "message": "KL is 3.", "advice": None},
    ]


def test_a_fresh_run_begins_its_files_anew(files: RunFiles, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "alarms.jsonl"):
        StepLog(tmp_path / name).write([{"step": 0}, {"step": 4}])
    files.begin({"trains": True})
    assert steps(tmp_path / "metrics.jsonl") == [0, 4], "not before it trains: it may still fail to load"
    files.on_train_begin(None, state(), None)
    assert steps(tmp_path / "metrics.jsonl") == steps(tmp_path / "alarms.jsonl") == []


def test_a_resumed_run_takes_back_what_follows_its_checkpoint(files: RunFiles, tmp_path: Path) -> None:
    """Step 4 was logged and evaluated before its checkpoint; its second evaluation, at the end, is made again."""
    lines = [{"step": 2, "n": 0}, {"step": 4, "n": 1}, {"step": 4, "n": 2}, {"step": 4, "n": 3}, {"step": 6, "n": 4}]
    StepLog(tmp_path / "metrics.jsonl").write(lines)
    StepLog(tmp_path / "alarms.jsonl").write([{"step": 4}, {"step": 6}])
    files.on_train_begin(None, state(4, ({"step": 2}, {"step": 4}, {"step": 4})), None)
    assert [line["n"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert steps(tmp_path / "alarms.jsonl") == [4]


def test_a_run_that_only_evaluates_leaves_the_training_it_follows(files: RunFiles, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"trains": True, "mine": 1})
    StepLog(tmp_path / "metrics.jsonl").write([{"step": 4}])
    files.begin({"trains": False})
    assert read_json(tmp_path / "run.json") == {"trains": True, "mine": 1}
    files.on_log(None, state(0), None, logs={"eval_accuracy": 1.0})
    assert steps(tmp_path / "metrics.jsonl") == [4, 0]


@pytest.mark.parametrize("before", ["{}", '{"trains": false}', '{"tra', None])
def test_evaluating_once_more_begins_anew(files: RunFiles, tmp_path: Path, before: str | None) -> None:
    if before is not None:
        (tmp_path / "run.json").write_text(before)
        StepLog(tmp_path / "metrics.jsonl").write([{"step": 0}])
    files.begin({"trains": False, "mine": 2})
    assert read_json(tmp_path / "run.json") == {"trains": False, "mine": 2}
    assert steps(tmp_path / "metrics.jsonl") == []


def test_phases_of_training(files: RunFiles) -> None:
    files.begin({"trains": True})
    assert progress(files)["state"] == "loading"
    files.phase("model")
    assert progress(files)["phase"] == "model"
    files.on_train_begin(None, state(2), None)
    control = TrainerControl()
    files.on_step_begin(None, state(2), control)
    assert [progress(files)[key] for key in ("state", "phase", "step", "max_steps")] == ["running", "update", 2, 9]
    files.phase("rollout", 8)
    files.advance(3)
    assert [progress(files)[key] for key in ("phase", "phase_done", "phase_total")] == ["rollout", 3, 8]
    control.should_evaluate = control.should_save = True
    files.on_step_end(None, state(3), control)
    assert [progress(files)[key] for key in ("phase", "step")] == ["evaluation", 3]
    files.on_evaluate(None, state(3), control)
    assert progress(files)["phase"] == "checkpoint"
    files.on_save(None, state(3), control)
    assert progress(files)["phase"] is None
    files.on_prediction_step(None, state(3), control)
    assert progress(files)["phase"] == "evaluation"
    files.on_train_end(None, state(3), control)
    assert progress(files)["phase"] == "saving"


def test_a_run_that_only_evaluates_runs_too(files: RunFiles) -> None:
    files.begin({"trains": False})
    files.phase("model")
    assert progress(files)["state"] == "loading"
    files.phase("evaluation", 10)
    assert [progress(files)[key] for key in ("state", "phase_total")] == ["running", 10]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    """The folder is theirs too."""
    second: Any = SimpleNamespace(training=SimpleNamespace(process_index=1, output_dir=str(tmp_path)))
    with run_files(second, {}) as files:
        tell_everything(files)
    assert list(tmp_path.iterdir()) == []
    first = RunFiles(tmp_path, pytest.fail)
    tell_everything(first)
    first.end(None)
    assert {path.name for path in tmp_path.iterdir()} == {METRICS_FILE, ALARMS_FILE, PROGRESS_FILE}


def tell_everything(files: NoFiles) -> None:
    files.on_train_begin(None, state(), None)
    files.on_step_begin(None, state(), None)
    files.on_log(None, state(1), None, logs={"loss": 1.0})
    files.on_step_end(None, state(1), TrainerControl(should_save=True))
    files.on_prediction_step(None, state(1), None)
    files.on_evaluate(None, state(1), TrainerControl())
    files.on_save(None, state(1), None)
    files.alarm(Alarm("x", "y", 1))
    files.advance()
    files.on_train_end(None, state(1), None)


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    files = RunFiles(tmp_path, warned.append)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "write", full)
        patch.setattr("lcot_plugin.integration.run_files.write_json", full)
        files.begin({"trains": True})
        for step in (1, 2):
            files.on_log(None, state(step), None, logs={"loss": 1.0})
    files.on_log(None, state(3), None, logs={"loss": 1.0})
    files.end(None)
    assert steps(tmp_path / "metrics.jsonl") == [3]
    assert (read_json(tmp_path / "progress.json") or {})["state"] == "finished"
    assert len(warned) == 2 and "Training goes on" in warned[0] and "4 writes" in warned[1]


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (None, "finished", None),
        (SystemExit(0), "finished", None),
        (RunStopped(signal.SIGTERM), "stopped", "SIGTERM"),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (ValueError("no such file"), "failed", "ValueError: no such file"),
    ],
    ids=repr,
)
def test_how_a_run_ends(error: BaseException | None, state: str, says: str | None) -> None:
    found, message = ending(error)
    assert found == state and (message is None if says is None else says in (message or ""))


def test_the_end_of_a_long_error_is_kept() -> None:
    _, message = ending(ValueError("a" * 10 * MAX_MESSAGE + " the end"))
    assert message is not None and message.endswith("the end") and "characters left out" in message
    assert len(message) < MAX_MESSAGE + 100


def test_an_error_is_told_without_secrets() -> None:
    state, message = ending(RuntimeError("no answer of http://me:hunter2@host:8000/v1?api_key=0123"))
    assert (state, message) == ("failed", "RuntimeError: no answer of http://***@host:8000/v1?api_key=***")


def test_a_name_that_is_no_text_does_not_hide_how_a_run_ended(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, pytest.fail)
    files.begin({"trains": True})
    files.end(OSError("/data/\udcff.png"))
    assert (read_json(tmp_path / "progress.json") or {})["message"] == "OSError: /data/\udcff.png"


def test_a_stopped_run_names_its_checkpoint(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, pytest.fail)
    files.end(RunStopped(signal.SIGTERM))
    assert "Nothing had been trained" in (read_json(tmp_path / "progress.json") or {})["message"]
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    files = RunFiles(tmp_path, pytest.fail)
    files.end(RunStopped(signal.SIGTERM))
    assert f"{tmp_path / 'checkpoint-3'} is whole" in (read_json(tmp_path / "progress.json") or {})["message"]


def test_lines_of_a_step_count_as_often_as_they_were_logged() -> None:
    wanted = logged_before(3, [{"step": 2}, {"step": 3}])
    assert [wanted({"step": step}) for step in (2, 3, 3, 4, 2)] == [True, True, False, False, True]
    fresh = logged_before(0, [])
    assert not any(fresh({"step": step}) for step in (0, 1))


# --- real runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run_files")
    write_problems(folder, 6, num_text_only=2, num_two_images=1)
    return grpo_recipe(
        folder,
        twin,
        grpo_log_token_log_probs=True,
        grpo_beta=0.05,
        max_steps=4,
        save_steps=2,
        use_cpu=True,
        hub_token="hf_averysecrettokenindeed",
    )


EVALUATING = {"eval_dataset": "problems", "per_device_eval_batch_size": 3, "grpo_eval_generations": 1}


@pytest.fixture(scope="module")
def whole_run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, evaluated and saved at 2 and 4, and once more at the end."""
    folder = tmp_path_factory.mktemp("whole")
    result = run({**recipe, **EVALUATING, "eval_strategy": "steps", "eval_steps": 2, "do_eval": True}, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "out"


def test_a_run_keeps_its_files(whole_run: Path) -> None:
    found = read_run(whole_run)
    assert find_runs(whole_run.parent) == [whole_run]
    assert found.state == "finished" and found.progress is not None
    assert (found.progress["step"], found.progress["max_steps"]) == (4, 4)
    assert found.progress["seconds_per_step"] > 0 and found.progress["remaining_seconds"] is None
    assert found.record["stage"] == "grpo" and found.record["datasets"] == ["problems"]
    assert found.record["plan"]["prompts_per_rollout"] == 4
    assert found.record["arguments"]["hub_token"] == "***"
    assert found.record["arguments"]["grpo_beta"] == 0.05, "what the user wrote"
    assert "top_p" not in found.record["arguments"], "what he did not write"
    assert b"averysecret" not in (whole_run / "run.json").read_bytes()
    assert found.data_report is not None and "eval_accuracy" in found.results


def test_every_log_is_a_line_of_metrics(whole_run: Path) -> None:
    """The trainer's own history, and with it every number that it has."""
    history = json.loads((whole_run / "trainer_state.json").read_text())["log_history"]
    lines = read_run(whole_run).metrics
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_accuracy" in line] == [2, 4, 4]
    assert {"reward", "entropy", "kl", "completions/length", "time/rollout", "grad_norm"} <= trained[0].keys()
    for entry, line in zip(history, lines, strict=False):
        assert {**line, "time": None} == {**entry, "time": None}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_completions_have_groups_and_traces(whole_run: Path) -> None:
    lines = read_json_lines(whole_run / "completions.jsonl")
    assert [(line["step"], line["group"], line["sample"]) for line in lines] == [
        (step, group, sample) for step in range(4) for group in range(4) for sample in range(4)
    ]
    evaluated = read_json_lines(whole_run / "eval_completions.jsonl")
    assert [(line["group"], line["sample"]) for line in evaluated[:4]] == [(0, "greedy"), (0, 1), (1, "greedy"), (1, 1)]
    for line in [*lines, *evaluated]:
        trace = decode(line["trace"])
        assert len(trace.log_probs) == len(trace.lengths) == line["num_tokens"]
        assert sum(trace.lengths) == len(line["completion"])
    assert min(min(decode(line["trace"]).log_probs) for line in lines) < -1, "a random model is sure of little"


def test_a_resumed_run_has_no_line_twice_and_none_too_many(
    whole_run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """From checkpoint 2 of a run that went on to 4: as if it had been killed later, in the middle of a line."""
    shutil.copytree(whole_run, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-4"))
    StepLog(tmp_path / "out" / "alarms.jsonl").write([{"step": 2, "name": "a"}, {"step": 3, "name": "b"}])
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = {**recipe, **EVALUATING, "eval_strategy": "steps", "eval_steps": 2, "do_eval": True}
    result = run({**resumed, "resume_from_checkpoint": checkpoint, "overwrite_output_dir": True}, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    before, after = read_run(whole_run), read_run(tmp_path / "out")

    def named(lines: list[dict[str, Any]]) -> list[tuple[int, bool, bool]]:
        return [(line["step"], "loss" in line, "eval_accuracy" in line) for line in lines]

    assert named(after.metrics) == named(before.metrics)
    assert after.metrics[:3] == before.metrics[:3], "those before the checkpoint are left as they were"
    assert [line["loss"] for line in after.metrics if "loss" in line] == [
        line["loss"] for line in before.metrics if "loss" in line
    ]
    assert [alarm["name"] for alarm in after.alarms] == ["a"]
    assert after.record["resumed_from"] == checkpoint
    names = ("completions.jsonl", "eval_completions.jsonl")
    assert all((whole_run / name).read_text() == (tmp_path / "out" / name).read_text() for name in names)


def test_a_run_that_only_evaluates_keeps_its_files(recipe: dict[str, Any], tmp_path: Path) -> None:
    evaluating = {key: value for key, value in recipe.items() if key not in ("do_train", "dataset")}
    result = run({**evaluating, **EVALUATING, "do_eval": True}, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    found = read_run(tmp_path / "out")
    assert found.state == "finished" and not found.record["trains"] and found.record["evaluates"]
    assert [line["step"] for line in found.metrics] == [0] and found.metrics[0]["eval_problems"] == 6
    assert found.completions is None and found.eval_completions is not None


def packed_sft(recipe: dict[str, Any]) -> dict[str, Any]:
    packed = {key: value for key, value in recipe.items() if not key.startswith("grpo_")}
    packed |= {"stage": "sft", "length_aware_packing": True, "per_device_train_batch_size": 1, "max_steps": 2}
    return packed | {"gradient_accumulation_steps": 1, "cutoff_len": 256, "save_strategy": "no"}


def test_a_packed_sft_run_keeps_its_files(recipe: dict[str, Any], tmp_path: Path) -> None:
    evaluating = {"eval_dataset": "problems", "eval_strategy": "steps", "eval_steps": 2}
    result = run({**packed_sft(recipe), **evaluating}, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    found = read_run(tmp_path / "out")
    assert found.state == "finished" and found.record["stage"] == "sft"
    assert found.record["plan"]["packed"] and found.record["plan"]["pack_max_tokens"] == 256
    assert [line["step"] for line in found.metrics if "loss" in line] == [1, 2]
    # LLaMA-Factory evaluates once more at the end.
    assert [line["step"] for line in found.metrics if "eval_loss" in line] == [2, 2]


def plain_sft(recipe: dict[str, Any]) -> dict[str, Any]:
    """Neither packed nor in one of our formats."""
    return {key: value for key, value in packed_sft(recipe).items() if key != "length_aware_packing"} | {"max_steps": 1}


def test_plain_sft_keeps_its_files(recipe: dict[str, Any], tmp_path: Path) -> None:
    result = run(plain_sft(recipe), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    found = read_run(tmp_path / "out")
    assert found.state == "finished" and found.record["plan"]["packed"] is False
    assert found.record["arguments"]["learning_rate"] == 1e-3 and found.record["arguments"]["hub_token"] == "***"
    assert [line["step"] for line in found.metrics if "loss" in line] == [1]


def test_a_run_without_the_plugin_is_left_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**plain_sft(recipe), "output_dir": str(tmp_path / "out")}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "LCOT_PLUGIN": "0"}
    command = [sys.executable, "-m", "llamafactory.cli", "train", str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"run.json", "metrics.jsonl", "progress.json", "alarms.jsonl"} and "trainer_log.jsonl" in names


def test_a_run_that_fails_says_why(recipe: dict[str, Any], tmp_path: Path) -> None:
    result = run({**recipe, "dataset": "not_there"}, tmp_path)
    assert result.returncode != 0
    found = read_run(tmp_path / "out")
    assert found.state == "failed" and found.progress is not None
    assert "not_there" in found.progress["message"]


def started(recipe: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """A long run, once its second step is logged."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "max_steps": 500, "output_dir": str(folder / "out")}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lcot_plugin", "train", str(path)], env=environment, stdout=output, stderr=output
        )
    deadline = time.monotonic() + 200
    while len(read_json_lines(folder / "out" / "metrics.jsonl")) < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError((folder / "output.txt").read_text()[-3000:])
        time.sleep(0.2)
    return process


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "stopped"), (signal.SIGKILL, "killed")])
def test_a_run_that_is_ended_from_outside(
    recipe: dict[str, Any], tmp_path: Path, number: signal.Signals, state: str
) -> None:
    process = started(recipe, tmp_path)
    try:
        living = read_run(tmp_path / "out")
        state_then = living.state  # it looks whether the process is there
    finally:
        process.send_signal(number)
        process.wait(timeout=120)
    assert state_then == "running" and living.progress is not None
    assert living.progress["pid"] == process.pid and living.progress["max_steps"] == 500
    ended = read_run(tmp_path / "out")
    assert ended.state == state and ended.progress is not None
    if number == signal.SIGTERM:
        steps_done = ended.progress["step"]
        assert f"checkpoint-{steps_done} is whole" in ended.progress["message"]
        assert [line["step"] for line in ended.metrics if "loss" in line] == list(range(1, steps_done + 1))


@pytest.mark.slow
def test_of_two_processes_the_first_one_writes(recipe: dict[str, Any], tmp_path: Path) -> None:
    halved = {**recipe, "per_device_train_batch_size": 4, "max_steps": 2, "ddp_backend": "gloo"}
    result = run(halved, tmp_path, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    found = read_run(tmp_path / "out")
    assert found.state == "finished" and found.record["hardware"]["num_processes"] == 2
    assert [line["step"] for line in found.metrics if "loss" in line] == [1, 2]
    lines = read_json_lines(tmp_path / "out" / "completions.jsonl")
    assert [(line["step"], line["group"], line["sample"]) for line in lines] == [
        (step, group, sample) for step in range(2) for group in range(4) for sample in range(4)
    ]
