"""Faults in a GRPO step, each with a policy: what is tried again, what is left out, what ends the run.

In: a rollout, a pass of the update. Out: the same results in spite of the fault, or an error that every process raises,
after which the last good state is saved (survival.trainer).

    no memory, rollout           again with half as many completions at once, down to one
    no memory, pass              again in two halves, down to one completion; the gradients are those of the whole pass
    rollout server gone          the run ends (vLLM's engine has tried again before)
    signal during a rollout      the rollout is given up, the run ends; an evaluation likewise
    gradient not finite          survival.faults

docs/survival.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lcot_plugin.errors import LcotError, RolloutError
from lcot_plugin.policy.experience import MicroBatch
from lcot_plugin.protocols import CompletionScorer, RolloutEngine
from lcot_plugin.survival.checkpoints import is_full_disk
from lcot_plugin.survival.faults import FaultCounts, FaultError
from lcot_plugin.survival.memory import free_memory, is_out_of_memory
from lcot_plugin.survival.stopping import StopSignals, largest
from lcot_plugin.survival.trainer import StoppedEarly
from lcot_plugin.types import Completion, EncodedPrompt, Ending, RolloutGroup, SamplingParams, Score, ScoringRequest

T = TypeVar("T")


# Passes


class FittingPasses:
    """Computes a pass; where it does not fit into memory, its halves.

    What a pass gives adds up over its sequences: gradients and losses as sums, lists of log-probabilities as lists. (An
    entropy quantile, which is taken over a pass, is then taken over each half.)
    """

    def __init__(self, counts: FaultCounts, warn: Callable[[str], None]):
        self.counts, self.warn = counts, warn
        self.enabled = True
        """False where other processes take part in a pass and would wait for one that begins again."""
        self.max_tokens: int | None = None
        """Fewer than these tokens of completions fit, as far as is known; larger passes are halved beforehand."""
        self._num_halves = 0

    def __call__(
        self, compute: Callable[[MicroBatch], T], micro_batch: MicroBatch, undo: Callable[[], None] = lambda: None
    ) -> T:
        """compute: makes a pass. undo: takes back what a failed one has left behind.

        Raises FaultError where a single completion does not fit.
        """
        tokens, sequences = sum(micro_batch.lengths), micro_batch.sequences
        divisible = self.enabled and len(sequences) > 1
        if divisible and self.max_tokens is not None and tokens >= self.max_tokens:
            return self._halves(compute, micro_batch, undo)
        try:
            return compute(micro_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.counts["memory_update"] += 1
            if not divisible:
                raise FaultError(_does_not_fit(micro_batch, self.enabled)) from error
            free_memory(error)
        self.max_tokens = min(tokens, self.max_tokens or tokens)
        self.warn(
            f"A pass of {len(sequences)} completions with {tokens:,} tokens does not fit into memory: it is computed "
            "in two halves, as are later ones of that size. A lower grpo_micro_batch_tokens saves the failed attempt."
        )
        undo()
        return self._halves(compute, micro_batch, undo)

    def _halves(self, compute: Callable[[MicroBatch], T], micro_batch: MicroBatch, undo: Callable[[], None]) -> T:
        middle = len(micro_batch.sequences) // 2
        first, second = micro_batch.sequences[:middle], micro_batch.sequences[middle:]
        results = []
        for half in (first, second):
            self._num_halves += 1  # a number of its own: what a layout remembers of the whole is of another shape
            results.append(self(compute, MicroBatch(half, -self._num_halves), undo))
        return results[0] + results[1]  # type: ignore[operator]


def _does_not_fit(micro_batch: MicroBatch, enabled: bool) -> str:
    tokens, number = sum(micro_batch.lengths), len(micro_batch.sequences)
    what = "one completion" if number == 1 else f"a pass of {number} completions"
    text = f"Out of memory in the update, with {what} of {tokens:,} tokens. "
    if number > 1 and not enabled:
        text += "With several processes, or DeepSpeed, a pass cannot be tried again: the others wait in it. "
    return text + (
        "Lower grpo_micro_batch_tokens, then grpo_logits_chunk_size, max_new_tokens or image_max_pixels, or shard with "
        "DeepSpeed ZeRO; the run then goes on from its last checkpoint."
    )


class GradientLedger:
    """Makes the gradients of an optimizer step again as they were before a pass that failed in its backward.

    A backward adds to gradients layer by layer, so one that fails half-way has left some of its own. Copies for the
    rare case would cost the memory of a model: instead the earlier passes of the step are made once more.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._done: list[Callable[[], Any]] = []
        self.touched = False
        """Whether a backward has begun since the last `begin`."""

    def begin_step(self) -> None:
        self._done = []

    def begin(self) -> None:
        self.touched, self._sums = False, self.trainer.metric_sums.state()

    def done(self, again: Callable[[], Any]) -> None:
        """A pass has been made; `again` makes it once more."""
        self._done.append(again)

    def undo(self) -> None:
        sums = self.trainer.metric_sums
        if self.touched:
            self.trainer.model.zero_grad(set_to_none=True)
            for again in self._done:
                again()
        sums.take_up(self._sums)


# Rollouts


class GuardedRollouts:
    """A rollout engine and a scorer that end early alike on every process.

    One process that raised in the middle of a rollout would leave the others waiting in their next exchange. So, with
    several, a process that must end goes on with empty completions and without rewards, which takes no time, until
    `agree` raises on all of them; nothing of it is trained on.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        scorer: CompletionScorer,
        signals: StopSignals,
        counts: FaultCounts,
        warn: Callable[[str], None],
    ):
        self.engine, self.scorer, self.signals = engine, scorer, signals
        self.counts, self.warn = counts, warn
        self.alone = True
        """Whether it may raise at once, since nobody waits for this process."""
        self._ends: BaseException | None = None

    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Callable[[int, int], None] = lambda num_ended, num_tokens: None,
    ) -> list[RolloutGroup]:
        """See RolloutEngine.generate."""
        if self._ends is None:
            try:
                return self._fitting(model, prompts, sampling, slots, progress)
            except (StoppedEarly, Exception) as error:
                # A scheduler that ends the run may have ended its server first.
                ends = StoppedEarly() if self.signals.poll() else error
                if self.alone:
                    if ends is error:
                        raise
                    raise ends from error
                if not isinstance(ends, StoppedEarly | LcotError):
                    raise
                self._ends = ends
        empty = Completion([0], [0.0], Ending.TRUNCATED, "")
        return [RolloutGroup(prompt, [replace(empty) for _ in range(sampling.num_generations)]) for prompt in prompts]

    def agree(self, trainer: Any) -> None:
        """Raises on every process where one of them must end. A collective."""
        accelerator, ends = trainer.accelerator, self._ends
        self._ends = None
        found = largest(0 if ends is None else 2 if isinstance(ends, StoppedEarly) else 1, accelerator)
        if not found:
            return
        trainer._on_all_processes = True
        if found == 2:
            raise StoppedEarly
        raise ends or RolloutError("Another process could not roll out, or not score; its message says why.")

    def _fitting(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Callable[[int, int], None],
    ) -> list[RolloutGroup]:
        def watched(num_ended: int, num_tokens: int) -> None:
            if self.signals.poll():
                raise StoppedEarly
            progress(num_ended, num_tokens)

        while True:
            try:
                return self.engine.generate(model, prompts, sampling, slots, watched)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.counts["memory_rollout"] += 1
                in_all = len(prompts) * sampling.num_generations
                rows = min(getattr(self.engine, "max_rows", None) or in_all, in_all)
                if rows == 1 or not hasattr(self.engine, "max_rows"):
                    raise FaultError(
                        "Out of memory in a rollout, with one completion at a time: lower max_new_tokens, cutoff_len "
                        "or image_max_pixels, or let a vLLM server write the completions."
                    ) from error
                free_memory(error)
            self.engine.max_rows = (rows + 1) // 2
            self.warn(
                f"{rows} completions at once do not fit into memory: the rollout is made again with "
                f"{self.engine.max_rows}. Write `grpo_rollout_batch_size: {self.engine.max_rows}` to begin with that."
            )

    # Scorer

    @property
    def trainer_state(self) -> Any:
        return self.scorer.trainer_state

    @trainer_state.setter
    def trainer_state(self, state: Any) -> None:
        self.scorer.trainer_state = state

    def score(self, requests: list[ScoringRequest]) -> list[Score]:
        """See CompletionScorer.score."""
        if self._ends is None:
            try:
                return self.scorer.score(requests)
            except LcotError as error:
                if self.alone:
                    raise
                self._ends = error
        nothing = dict.fromkeys(getattr(self.scorer, "weights", ()))
        return [Score(dict(nothing), None, None) for _ in requests]

    def take_counts(self) -> dict[str, int]:
        return self.scorer.take_counts()

    def policy(self, *arguments: Any) -> Any:
        """See RolloutEngine.policy."""
        return self.engine.policy(*arguments)


# Logs


def write_lines(log: Any, lines: Sequence[Any], counts: FaultCounts, warn: Callable[[str], None]) -> None:
    """Writes lines to a log; where the disk is full they are lost, and training goes on."""
    try:
        log.write(lines)
    except OSError as error:
        if not is_full_disk(error):
            raise
        if not counts["log_lines_lost"]:
            warn(
                f"No room for completions in {log.path}: {error}. Those of this rollout are not logged; training "
                "goes on."
            )
        counts["log_lines_lost"] += len(lines)
