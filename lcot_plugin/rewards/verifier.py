"""Scoring requests in, verdicts out, in order; the scorer, the evaluation and the data check consume them.

Easy comparisons (numbers, choices, text) are made in this process. What needs algebra goes to the pool of worker
processes, each killed and replaced when an item overruns its deadline; its verdicts are remembered.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from lcot_plugin.errors import ArgumentError, DataError, RewardError
from lcot_plugin.rewards.answers import check_answer_type, judge, read_gold
from lcot_plugin.rewards.cache import LruCache
from lcot_plugin.rewards.extraction import extract_answer
from lcot_plugin.rewards.kinds.base import NeedsSolver
from lcot_plugin.rewards.pool import WORKER_MODULE, Comparison, Pool
from lcot_plugin.rewards.settings import match_settings
from lcot_plugin.types import MatchSettings, Outcome, ScoringRequest, Verdict

MAX_GOLD_CHARS = 20_000
"""A longer "gold answer" is no answer that a completion could state."""
MAX_DEADLINE_SECONDS = 86_400.0
MAX_REMEMBERED = 1 << 16
MAX_REMEMBERED_CHARS = 1 << 24
"""Verdicts of workers that are kept, and the texts they are about."""


class Verifier:
    """Verifies answers; safe from threads and in forked children, where it starts workers of its own.

    deadline_seconds: for one item in a worker, start of the process not counted. num_workers: processes at most,
    started when first needed; default: two, one on a machine with fewer than four cores.
    """

    def __init__(
        self, deadline_seconds: float = 5.0, num_workers: int | None = None, *, _worker_module: str = WORKER_MODULE
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ArgumentError(f"num_workers is {num_workers}; write 1 or more")
        self.deadline_seconds = _check_deadline(deadline_seconds)
        self.num_workers = num_workers or (2 if (os.cpu_count() or 1) >= 4 else 1)
        self._pool = Pool(self.num_workers, _worker_module)
        self._forget()
        _live_verifiers.add(self)

    def _forget(self) -> None:
        self._outcomes: LruCache[Comparison, Outcome] = LruCache(MAX_REMEMBERED, MAX_REMEMBERED_CHARS)
        # What has overrun, and the longest deadline it was given: it must not cost that again. A gold answer stands
        # here as a comparison with nothing found.
        self._overran: LruCache[Comparison, float] = LruCache(MAX_REMEMBERED, MAX_REMEMBERED_CHARS)

    def __reduce__(self) -> tuple[Any, ...]:
        # A data set that holds a verifier is pickled for data-loader workers that are spawned.
        return type(self), (self.deadline_seconds, self.num_workers)

    def verify(
        self,
        prediction: str,
        gold: str,
        *,
        answer_type: str = "auto",
        deadline_seconds: float | None = None,
        **settings: Any,
    ) -> Verdict:
        """The verdict on one completion; `settings` are those of the function `verify`, by name.

        Raises RewardError for one that there is not, with the names of those that there are.
        """
        if not isinstance(gold, str):
            raise RewardError(f"the gold answer is of type {type(gold).__name__}; give a str")
        request = ScoringRequest(prediction, gold, answer_type=answer_type, settings=match_settings(**settings))
        return self.verify_batch([request], deadline_seconds=deadline_seconds)[0]

    def verify_batch(
        self, requests: Sequence[ScoringRequest], *, deadline_seconds: float | None = None
    ) -> list[Verdict]:
        """One verdict per request, in order; a gold answer that is None or empty is GOLD_UNPARSABLE.

        deadline_seconds: the verifier's own by default. Raises RewardError for an unknown answer type, a text that is
        no str, settings that cannot work, and where a worker cannot be started, ArgumentError for such a deadline;
        never for what a completion says.
        """
        seconds = self.deadline_seconds if deadline_seconds is None else _check_deadline(deadline_seconds)
        cases = [_Case(request) for request in requests]
        pending = dict.fromkeys(comparison for case in cases for comparison in case.pending())
        judged = self._judge_in_workers(list(pending), seconds) if pending else {}
        return [case.verdict(judged) for case in cases]

    def _judge_in_workers(self, comparisons: list[Comparison], seconds: float) -> dict[Comparison, Outcome]:
        outcomes: dict[Comparison, Outcome] = {}
        waiting: queue.SimpleQueue[Comparison] = queue.SimpleQueue()
        for comparison in comparisons:
            waiting.put(comparison)
        failures: list[Exception] = []
        stopped = threading.Event()

        def drain() -> None:
            while not stopped.is_set():
                try:
                    comparison = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    outcomes[comparison] = self._remembered(comparison, seconds) or self._judge(comparison, seconds)
                except Exception as failure:
                    failures.append(failure)  # raised below, in the caller's thread
                    stopped.set()

        try:
            _run_in_threads(drain, min(self.num_workers, len(comparisons)))
        finally:
            stopped.set()  # Ctrl-C is raised in the caller's thread only
        if failures:
            raise failures[0]
        return outcomes

    def _remembered(self, comparison: Comparison, seconds: float) -> Outcome | None:
        if seconds <= (self._overran.get(replace(comparison, found=None)) or 0.0):
            return Outcome.GOLD_UNPARSABLE
        if comparison.found is not None and seconds <= (self._overran.get(comparison) or 0.0):
            return Outcome.TIMED_OUT
        return self._outcomes.get(comparison)

    def _judge(self, comparison: Comparison, seconds: float) -> Outcome:
        ruling = self._pool.judge(comparison, seconds)
        if ruling.overran:
            culprit = comparison if ruling.outcome is Outcome.TIMED_OUT else replace(comparison, found=None)
            self._overran.put(culprit, seconds, culprit.num_chars)
        elif ruling.outcome is not Outcome.TIMED_OUT:
            self._outcomes.put(comparison, ruling.outcome, comparison.num_chars)
        return ruling.outcome

    def close(self) -> None:
        """Kill the workers; the verifier starts new ones when it is used again."""
        self._pool.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Case:
    """One request: its answer against the gold answer and every alias, each judged here or left to a worker."""

    def __init__(self, request: ScoringRequest) -> None:
        self._gold = request.gold or ""
        for name, text in (("prediction", request.completion), ("gold answer", self._gold)):
            if not isinstance(text, str):
                raise RewardError(f"the {name} is of type {type(text).__name__}; give a str{_place(request)}")
        settings = _checked(request.settings)
        self._answer_type = check_answer_type(request.answer_type)
        self._found = extract_answer(request.completion, include_thought=settings.include_thought)
        self._completion = request.completion.strip()
        self._golds = [self._gold, *settings.aliases]
        if settings.aliases or settings.include_thought:  # they have done their work: equal comparisons look equal
            settings = replace(settings, aliases=(), include_thought=False)
        self._settings = settings
        self._judged: list[Outcome | Comparison] = []
        for gold in self._golds:
            self._judged.append(self._judge(gold))
            if self._judged[-1] is Outcome.MATCHED:
                break

    def _judge(self, text: str) -> Outcome | Comparison:
        gold = self._read(text)
        if gold is None:
            return Outcome.GOLD_UNPARSABLE
        if text.strip() == self._completion:
            return Outcome.MATCHED  # also where extraction would take a part of it: several lines, a carriage return
        try:
            return judge(gold, self._found, self._settings)
        except NeedsSolver:
            return Comparison(self._found, text, self._answer_type, self._settings)

    def _read(self, text: str) -> Any:
        return read_gold(text, self._answer_type, self._settings) if len(text) <= MAX_GOLD_CHARS else None

    def pending(self) -> list[Comparison]:
        """What only a worker can judge."""
        if Outcome.MATCHED in self._judged:
            return []
        return [judged for judged in self._judged if isinstance(judged, Comparison)]

    def verdict(self, by_workers: dict[Comparison, Outcome]) -> Verdict:
        """MATCHED where the gold answer or an alias is, else what the gold answer says."""
        matched = Outcome.MATCHED
        outcomes = [by_workers.get(judged) if isinstance(judged, Comparison) else judged for judged in self._judged]
        decided = outcomes.index(matched) if matched in outcomes else 0
        outcome = outcomes[decided]
        assert outcome is not None
        gold = self._read(self._golds[decided])
        kind = gold.kind if gold else self._answer_type
        return Verdict(outcome, self._found.answer if self._found else None, self._gold, kind)


def _checked(settings: MatchSettings) -> MatchSettings:
    """`settings`, hashable and fit for JSON: who makes the record by hand may write lists."""
    return settings if settings == MatchSettings() else match_settings(**vars(settings))


def _check_deadline(seconds: Any) -> float:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= MAX_DEADLINE_SECONDS:
        raise ArgumentError(
            f"deadline_seconds is {seconds!r}; write a positive number of seconds, {MAX_DEADLINE_SECONDS:.0f} at most"
        )
    return float(seconds)


def _place(request: ScoringRequest) -> str:
    return f" (data set {request.source or '(unnamed)'}, record {request.record})" if request.record >= 0 else ""


def _run_in_threads(work: Callable[[], None], num_threads: int) -> None:
    """`work` in this thread, and in others for more than one, until all have returned."""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()


_live_verifiers: weakref.WeakSet[Verifier] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for verifier in list(_live_verifiers):
        verifier._forget()  # a lock may have been held by a thread that this process has not


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_shared = Verifier()  # starts nothing until it is used; made here, so that no two threads make two


def shared_verifier() -> Verifier:
    """The process's own verifier."""
    return _shared


def verify(
    prediction: str,
    gold: str,
    *,
    answer_type: str = "auto",
    options: Sequence[str] | None = None,
    aliases: Sequence[str] = (),
    relative_tolerance: float = 0.0,
    absolute_tolerance: float = 0.0,
    min_anls: float = 1.0,
    min_iou: float = 0.5,
    image_size: tuple[int, int] | None = None,
    include_thought: bool = False,
    deadline_seconds: float | None = None,
) -> Verdict:
    r"""Whether the answer that `prediction` states equals `gold`.

    prediction: a completion, or just an answer. gold: the right answer, in any dress (`B`, `\frac{1}{2}`, `5 cm`,
    `yes`). answer_type: one of `answers.ANSWER_TYPES`, or auto to infer it from `gold`. options: texts of a choice's
    options in order, without their letters. aliases: further right answers. relative_tolerance, absolute_tolerance:
    of numbers, the latter in the gold answer's unit; a number is right within the larger of both. min_anls: of text,
    the least normalised Levenshtein similarity that matches. min_iou: of boxes. image_size: (width, height) in pixels,
    to compare boxes in pixels with normalised ones. include_thought: whether what stands in `<think>...</think>`
    counts. deadline_seconds: for one comparison that needs algebra; 5 by default.

    Never raises for what a prediction says. No comparison takes longer than the deadline once its worker has started;
    an alias is a comparison of its own, and threads wait for a free worker. Raises RewardError for an unknown
    answer_type, a text that is no str and settings that cannot work, ArgumentError for such a deadline.
    """
    return _shared.verify(
        prediction,
        gold,
        answer_type=answer_type,
        options=options,
        aliases=aliases,
        relative_tolerance=relative_tolerance,
        absolute_tolerance=absolute_tolerance,
        min_anls=min_anls,
        min_iou=min_iou,
        image_size=image_size,
        include_thought=include_thought,
        deadline_seconds=deadline_seconds,
    )


def gold_is_usable(
    gold: str | None,
    answer_type: str = "auto",
    *,
    settings: MatchSettings | None = None,
    verifier: Verifier | None = None,
) -> bool:
    """Whether `gold` can be read as an answer of `answer_type`, and a completion that boxes it is matched.

    Raises DataError where there is no gold answer at all; the caller adds the file and the record.
    """
    if gold is None or not gold.strip():
        raise DataError("the gold answer is empty; give the record a short answer that can be compared, or drop it")
    settings = replace(_checked(settings or MatchSettings()), aliases=())  # no alias may answer for it
    # The second is an answer that no gold answer is written as, so that expressions reach the solver.
    boxed, probe = (verifier or _shared).verify_batch(
        [
            ScoringRequest(completion, gold, answer_type=answer_type, settings=settings)
            for completion in (rf"\boxed{{{gold}}}", "-987654321/123456791")
        ]
    )
    return boxed.matched and probe.outcome is not Outcome.GOLD_UNPARSABLE
