"""One reward function and a batch in, one number, None or failure per completion out; the scorer consumes them.

Keywords of a batch function, after TRL's signature with plain strings, each a list with one element per completion:

    prompts         the last user turns            source       names of the data sets
    completions     with the thought's opening     records      0-based rows of their data sets
    completion_ids  token ids, end token included  endings      "stopped", "truncated"
    gold            the gold answers, also as      verdicts     types.Verdict, None without a gold answer
                    solution, answer, ground_truth settings     types.MatchSettings
    answer_type     as the record declares it      trainer_state  transformers' TrainerState or None; not a list

A function that names `completion` judges one completion at a time, with the singulars prompt, completion, record,
ending, verdict and single values of the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.types import ScoringRequest, Verdict

_GOLD_NAMES = ("gold", "solution", "answer", "ground_truth")
_SINGULARS = {
    "prompts": "prompt",
    "completions": "completion",
    "records": "record",
    "endings": "ending",
    "verdicts": "verdict",
}
_SHARED = "trainer_state"
_COLUMNS = (*_SINGULARS, "completion_ids", *_GOLD_NAMES, "answer_type", "source", "settings")
KEYWORDS = (*_COLUMNS, _SHARED)
SAMPLE_KEYWORDS = tuple(_SINGULARS.get(name, name) for name in KEYWORDS)


@dataclass(frozen=True)
class Batch:
    """What reward functions are given of some completions."""

    requests: Sequence[ScoringRequest]
    columns: dict[str, list[Any]]
    """By batch keyword."""
    trainer_state: Any = None

    @classmethod
    def of(
        cls, requests: Sequence[ScoringRequest], verdicts: Sequence[Verdict | None], trainer_state: Any = None
    ) -> Batch:
        golds = [request.gold for request in requests]
        columns: dict[str, list[Any]] = {
            "prompts": [request.question for request in requests],
            "completions": [request.completion for request in requests],
            "completion_ids": [request.completion_ids for request in requests],
            **{name: list(golds) for name in _GOLD_NAMES},
            "answer_type": [request.answer_type for request in requests],
            "source": [request.source for request in requests],
            "records": [request.record for request in requests],
            "endings": [request.ending.value for request in requests],
            "verdicts": list(verdicts),
            "settings": [request.settings for request in requests],
        }
        assert columns.keys() == set(_COLUMNS)
        return cls(requests, columns, trainer_state)

    def select(self, rows: Sequence[int]) -> Batch:
        """The completions of these rows."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return Batch([self.requests[row] for row in rows], columns, self.trainer_state)

    def keywords(self) -> dict[str, Any]:
        return self.columns | {_SHARED: self.trainer_state}

    def keywords_of(self, row: int) -> dict[str, Any]:
        singulars = {_SINGULARS.get(name, name): column[row] for name, column in self.columns.items()}
        return singulars | {_SHARED: self.trainer_state}


@dataclass(frozen=True)
class Failure:
    """No reward, because the function failed; a batch function may return its exceptions for single completions."""

    error: Exception
    message: str


Result = float | None | Failure


class BoundReward:
    """A reward function with its name and the way it wants to be called.

    Raises RewardError where it requires a parameter that is no keyword.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        parameters = inspect.signature(function).parameters
        self.per_sample = "completion" in parameters and "completions" not in parameters
        available = SAMPLE_KEYWORDS if self.per_sample else KEYWORDS
        kinds = {parameter.kind for parameter in parameters.values()}
        self._wanted = set(available if inspect.Parameter.VAR_KEYWORD in kinds else parameters) & set(available)
        for parameter in parameters.values():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.name not in available and parameter.default is parameter.empty and not variadic:
                raise RewardError(
                    f"reward function {name!r} requires {parameter.name!r}, which rewards are not given; they are "
                    f"given {', '.join(available)}; write its value in the spec, {name}({parameter.name}=...), or "
                    "give it a default"
                )

    def start(self, batch: Batch, loop: EventLoop) -> Started:
        """Calls the function; what it awaits goes on in `loop`."""
        if self.per_sample:
            calls = [self._call(batch.keywords_of(row), loop) for row in range(len(batch.requests))]
        else:
            calls = [self._call(batch.keywords(), loop)]
        return Started(self, batch, calls)

    def _call(self, keywords: dict[str, Any], loop: EventLoop) -> Any:
        try:
            result = self.function(**{name: value for name, value in keywords.items() if name in self._wanted})
        except Exception as error:
            # What a user's function raises is reported with its record, under the run's policy.
            return _Raised(error)
        return loop.run(result) if inspect.isawaitable(result) else result


@dataclass(frozen=True)
class Started:
    """The calls of one function on one batch."""

    reward: BoundReward
    batch: Batch
    calls: list[Any]
    """One, or one per completion: what was returned, raised, or is awaited."""

    def cancel(self) -> None:
        for call in self.calls:
            if isinstance(call, Future):
                call.cancel()

    def results(self) -> list[Result]:
        """One per completion, waited for."""
        name, requests = self.reward.name, self.batch.requests
        values = [_waited(call) for call in self.calls]
        if not self.reward.per_sample:
            (value,) = values
            if isinstance(value, _Raised):
                return [_raised(name, value.error, requests)] * len(requests)
            if not hasattr(value, "__len__") or len(value) != len(requests):
                got = f"{len(value)} values" if hasattr(value, "__len__") else type(value).__name__
                message = (
                    f"reward function {name!r} returned {got} for {len(requests)} completions; return a list with one "
                    "number, or None, per completion"
                )
                return [Failure(RewardError(message), message)] * len(requests)
            values = list(value)
        return [_result(name, value, request) for value, request in zip(values, requests, strict=True)]


class EventLoop:
    """An event loop in a thread of its own, started by the first coroutine: the caller's thread may run one already."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, awaitable: Awaitable[Any]) -> Future[Any]:
        if self._loop is None or self._thread is None or not self._thread.is_alive():  # the latter in a forked child
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="async rewards", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(_await(awaitable), self._loop)

    def close(self) -> None:
        """End the thread; the next coroutine starts another."""
        if self._loop is None or self._thread is None:
            return
        stopped = asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop)
        with contextlib.suppress(TimeoutError):  # a coroutine that blocks; its thread is a daemon
            stopped.result(timeout=5.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _waited(call: Any) -> Any:
    if not isinstance(call, Future):
        return call
    try:
        return call.result()
    except Exception as error:
        return _Raised(error)


def _result(name: str, value: Any, request: ScoringRequest) -> Result:
    if isinstance(value, _Raised | Exception):
        return _raised(name, value.error if isinstance(value, _Raised) else value, [request])
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or torch
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number, value = math.inf, "an integer beyond floating point"  # which has too many digits to be shown
    if not math.isfinite(number):
        message = (
            f"reward function {name!r} returned {value!r:.80} for {place(request)}; return a finite number or None"
        )
        return Failure(RewardError(message), message)
    return number


def _raised(name: str, error: Exception, requests: Sequence[ScoringRequest]) -> Failure:
    return Failure(error, f"reward function {name!r} raised {type(error).__name__}: {error}, on {_places(requests)}")


def place(request: ScoringRequest) -> str:
    """Where the record of a request stands."""
    return f"data set {request.source or '(unnamed)'}, record {request.record}"


def _places(requests: Iterable[ScoringRequest]) -> str:
    """The records of a batch, shortened: a batch function does not say which of them it failed on."""
    places = list(dict.fromkeys(place(request) for request in requests))
    return "; ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
