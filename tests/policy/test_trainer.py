"""The loop's own parts without a model; tests/integration/test_grpo_run.py runs the whole."""

from types import SimpleNamespace

import pytest

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.policy.trainer import GrpoTrainerMixin, _FollowSteps
from lcot_plugin.types import SamplingParams

PLAN = BatchPlan(2, 2, 2, 2, 2)


class Trainer:
    """Stands in for transformers' own."""

    def add_callback(self, callback):
        pass


class GrpoTrainer(GrpoTrainerMixin, Trainer):
    pass


@pytest.fixture
def trainer(tmp_path):
    trainer = GrpoTrainer()
    trainer.args = SimpleNamespace(output_dir=tmp_path, do_train=True, gradient_accumulation_steps=1)
    trainer.state = SimpleNamespace(global_step=3)
    trainer.accelerator = SimpleNamespace(process_index=1, num_processes=2)
    return trainer


# --- setup ------------------------------------------------------------------------------------------------------------


def test_a_loss_of_the_parent_class_is_switched_off(trainer):
    """With one of its own the Trainer would leave out the division by the accumulation steps."""
    trainer.compute_loss_func = lambda outputs, labels: 0.0
    trainer.setup_grpo(
        SimpleNamespace(arguments=GrpoArguments(), sampling=SamplingParams(2, 8), engine=None, scorer=None, warn=print)
    )
    assert trainer.compute_loss_func is None
    assert trainer.model_accepts_loss_kwargs is False


# --- epochs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("global_step", "epoch"), [(0, 0), (5, 0), (6, 1), (8, 1), (12, 2)])
def test_the_sampler_knows_the_epoch_of_a_resumed_run(trainer, global_step, epoch):
    """Ten prompts, four to a rollout of two updates: six updates in an epoch."""
    trainer.parts = SimpleNamespace(plan=PLAN)
    trainer.prompt_sampler = PromptBlockSampler(10, PLAN.prompts_per_rollout, PLAN.micro_steps_per_rollout, seed=0)
    args, state = SimpleNamespace(gradient_accumulation_steps=2), SimpleNamespace(global_step=global_step, epoch=0)
    _FollowSteps(trainer).on_epoch_begin(args, state, None)
    assert trainer.prompt_sampler.epoch == epoch
