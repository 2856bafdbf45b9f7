"""The loop's own parts without a model; tests/integration/test_grpo_run.py runs the whole."""

from types import SimpleNamespace

import pytest
import torch

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.policy.trainer import GrpoTrainerMixin, _SetSamplerEpoch
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, SamplingParams, Score

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


# --- rollout ----------------------------------------------------------------------------------------------------------

OTHERS = torch.tensor([[0.0, 0.0], [5.0, 1.0]])
MINE = torch.tensor([[1.0, 0.0], [1.0, 3.0]])
CENTRED = torch.tensor([[0.5, -0.5], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("group", torch.tensor([[0.5, -0.5], [-1.0, 1.0]]) / torch.tensor([[0.5**0.5], [2.0**0.5]])),
        ("batch", CENTRED / torch.cat([OTHERS, MINE]).std()),
        ("none", CENTRED),
    ],
)
def test_scale_rewards(trainer, scale, expected):
    """The second of two processes; the batch is that of both."""
    records = [PromptRecord([1, 2], [], "?", "3", "problems", i) for i in range(2)]
    completions = [[Completion([4], [-1.0], Ending.STOPPED, "") for _ in range(2)] for _ in range(2)]
    trainer.accelerator = SimpleNamespace(
        process_index=1,
        device="cpu",
        gather=lambda mine: torch.cat([OTHERS, mine]),
        reduce=lambda values, reduction: 2 * values,
    )
    trainer._roll_out = lambda prompts, first_slot: list(map(RolloutGroup, prompts, completions))
    trainer.parts = SimpleNamespace(
        arguments=GrpoArguments(grpo_scale_rewards=scale, grpo_log_completions=False),
        plan=PLAN,
        encode=lambda record: EncodedPrompt(record, {}),
        scoring_request=lambda record, completion: None,
        scorer=SimpleNamespace(
            score=lambda requests: [Score({"r": x}, x, None) for x in MINE.flatten().tolist()],
            take_counts=lambda: {"reward_errors/r": 1},
        ),
    )
    trainer.metric_sums, trainer.reference = MetricSums(), None
    trainer.loss_config = SimpleNamespace(loss_type="grpo")
    trainer._frozen_log_probs = lambda model, batch: torch.zeros(2)
    trainer.model_wrapped = None
    experience = trainer._make_experience(records)
    advantages = torch.tensor([s.advantage for batch in experience.micro_batches for s in batch]).view(2, 2)
    torch.testing.assert_close(advantages, expected, atol=1e-3, rtol=0)
    assert experience.normalizers == [4.0, 4.0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("global_step", "epoch"), [(0, 0), (5, 0), (6, 1), (8, 1), (12, 2)])
def test_the_sampler_knows_the_epoch_of_a_resumed_run(trainer, global_step, epoch):
    """Ten prompts, four to a rollout of two updates: six updates in an epoch."""
    trainer.parts = SimpleNamespace(plan=PLAN)
    trainer.prompt_sampler = PromptBlockSampler(10, PLAN.prompts_per_rollout, PLAN.micro_steps_per_rollout, seed=0)
    args, state = SimpleNamespace(gradient_accumulation_steps=2), SimpleNamespace(global_step=global_step, epoch=0)
    _SetSamplerEpoch(trainer).on_epoch_begin(args, state, None)
    assert trainer.prompt_sampler.epoch == epoch


@pytest.fixture
def between_updates(trainer):
    """Three micro-steps done, of four per rollout."""
    trainer.parts = SimpleNamespace(plan=PLAN)
    trainer._micro_step, trainer._experience = 3, "what was rolled out"
    return trainer


def test_the_experience_is_there_before_the_checkpoint(between_updates):
    between_updates._save_checkpoint(None, None)
    assert between_updates.found == ["experience_rank1.pt"]


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
