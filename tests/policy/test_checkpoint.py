"""What a GRPO checkpoint holds beside the Trainer's own files; tests/integration/test_grpo_run.py resumes real runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.policy.checkpoint import STATE_FILE
from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.experience import Experience
from lcot_plugin.policy.faults import FittingPasses, GuardedRollouts
from lcot_plugin.policy.health import HealthMonitor
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.replay import ReplayBuffer
from lcot_plugin.policy.trainer import GrpoTrainerMixin
from lcot_plugin.survival.checkpoints import newest_whole
from lcot_plugin.survival.stopping import StopSignals
from lcot_plugin.survival.trainer import Boundary

ALONE = SimpleNamespace(
    process_index=0,
    num_processes=1,
    distributed_type="NO",
    is_main_process=True,
    is_local_main_process=True,
    wait_for_everyone=lambda: None,
)


class Trainer:
    """Stands in for transformers' own."""

    def train(self, resume_from_checkpoint=None):
        self.resumed_from = resume_from_checkpoint

    def _get_output_dir(self, trial):
        return str(self.args.output_dir)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        (folder / "trainer_state.json").write_text("{}")

    def _rotate_checkpoints(self, use_mtime, output_dir):
        self.rotated = output_dir


class GrpoTrainer(GrpoTrainerMixin, Trainer):
    pass


def make(folder: Path, global_step: int = 3) -> Any:
    """Two updates per rollout: step 3 lies between them, step 4 does not."""
    trainer: Any = GrpoTrainer()
    trainer.args = SimpleNamespace(output_dir=folder, gradient_accumulation_steps=1, should_save=True)
    trainer.state = SimpleNamespace(global_step=global_step, best_model_checkpoint=None)
    trainer.parts = SimpleNamespace(plan=BatchPlan(2, 2, 2, 2, 1))
    trainer.accelerator, trainer.callback_handler = ALONE, CallbackHandler()
    trainer.stop_signals, trainer.metric_sums = StopSignals(), MetricSums()
    trainer.guarded = GuardedRollouts(None, None, trainer.stop_signals, {}, print)  # type: ignore[arg-type]
    trainer.fitting = FittingPasses({}, print)  # type: ignore[arg-type]
    trainer.health, trainer.dynamic_sampling = HealthMonitor(), DynamicSamplingCounts(num_rollouts=2, num_places=8)
    trainer.replay, trainer.reference, trainer._experience = None, None, Experience([])
    trainer._globalstep_last_logged = global_step
    return trainer


class CallbackHandler:
    def on_save(self, args, state, control):
        return control


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"checkpoint_files.json", "trainer_state.json"}


def test_between_two_updates_the_completions_are_saved(tmp_path: Path) -> None:
    make(tmp_path, 3)._save_checkpoint(None, None)
    assert files(tmp_path / "checkpoint-3") == {"experience_rank0.pt", STATE_FILE}
    make(tmp_path, 4)._save_checkpoint(None, None)
    assert files(tmp_path / "checkpoint-4") == {STATE_FILE}


def test_the_experience_comes_from_the_checkpoint_wherever_it_lies(tmp_path: Path) -> None:
    make(tmp_path)._save_checkpoint(None, None)
    elsewhere = tmp_path / "kept" / "best"
    elsewhere.parent.mkdir()
    (tmp_path / "checkpoint-3").rename(elsewhere)
    trainer = make(tmp_path)
    trainer.train(resume_from_checkpoint=str(elsewhere))
    assert trainer._load_experience() == Experience([])
    (elsewhere / "experience_rank0.pt").unlink()
    with pytest.raises(ValueError, match=r"experience_rank0\.pt is missing.*number of processes"):
        trainer._load_experience()


@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_is_refused_between_two_updates(tmp_path: Path, processes: int) -> None:
    """With fewer, nobody would miss the completions of the others."""
    trainer = make(tmp_path)
    trainer.accelerator = SimpleNamespace(**{**vars(ALONE), "num_processes": 2})
    trainer._no_room = lambda folder: None
    trainer._save_checkpoint(None, None)
    resumed = make(tmp_path)
    resumed.accelerator = SimpleNamespace(**{**vars(ALONE), "num_processes": processes})
    resumed._resumed_from = str(tmp_path / "checkpoint-3")
    resumed._load_state(resumed._resumed_from)
    with pytest.raises(ValueError, match=f"by 2 processes, now there are {processes}.*with the number of processes"):
        resumed._load_experience()


def test_resuming_from_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer._save_checkpoint(None, None)
    (tmp_path / "checkpoint-1").mkdir()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_from == str(tmp_path / "checkpoint-3")


def test_without_a_checkpoint_the_trainer_itself_complains(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_from is True


def test_what_a_run_has_learned_of_itself_comes_back(tmp_path: Path) -> None:
    """Alarms, counts, replayed groups, a reference policy that was moved, and metrics that wait for the next log."""
    trainer, loaded = make(tmp_path), []
    trainer.health.observe(1, {"loss": float("nan"), "grad_norm": float("nan")})
    trainer.replay = ReplayBuffer(4)
    trainer.replay.add([("a group", 0.5)], rollout=0)
    trainer.reference = SimpleNamespace(moved=True, state_dict=lambda: {"weight": torch.ones(2)})
    trainer.metric_sums.add("reward", torch.tensor(1.5), 3)
    trainer.metric_sums.add("ratio/max", 1.25)
    trainer._globalstep_last_logged = 2
    trainer._save_checkpoint(None, None)

    resumed = make(tmp_path)
    resumed.replay = ReplayBuffer(4)
    resumed.reference = SimpleNamespace(load_state_dict=loaded.append)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.health.state() == trainer.health.state()
    assert resumed.dynamic_sampling == trainer.dynamic_sampling
    assert resumed.replay.draw(1, seed=0, rollout=1) == ["a group"]
    assert loaded[0]["weight"].tolist() == [1.0, 1.0]
    assert resumed.metric_sums.state() == {"reward": (1.5, 3.0), "ratio/max": (1.25, 1.0)}


def test_metrics_that_were_logged_are_not_logged_again(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.metric_sums.add("reward", 1.0)
    trainer._save_checkpoint(None, None)
    assert not list(tmp_path.glob("*/metrics_rank*.json"))


def test_a_step_that_is_given_up_leaves_the_replay_buffer_as_it_was(tmp_path: Path) -> None:
    trainer = make(tmp_path, 4)
    trainer.replay = ReplayBuffer(4)
    trainer.replay.add([("kept", 0.5)], rollout=0)
    trainer._boundary = Boundary(4, {}, trainer._boundary_state())
    trainer.replay.add([("of the step that is given up", 0.5)], rollout=1)
    trainer.dynamic_sampling += DynamicSamplingCounts(num_rollouts=1)
    trainer._save_checkpoint(None, None)
    resumed = make(tmp_path)
    resumed.replay = ReplayBuffer(4)
    resumed._load_state(str(tmp_path / "checkpoint-4"))
    assert resumed.replay.draw(4, seed=0, rollout=2) == ["kept"]
    assert resumed.dynamic_sampling.num_rollouts == 2


def test_a_tampered_state_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer._save_checkpoint(None, None)
    torch.save({"health": Path("x")}, tmp_path / "checkpoint-3" / STATE_FILE)
    with pytest.raises(ValueError, match=r"not whole, grpo_state\.pt has"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    manifest = tmp_path / "checkpoint-3" / "checkpoint_files.json"
    sizes = json.loads(manifest.read_text())
    sizes["files"][STATE_FILE] = (tmp_path / "checkpoint-3" / STATE_FILE).stat().st_size
    manifest.write_text(json.dumps(sizes))
    assert newest_whole(tmp_path) == str(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"grpo_state\.pt holds something .*Nothing of it was run"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
