"""Trackers in a run: what reaches them and when, what happens when one fails, and where a resumed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llamafactory.train.callbacks import ReporterCallback
from matplotlib import pyplot
from transformers import TrainerCallback
from transformers.integrations import CometCallback, TensorBoardCallback
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.tracker_runs import TensorBoardTracker, Tracker
from lcot_plugin.integration.trackers import (
    TRACKERS_FILE,
    GuardedTracker,
    TrackedCompletions,
    Trackers,
    check_trackers,
    find_trackers,
)


class Reporter(TrainerCallback):
    """A tracker's callback that fails where it is told to."""

    def __init__(self, fails_in: str = ""):
        self.fails_in = fails_in
        self.seen: list[str] = []

    def _see(self, event: str) -> str:
        self.seen.append(event)
        if event == self.fails_in:
            raise ConnectionError(f"no\nserver https://me:hunter2@host {'x' * 900}.")
        return f"control of {event}"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._see("on_train_begin")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        assert logs == {"loss": 1.0}
        return self._see("on_log")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._see("on_train_end")


class ShowingTracker(Tracker):
    """Remembers its tables and the run that it was to go on with."""

    shows_tables = True
    advice = "Ask for help."

    def __init__(self, callback: Any, name: str = "showing"):
        super().__init__(callback, name)
        self.shown: list[tuple[str, int, int]] = []
        self.saved: Any = None
        self.closed = 0

    def beginning(self, args: Any, saved: Any) -> Any:
        self.saved = saved
        return super().beginning(args, saved)

    def run(self) -> dict[str, Any]:
        return {"id": "run1"}

    def show(self, key: str, table: Any) -> None:
        if self.callback.fails_in == "show":
            raise ValueError("no tables today")
        self.shown.append((key, table.step, len(table.rows)))

    def close(self) -> None:
        self.closed += 1


STATE = SimpleNamespace(is_world_process_zero=True, global_step=0)


def lines(step: int, groups: int = 2) -> list[dict[str, Any]]:
    """A rollout of so many groups of two."""
    line = {
        "step": step,
        "source": "problems",
        "record": 0,
        "question": "",
        "images": [],
        "completion": "",
        "ending": "stopped",
        "num_tokens": 1,
        "extracted": None,
        "gold": "1",
        "outcome": None,
        "rewards": {},
        "reward": None,
        "advantage": None,
    }
    return [{**line, "sample": sample} for _ in range(groups) for sample in range(2)]


def guarded(callback: Reporter, folder: Path) -> tuple[GuardedTracker, list[str]]:
    said: list[str] = []
    return GuardedTracker(ShowingTracker(callback), folder, said.append), said


def begin(callback: Any, step: int = 0, is_first: bool = True) -> Any:
    state = SimpleNamespace(is_world_process_zero=is_first, global_step=step)
    return callback.on_train_begin(None, state, None, model=None)


# Guards


def test_a_tracker_that_works_is_called_as_before(tmp_path: Path) -> None:
    callback = Reporter()
    tracker, said = guarded(callback, tmp_path)
    assert begin(callback) == "control of on_train_begin"
    assert callback.on_log(None, STATE, None, logs={"loss": 1.0}) == "control of on_log"
    assert callback.on_step_end(None, STATE, None) is None
    assert callback.on_train_end(None, STATE, None) == "control of on_train_end"
    assert said == [] and tracker.works


def test_llamafactorys_reporter_does_not_go_on_with_a_tracker_that_failed(tmp_path: Path) -> None:
    args = SimpleNamespace(report_to=["tensorboard", "showing"])
    guarded(callback := Reporter("on_train_begin"), tmp_path)
    callback.on_train_begin(args, STATE, None)
    assert args.report_to == ["tensorboard"]


@pytest.mark.parametrize("event", ["on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_fails_is_said_once_and_left_out(event: str, tmp_path: Path) -> None:
    callback = Reporter(event)
    tracker, said = guarded(callback, tmp_path)
    for _ in range(2):
        begin(callback)
        callback.on_log(None, STATE, None, logs={"loss": 1.0})
        callback.on_train_end(None, STATE, None)
    assert callback.seen[-1] == event and callback.seen.count(event) == 1
    (text,) = said
    assert "ConnectionError: no server https://***@host xxx" in text and "Ask for help." in text and "\n" not in text
    assert len(text) < 800, "whatever a server answers"
    trackers = Trackers([tracker], tmp_path, 1, said.append)
    trackers.show("train/completions", lines(0))
    trackers.close()
    assert tracker.tracker.shown == [] and tracker.tracker.closed == 0
    assert len(said) == 1


def test_a_table_that_fails_leaves_the_metrics(tmp_path: Path) -> None:
    callback = Reporter("show")
    tracker, said = guarded(callback, tmp_path)
    trackers = Trackers([tracker], tmp_path, 1, said.append)
    begin(callback)
    for step in range(3):
        trackers.show("train/completions", lines(step))
    assert len(said) == 1 and "no tables today" in said[0]
    assert callback.on_log(None, STATE, None, logs={"loss": 1.0}) == "control of on_log"
    assert not trackers.take_tables


def test_an_interrupt_is_no_fault_of_a_tracker(tmp_path: Path) -> None:
    class Interrupted(Reporter):
        def on_log(self, *arguments: Any, **named: Any) -> Any:
            raise KeyboardInterrupt

    callback = Interrupted()
    guarded(callback, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        callback.on_log(None, STATE, None, logs={})


# Runs


def test_a_resumed_run_goes_on_and_a_fresh_one_does_not(tmp_path: Path) -> None:
    tracker, said = guarded(callback := Reporter(), tmp_path)
    begin(callback)
    assert json.loads((tmp_path / TRACKERS_FILE).read_text()) == {"showing": {"id": "run1"}}
    tracker, said = guarded(callback := Reporter(), tmp_path)
    begin(callback, step=6)
    assert tracker.tracker.saved == {"id": "run1", "step": 6}
    tracker, said = guarded(callback := Reporter(), tmp_path)
    begin(callback)
    assert tracker.tracker.saved is None
    assert said == []


def test_only_the_first_process_keeps_the_runs(tmp_path: Path) -> None:
    guarded(callback := Reporter(), tmp_path)
    assert begin(callback, is_first=False) == "control of on_train_begin", "the callback knows what to do there"
    assert not (tmp_path / TRACKERS_FILE).exists()


def test_a_broken_file_of_runs_is_said_and_written_anew(tmp_path: Path) -> None:
    (tmp_path / TRACKERS_FILE).write_text('{"showing": {"id"')
    tracker, said = guarded(callback := Reporter(), tmp_path)
    begin(callback, step=6)
    assert tracker.tracker.saved is None
    assert len(said) == 1 and TRACKERS_FILE in said[0]
    assert json.loads((tmp_path / TRACKERS_FILE).read_text()) == {"showing": {"id": "run1"}}


# Tables


class Log:
    """Like CompletionsLog; `path` and all else stay reachable."""

    path = Path("completions.jsonl")

    def __init__(self) -> None:
        self.written: list[int] = []
        self.dropped: list[int] = []
        self.is_full = False

    def write(self, lines: list[dict[str, Any]]) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.written.append(lines[0]["step"])

    def drop_from_step(self, step: int) -> None:
        self.dropped.append(step)


def shown_steps(tmp_path: Path, *, every: int, per_rollout: int, starts: list[range]) -> list[list[int]]:
    """Steps whose completions are shown, of a run and its resumptions (a range of steps each)."""
    found = []
    for steps in starts:
        tracker, _ = guarded(Reporter(), tmp_path)
        log = TrackedCompletions(Log(), Trackers([tracker], tmp_path, 1, pytest.fail), every, per_rollout)
        log.drop_from_step(steps.start)
        rollouts = [step for step in steps if step % per_rollout == 0]
        for step in rollouts:
            log.write(iter(lines(step)))
        assert log.written == rollouts
        found.append([step for _, step, _ in tracker.tracker.shown])
    return found


def test_completions_come_with_the_first_rollout_and_every_so_many_steps(tmp_path: Path) -> None:
    assert shown_steps(tmp_path, every=4, per_rollout=1, starts=[range(10)]) == [[0, 4, 8]]
    assert shown_steps(tmp_path, every=4, per_rollout=3, starts=[range(20)]) == [[0, 6, 9, 12, 18]]
    assert shown_steps(tmp_path, every=1, per_rollout=2, starts=[range(6)]) == [[0, 2, 4]]


@pytest.mark.parametrize("per_rollout", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 3, 4, 50])
def test_a_resumed_run_keeps_the_rhythm(per_rollout: int, every: int, tmp_path: Path) -> None:
    (whole,) = shown_steps(tmp_path, every=every, per_rollout=per_rollout, starts=[range(60)])
    for middle in range(1, 60, 7):
        first, second = shown_steps(
            tmp_path, every=every, per_rollout=per_rollout, starts=[range(middle), range(middle, 60)]
        )
        assert first + second == whole


def test_the_trackers_get_so_many_groups(tmp_path: Path) -> None:
    for number, rows in ((0, []), (1, [2]), (3, [6]), (9, [8])):
        tracker, said = guarded(Reporter(), tmp_path)
        Trackers([tracker], tmp_path, number, said.append).show("train/completions", lines(0, groups=4))
        assert [row for *_, row in tracker.tracker.shown] == rows


def test_a_full_disk_is_told_as_without_trackers(tmp_path: Path) -> None:
    tracker, said = guarded(Reporter(), tmp_path)
    log = TrackedCompletions(Log(), Trackers([tracker], tmp_path, 1, said.append), 1, 1)
    log.is_full = log.log.is_full = True
    with pytest.raises(OSError, match="No space left"):
        log.write(lines(0))
    assert tracker.tracker.shown == [("train/completions", 0, 2)], "a tracker may have room"
    assert log.path == Log.path


def test_an_evaluations_table_stands_beside_its_metrics(tmp_path: Path) -> None:
    tracker, said = guarded(Reporter(), tmp_path)
    trackers = Trackers([tracker], tmp_path, 1, said.append)
    for prefix in ("eval", "eval_hard_set"):
        trackers.show_evaluation(prefix, lines(2))
    assert [key for key, *_ in tracker.tracker.shown] == ["eval/completions", "eval/hard_set_completions"]


def test_unreadable_pictures_are_said_once(tmp_path: Path) -> None:
    tracker, said = guarded(Reporter(), tmp_path)
    trackers = Trackers([tracker], tmp_path, 1, said.append)
    for step in range(3):
        trackers.show("train/completions", [{**line, "images": ["gone.png"]} for line in lines(step)])
    assert len(said) == 1 and "gone.png" in said[0]
    assert len(tracker.tracker.shown) == 3


# Which callbacks are trackers


def test_trackers_are_found_among_callbacks() -> None:
    class SwanLabCallback(TrainerCallback):
        """SwanLab's own has transformers' name."""

    class Extension(SwanLabCallback):
        """What LLaMA-Factory makes of it."""

    comet = CometCallback.__new__(CometCallback)
    tensorboard = TensorBoardCallback()
    reporter = ReporterCallback.__new__(ReporterCallback)
    found = find_trackers([TrainerCallback(), tensorboard, comet, Extension(), reporter])
    assert [(tracker.name, tracker.shows_tables) for tracker in found[:3]] == [
        *(("tensorboard", True), ("comet_ml", False), ("swanlab", True)),
    ]
    assert [tracker.callback for tracker in found[3:]] == [reporter]
    assert isinstance(found[0], TensorBoardTracker) and found[0].callback is tensorboard


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for report_to in (["tensorboard", "wandb"], "trackio"):
        with pytest.raises(ArgumentError, match="pip install"):
            check_trackers(report_to)
    for fine in (None, [], "none", ["mlflow"], "all"):
        check_trackers(fine)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True if name == "tensorboardX" else None)
    check_trackers(["tensorboard"])


# A run


@pytest.mark.filterwarnings("default")
def test_a_run_reaches_tensorboard_and_survives_a_tracker(twin: Any, tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class WandbCallback(Reporter):
        """A tracker whose server is gone."""

    write_problems(tmp_path, 6, num_two_images=1)
    out = tmp_path / "out"
    recipe = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_train": True,
        "do_eval": True,
        "finetuning_type": "full",
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "media_dir": str(tmp_path),
        "val_size": 2,
        "cutoff_len": 512,
        "max_new_tokens": 4,
        "grpo_num_generations": 2,
        "grpo_eval_generations": 1,
        "grpo_log_completions_to_trackers": 2,
        "grpo_tracker_completions_steps": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(out),
        "report_to": "tensorboard",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    broken = WandbCallback("on_train_begin")
    run_exp(dict(recipe), callbacks=[broken])
    assert broken.seen == ["on_train_begin"]
    resumed = {**recipe, "max_steps": 3, "resume_from_checkpoint": str(out / "checkpoint-1")}
    run_exp(resumed, callbacks=[])
    pyplot.close("all")

    (folder,) = (out / "runs").iterdir()
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    found.Reload()
    assert [event.step for event in found.Scalars("train/reward")] == [1, 2, 3], "one curve, without a step twice"
    assert {"train/completions", "train/completions_2", "eval/completions"} <= {
        tag.removesuffix("/text_summary") for tag in found.Tags()["tensors"]
    }
    steps = [event.step for event in found.Tensors("train/completions/text_summary")]
    assert steps == [0, 2], "the resumed run keeps the rhythm"
    assert [event.step for event in found.Images("train/completions_picture")] == [0, 2]
    logged = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    text = found.Tensors("train/completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert logged[0]["step"] == 0 and f"record {logged[0]['record']}," in text
    assert "train/accuracy" in found.Tags()["scalars"] and "eval/accuracy" in found.Tags()["scalars"]
