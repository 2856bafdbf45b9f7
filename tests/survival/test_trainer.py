"""Faults injected into a real transformers Trainer: what is on the disk then, and what a resumed run makes of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import run_tiny, tiny_trainer, weights

from lcot_plugin.errors import RolloutError
from lcot_plugin.survival import trainer as survival
from lcot_plugin.survival.checkpoints import MANIFEST, fault_of, newest_whole
from lcot_plugin.survival.stopping import RunStopped
from lcot_plugin.survival.trainer import MAX_FAILED_CHECKPOINTS, StoppedEarly

pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable")  # of checkpoints within a second


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The weights of a run of six steps."""
    trainer = tiny_trainer(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    return weights(trainer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole checkpoints ------------------------------------------------------------------------------------------------


def test_a_checkpoint_appears_when_it_is_whole(tmp_path: Path) -> None:
    trainer, seen = tiny_trainer(tmp_path), []
    trainer.in_save = lambda trainer, folder: seen.append((names(tmp_path), folder.parent.name))
    trainer.train()
    assert seen[0] == (["incomplete_checkpoints"], "incomplete_checkpoints")
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]  # save_total_limit: 2
    files = json.loads((tmp_path / "checkpoint-6" / MANIFEST).read_text())["files"]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= files.keys()
    assert fault_of(tmp_path / "checkpoint-6") is None


def test_rotation_keeps_the_last_whole_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    trainer, seen = tiny_trainer(tmp_path, save_total_limit=1), []
    trainer.in_save = lambda trainer, folder: seen.append(newest_whole(tmp_path, lambda line: None))
    trainer.train()
    assert seen == [None, str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4")]
    assert names(tmp_path) == ["checkpoint-6"]


def test_a_kill_in_the_middle_of_a_checkpoint_costs_that_one(tmp_path: Path, undisturbed: list[float]) -> None:
    killed = run_tiny(tmp_path, kill_in_save=4)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["checkpoint-2", "incomplete_checkpoints"]
    assert names(tmp_path / "incomplete_checkpoints" / "checkpoint-4")
    warned: list[str] = []
    resumed = tiny_trainer(tmp_path, warned)
    checkpoint = resumed.whole_checkpoint(True)
    assert checkpoint == str(tmp_path / "checkpoint-2")
    assert "incomplete_checkpoints/checkpoint-4 was being written" in warned[0]
    resumed.train(resume_from_checkpoint=checkpoint)
    assert weights(resumed) == undisturbed
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_the_best_checkpoint_goes_by_its_real_name(tmp_path: Path) -> None:
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = tiny_trainer(tmp_path, metric_for_best_model="loss", save_total_limit=1, **evaluating)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert Path(best).parent == tmp_path and Path(best).is_dir()
    newest = newest_whole(tmp_path)
    state = json.loads(Path(newest, "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint-2"
    broken.mkdir()
    (broken / "model.safetensors").write_text("left by a kill of long ago")
    tiny_trainer(tmp_path, steps=2).train()
    assert fault_of(broken) is None
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_hub_upload_finds_the_files_where_they_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    pushed: list[str] = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append(folder))
    trainer = tiny_trainer(tmp_path, steps=2)
    trainer.in_save = lambda trainer, folder: trainer._push_from_checkpoint(str(folder))
    trainer.train()
    assert pushed == [str(tmp_path / "checkpoint-2")]


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    optimizer = tmp_path / "checkpoint-6" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    warned: list[str] = []
    trainer = tiny_trainer(tmp_path, warned)
    assert trainer.whole_checkpoint(True) == str(tmp_path / "checkpoint-4")
    assert "checkpoint-6 is not whole, optimizer.pt has" in warned[0]
    with pytest.raises(ValueError, match=r"not whole, optimizer\.pt has .*resume_from_checkpoint: true"):
        trainer.whole_checkpoint(str(tmp_path / "checkpoint-6"))


def test_no_whole_checkpoint_is_said_and_none_at_all_is_the_trainers_to_say(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert trainer.whole_checkpoint(True) is True
    assert trainer.whole_checkpoint(None) is None
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match=r"no whole checkpoint.*trainer_state\.json.*is missing"):
        trainer.whole_checkpoint(True)


def test_processes_must_resume_from_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_trainer(tmp_path, steps=2).train()
    trainer = tiny_trainer(tmp_path)
    trainer.accelerator = SimpleNamespace(num_processes=2)
    others: list[tuple[str, str | None]] = [("checkpoint-2", None)]
    asked: list[Any] = []
    monkeypatch.setattr(survival, "gather_object", lambda own: asked.extend(own) or own + others)
    assert trainer.whole_checkpoint(True) == str(tmp_path / "checkpoint-2")
    others[:] = [("checkpoint-1", None)]
    with pytest.raises(ValueError, match="different checkpoints: checkpoint-1, checkpoint-2"):
        trainer.whole_checkpoint(True)
    others[:] = [("None", "Cannot resume: the other machine has none.")]
    with pytest.raises(ValueError, match="the other machine has none"):
        trainer.whole_checkpoint(True)
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    asked.clear()
    with pytest.raises(ValueError, match=r"optimizer\.pt has 0 bytes"):
        trainer.whole_checkpoint(True)
    assert len(asked) == 1, "it must tell the others before it raises: they would wait"


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_its_step_and_a_resume_goes_on_bit_for_bit(
    tmp_path: Path, undisturbed: list[float], number: signal.Signals
) -> None:
    stopped = run_tiny(tmp_path, signal_in=2, signal=int(number))
    assert stopped.returncode == 128 + number
    assert f"{number.name} ended the run after 3 optimizer steps" in stopped.stdout
    assert f"{tmp_path / 'checkpoint-3'} is whole" in stopped.stdout
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    resumed = tiny_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=resumed.whole_checkpoint(True))
    assert weights(resumed) == undisturbed


def test_a_step_that_is_given_up_leaves_no_trace(tmp_path: Path, undisturbed: list[float]) -> None:
    """As in the middle of a rollout: between the two micro-steps of the fourth step, with numbers drawn already."""
    trainer = tiny_trainer(tmp_path, save_steps=100)
    steps = []

    def stop(trainer: Any) -> None:
        steps.append(trainer.state.global_step)
        if steps.count(3) == 2:
            trainer.stop_signals.received = signal.SIGTERM
            raise StoppedEarly

    trainer.before_step = stop
    with pytest.raises(RunStopped) as stopped:
        trainer.train()
    assert stopped.value.code == 143
    assert names(tmp_path) == ["checkpoint-3"]
    resumed = tiny_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=resumed.whole_checkpoint(True))
    assert weights(resumed) == undisturbed


def test_a_run_stopped_before_its_first_step_has_nothing_to_save(tmp_path: Path) -> None:
    warned: list[str] = []
    trainer = tiny_trainer(tmp_path, warned)

    def stop(trainer: Any) -> None:
        trainer.stop_signals.received = signal.SIGTERM
        raise StoppedEarly

    trainer.before_step = stop
    with pytest.raises(RunStopped):
        trainer.train()
    assert names(tmp_path) == []
    assert "nothing had been trained yet" in warned[-1]


def stop_in_step(step: int) -> Any:
    def stop(trainer: Any) -> None:
        if trainer.state.global_step == step:
            trainer.stop_signals.received = signal.SIGTERM

    return stop


EVERY_SECOND = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}


def evaluated_as(trainer: Any, *losses: float) -> Any:
    """Evaluations find these losses instead."""
    found = iter(losses)

    def evaluate(**_: Any) -> dict[str, float]:
        metrics = {"eval_loss": next(found)}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate
    return trainer


def test_the_checkpoint_of_a_signal_stays_beside_the_best_one(tmp_path: Path) -> None:
    """With save_total_limit: 1 the Trainer ends with the best checkpoint alone."""
    trainer = evaluated_as(tiny_trainer(tmp_path, save_total_limit=1, **EVERY_SECOND), 0.1, 0.2)
    trainer.before_step = stop_in_step(4)
    pushes: list[str] = []
    trainer._finish_current_push = lambda: pushes.append("waited for")
    with pytest.raises(RunStopped):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5"]
    assert pushes == ["waited for"]
    resumed = evaluated_as(tiny_trainer(tmp_path, save_total_limit=1, **EVERY_SECOND), 0.3)
    resumed.train(resume_from_checkpoint=resumed.whole_checkpoint(True))
    assert resumed.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert resumed.state.global_step == 6


def test_a_signal_after_the_last_step_leaves_its_checkpoint_too(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Late(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.stop_signals.received = signal.SIGTERM

    trainer = evaluated_as(tiny_trainer(tmp_path, save_total_limit=1, **EVERY_SECOND), 0.1, 0.2, 0.3)
    trainer.add_callback(Late())
    with pytest.raises(RunStopped):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]


def test_a_signal_in_mid_epoch_is_no_end_of_an_epoch(tmp_path: Path) -> None:
    """Four steps to an epoch: a checkpoint, and neither a second one nor an evaluation."""
    trainer, saved = tiny_trainer(tmp_path, eval_strategy="epoch", save_strategy="epoch"), []
    evaluated_as(trainer)  # would raise StopIteration
    trainer.in_save = lambda trainer, folder: saved.append(folder.name)
    trainer.before_step = stop_in_step(1)
    with pytest.raises(RunStopped):
        trainer.train()
    assert saved == names(tmp_path) == ["checkpoint-2"]


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = tiny_trainer(tmp_path, steps=1)
    seen = []
    trainer.before_step = lambda trainer: seen.append(signal.getsignal(signal.SIGTERM))
    trainer.train()
    assert seen[0] != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    """As in a Ray worker, where Python would refuse."""
    trainer = tiny_trainer(tmp_path, steps=1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_costs_its_step_alone(tmp_path: Path, undisturbed: list[float]) -> None:
    """A dead data loader worker, a rollout server, a reward function: whatever raises."""
    warned: list[str] = []
    trainer = tiny_trainer(tmp_path, warned, save_steps=100)
    steps: list[int] = []

    def fail(trainer: Any) -> None:
        steps.append(trainer.state.global_step)
        if steps.count(4) == 2:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    trainer.before_step = fail
    with pytest.raises(RuntimeError, match="is killed by signal"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-4"]
    assert "It can go on from" in warned[-1]
    resumed = tiny_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=resumed.whole_checkpoint(True))
    assert weights(resumed) == undisturbed


def test_an_evaluation_belongs_to_the_step_before_it(tmp_path: Path) -> None:
    """It draws random numbers: the step after it must get the same ones when it is made again."""
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 100}
    whole = tiny_trainer(tmp_path / "whole", **evaluating)
    whole.train()
    failing = tiny_trainer(tmp_path / "again", **evaluating)

    def fail(trainer: Any) -> None:
        if trainer.state.global_step == 2:
            raise RuntimeError("in the step after the evaluation")

    failing.before_step = fail
    with pytest.raises(RuntimeError, match="after the evaluation"):
        failing.train()
    resumed = tiny_trainer(tmp_path / "again", **evaluating)
    resumed.train(resume_from_checkpoint=resumed.whole_checkpoint(True))
    assert weights(resumed) == weights(whole)


def test_an_error_between_the_weights_and_the_end_of_the_step_saves_nothing(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Failing(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("the weights are of step 3, the number is not")

    trainer = tiny_trainer(tmp_path, save_steps=100)
    trainer.add_callback(Failing())
    with pytest.raises(RuntimeError, match="of step 3"):
        trainer.train()
    assert names(tmp_path) == []


def test_weights_that_were_changing_are_not_saved(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_steps=100)
    step = torch.optim.AdamW.step

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            raise RuntimeError("CUDA error")
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", failing)
        with pytest.raises(RuntimeError, match="CUDA error"):
            trainer.train()
    assert names(tmp_path) == []


def test_with_several_processes_an_error_of_one_saves_nothing(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_steps=100)
    saved: list[str] = []
    trainer._save_last_good = lambda: saved.append("saved")  # type: ignore[method-assign]
    trainer.accelerator = SimpleNamespace(num_processes=2, distributed_type="MULTI_CPU")
    trainer._save_after(RuntimeError("on this process alone"))
    assert saved == []
    agreed = RuntimeError("on all of them")
    agreed.agreed = True  # type: ignore[attr-defined]
    trainer._save_after(agreed)
    assert saved == ["saved"]
    trainer._on_all_processes = True
    trainer._save_after(RuntimeError("on all of them"))
    assert saved == ["saved", "saved"]


def test_another_disk_that_is_full_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    """Weights go to the rollout servers through a folder in memory."""
    for error, expected in ((OSError(errno.ENOSPC, "full"), []), (RolloutError("/dev/shm is full"), ["checkpoint-3"])):
        folder = tmp_path / type(error).__name__
        trainer = tiny_trainer(folder, save_steps=100)

        def fail(trainer: Any, error: Exception = error) -> None:
            if trainer.state.global_step == 3:
                raise error from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        trainer.before_step = fail
        with pytest.raises(type(error)):
            trainer.train()
        assert (names(folder) if folder.exists() else []) == expected


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, undisturbed: list[float]) -> None:
    """From step 2 on no file may grow beyond 300 bytes; at step 4 there is room again."""
    finished = run_tiny(tmp_path, full_at=2)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert f"No room for the checkpoint of step 2 in {tmp_path}" in finished.stdout
    assert json.loads(finished.stdout.splitlines()[-1]) == undisturbed
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, warned = tiny_trainer(tmp_path), []
    trainer._warn = warned.append
    free = {"now": 1 << 40}
    monkeypatch.setattr(survival, "free_bytes", lambda folder: free["now"])
    saves = []

    def in_save(trainer: Any, folder: Path) -> None:
        saves.append(trainer.state.global_step)
        free["now"] = 10

    trainer.in_save = in_save
    trainer.train()
    assert saves == [2]
    assert [line.split(" in ")[0] for line in warned] == [
        "No room for the checkpoint of step 4",
        "No room for the checkpoint of step 6",
    ]
    assert names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize("noticed", ["before", "while it is written"])
def test_a_best_checkpoint_that_there_was_no_room_for_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    options = {**EVERY_SECOND, "load_best_model_at_end": True}
    trainer = evaluated_as(tiny_trainer(tmp_path, warned := [], **options), 0.3, 0.1, 0.2)

    def fill(trainer: Any, folder: Path) -> None:
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if noticed == "before":
        monkeypatch.setattr(trainer, "_no_room", lambda folder: "full" if trainer.state.global_step == 4 else None)
    else:
        trainer.in_save = fill
    trainer.train()
    assert "No room for the checkpoint of step 4" in warned[0]
    state = trainer.state
    assert (state.best_metric, state.best_global_step) == (0.2, 6)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-6")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival.SurvivingTrainer, "_no_room", lambda self, folder: "nothing is free")
    trainer = tiny_trainer(tmp_path, steps=20)
    with pytest.raises(OSError, match="third in a row") as ended:
        trainer.train()
    assert ended.value.errno == errno.ENOSPC
    assert trainer.state.global_step == 2 * MAX_FAILED_CHECKPOINTS


def test_callbacks_do_not_write_into_a_checkpoint_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaMA-Factory's saves the processor: a folder with nothing else in it would look like a checkpoint."""
    from transformers import TrainerCallback

    written = []

    class SaveProcessor(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            written.append(state.global_step)
            if state.global_step == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    warned: list[str] = []
    trainer = tiny_trainer(tmp_path, warned)
    trainer.add_callback(SaveProcessor())
    monkeypatch.setattr(trainer, "_no_room", lambda folder: "full" if trainer.state.global_step == 2 else None)
    trainer.train()
    assert written == [4, 6]
    assert "No room for the tokenizer's files" in warned[1]
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
