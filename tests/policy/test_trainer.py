"""The loop's own parts without a model; tests/integration/test_grpo_run.py runs the whole."""

import math
from types import SimpleNamespace

import pytest

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.health import HealthMonitor
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.policy.trainer import GrpoTrainerMixin, _FollowSteps
from lcot_plugin.survival.faults import FaultCounts
from lcot_plugin.types import SamplingParams

PLAN = BatchPlan(2, 2, 2, 2, 2)


class Trainer:
    """Stands in for transformers' own."""

    def add_callback(self, callback):
        pass

    def log(self, logs):
        self.logged.append(dict(logs))


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


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_who_looks_gets_the_alarms_that_the_log_warns_of(trainer):
    warned, seen = [], []
    trainer.parts = SimpleNamespace(
        engine=SimpleNamespace(take_counts=dict), warn=warned.append, watcher=SimpleNamespace(alarm=seen.append)
    )
    trainer.metric_sums = SimpleNamespace(pop_averages=dict)
    trainer.faults, trainer.health, trainer.logged = FaultCounts(), HealthMonitor(), []
    for step in range(3):
        trainer.state.global_step = step
        trainer.log({"loss": math.nan, "grad_norm": 1.0})
    trainer.log({"eval_accuracy": 1.0})
    assert [(alarm.name, alarm.step) for alarm in seen] == [("not_finite", 2)]
    assert warned == [f"Step 2, not finite: {seen[0].message} {seen[0].advice}"]
    assert len(trainer.logged) == 4


def test_alarms_of_an_older_checkpoint_have_one_text():
    monitor = HealthMonitor()
    old = {"name": "kl_explosion", "message": "KL is 3. Lower it.", "step": 4}
    monitor.take_up({**monitor.state(), "alarms": [old]})
    assert str(monitor.alarms[0]) == "Step 4, kl explosion: KL is 3. Lower it." and monitor.alarms[0].advice is None
