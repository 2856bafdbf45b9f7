"""Keeps the files of a run (report/run_log.py) while it runs: run.json, metrics.jsonl, alarms.jsonl, progress.json.

In: the Trainer's callbacks, what the GRPO loop says of its phases and alarms, and how the run ends. Out: the files,
from the first process only. Where a disk is full, lines are lost and training goes on. Consumers: integration.grpo and
integration.packing, which begin a run with `run_files`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llamafactory.extras.logging import get_logger
from transformers import TrainerCallback

from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.run_record import run_record
from lcot_plugin.protocols import NoWatcher
from lcot_plugin.report.masking import masked
from lcot_plugin.report.progress import Progress
from lcot_plugin.report.run_log import (
    ALARMS_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    RUN_FILE,
    StepLog,
    metric_line,
    read_json,
    write_json,
)
from lcot_plugin.survival.checkpoints import newest_whole
from lcot_plugin.survival.stopping import RunStopped

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it

MAX_MESSAGE = 2000
"""Characters of an error in progress.json."""


class NoFiles(TrainerCallback, NoWatcher):
    """What every process but the first keeps of a run: nothing."""

    stop_signals: Any = None
    """The trainer's, so that a run that has been asked to end is known to end."""


class RunFiles(NoFiles):
    """The files of one run. Also the RunWatcher of its GRPO loop."""

    def __init__(self, folder: Path, warn: Callable[[str], None]):
        """folder: the run's output_dir."""
        self.folder, self.warn = folder, warn
        self.num_lost = 0
        """Lines and files for which there was no room."""
        self.metrics, self.alarms = StepLog(folder / METRICS_FILE, warn), StepLog(folder / ALARMS_FILE, warn)
        self.progress = Progress(self._write_progress, is_stopping=self._is_stopping)

    # The run

    def begin(self, record: Mapping[str, Any]) -> None:
        """Writes run.json; one that only evaluates leaves that of the training whose folder it is in."""
        try:
            before = read_json(self.folder / RUN_FILE) or {}
        except (ValueError, OSError):  # broken: the new one replaces it
            before = {}
        self.progress.state("loading")
        if record["trains"] or not before.get("trains"):
            self._tolerant(write_json, self.folder / RUN_FILE, record)
            if not record["trains"]:
                self._tolerant(self.metrics.drop_from_step, 0)
        if not record["trains"]:
            self.progress.follow()

    def end(self, error: BaseException | None) -> None:
        """How it ended: None for a run that has done all it was to do."""
        state, message = ending(error)
        if isinstance(error, RunStopped):
            last = None
            with suppress(OSError):  # the disk may be what has gone
                last = newest_whole(self.folder, lambda line: None)
            message = f"{message} {last} is whole." if last else f"{message} Nothing had been trained yet."
        self.progress.close(state, message)
        if self.num_lost:
            self.warn(f"{self.num_lost:,} writes to the files of {self.folder} were lost for want of room.")

    # RunWatcher

    def phase(self, name: str | None, total: int | None = None) -> None:
        if self.progress.values["state"] == "loading" and name == "evaluation":
            self.progress.state("running")  # a run that only evaluates
        self.progress.phase(name, total)

    def advance(self, number: int = 1) -> None:
        self.progress.advance(number)

    def alarm(self, alarm: Any) -> None:
        line = {"step": alarm.step, "name": alarm.name, "message": alarm.message, "advice": alarm.advice}
        self._tolerant(self.alarms.write, [line])

    # The Trainer's callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tolerant(self.metrics.keep, logged_before(state.global_step, state.log_history))
        self._tolerant(self.alarms.drop_from_step, state.global_step + 1 if state.global_step else 0)
        self.progress.begin_steps(state.global_step, state.max_steps)
        self.progress.state("running")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.phase("update")  # of GRPO the loop says more

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.end_step(state.global_step)
        if control.should_evaluate or control.should_save:
            self.phase("evaluation" if control.should_evaluate else "checkpoint")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.phase("checkpoint" if control.should_save else None)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress.values["phase"] != "evaluation":
            self.phase("evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.phase(None)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.phase("saving")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs:
            self._tolerant(self.metrics.write, [metric_line(state.global_step, time.time(), logs)])

    # Files

    def _write_progress(self, values: dict[str, Any]) -> None:
        self._tolerant(write_json, self.folder / PROGRESS_FILE, values)

    def _is_stopping(self) -> bool:
        return self.stop_signals is not None and self.stop_signals.received is not None

    def _tolerant(self, write: Callable[..., None], *arguments: Any) -> None:
        """No file of a log is worth a run."""
        try:
            write(*arguments)
        except OSError as error:
            self.num_lost += 1
            if self.num_lost == 1:
                self.warn(f"No line could be written in {self.folder}: {error}. Training goes on; lines may be lost.")


@contextmanager
def run_files(run: RunArguments, plan: Mapping[str, Any]) -> Iterator[NoFiles]:
    """The files of a run, from its start to its end, however it ends."""
    if run.training.process_index or not run.training.output_dir:
        yield NoFiles()
        return
    files = RunFiles(Path(run.training.output_dir), logger.warning)
    files.begin(run_record(run, plan))
    try:
        yield files
    except BaseException as error:
        files.end(error)
        raise
    files.end(None)


def ending(error: BaseException | None) -> tuple[str, str | None]:
    """State and message of a run that ended so."""
    match error:
        case None:
            return "finished", None
        case RunStopped():
            return "stopped", f"{error.signal.name} ended the run."
        case KeyboardInterrupt():
            return "stopped", "Ctrl-C ended the run before it had trained."
        case SystemExit() if error.code in (None, 0):
            return "finished", None
    told = masked(f"{type(error).__name__}: {error}".strip())
    left_out = len(told) - MAX_MESSAGE
    return "failed", told if left_out <= 0 else f"({left_out:,} characters left out) ...{told[-MAX_MESSAGE:]}"


def logged_before(step: int, history: Iterable[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], bool]:
    """Which lines of metrics.jsonl a run that goes on after `step` keeps.

    Those of earlier steps, and as many of this very step as had been logged when its checkpoint was saved: an earlier
    run may have gone on logging, after its last step, what it ended with. A fresh run keeps none.
    """
    left = sum(line.get("step") == step for line in history) if step else 0

    def wanted(line: Mapping[str, Any]) -> bool:
        nonlocal left
        if line["step"] != step or not step:
            return line["step"] < step
        left -= 1
        return left >= 0

    return wanted
