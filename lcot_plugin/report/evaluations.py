"""How often a model was right, evaluation by evaluation, and whether two differ.

In: eval_completions.jsonl, by the columns of completions_index. Out: one `Evaluation` per file and step, with shares
and their intervals, which the report's headline, its table of accuracies and its comparison of runs read.

What counts: an answer that is missing, or whose comparison ran out of time, is wrong; a problem without a verdict, or
whose gold answer cannot be read, is left out and counted, as in the evaluation itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lcot_plugin.report.completions_index import CompletionsIndex
from lcot_plugin.report.intervals import Difference, Share, paired_answers, paired_means, share_of, unpaired
from lcot_plugin.types import Ending, Outcome

ProblemKey = tuple[str, int, bytes, int]
"""Source, record, digest of the question, and which of several equal ones: the same problem in two evaluations."""
MIN_COMMON = 0.5
"""Of the smaller evaluation's problems: where fewer are in the other one too, two evaluations are compared unpaired."""
JUDGED = (Outcome.MATCHED, Outcome.MISMATCHED, Outcome.UNPARSABLE, Outcome.TIMED_OUT)
"""Verdicts that say right or wrong."""


@dataclass
class Problem:
    """One problem's answers."""

    source: str
    greedy: bool | None = None
    """Whether the greedy answer is right; None where there is none."""
    num_right: int = 0
    """Of the sampled answers."""
    num_sampled: int = 0


@dataclass
class Evaluation:
    """One pass over one evaluation set."""

    run: str
    set_name: str
    """Empty where the run has a single evaluation set."""
    step: int
    """Optimizer steps of the model that was evaluated, in the run that evaluated it."""
    problems: dict[ProblemKey, Problem] = field(default_factory=dict)
    num_unjudged: int = 0
    """Problems left out of everything: without a verdict, or with a gold answer that cannot be read."""
    num_completions: int = 0
    num_truncated: int = 0
    num_unparsable: int = 0
    """Completions without an answer that can be read."""
    num_timed_out: int = 0
    num_tokens: int = 0
    """Of all completions."""

    @property
    def sources(self) -> list[str]:
        return sorted({problem.source for problem in self.problems.values()})

    @property
    def num_samples(self) -> int:
        """Sampled answers of a problem, beside the greedy one; the most that any has."""
        return max((problem.num_sampled for problem in self.problems.values()), default=0)

    @property
    def is_greedy(self) -> bool:
        """Whether every problem has a greedy answer, which is then what accuracy means."""
        return all(problem.greedy is not None for problem in self.problems.values())

    def of_source(self, source: str | None) -> dict[ProblemKey, Problem]:
        """The problems of a data set, or all."""
        return {key: p for key, p in self.problems.items() if source is None or p.source == source}

    def only(self, keys: Collection[ProblemKey]) -> Evaluation:
        """The same with these problems alone; what was counted over completions stays."""
        return replace(self, problems={key: self.problems[key] for key in keys if key in self.problems})

    def accuracy(self, source: str | None = None) -> Share | None:
        """Of the greedy answers; of the sampled ones where not every problem has one. None without problems."""
        problems = self.of_source(source).values()
        if not self.is_greedy:
            return self.sampled(source)
        return share_of([(int(bool(p.greedy)), 1) for p in problems]) if problems else None

    def sampled(self, source: str | None = None) -> Share | None:
        """avg@n: of the sampled answers, its interval taken over problems. None without any."""
        counts = [(p.num_right, p.num_sampled) for p in self.of_source(source).values() if p.num_sampled]
        return share_of(counts) if counts else None

    def any_right(self, source: str | None = None) -> Share | None:
        """pass@n with n = num_samples: problems of which one sampled answer is right at least. None without any."""
        counts = [(int(p.num_right > 0), 1) for p in self.of_source(source).values() if p.num_sampled]
        return share_of(counts) if counts else None


def read_evaluations(path: Path, run: str, set_name: str = "") -> list[Evaluation]:
    """Every evaluation of a file, by step. Raises LcotError where a line is no completion."""
    index = CompletionsIndex(path)
    index.grow()
    columns, names = index.columns, index.names
    outcomes = {number: name for number, name in enumerate(names["outcome"])}
    endings = {number: name for number, name in enumerate(names["ending"])}
    found: dict[int, Evaluation] = {}
    last: tuple[int, ProblemKey] | None = None
    left_out: set[tuple[int, ProblemKey]] = set()
    occurrences: Counter[tuple[int, str, int, bytes]] = Counter()
    for row, digest in enumerate(_question_digests(path, columns)):
        step, sample = int(columns["step"][row]), int(columns["sample"][row])
        source, record = names["source"][int(columns["source"][row])], int(columns["record"][row])
        outcome = outcomes[int(columns["outcome"][row])]
        evaluation = found.setdefault(step, Evaluation(run, set_name, step))
        identity = (step, source, record, digest)
        if last is None or sample == 0 or (last[0], *last[1][:3]) != identity:
            last = (step, (source, record, digest, occurrences[identity]))
            occurrences[identity] += 1
            if outcome not in JUDGED:
                left_out.add(last)
                evaluation.num_unjudged += 1
        if last in left_out:
            continue
        problem = evaluation.problems.setdefault(last[1], Problem(source))
        right = outcome == Outcome.MATCHED
        if sample == 0:
            problem.greedy = right
        else:
            problem.num_right += right
            problem.num_sampled += 1
        evaluation.num_completions += 1
        evaluation.num_truncated += endings[int(columns["ending"][row])] == Ending.TRUNCATED
        evaluation.num_unparsable += outcome == Outcome.UNPARSABLE
        evaluation.num_timed_out += outcome == Outcome.TIMED_OUT
        evaluation.num_tokens += max(0, int(columns["num_tokens"][row]))
    return [found[step] for step in sorted(found)]


def common_problems(before: Evaluation, after: Evaluation, source: str | None = None) -> list[ProblemKey]:
    """The problems that both were asked."""
    others = after.of_source(source)
    return [key for key in before.of_source(source) if key in others]


def compare(before: Evaluation, after: Evaluation, source: str | None = None) -> Difference | None:
    """The difference of the accuracies: paired where the same problems were evaluated, else unpaired; None where either
    has no problems of the source."""
    shares = before.accuracy(source), after.accuracy(source)
    if shares[0] is None or shares[1] is None:
        return None
    if not same_set(before, after, source):
        return unpaired(shares[0], shares[1])
    pairs = [(before.problems[key], after.problems[key]) for key in common_problems(before, after, source)]
    if before.is_greedy and after.is_greedy:
        return paired_answers([(bool(old.greedy), bool(new.greedy)) for old, new in pairs])
    return paired_means([(_share(before, old), _share(after, new)) for old, new in pairs])


def same_set(left: Evaluation, right: Evaluation, source: str | None = None) -> bool:
    """Whether two evaluations are about the same problems, by and large: they are compared problem by problem."""
    smaller = min(len(left.of_source(source)), len(right.of_source(source)))
    return smaller > 0 and len(common_problems(left, right, source)) >= MIN_COMMON * smaller


def nearly_whole(same: Sequence[Evaluation]) -> list[Evaluation]:
    """Of evaluations of the same problems those that are no beginning of one: it goes on, or was cut.

    That is told within a run, whose evaluations are alike; another run may well have asked fewer (`max_samples`).
    """
    most: Counter[str] = Counter()
    for evaluation in same:
        most[evaluation.run] = max(most[evaluation.run], len(evaluation.problems))
    return [evaluation for evaluation in same if len(evaluation.problems) >= MIN_COMMON * most[evaluation.run]]


def by_set(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """The evaluations that are about the same problems together, in their order; those of two sets of one run never."""
    sets: list[list[Evaluation]] = []
    for evaluation in evaluations:
        for known in sets:
            named = {other.set_name for other in known if other.run == evaluation.run}
            if named <= {evaluation.set_name} and same_set(known[0], evaluation):
                known.append(evaluation)
                break
        else:
            sets.append([evaluation])
    return sets


def _share(evaluation: Evaluation, problem: Problem) -> float:
    if evaluation.is_greedy:
        return float(bool(problem.greedy))
    return problem.num_right / problem.num_sampled if problem.num_sampled else 0.0


def _question_digests(path: Path, columns: dict[str, np.ndarray]) -> Iterator[bytes]:
    """Of each line's question as it stands in the file; empty where the line has none."""
    starts = (columns["offset"] + columns["question"]).tolist()
    lengths = (columns["question_end"] - columns["question"]).tolist()
    absent = (columns["question"] < 0).tolist()
    with path.open("rb", buffering=1 << 20) as file:
        for start, length, missing in zip(starts, lengths, absent, strict=True):
            if missing:
                yield b""
                continue
            file.seek(start)
            yield hashlib.blake2b(file.read(length), digest_size=8).digest()
