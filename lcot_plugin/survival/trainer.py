"""Whole checkpoints, signals and errors, as a mixin over a transformers Trainer. Nothing of SFT or GRPO.

In: the Trainer's own loop. Out: checkpoints that are whole or not there; after a signal or an error the state of the
last optimizer step is in one of them. Consumers: policy.checkpoint and packing.trainer, which add their own files.

The last good state. Weights and optimizer change in `optimizer.step()` alone, so until then an optimizer step can be
given up: what else it has changed (random states, and what a subclass names in `_boundary_state`) is kept as it was
when the step before ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from transformers import TrainerCallback, trainer_utils

from lcot_plugin.errors import RolloutError
from lcot_plugin.survival.checkpoints import (
    INCOMPLETE,
    TRAINER_STATE,
    checkpoint_folder,
    discard,
    fault_of,
    free_bytes,
    is_full_disk,
    newest_whole,
    publish,
    publish_finished,
    size_of,
    staged_folder,
)
from lcot_plugin.survival.memory import free_memory, is_out_of_memory
from lcot_plugin.survival.stopping import RunStopped, StopSignals

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # the real one comes behind this mixin in the bases

MAX_FAILED_CHECKPOINTS = 3
"""In a row, for want of room; then the run ends."""
GIB = 2**30
BEST = ("best_metric", "best_global_step", "best_model_checkpoint")
"""Of the Trainer's state."""


class StoppedEarly(BaseException):
    """A signal has ended the run, on every process: between two optimizer steps, or in one that had changed nothing.

    Not an Exception: nothing on the way may take it for an error of its own.
    """


@dataclass(frozen=True)
class Boundary:
    """What stood between two optimizer steps."""

    step: int
    """Optimizer steps done."""
    random_states: dict[str, Any]
    own: Any
    """What the subclass keeps."""
    best: dict[str, Any] = field(default_factory=dict)
    """Of the Trainer's state, what an evaluation after the step may change."""


class _Watch(TrainerCallback):
    """Sees the steps go by; the last of the callbacks."""

    def __init__(self, trainer: SurvivingTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._weights_are_changing = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        best = {name: getattr(state, name) for name in BEST}
        trainer._boundary = Boundary(state.global_step, random_states(), trainer._boundary_state(), best)
        trainer._weights_are_changing = False
        trainer._stopped_by = trainer.stop_signals.agree(trainer.accelerator)
        if trainer._stopped_by is not None:
            control.should_save = control.should_training_stop = control.should_log = True
            control.should_evaluate = False  # may take longer than a scheduler waits

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It may have drawn random numbers, and belongs to the step that came before."""
        boundary = self.trainer._boundary
        if boundary is not None and boundary.step == state.global_step:
            self.trainer._boundary = replace(boundary, random_states=random_states())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer would evaluate and save as at the end of an epoch, and then tidy up as at the end of the run,
        which may remove the checkpoint that has just been written."""
        if self.trainer._stopped_by is not None:
            raise StoppedEarly


class SurvivingTrainer(_Trainer):
    """Stands before a Trainer class in the bases; `setup_survival` is called once after `__init__`."""

    stop_signals: StopSignals
    control: Any
    _boundary: Boundary | None = None
    _stopped_by: int | None = None
    _weights_are_changing = False
    _writes_checkpoint = False
    _push_later = False
    _saved_step: int | None = None
    """Of the last checkpoint of this run."""
    _failed_checkpoints = 0
    _on_all_processes = False
    """Whether the error that is being raised is raised on every process."""
    _warn: Callable[[str], None] = staticmethod(print)

    def setup_survival(self, warn: Callable[[str], None]) -> None:
        """warn: logs a line, on the first process."""
        self._warn = warn
        self.stop_signals = StopSignals()
        self.add_callback(_Watch(self))

    # What subclasses add

    def _save_beside(self, folder: Path) -> None:
        """Writes the subclass's files into the checkpoint; on every process."""

    def _boundary_state(self) -> Any:
        """Of the subclass's own, what an optimizer step changes before it changes the weights."""

    # Training

    def whole_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """The checkpoint to resume from; for True the newest whole one. A collective.

        Raises ValueError for one that is not whole, and where processes see different ones.
        """
        found, fault = self._found_here(resume_from_checkpoint)
        seen = [(Path(found).name if isinstance(found, str) else str(found), fault)]
        if self.accelerator.num_processes > 1:  # before any process raises: the others would wait for it
            seen = gather_object(seen)
        faults = [fault for _, fault in seen if fault is not None]
        if faults:
            raise ValueError(fault or faults[0])
        names = sorted({name for name, _ in seen})
        if len(names) > 1:
            raise ValueError(
                f"Processes would resume from different checkpoints: {', '.join(names)}. Each machine needs the same "
                "in its output_dir: write the path of one that all have as resume_from_checkpoint."
            )
        return found

    def _found_here(self, resume_from_checkpoint: str | bool | None) -> tuple[str | bool | None, str | None]:
        """The checkpoint that this process would resume from, or why it cannot."""
        if resume_from_checkpoint is True:
            publish_finished(self.args.output_dir)
            passed_over: list[str] = []
            found = newest_whole(self.args.output_dir, passed_over.append)
            for line in passed_over:
                self._warn(line)
            if found is None and passed_over:
                return None, (
                    f"Cannot resume: {self.args.output_dir} has no whole checkpoint. {' '.join(passed_over)} Leave "
                    "resume_from_checkpoint out to begin anew."
                )
            return found or True, None  # where there is none at all, the Trainer says so
        if isinstance(resume_from_checkpoint, str) and (fault := fault_of(resume_from_checkpoint)):
            return None, (
                f"Cannot resume from {resume_from_checkpoint}: it is not whole, {fault}. Write "
                "`resume_from_checkpoint: true` to resume from the newest whole checkpoint in output_dir."
            )
        return resume_from_checkpoint, None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Raises RunStopped (SystemExit) where a signal has ended the run, once its checkpoint is whole."""
        self._boundary, self._stopped_by, self._weights_are_changing = None, None, False
        self._saved_step, self._failed_checkpoints, self._on_all_processes = None, 0, False
        with self.stop_signals, self._guarded_on_save():
            try:
                result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
                if self._stopped_by is None:  # it may have come after the last step
                    self._stopped_by = self.stop_signals.agree(self.accelerator)
                    # The Trainer has tidied up: the weights may be the best ones, the last checkpoint removed.
                    if self._stopped_by is not None and not self.args.load_best_model_at_end:
                        self._saved_step = None if self.args.save_total_limit == 1 else self._saved_step
                        self._save_last_good()
            except StoppedEarly:
                if self._stopped_by is None:  # in the middle of a step, or of an evaluation
                    self._stopped_by = self.stop_signals.agree(self.accelerator)
                    self._save_last_good()
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                self._finish_current_push()
            except Exception as error:
                self._save_after(error)
                raise
        if self._stopped_by is not None:
            self._end()
        return result

    def _end(self) -> None:
        assert self._stopped_by is not None
        stop = RunStopped(self._stopped_by)
        if self._failed_checkpoints:
            raise OSError(f"{stop.signal.name} ended the run at step {self.state.global_step} without a checkpoint.")
        own = checkpoint_folder(self.args.output_dir, self.state.global_step)
        last = newest_whole(self.args.output_dir, lambda line: None) if fault_of(own) else str(own)
        where = "nothing had been trained yet" if last is None else f"{last} is whole"
        self._warn(
            f"{stop.signal.name} ended the run after {self.state.global_step} optimizer steps: {where}. The same "
            "command goes on from there; with `overwrite_output_dir: true`, add "
            f"`resume_from_checkpoint: {last or 'true'}`. Exit code {stop.code}."
        )
        raise stop

    def _save_last_good(self) -> None:
        """The state after the last optimizer step, unless it lies in a checkpoint already; on every process."""
        boundary, step = self._boundary, self.state.global_step
        if boundary is None or boundary.step != step or self._saved_step == step or self._weights_are_changing:
            return
        self.model.zero_grad()
        set_random_states(boundary.random_states)
        self._save_checkpoint(self.model_wrapped, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_after(self, error: Exception) -> None:
        """An error ends the run; what was learned until then is saved where that is possible."""
        on_all = self._on_all_processes or getattr(error, "agreed", False)
        if not (on_all or computes_alone(self.accelerator)):
            return  # the other processes wait for this one in the middle of their step
        if is_full_disk(error) and not isinstance(error, RolloutError):  # that one's folder is another
            return
        if is_out_of_memory(error) or is_out_of_memory(error.__cause__):
            free_memory(error)
        try:
            self._save_last_good()
        except Exception as second:  # a broken device, say: the first error is the one to tell of
            self._warn(f"The state of step {self.state.global_step} could not be saved: {second}")
            return
        last = newest_whole(self.args.output_dir, lambda line: None)
        if last is not None:
            self._warn(f"The run ends with an error. It can go on from {last}.")

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial=trial)
        return str(Path(folder, INCOMPLETE)) if self._writes_checkpoint else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writes_checkpoint:
            self._push_later = True  # it goes by another name in a moment
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Whole, or not there at all; where the disk is full training goes on and the next save tries again."""
        run_dir = Path(self._get_output_dir(trial))
        obstacle = self._no_room(run_dir)
        if obstacle is None:
            try:
                self._write_whole(model, trial, run_dir)
            except Exception as error:
                # Several processes cannot know at which of their exchanges one of them has failed.
                if self.accelerator.num_processes > 1 or not is_full_disk(error):
                    raise
                obstacle = str(error).splitlines()[0] if str(error) else type(error).__name__
                discard(run_dir)
        if obstacle is None:
            self._saved_step, self._failed_checkpoints = self.state.global_step, 0
            return
        if self._boundary is not None:  # the best checkpoint may be the one that there was no room for
            for name, value in self._boundary.best.items():
                setattr(self.state, name, value)
        self._went_without(run_dir, obstacle)

    def _write_whole(self, model: Any, trial: Any, run_dir: Path) -> None:
        accelerator, step = self.accelerator, self.state.global_step
        staged, final = staged_folder(run_dir, step), checkpoint_folder(run_dir, step)
        if accelerator.is_local_main_process:
            discard(run_dir)
        accelerator.wait_for_everyone()
        staged.mkdir(parents=True, exist_ok=True)
        with self._writing():
            self._save_beside(staged)
            super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            publish(staged, final)
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process and staged.is_dir():  # this machine has a disk of its own
            with suppress(FileNotFoundError):  # or sees the shared one late
                publish(staged, final)
        accelerator.wait_for_everyone()
        if self._push_later:
            self._push_later = False
            super()._push_from_checkpoint(str(final))
        if self.args.should_save:
            self._rotate(run_dir)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._writes_checkpoint = True
        try:
            yield
        finally:
            self._writes_checkpoint = False

    def _rotate(self, run_dir: Path) -> None:
        """`save_total_limit`, which the Trainer could not see to where it wrote."""
        if hasattr(self, "_rotate_checkpoints"):  # transformers 4
            self._rotate_checkpoints(use_mtime=True, output_dir=str(run_dir))
        else:
            trainer_utils.rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _no_room(self, run_dir: Path) -> str | None:
        """Why a checkpoint as large as the last one would not fit; None where it would. A collective."""
        told: list[str | None] = [None]
        if self.accelerator.is_main_process:
            last = newest_whole(run_dir, lambda line: None)
            needed, free = size_of(Path(last)) if last else 0, free_bytes(run_dir)
            if free < needed:
                told = [f"{free / GIB:.2f} GiB are free and the last checkpoint took {needed / GIB:.2f} GiB"]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(told)
        return told[0]

    def _went_without(self, run_dir: Path, obstacle: str) -> None:
        self._failed_checkpoints += 1
        last = newest_whole(run_dir, lambda line: None) or "there is none yet"
        text = (
            f"No room for the checkpoint of step {self.state.global_step} in {run_dir}: {obstacle}. Nothing of it was "
            f"kept; the last whole one: {last}."
        )
        if self._failed_checkpoints >= MAX_FAILED_CHECKPOINTS:
            raise OSError(28, f"{text} It is the third in a row: free some room, then resume.")
        self._warn(f"{text} Training goes on and tries again at the next save: free some room.")

    @contextmanager
    def _guarded_on_save(self) -> Iterator[None]:
        """Callbacks that add their files to a checkpoint find one; where the disk is full they go without."""
        handler = self.callback_handler
        original = handler.on_save

        def on_save(args: Any, state: Any, control: Any) -> Any:
            control.should_save = False
            if self._failed_checkpoints:
                return control
            try:
                return original(args, state, control)
            except Exception as error:
                if not is_full_disk(error):
                    raise
                self._warn(f"No room for the tokenizer's files in {self.args.output_dir}: {error}")
                return control

        handler.on_save = on_save
        try:
            yield
        finally:
            del handler.on_save


def random_states() -> dict[str, Any]:
    """Of every generator that training may draw from, on this process."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def computes_alone(accelerator: Any) -> bool:
    """Whether no other process and no engine of its own takes part in a pass."""
    return accelerator.num_processes == 1 and accelerator.distributed_type == DistributedType.NO
