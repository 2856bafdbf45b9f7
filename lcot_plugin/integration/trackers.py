"""Experiment trackers of a GRPO run: metrics, completions with pictures, and a run that goes on after a resume.

In: a trainer whose callbacks `report_to` (or `use_swanlab`) has made, and the lines of its completions. Out: the same
callbacks, guarded; tables in wandb, SwanLab, Trackio and TensorBoard; `trackers.json` in output_dir, which names the
trackers' runs. Consumers: integration.grpo, integration.grpo_trainer.

Metrics are the callbacks' own affair. A tracker that raises is said once and left out: no run ends for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lcot_plugin.errors import ArgumentError, DataError
from lcot_plugin.integration.tracker_runs import KINDS, Tracker
from lcot_plugin.integration.tracker_tables import completion_table, readable
from lcot_plugin.report.masking import masked
from lcot_plugin.report.run_log import read_json, write_json

TRACKERS_FILE = "trackers.json"
PACKAGES = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "swanlab": ("swanlab",),
}
"""What `report_to` names: the packages of which one must be installed."""
WHERE = {"on_train_begin": "at its start", "on_log": "while it logs", "on_train_end": "at its end"}
EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))

Warn = Callable[[str], None]


def check_trackers(report_to: Sequence[str] | str | None) -> None:
    """Raises ArgumentError for a tracker that is not installed, before anything is loaded."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        packages = PACKAGES.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ArgumentError(
                f"report_to: {name} is not installed: `pip install {packages[0]}`, or write `report_to: none`."
            )


class GuardedTracker:
    """A tracker's callback whose errors end nothing but the tracker."""

    def __init__(self, tracker: Tracker, folder: Path, warn: Warn):
        self.tracker, self.folder, self.warn = tracker, folder, warn
        self.works = True
        """Whether its callback is still called."""
        self.shows = tracker.shows_tables
        """Whether it still gets tables."""
        for event in EVENTS:
            original = getattr(tracker.callback, event)
            setattr(tracker.callback, event, partial(self._on_event, event, original))

    def _on_event(
        self, event: str, original: Callable[..., Any], args: Any, state: Any, *rest: Any, **named: Any
    ) -> Any:
        if not self.works:
            return None
        call = partial(original, args, state, *rest, **named)
        with self._guarded(WHERE.get(event, f"in {event}")):
            if not state.is_world_process_zero:
                return call()
            if event == "on_train_begin":
                return self._begin(call, args, state)
            if event == "on_train_end":
                return self.tracker.end(call)
            return call()
        self.works = self.shows = False
        if self.tracker.name in (getattr(args, "report_to", None) or ()):
            args.report_to.remove(self.tracker.name)  # LLaMA-Factory's own reporter would go on with it
        return None

    def _begin(self, call: Callable[[], Any], args: Any, state: Any) -> Any:
        name, saved = self.tracker.name, None
        runs = self._runs()
        if state.global_step and name in runs:
            saved = {**runs[name], "step": state.global_step}
        with self.tracker.beginning(args, saved):
            result = call()
        runs.pop(name, None)
        if run := self.tracker.run():
            runs[name] = run
        write_json(self.folder / TRACKERS_FILE, runs)
        return result

    def _runs(self) -> dict[str, Any]:
        try:
            return read_json(self.folder / TRACKERS_FILE) or {}
        except DataError as error:
            self.warn(f"{error} The trackers begin new runs.")
            return {}

    def show(self, key: str, table: Any) -> None:
        """Sends a table, where the tracker works and takes any."""
        if self.works and self.shows:
            self.shows = False
            with self._guarded("with a table of completions (its metrics go on)"):
                self.tracker.show(key, table)
                self.shows = True

    def close(self) -> None:
        if self.works:
            with self._guarded("at its end"):
                self.tracker.close()

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracker is a convenience: whatever it raises, training goes on
            text = " ".join((readable(masked(str(error))) or "").split())[:500].rstrip(".")
            self.warn(
                f"The tracker {self.tracker.name} has failed {where}: {type(error).__name__}: {text}. It is left out; "
                f"training goes on, and output_dir has every metric and completion. {self.tracker.advice}"
            )


class TrackedCompletions:
    """A log of completions whose first groups also go to the trackers, every so many steps."""

    def __init__(self, log: Any, trackers: Trackers, every: int, steps_per_rollout: int):
        self.log, self.trackers = log, trackers
        self.every, self.steps_per_rollout = every, steps_per_rollout
        self._last = -1
        """Optimizer step of the last rollout; what is due follows from it, so a resumed run keeps its rhythm."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def drop_from_step(self, step: int) -> None:
        """See CompletionsLog.drop_from_step."""
        self.log.drop_from_step(step)
        self._last = (step - 1) // self.steps_per_rollout * self.steps_per_rollout

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """See CompletionsLog.write."""
        lines = list(lines)
        try:
            self.log.write(lines)
        finally:
            if lines and lines[0]["step"] // self.every > self._last // self.every:
                self.trackers.show("train/completions", lines)
            self._last = lines[0]["step"] if lines else self._last


class Trackers:
    """The trackers of a run, guarded."""

    def __init__(self, guarded: Sequence[GuardedTracker], folder: Path, num_groups: int, warn: Warn):
        self.guarded, self.folder, self.num_groups, self.warn = guarded, folder, num_groups, warn
        self._is_told_of_pictures = False

    @property
    def take_tables(self) -> bool:
        """Whether any of them shows completions."""
        return self.num_groups > 0 and any(tracker.works and tracker.shows for tracker in self.guarded)

    def show(self, key: str, lines: Sequence[dict[str, Any]]) -> None:
        """The first groups of `lines`, which are those of one rollout or evaluation, as a table in every tracker."""
        if not self.take_tables:
            return
        table = completion_table(lines, self.folder, self.num_groups, self._say_picture)
        for tracker in self.guarded:
            tracker.show(key, table)

    def show_evaluation(self, prefix: str, lines: Sequence[dict[str, Any]]) -> None:
        """prefix: of the evaluation's metrics, `eval` or `eval_SET`; the table stands beside them."""
        stage, _, data_set = prefix.partition("_")
        self.show(f"{stage}/{data_set}_completions" if data_set else f"{stage}/completions", lines)

    def _say_picture(self, text: str) -> None:
        if not self._is_told_of_pictures:
            self.warn(f"{text} (Said once.)")
        self._is_told_of_pictures = True

    def close(self) -> None:
        """Nothing follows."""
        for tracker in self.guarded:
            tracker.close()


@contextmanager
def follow_trackers(trainer: Any) -> Iterator[Trackers]:
    """Guards the trackers among a trainer's callbacks until the run ends, and has its completions sent to them.

    trainer: a GrpoTrainer that is set up. Its `parts.completions_log` is replaced where a tracker takes tables.
    """
    arguments, folder, warn = trainer.parts.arguments, Path(trainer.args.output_dir), trainer.parts.warn
    found = find_trackers(trainer.callback_handler.callbacks)
    trackers = Trackers(
        [GuardedTracker(tracker, folder, warn) for tracker in found],
        folder,
        arguments.grpo_log_completions_to_trackers if trainer.is_world_process_zero() else 0,
        warn,
    )
    if trackers.take_tables and trainer.args.do_train:
        if not arguments.grpo_log_completions:
            warn("grpo_log_completions: false, so the trackers get no completions of training either.")
        plan = trainer.parts.plan
        trainer.parts.completions_log = TrackedCompletions(
            trainer.parts.completions_log,
            trackers,
            arguments.grpo_tracker_completions_steps,
            max(1, plan.micro_steps_per_rollout // trainer.args.gradient_accumulation_steps),
        )
    try:
        yield trackers
    finally:
        trackers.close()


def find_trackers(callbacks: Iterable[Any]) -> list[Tracker]:
    """Those among a trainer's callbacks that report to a tracker: transformers' own, SwanLab's, and LLaMA-Factory's,
    which sends the arguments to wandb, Trackio and SwanLab."""
    reporters = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    found: list[Tracker] = []
    for callback in callbacks:
        classes = type(callback).__mro__
        known = next((KINDS[kind.__name__] for kind in classes if kind.__name__ in KINDS), None)
        name = next((reporters[kind] for kind in classes if kind in reporters), None)
        if known is not None:
            found.append(known(callback, name or _class_name(classes)))
        elif name is not None:
            found.append(Tracker(callback, name))
    return found


def _class_name(classes: Sequence[type]) -> str:
    """`swanlab` of the class SwanLabCallback, `reporter` of LLaMA-Factory's."""
    kind = next(kind for kind in classes if kind.__name__ in KINDS)
    return kind.__name__.removesuffix("Callback").lower()
