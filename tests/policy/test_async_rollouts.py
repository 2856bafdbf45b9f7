"""The order of an asynchronous step: what was begun ahead is taken before the policy changes, with its own weights."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.policy.ahead import RolloutAhead
from lcot_plugin.policy.dynamic_sampling import DynamicSamplingCounts
from lcot_plugin.policy.experience import MicroBatch
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.policy.rollouts import Written
from lcot_plugin.policy.sampler import PromptBlockSampler
from lcot_plugin.policy.trainer import GrpoTrainerMixin
from lcot_plugin.protocols import NoWatcher
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, SamplingParams, TrainingSequence

PLAN = BatchPlan(4, 1, 1, 2, 1)
"""Two prompts to a rollout, one optimizer step of each."""


class RollOut:
    """A RolloutMaker that notes what it is asked."""

    rank = 0
    counts = DynamicSamplingCounts()

    def __init__(self, events):
        self.events = events

    def prompts(self, indices):
        return list(indices)

    def write_ahead(self, records, seed, policy_step):
        self.events.append(("ahead", tuple(records), seed, policy_step))
        return Written([f"groups of {seed}"], seconds=1.0, waited=0.0)

    def __call__(self, model, prompts, seed, step, written):
        self.events.append(("take", seed, None if written is None else written.groups))
        return [], []


@pytest.fixture
def trainer(monkeypatch):
    trainer, events = GrpoTrainerMixin(), []

    @contextmanager
    def policy(model, accelerator, version):
        if trainer.ahead._written is not None:
            events.append("weights change under a rollout")
        events.append(("policy", version))
        yield None

    trainer.parts = SimpleNamespace(
        arguments=GrpoArguments(grpo_async_rollouts=True, grpo_log_completions=False, grpo_rollout_engine="vllm"),
        plan=PLAN,
        engine=SimpleNamespace(policy=policy),
        layout=SimpleNamespace(forget=lambda: None),
        scorer=SimpleNamespace(trainer_state=None),
        sampling=SamplingParams(2, 8),
        watcher=NoWatcher(),
    )
    trainer.args = SimpleNamespace(gradient_accumulation_steps=1, seed=1)
    trainer.state = SimpleNamespace(global_step=0, max_steps=3)
    trainer.accelerator = SimpleNamespace(autocast=nullcontext, device=torch.device("cpu"))
    trainer.guarded = SimpleNamespace(agree=lambda trainer: None)
    trainer.prompt_sampler = PromptBlockSampler(8, PLAN.prompts_per_rollout, PLAN.micro_steps_per_rollout, seed=0)
    trainer.ahead, trainer.metric_sums, trainer.replay = RolloutAhead(), MetricSums(), None
    trainer.dynamic_sampling, trainer.model_wrapped, trainer.events = DynamicSamplingCounts(), None, events
    monkeypatch.setattr(trainer, "_rollout_maker", lambda: RollOut(events))
    monkeypatch.setattr(trainer, "_experience_maker", lambda: Make())
    monkeypatch.setattr(trainer, "_rollout_seed", lambda step: 100 + step)
    return trainer


class Make:
    """An ExperienceMaker of nothing."""

    counts = DynamicSamplingCounts()

    def __call__(self, scored, lost, number):
        return None, {}


def test_each_rollout_is_begun_one_ahead_and_taken_before_the_weights_change(trainer):
    for step in range(3):
        trainer.state.global_step = step
        trainer._make_experience([])
        trainer.ahead.wait()
    blocks = [tuple(trainer.prompt_sampler.block(number)) for number in range(3)]
    assert trainer.events == [
        *(("policy", 0), ("take", 100, None), ("ahead", blocks[1], 101, 0)),
        *(("policy", 1), ("take", 101, ["groups of 101"]), ("ahead", blocks[2], 102, 1)),
        *(("policy", 2), ("take", 102, ["groups of 102"])),  # no fourth step
    ]


def test_after_a_resume_the_first_rollout_is_written_by_the_policy_itself(trainer):
    trainer.state.global_step = 2
    trainer._make_experience([])
    assert trainer.events == [("policy", 2), ("take", 102, None)]


@pytest.mark.parametrize(
    ("settings", "top_p", "name"),
    [
        ({"grpo_rollout_engine": "vllm"}, 1.0, "sampler_gap"),
        ({"grpo_rollout_engine": "vllm", "grpo_async_rollouts": True}, 1.0, "sampler_distance"),
        ({"grpo_rollout_engine": "vllm"}, 0.9, "sampler_distance"),
        ({}, 0.9, "sampler_gap"),  # the engine in process tells the policy's own
    ],
)
def test_the_gap_has_its_name_where_it_is_rounding_alone(trainer, settings, top_p, name):
    trainer.parts.arguments, trainer.parts.sampling = GrpoArguments(**settings), SamplingParams(2, 8, top_p=top_p)
    record = PromptRecord([1], [], "?", "3", "problems", 0)
    completion = Completion([4, 5], [-1.0, -2.0], Ending.STOPPED, "")
    sequence = TrainingSequence(EncodedPrompt(record, {}), completion, 0, token_weight=1.0)
    logps = torch.tensor([-1.5, -2.0])
    terms = SimpleNamespace(
        is_idle=False, sampler_logps=torch.tensor([-1.0, -2.0]), old=logps, logps=logps, num_tokens=[2]
    )
    trainer._add_sampler_gap(MicroBatch([sequence], 0), terms)
    assert {key: float(total) for key, (total, _) in trainer.metric_sums.state().items()} == {
        name: 0.5,
        f"{name}/max": 0.5,
    }


class Logging:
    """Stands in for the Trainer that logs."""

    def log(self, logs):
        self.logged = logs


def test_what_happened_on_every_process_is_added_up(trainer, monkeypatch):
    class Trainer(GrpoTrainerMixin, Logging):
        pass

    several = Trainer()
    vars(several).update(vars(trainer))
    several.accelerator = SimpleNamespace(num_processes=4)
    several.parts.engine = SimpleNamespace(take_counts=lambda: {"rollout/retries": 3.0})
    several.faults = SimpleNamespace(logged=dict)
    several.health = SimpleNamespace(observe=lambda step, logs: [])
    # Each of the four has three.
    several.log({"loss": 1.0})
    assert several.logged["rollout/retries"] == 12.0
