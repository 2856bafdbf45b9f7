"""Scoring requests in, one Score per completion out; the GRPO trainer consumes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from numbers import Real

from lcot_plugin.errors import ArgumentError, RewardError
from lcot_plugin.rewards.registry import RewardFunction, get_reward
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import Score, ScoringRequest


class Scorer:
    """Weighted rewards over one verdict per completion.

    functions: registered names or `path.py:function`. weights: one per function, 1.0 each by default.
    deadline_seconds: the verifier's, per completion. Raises RewardError for an unknown function and ArgumentError for
    weights that do not fit.
    """

    def __init__(
        self,
        functions: list[str],
        weights: list[float] | None = None,
        *,
        deadline_seconds: float = 5.0,
        num_workers: int | None = None,
    ) -> None:
        if not functions:
            raise ArgumentError("no reward function is given; write for instance grpo_reward_funcs: accuracy")
        if weights is not None and len(weights) != len(functions):
            raise ArgumentError(
                f"{len(weights)} reward weights for {len(functions)} reward functions ({', '.join(functions)}); "
                "write one weight per function"
            )
        named = [get_reward(spec) for spec in functions]
        self.functions: dict[str, RewardFunction] = dict(named)
        if len(self.functions) != len(named):
            raise ArgumentError(f"two reward functions share a name in {', '.join(functions)}; rename one")
        self.weights = dict(zip(self.functions, weights or [1.0] * len(functions), strict=True))
        self._verifier = Verifier(deadline_seconds, num_workers)

    def score(self, requests: Sequence[ScoringRequest]) -> list[Score]:
        """One score per request, in order.

        Raises RewardError where a reward function raises, or returns another count or something that is no number.
        """
        if not requests:
            return []
        verdicts = self._verifier.verify_batch(requests)
        keywords: dict[str, list] = {
            "prompts": [request.question for request in requests],
            "completions": [request.completion for request in requests],
            "completion_ids": [request.completion_ids for request in requests],
            "gold": [request.gold for request in requests],
            "answer_type": [request.answer_type for request in requests],
            "source": [request.source for request in requests],
            "endings": [request.ending.value for request in requests],
            "verdicts": [
                verdict if request.gold else None for verdict, request in zip(verdicts, requests, strict=True)
            ],
        }
        columns = {name: _call(name, function, keywords, requests) for name, function in self.functions.items()}
        scores = []
        for row, verdict in enumerate(keywords["verdicts"]):
            rewards = {name: column[row] for name, column in columns.items()}
            given = [self.weights[name] * reward for name, reward in rewards.items() if reward is not None]
            scores.append(Score(rewards, sum(given) if given else None, verdict))
        return scores

    def close(self) -> None:
        """End the verifier's workers."""
        self._verifier.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _call(
    name: str, function: RewardFunction, keywords: dict[str, list], requests: Sequence[ScoringRequest]
) -> list[float | None]:
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = {parameter.name for parameter in parameters}
        keywords = {key: value for key, value in keywords.items() if key in accepted}
    try:
        rewards = function(**keywords)
    except Exception as error:
        raise RewardError(
            f"reward function {name!r} raised {type(error).__name__}: {error}, on {_places(requests)}"
        ) from error
    if not hasattr(rewards, "__len__") or len(rewards) != len(requests):
        got = f"{len(rewards)} values" if hasattr(rewards, "__len__") else type(rewards).__name__
        raise RewardError(
            f"reward function {name!r} returned {got} for {len(requests)} completions; return a list with one "
            "number, or None, per completion"
        )
    for reward, request in zip(rewards, requests, strict=True):
        if reward is not None and (not isinstance(reward, Real) or not math.isfinite(reward)):
            raise RewardError(
                f"reward function {name!r} returned {reward!r} for {_place(request)}; return a finite number or None"
            )
    return [None if reward is None else float(reward) for reward in rewards]


def _place(request: ScoringRequest) -> str:
    return f"data set {request.source or '(unnamed)'}, record {request.record}"


def _places(requests: Sequence[ScoringRequest]) -> str:
    """The records of a batch, shortened: a batch function does not say which of them it failed on."""
    places = list(dict.fromkeys(_place(request) for request in requests))
    return "; ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
