"""Faults injected into passes and rollouts: what is tried again gives the same, what cannot ends alike."""

from __future__ import annotations

import errno
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lcot_plugin.errors import ArgumentError, RewardError, RolloutError
from lcot_plugin.policy.experience import MicroBatch
from lcot_plugin.policy.faults import FittingPasses, GradientLedger, GuardedRollouts, write_lines
from lcot_plugin.policy.metrics import MetricSums
from lcot_plugin.report.completions import CompletionsLog
from lcot_plugin.survival.faults import FaultCounts, FaultError
from lcot_plugin.survival.memory import is_out_of_memory
from lcot_plugin.survival.stopping import StopSignals
from lcot_plugin.survival.trainer import StoppedEarly
from lcot_plugin.types import (
    Completion,
    EncodedPrompt,
    Ending,
    PromptRecord,
    RolloutGroup,
    SamplingParams,
    Score,
    ScoringRequest,
    TrainingSequence,
)

PROMPT = EncodedPrompt(PromptRecord([1, 2], [], "q", "g", "set", 0), {})
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


class Accelerator:
    """Of one process, or of two of which the other one has `others`."""

    scaler, distributed_type, device, mixed_precision = None, "NO", torch.device("cpu"), "no"

    def __init__(self, others: int | None = None):
        self.num_processes, self.others = 1 if others is None else 2, others

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([self.others])])


# --- passes -----------------------------------------------------------------------------------------------------------


class Updates:
    """The trainer's part in an update: gradients of a linear model, a sequence of T tokens adds T times its number.

    A pass of more than `room` tokens fails: before its backward, or in the middle of it.
    """

    def __init__(self, room: int, in_backward: bool = False, error: BaseException | None = None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        self.metric_sums, self.room, self.in_backward = MetricSums(), room, in_backward
        self.error = error or OUT_OF_MEMORY[1]
        self.counts, self.warned = FaultCounts(), []
        self.fitting, self.ledger = FittingPasses(self.counts, self.warned.append), GradientLedger(self)

    def one_pass(self, micro_batch: MicroBatch) -> torch.Tensor:
        tokens = sum(micro_batch.lengths)
        self.metric_sums.add("tokens", tokens)
        pairs = zip(micro_batch.sequences, micro_batch.lengths, strict=True)
        rows = torch.tensor([[float(sequence.group), 1.0, float(number)] for sequence, number in pairs])
        loss = self.model(rows).square().sum()
        if tokens > self.room and not self.in_backward:
            raise self.error
        self.ledger.touched = True
        if tokens > self.room:
            self.model[1](torch.ones(4)).backward()  # half of the layers have added theirs
            raise self.error
        loss.backward()
        return loss.detach()

    def step(self, passes: list[MicroBatch]) -> torch.Tensor:
        self.ledger.begin_step()
        total = torch.zeros(())

        def compute(part: MicroBatch) -> torch.Tensor:
            self.ledger.begin()
            loss = self.one_pass(part)
            self.ledger.done(lambda: self.one_pass(part))
            return loss

        for micro_batch in passes:
            total += self.fitting(compute, micro_batch, self.ledger.undo)
        return total


def micro_batch(*lengths: int, first: int = 0) -> MicroBatch:
    return MicroBatch(
        [
            TrainingSequence(PROMPT, Completion([1] * n, [0.0] * n, Ending.STOPPED, ""), first + i)
            for i, n in enumerate(lengths)
        ],
        first,
    )


PASSES = [(2, 2), (5, 1, 4, 3), (1,)]


def passes() -> list[MicroBatch]:
    return [micro_batch(*lengths, first=10 * i) for i, lengths in enumerate(PASSES)]


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_pass_that_does_not_fit_gives_the_same_gradients_in_parts(in_backward: bool, error: BaseException) -> None:
    whole, parts = Updates(100), Updates(6, in_backward, error)
    assert torch.allclose(whole.step(passes()), parts.step(passes()))
    for one, two in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-6)
    assert parts.counts["memory_update"] == 2  # 13 tokens; then 7 of them
    assert whole.metric_sums.state()["tokens"][0] == parts.metric_sums.state()["tokens"][0] == 18
    assert "grpo_micro_batch_tokens" in parts.warned[0]


def test_without_the_undoing_gradients_would_be_wrong() -> None:
    whole, parts = Updates(100), Updates(6, in_backward=True)
    parts.ledger.undo = lambda: None  # type: ignore[method-assign]
    whole.step(passes()), parts.step(passes())
    assert not torch.allclose(whole.model[1].weight.grad, parts.model[1].weight.grad, rtol=1e-3)


def test_later_passes_of_that_size_are_halved_beforehand() -> None:
    updates = Updates(6)
    updates.step(passes())
    assert updates.fitting.max_tokens == 7
    updates.step(passes())
    assert updates.counts["memory_update"] == 2


def test_halves_have_numbers_of_their_own() -> None:
    """A layout keeps image features by a pass's number."""
    numbers: list[int] = []
    fitting = FittingPasses(FaultCounts(), lambda line: None)
    fitting.max_tokens = 4

    def compute(part: MicroBatch) -> list[int]:
        numbers.append(part.number)
        return part.lengths

    assert fitting(compute, micro_batch(3, 1, 2)) == [3, 1, 2]
    assert len(set(numbers)) == len(numbers) and min(numbers) < 0 > max(numbers)


@pytest.mark.parametrize("lengths", [(9,), (3, 9)])
def test_one_completion_that_does_not_fit_ends_the_run_with_what_to_lower(lengths: tuple[int, ...]) -> None:
    updates = Updates(6)
    with pytest.raises(FaultError, match=r"with one completion of 9 tokens.*Lower grpo_micro_batch_tokens"):
        updates.step([micro_batch(*lengths)])


def test_with_other_processes_nothing_is_tried_again() -> None:
    updates = Updates(6)
    updates.fitting.enabled = False
    with pytest.raises(FaultError, match=r"a pass of 3 completions.*With several processes"):
        updates.step([micro_batch(4, 4, 4)])


def test_other_errors_are_not_taken_for_it() -> None:
    updates = Updates(6, error=RuntimeError("shape '[2]' is invalid"))
    with pytest.raises(RuntimeError, match="is invalid"):
        updates.step(passes())
    assert all(map(is_out_of_memory, OUT_OF_MEMORY))
    assert not is_out_of_memory(ValueError("out of memory"))


# --- rollouts ---------------------------------------------------------------------------------------------------------


class Engine:
    """Writes one token per call of progress; fails where more than `room` rows are decoded at once."""

    def __init__(self, room: int = 100, error: BaseException | None = None, failing: bool = False):
        self.room, self.error, self.failing = room, error or OUT_OF_MEMORY[0], failing
        self.max_rows: int | None = None
        self.rows: list[int] = []

    def generate(self, model: Any, prompts: Any, sampling: Any, slots: Any, progress: Any) -> list[RolloutGroup]:
        rows = len(prompts) * sampling.num_generations
        rows = min(self.max_rows or rows, rows)
        self.rows.append(rows)
        progress(0, 1)
        if self.failing or rows > self.room:
            raise self.error
        written = Completion([5], [-1.0], Ending.STOPPED, "yes")
        return [RolloutGroup(prompt, [written] * sampling.num_generations) for prompt in prompts]


class Scorer:
    weights = {"accuracy": 1.0}  # noqa: RUF012
    trainer_state = None

    def score(self, requests: list[ScoringRequest]) -> list[Score]:
        return [Score({"accuracy": 1.0}, 1.0, None) for _ in requests]

    def take_counts(self) -> dict[str, int]:
        return {}


def guarded(engine: Engine, alone: bool = True) -> tuple[GuardedRollouts, list[str]]:
    warned: list[str] = []
    rollouts = GuardedRollouts(engine, Scorer(), StopSignals(), FaultCounts(), warned.append)  # type: ignore[arg-type]
    rollouts.alone = alone
    return rollouts, warned


def generate(rollouts: GuardedRollouts) -> list[RolloutGroup]:
    return rollouts.generate(None, [PROMPT, PROMPT], SamplingParams(4, 8), [0, 1])


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_rollout_that_does_not_fit_is_made_with_fewer_rows(error: BaseException) -> None:
    engine = Engine(room=3, error=error)
    rollouts, warned = guarded(engine)
    assert [len(group.completions) for group in generate(rollouts)] == [4, 4]
    assert engine.rows == [8, 4, 2]
    generate(rollouts)
    assert engine.rows[3:] == [2], "the next one begins with what fitted"
    assert rollouts.counts["memory_rollout"] == 2
    assert "grpo_rollout_batch_size: 2" in warned[-1]


def test_no_more_rows_are_halved_than_there_are() -> None:
    engine = Engine(room=3)
    rollouts, _ = guarded(engine)
    engine.max_rows = 1000
    generate(rollouts)
    assert engine.rows == [8, 4, 2]


def test_a_row_that_does_not_fit_alone_ends_the_run() -> None:
    rollouts, _ = guarded(Engine(room=0))
    with pytest.raises(FaultError, match=r"one completion at a time: lower max_new_tokens"):
        generate(rollouts)


def test_a_signal_ends_a_rollout_between_two_tokens() -> None:
    rollouts, _ = guarded(Engine())
    rollouts.signals.received = signal.SIGTERM
    with pytest.raises(StoppedEarly):
        generate(rollouts)


def test_a_server_that_the_scheduler_ended_first_is_no_error() -> None:
    engine = Engine(failing=True, error=RolloutError("no server answers"))
    rollouts, _ = guarded(engine)
    with pytest.raises(RolloutError):
        generate(rollouts)
    rollouts.signals.received = signal.SIGTERM
    with pytest.raises(StoppedEarly):
        generate(rollouts)


@pytest.mark.parametrize("stopped", [True, False])
def test_with_others_a_process_goes_on_empty_handed_until_all_agree(stopped: bool) -> None:
    engine = Engine(failing=True, error=RolloutError("no server answers"))
    rollouts, _ = guarded(engine, alone=False)
    rollouts.signals.received = signal.SIGTERM if stopped else None
    groups = generate(rollouts)
    assert [len(group.completions) for group in groups] == [4, 4]
    assert generate(rollouts) and len(engine.rows) == 1, "further rounds take no time"
    request = ScoringRequest("", "3")
    assert rollouts.score([request]) == [Score({"accuracy": None}, None, None)]
    trainer = SimpleNamespace(accelerator=Accelerator(others=0))
    with pytest.raises(StoppedEarly if stopped else RolloutError):
        rollouts.agree(trainer)
    assert trainer._on_all_processes
    rollouts.agree(trainer)
    assert rollouts.score([request])[0].total == 1.0


def test_a_process_that_could_go_on_ends_with_the_others() -> None:
    rollouts, _ = guarded(Engine(), alone=False)
    generate(rollouts)
    with pytest.raises(StoppedEarly):
        rollouts.agree(SimpleNamespace(accelerator=Accelerator(others=2)))
    with pytest.raises(RolloutError, match="Another process"):
        rollouts.agree(SimpleNamespace(accelerator=Accelerator(others=1)))


@pytest.mark.parametrize("alone", [True, False])
def test_any_error_that_the_user_can_mend_is_agreed_on(alone: bool) -> None:
    """Of the engine or of the scorer; by one process alone it is raised at once."""
    for failing, error in ((True, ArgumentError("a prompt is too long")), (False, RewardError("the reward failed"))):
        rollouts, _ = guarded(Engine(failing=failing, error=error), alone)
        if not failing:
            rollouts.scorer.score = raising(error)  # type: ignore[method-assign]
        trainer = SimpleNamespace(accelerator=Accelerator(others=0))
        with pytest.raises(type(error)):
            for _ in range(2):
                generate(rollouts)
                rollouts.score([ScoringRequest("", "3")])
                assert not alone
            rollouts.agree(trainer)
        assert alone or trainer._on_all_processes


def raising(error: Exception) -> Any:
    def score(requests: Any) -> Any:
        raise error

    return score


def test_a_bug_is_not_covered_up() -> None:
    rollouts, _ = guarded(Engine(failing=True, error=KeyError("x")), alone=False)
    with pytest.raises(KeyError):
        generate(rollouts)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_log_lines_and_leaves_no_half_line(tmp_path: Any) -> None:
    log, counts, warned = CompletionsLog(tmp_path / "completions.jsonl"), FaultCounts(), []
    write_lines(log, [{"step": 0}], counts, warned.append)

    def cut_short() -> Any:
        yield {"step": 1}
        raise OSError(errno.ENOSPC, "No space left on device")

    class Lines(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return cut_short()

    for _ in range(2):
        write_lines(log, Lines([1, 2, 3]), counts, warned.append)
    write_lines(log, [{"step": 2}], counts, warned.append)
    assert log.path.read_text() == '{"step": 0}\n{"step": 2}\n'
    assert counts["log_lines_lost"] == 6
    assert len(warned) == 1 and str(log.path) in warned[0]


def test_another_error_of_the_log_is_raised(tmp_path: Any) -> None:
    log = CompletionsLog(tmp_path)  # a folder
    with pytest.raises(OSError):
        write_lines(log, [{"step": 0}], FaultCounts(), lambda line: None)
