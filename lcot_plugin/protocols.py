"""What the training loop and the evaluation ask of those who write completions and of those who judge them.

The records that go in and out are those of `types.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from lcot_plugin.types import EncodedPrompt, RolloutGroup, SamplingParams, Score, ScoringRequest


class RolloutEngine(Protocol):
    """Writes completions with the current policy."""

    def policy(self, model: Any, accelerator: Any, version: int) -> AbstractContextManager[Any]:
        """Whatever `generate` needs of the policy in training; entered on every process, left before the update.

        `model`: with its parallel wrapper (DDP, DeepSpeed, FSDP). `version`: the optimizer steps it has made; the same
        number means the same weights. Yields what `generate` takes as its model.
        """
        ...

    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Callable[[int, int], None] = ...,
    ) -> list[RolloutGroup]:
        """One group per prompt, in order.

        `model`: what `policy` yielded. `slots`: each prompt's place in the global batch,
        the same however many processes share it. `progress` is called with the numbers of completions just ended and
        of tokens just written.
        """
        ...

    def take_counts(self) -> Mapping[str, float]:
        """What happened since the last call, by the name under which it is logged: requests made again, restarts."""
        ...


class RunWatcher(Protocol):
    """Is told where a run stands, for whoever looks at it from outside; on every process."""

    def phase(self, name: str | None, total: int | None = None) -> None:
        """A part of the run begins: `rollout`, `score`, `prepare`, `update`, as the metrics `time/...` name them,
        `evaluation`, or while it loads `data`, `model`, `engine`; None: nothing that has a name.

        total: of what `advance` counts.
        """
        ...

    def advance(self, number: int = 1) -> None:
        """So many completions, or problems, of the phase have just ended."""
        ...

    def alarm(self, alarm: Any) -> None:
        """Something that a user should look at: has `step`, `name`, `message` and `advice`."""
        ...


class NoWatcher:
    """Nobody looks."""

    def phase(self, name: str | None, total: int | None = None) -> None:
        pass

    def advance(self, number: int = 1) -> None:
        pass

    def alarm(self, alarm: Any) -> None:
        pass


class CompletionScorer(Protocol):
    """Judges completions."""

    trainer_state: Any
    """The trainer's state, for reward functions that ask for it; None outside of training."""

    def score(self, requests: list[ScoringRequest]) -> list[Score]:
        """One score per request, in order."""
        ...

    def take_counts(self) -> dict[str, int]:
        """What happened since the last call, by the name under which it is logged: errors left out, requests made."""
        ...
