"""Scoring requests in, one Score per completion out; the GRPO trainer consumes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from lcot_plugin.errors import ArgumentError, RewardError
from lcot_plugin.rewards.answers import check_answer_type, read_gold
from lcot_plugin.rewards.functions.calls import Batch, BoundReward, EventLoop, Failure
from lcot_plugin.rewards.functions.registry import RewardFunction, get_reward
from lcot_plugin.rewards.functions.specs import parse_spec
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import Score, ScoringRequest

logger = logging.getLogger(__name__)

OnError = Literal["stop", "skip"]


class Scorer:
    """Weighted rewards over one verdict per completion.

    functions: specs of rewards, see `registry`. weights: one per function, 1.0 each by default. deadline_seconds,
    num_workers: the verifier's. on_error: what becomes of a function that raises, or returns what is no number: `stop`
    raises RewardError with the record; `skip` takes it for None on these completions, says so once per kind of error
    and counts them. max_new_tokens: the `max_length` of rewards whose spec leaves it out.

    Raises RewardError for an unknown function or a wrong parameter and ArgumentError for weights that do not fit.
    """

    def __init__(
        self,
        functions: list[str],
        weights: list[float] | None = None,
        *,
        deadline_seconds: float = 5.0,
        num_workers: int | None = None,
        on_error: OnError = "stop",
        max_new_tokens: int | None = None,
    ) -> None:
        if not functions:
            raise ArgumentError("no reward function is given; write for instance grpo_reward_funcs: accuracy")
        if weights is not None and len(weights) != len(functions):
            raise ArgumentError(
                f"{len(weights)} reward weights for {len(functions)} reward functions ({', '.join(functions)}); "
                "write one weight per function"
            )
        defaults = {} if max_new_tokens is None else {"max_length": max_new_tokens}
        found = [get_reward(spec, defaults) for spec in functions]
        names = _distinct([name for name, _ in found], functions)
        self.functions: dict[str, RewardFunction] = dict(zip(names, (function for _, function in found), strict=True))
        """By the name that logs and metrics use."""
        self.weights = dict(zip(names, weights or [1.0] * len(functions), strict=True))
        self.trainer_state: Any = None
        """What functions that name `trainer_state` are given; the trainer's to set."""
        self._rewards = [BoundReward(name, function) for name, function in self.functions.items()]
        self._kinds = [{check_answer_type(kind) for kind in parse_spec(spec).kinds} for spec in functions]
        self._on_error = on_error
        self._num_errors: Counter[str] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._loop = EventLoop()
        self._verifier = Verifier(deadline_seconds, num_workers)

    def score(self, requests: Sequence[ScoringRequest]) -> list[Score]:
        """One score per request, in order.

        Raises RewardError where a reward function fails, unless the scorer was made with on_error="skip".
        """
        if not requests:
            return []
        found = self._verifier.verify_batch(requests)
        verdicts = [verdict if request.gold else None for verdict, request in zip(found, requests, strict=True)]
        batch = Batch.of(requests, verdicts, self.trainer_state)
        columns = self._columns(batch)
        scores = []
        for row, verdict in enumerate(verdicts):
            rewards = {name: column[row] for name, column in columns.items()}
            given = [self.weights[name] * reward for name, reward in rewards.items() if reward is not None]
            scores.append(Score(rewards, sum(given) if given else None, verdict))
        return scores

    def take_counts(self) -> dict[str, int]:
        """What happened since the last call.

        `reward_errors/<name>`: completions that lost this reward to an error, under on_error="skip";
        `<name>/<what>`: what a function with a `take_counts` of its own counted.
        """
        counts = {}
        if self._on_error == "skip":
            counts = {f"reward_errors/{name}": self._num_errors[name] for name in self.functions}
            self._num_errors.clear()
        for name, function in self.functions.items():
            if hasattr(function, "take_counts"):
                counts |= {f"{name}/{what}": number for what, number in function.take_counts().items()}
        return counts

    def _columns(self, batch: Batch) -> dict[str, list[float | None]]:
        """Every reward of every completion; coroutines of all functions run at the same time."""
        started = []
        columns: dict[str, list[float | None]] = {}
        try:
            for reward, kinds in zip(self._rewards, self._kinds, strict=True):
                rows = [row for row, request in enumerate(batch.requests) if not kinds or kinds & _kinds_of(request)]
                part = batch if len(rows) == len(batch.requests) else batch.select(rows)
                started.append((rows, reward.start(part, self._loop) if rows else None))
            for reward, (rows, calls) in zip(self._rewards, started, strict=True):
                column: list[float | None] = [None] * len(batch.requests)
                for row, result in zip(rows, calls.results() if calls else [], strict=True):
                    if isinstance(result, Failure):
                        self._fail(reward.name, result)
                    else:
                        column[row] = result
                columns[reward.name] = column
        finally:
            for _, calls in started:
                if calls:
                    calls.cancel()  # whatever an error leaves unfinished
        return columns

    def _fail(self, name: str, failure: Failure) -> None:
        """Raises, or counts a reward that the run goes on without."""
        if self._on_error == "stop":
            if isinstance(failure.error, RewardError) and str(failure.error) == failure.message:
                raise failure.error
            raise RewardError(
                f"{failure.message}; mend it, or write grpo_reward_errors: skip to train without its value"
            ) from failure.error
        self._num_errors[name] += 1
        kind = (name, type(failure.error).__name__)
        if kind not in self._said:
            self._said.add(kind)
            logger.warning(
                "%s. Its value is left out there (grpo_reward_errors: skip); more of the kind are only counted, as "
                "reward_errors/%s.",
                failure.message,
                name,
                exc_info=failure.error if failure.error.__traceback__ else None,
            )

    def close(self) -> None:
        """End the verifier's workers and what the functions hold open."""
        self._verifier.close()  # first: a function's own may raise
        self._loop.close()
        for function in self.functions.values():
            if hasattr(function, "close"):
                function.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _distinct(names: list[str], specs: list[str]) -> list[str]:
    """The names; those given twice with their parameters and kinds: `cosine_length_max_length_512`."""
    repeated = {name for name, times in Counter(names).items() if times > 1}
    suffixes = [parse_spec(spec).metric_suffix() for spec in specs]
    distinct = [
        f"{name}_{suffix}" if name in repeated and suffix else name
        for name, suffix in zip(names, suffixes, strict=True)
    ]
    if len(set(distinct)) != len(distinct):
        raise ArgumentError(
            f"two reward functions share a name in {', '.join(specs)}; rename one, or leave it out where it is the same"
        )
    return distinct


def _kinds_of(request: ScoringRequest) -> set[str]:
    """The kind of answer that the record declares, and the one that its gold answer is read as."""
    kinds = {check_answer_type(request.answer_type)}
    gold = read_gold(request.gold, request.answer_type, request.settings)
    return kinds | {gold.kind} if gold else kinds
