"""Scoring requests in, verdicts per second and latencies out; `lcot reward time` and a benchmark show them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lcot_plugin.rewards.answers import judge, read_gold
from lcot_plugin.rewards.extraction import extract_answer
from lcot_plugin.rewards.kinds.base import NeedsSolver
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import ScoringRequest

LEAST_SECONDS = 1.0
"""The requests that need no worker are repeated until they have taken this long."""
_EASY = (
    ("<think>\nFrom the chart I read 1,000 in May and 250 in June.\n</think>\n\n<answer>1,250</answer>", "1250"),
    (r"<think>The angles add up to 180.</think> The third is \boxed{35^\circ}.", "35°"),
    ("The red bar is the tallest.\n\nAnswer: (B)", "B"),
    (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}"),
    (r"\boxed{0.5}", r"\frac{1}{2}"),
    ("答案是5厘米", "5 cm"),
    ("The answer is 50 mm.", "5 cm"),
    ("<answer>a red car</answer>", "a red bus"),
    (r"\boxed{7}", "8"),
    ("I could not find any number.", "12"),
)
_NUM_SYMBOLIC = 100


@dataclass(frozen=True)
class Timing:
    """What one group of verdicts took."""

    name: str
    num_verdicts: int
    seconds: float
    """Of all of them, as they are made in a run: together, and in workers side by side."""
    latencies: tuple[float, ...]
    """Seconds of single verdicts, ascending; empty where there were none."""

    @property
    def per_second(self) -> float:
        return self.num_verdicts / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Seconds."""
        return self.latencies[min(len(self.latencies) - 1, int(percent / 100 * len(self.latencies)))]


def examples() -> list[ScoringRequest]:
    """Completions as they come, and right answers that need algebra, no two alike."""
    symbolic = [
        (rf"\boxed{{2\sin x\cos x+{number}}}", rf"\sin(2x)+{number}")
        if number % 2
        else (rf"\boxed{{(x+1)(x^2+{number}x-1)}}", rf"x^3+{number + 1}x^2+{number - 1}x-1")
        for number in range(2, 2 + _NUM_SYMBOLIC)
    ]
    return [ScoringRequest(prediction, gold) for prediction, gold in (*_EASY, *symbolic)]


def needs_worker(request: ScoringRequest) -> bool:
    """Whether the comparison is left to a worker process."""
    found = extract_answer(request.completion, include_thought=request.settings.include_thought)
    settings = replace(request.settings, aliases=(), include_thought=False)
    for text in (request.gold, *request.settings.aliases):
        gold = read_gold(text, request.answer_type, settings)
        try:
            if gold is not None and judge(gold, found, settings).value == "matched":
                return False
        except NeedsSolver:
            return True
    return False


def measure(
    requests: Sequence[ScoringRequest], *, deadline_seconds: float = 5.0, num_workers: int | None = None
) -> tuple[list[Timing], float]:
    """(in process, in workers), and the seconds that the workers took to start.

    A group without requests has no verdicts. What workers found is remembered, so that their requests are judged twice,
    by two verifiers: one by one for the latencies, all at once for the rate.
    """
    easy: list[ScoringRequest] = []
    hard: list[ScoringRequest] = []
    for request in requests:
        (hard if needs_worker(request) else easy).append(request)
    latencies: list[float] = []
    passes, seconds = 0, 0.0
    with Verifier(deadline_seconds, num_workers) as verifier:
        while easy and sum(latencies) < LEAST_SECONDS:
            latencies += _latencies(verifier, easy)
        while easy and seconds < LEAST_SECONDS:
            start = time.perf_counter()
            verifier.verify_batch(easy)
            seconds, passes = seconds + time.perf_counter() - start, passes + 1
    timings = [Timing("in process", passes * len(easy), seconds, tuple(sorted(latencies)))]
    if not hard:
        return [*timings, Timing("in workers", 0, 0.0, ())], 0.0
    with Verifier(deadline_seconds, num_workers) as verifier:
        start = time.perf_counter()
        verifier.verify_batch([_starter()])
        started = time.perf_counter() - start
        singly = _latencies(verifier, hard)
    with Verifier(deadline_seconds, num_workers) as verifier:
        verifier.verify_batch([_starter()])
        start = time.perf_counter()
        verifier.verify_batch(hard)
        seconds = time.perf_counter() - start
    return [*timings, Timing("in workers", len(hard), seconds, tuple(sorted(singly)))], started


def _starter() -> ScoringRequest:
    """What starts a worker, and is not among the examples."""
    return ScoringRequest(r"\boxed{2\sin x\cos x}", r"\sin(2x)")


def _latencies(verifier: Verifier, requests: Sequence[ScoringRequest]) -> list[float]:
    seconds = []
    for request in requests:
        start = time.perf_counter()
        verifier.verify_batch([request])
        seconds.append(time.perf_counter() - start)
    return seconds
