"""The loop's own parts without a model; tests/integration/test_grpo_run.py runs the whole."""

from types import SimpleNamespace

import pytest
import torch

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.health import HealthMonitor
from lcot_plugin.policy.replay import ReplayBuffer
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.policy.trainer import GrpoTrainerMixin, _FollowSteps
from lcot_plugin.types import SamplingParams

PLAN = BatchPlan(2, 2, 2, 2, 2)


class Trainer:
    """Stands in for transformers' own; keeps what it was asked and what lay in the checkpoint when it was saved."""

    def add_callback(self, callback):
        pass

    def train(self, resume_from_checkpoint=None):
        self.resumed_from = resume_from_checkpoint

    def _get_output_dir(self, trial):
        return self.args.output_dir

    def _save_checkpoint(self, model, trial):
        self.found = [path.name for path in (self.args.output_dir / "checkpoint-3").iterdir()]


class GrpoTrainer(GrpoTrainerMixin, Trainer):
    def is_world_process_zero(self):
        return False


@pytest.fixture
def trainer(tmp_path):
    trainer = GrpoTrainer()
    trainer.args = SimpleNamespace(output_dir=tmp_path, do_train=True, gradient_accumulation_steps=1)
    trainer.state = SimpleNamespace(global_step=3)
    trainer.accelerator = SimpleNamespace(process_index=1)
    return trainer


# --- setup ------------------------------------------------------------------------------------------------------------


def test_a_loss_of_the_parent_class_is_switched_off(trainer):
    """With one of its own the Trainer would leave out the division by the accumulation steps."""
    trainer.compute_loss_func = lambda outputs, labels: 0.0
    trainer.setup_grpo(SimpleNamespace(arguments=GrpoArguments(), sampling=SamplingParams(2, 8)))
    assert trainer.compute_loss_func is None
    assert trainer.model_accepts_loss_kwargs is False


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("global_step", "epoch"), [(0, 0), (5, 0), (6, 1), (8, 1), (12, 2)])
def test_the_sampler_knows_the_epoch_of_a_resumed_run(trainer, global_step, epoch):
    """Ten prompts, four to a rollout of two updates: six updates in an epoch."""
    trainer.parts = SimpleNamespace(plan=PLAN)
    trainer.prompt_sampler = PromptBlockSampler(10, PLAN.prompts_per_rollout, PLAN.micro_steps_per_rollout, seed=0)
    args, state = SimpleNamespace(gradient_accumulation_steps=2), SimpleNamespace(global_step=global_step, epoch=0)
    _FollowSteps(trainer).on_epoch_begin(args, state, None)
    assert trainer.prompt_sampler.epoch == epoch


@pytest.fixture
def between_updates(trainer):
    """Three micro-steps done, of four per rollout."""
    trainer.parts = SimpleNamespace(plan=PLAN)
    trainer._micro_step, trainer._experience = 3, "what was rolled out"
    trainer.health, trainer.dynamic_sampling = HealthMonitor(), DynamicSamplingCounts(num_rollouts=2, num_places=8)
    trainer.replay, trainer.reference = None, None
    trainer.args.should_save = True
    return trainer


def test_the_experience_is_there_before_the_checkpoint(between_updates):
    between_updates._save_checkpoint(None, None)
    assert sorted(between_updates.found) == ["experience_rank1.pt", "grpo_state.pt"]


def test_the_experience_comes_from_the_checkpoint_wherever_it_lies(between_updates, tmp_path):
    between_updates._save_checkpoint(None, None)
    elsewhere = tmp_path / "kept" / "best"
    elsewhere.parent.mkdir()
    (tmp_path / "checkpoint-3").rename(elsewhere)
    between_updates.train(resume_from_checkpoint=str(elsewhere))
    assert between_updates._load_experience() == "what was rolled out"


def test_resuming_from_the_last_checkpoint(between_updates, tmp_path):
    between_updates._save_checkpoint(None, None)
    (tmp_path / "checkpoint-1").mkdir()
    between_updates.train(resume_from_checkpoint=True)
    assert between_updates.resumed_from == str(tmp_path / "checkpoint-3")
    assert between_updates._load_experience() == "what was rolled out"


def test_without_a_checkpoint_the_trainer_itself_complains(trainer):
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_from is True


def test_what_a_run_has_learned_of_itself_comes_back(between_updates, tmp_path):
    """Alarms, counts, replayed groups, and a reference policy that was moved."""
    between_updates.health.observe(1, {"loss": float("nan"), "grad_norm": float("nan")})
    between_updates.replay = ReplayBuffer(4)
    between_updates.replay.add([("a group", 0.5)], rollout=0)
    between_updates.reference = SimpleNamespace(moved=True, state_dict=lambda: {"weight": torch.ones(2)})
    between_updates._save_checkpoint(None, None)

    resumed, loaded = GrpoTrainer(), []
    resumed.parts, resumed.accelerator, resumed.args = between_updates.parts, between_updates.accelerator, None
    resumed.health, resumed.dynamic_sampling = HealthMonitor(), DynamicSamplingCounts()
    resumed.replay = ReplayBuffer(4)
    resumed.reference = SimpleNamespace(load_state_dict=loaded.append)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.health.state() == between_updates.health.state()
    assert resumed.dynamic_sampling == between_updates.dynamic_sampling
    assert resumed.replay.draw(1, seed=0, rollout=1) == ["a group"]
    assert loaded[0]["weight"].tolist() == [1.0, 1.0]
