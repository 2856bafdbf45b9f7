"""`lcot reward score`, `explain`, `time` and `list`: completions in; tables, words and scored lines out.

The exit codes are 0, or 1 where a line of a file cannot be judged. Nothing here needs torch or LLaMA-Factory, unless a
reward does.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from lcot_plugin.errors import ArgumentError
from lcot_plugin.rewards.command import timing
from lcot_plugin.rewards.command.explanation import explain as explain_request
from lcot_plugin.rewards.command.score_lines import (
    BadLine,
    LineKeys,
    ScoredLine,
    count_lines,
    read_line,
    read_lines,
    request_of,
)
from lcot_plugin.rewards.command.text_table import text_table
from lcot_plugin.rewards.functions import registry
from lcot_plugin.rewards.functions.specs import split_items
from lcot_plugin.rewards.scorer import Scorer
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import Outcome, Score

BATCH_SIZE = 256
MAX_BAD_LINES_SHOWN = 20
NO_GOLD = "no gold"


def run(action: str, **arguments: Any) -> int:
    """One of the commands; returns the exit code."""
    keys = LineKeys(**{name: arguments.pop(f"{name}_key") for name in KEY_NAMES if f"{name}_key" in arguments})
    if action == "score":
        arguments["rewards"] = [spec for text in arguments["rewards"] for spec in _specs(text)]
        return score(keys=keys, **arguments)
    if action == "explain":
        return explain(keys=keys, **arguments)
    if action == "time":
        return time_(keys=keys, **arguments)
    return list_(**arguments)


KEY_NAMES = tuple(LineKeys.__dataclass_fields__)


def score(
    file: Path,
    *,
    keys: LineKeys,
    rewards: Sequence[str] = ("accuracy",),
    weights: Sequence[float] | None = None,
    out: Path | None = None,
    skip_errors: bool = False,
    deadline: float = 5.0,
    workers: int | None = None,
    max_new_tokens: int | None = None,
) -> int:
    """Judges every line; prints outcomes by type and the mean of every reward, and names the lines that are no good.

    out: a JSON lines file with one line per line of `file`: its values with extracted, outcome, judged_as, rewards and
    reward, or the line's number, fault and text.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise ArgumentError(f"--out {out}: there is no folder {out.absolute().parent}: make it, or name another.")
    lines = read_lines(file, keys)
    tally, bad = Tally(), list[BadLine]()
    partial = out.with_name(out.name + ".partial") if out is not None else None
    writer = partial.open("w", encoding="utf-8") if partial else None
    try:
        with Scorer(
            list(rewards),
            list(weights) if weights is not None else None,
            deadline_seconds=deadline,
            num_workers=workers,
            on_error="skip" if skip_errors else "stop",
            max_new_tokens=max_new_tokens,
        ) as scorer:
            for line, found in scored(with_progress(lines, count_lines(file)), scorer):
                if isinstance(line, BadLine):
                    bad.append(line)
                else:
                    assert found is not None
                    tally.add(found)
                if writer:
                    writer.write(json.dumps(out_line(line, found), ensure_ascii=False) + "\n")
            errors = {name: number for name, number in scorer.take_counts().items() if number}
    finally:
        if writer:
            writer.close()
    print_faults(file, bad)
    print(tally.text())
    for name, number in errors.items():
        print(f"{name}: {number:,}")
    if out is not None and partial is not None:
        partial.replace(out)
        print(out)
    return 1 if bad or not tally.num_lines else 0


def _specs(text: str) -> list[str]:
    """`accuracy,length(max_length=5, cache=2)` as its two specs."""
    return [spec for spec in split_items(text) if spec]


def scored(
    lines: Iterable[ScoredLine | BadLine], scorer: Scorer
) -> Iterator[tuple[ScoredLine | BadLine, Score | None]]:
    """Every line in order, with its score where it has one."""
    remaining: Iterator[ScoredLine | BadLine] = iter(lines)
    while batch := list(islice(remaining, BATCH_SIZE)):
        for line in remaining:  # `length` compares within the group of a prompt, which is not cut
            if _prompt_of(line) != _prompt_of(batch[-1]):
                remaining = chain([line], remaining)
                break
            batch.append(line)
        scores = iter(scorer.score([line.request for line in batch if isinstance(line, ScoredLine)]))
        for line in batch:
            yield line, next(scores) if isinstance(line, ScoredLine) else None


def _prompt_of(line: ScoredLine | BadLine) -> tuple[str, int, Any]:
    """What tells a line's group from others: its record, and the step of a run's log."""
    if isinstance(line, BadLine):
        return "", line.number, None
    return line.request.source, line.request.record, line.values.get("step")


def out_line(line: ScoredLine | BadLine, found: Score | None) -> dict[str, Any]:
    """A line of the file that `--out` names."""
    if isinstance(line, BadLine) or found is None:
        return {"line": line.number, "fault": line.fault, "text": line.text} if isinstance(line, BadLine) else {}
    verdict = found.verdict
    return line.values | {
        "extracted": verdict.extracted if verdict else None,
        "outcome": verdict.outcome.value if verdict else None,
        "judged_as": verdict.answer_type if verdict else None,
        "rewards": found.rewards,
        "reward": found.total,
    }


class Tally:
    """Counts outcomes by type and sums up rewards."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        """Answer type -> outcome -> lines."""
        self.rewards: dict[str, list[float]] = defaultdict(list)
        self.num_none: Counter[str] = Counter()
        self.num_lines = 0

    def add(self, found: Score) -> None:
        verdict = found.verdict
        self.num_lines += 1
        self.outcomes[verdict.answer_type if verdict else "-"][verdict.outcome.value if verdict else NO_GOLD] += 1
        for name, reward in [*found.rewards.items(), ("weighted sum", found.total)]:
            if reward is None:
                self.num_none[name] += 1
            else:
                self.rewards[name].append(reward)
            self.rewards.setdefault(name, [])

    def text(self) -> str:
        """Two tables."""
        if not self.num_lines:
            return "no line could be judged"
        columns = [*(outcome.value for outcome in Outcome), NO_GOLD]
        if not any(counts[NO_GOLD] for counts in self.outcomes.values()):
            columns.remove(NO_GOLD)
        total = sum(self.outcomes.values(), Counter())
        rows = [["answer type", "lines", *(name.replace("_", " ") for name in columns), "matched %"]]
        for name, counts in [*sorted(self.outcomes.items()), ("all", total)]:
            share = 100 * counts[Outcome.MATCHED.value] / counts.total()
            rows.append([name, f"{counts.total():,}", *(f"{counts[column]:,}" for column in columns), f"{share:.1f}"])
        rewards = [["reward", "mean", "least", "most", "given", "none"]]
        for name, values in self.rewards.items():
            figures = [f"{value:.4f}" for value in (fmean(values), min(values), max(values))] if values else ["-"] * 3
            rewards.append([name, *figures, f"{len(values):,}", f"{self.num_none[name]:,}"])
        return f"{text_table(rows)}\n\n{text_table(rewards)}"


def with_progress(lines: Iterator[Any], total: int) -> Iterator[Any]:
    from tqdm.auto import tqdm

    return iter(tqdm(lines, total=total, desc="Scoring", unit="line", disable=not sys.stderr.isatty()))


def print_faults(file: Path, bad: Sequence[BadLine], stream: TextIO | None = None) -> None:
    """Names the lines that cannot be judged."""
    for line in bad[:MAX_BAD_LINES_SHOWN]:
        print(f"{file}:{line.number}: {line.fault}", file=stream or sys.stderr)
    if len(bad) > MAX_BAD_LINES_SHOWN:
        print(f"{file}: {len(bad) - MAX_BAD_LINES_SHOWN:,} more such lines", file=stream or sys.stderr)


def explain(
    prediction: str,
    gold: str | None = None,
    *,
    keys: LineKeys,
    line: int | None = None,
    answer_type: str | None = None,
    deadline: float = 5.0,
    **settings: Any,
) -> int:
    """Prints one verdict step by step.

    prediction: a completion, `-` for the standard input, or with `line` a JSON lines file. settings: MatchSettings'
    fields, None where they are not given.
    """
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    if line is not None:
        if gold is not None or given or answer_type is not None:
            raise ArgumentError("With --line, everything comes from the file: leave out the gold answer and settings.")
        request = read_line(Path(prediction), line, keys).request
    elif gold is None:
        raise ArgumentError("Give a gold answer too: lcot reward explain PREDICTION GOLD, or FILE --line N.")
    else:
        completion = sys.stdin.read() if prediction == "-" else prediction
        values = {"completion": completion, "gold": gold, "answer_type": answer_type, "match": given}
        request = request_of(values, LineKeys(), source="the command line", record=0)
    with Verifier(deadline_seconds=deadline, num_workers=1) as verifier:
        _, steps = explain_request(request, verifier)
    print("\n".join(steps))
    return 0


def time_(
    file: Path | None = None, *, keys: LineKeys, deadline: float = 5.0, workers: int | None = None, limit: int = 2000
) -> int:
    """Prints verdicts per second and latencies of the file's lines, `limit` at most, or of built-in examples."""
    bad: list[BadLine] = []
    if file is None:
        requests = timing.examples()
    else:
        lines = list(islice(read_lines(file, keys), limit))
        bad = [line for line in lines if isinstance(line, BadLine)]
        requests = [line.request for line in lines if isinstance(line, ScoredLine)]
        print_faults(file, bad)
        if not requests:
            raise ArgumentError(f"{file} has no line that can be judged.")
    timings, start_seconds = timing.measure(requests, deadline_seconds=deadline, num_workers=workers)
    rows = [["", "verdicts", "per second", "median ms", "90 % ms", "99 % ms", "most ms"]]
    for entry in timings:
        shown = ["-"] * 5
        if entry.latencies:
            seconds = [entry.percentile(percent) for percent in (50, 90, 99, 100)]
            shown = [f"{entry.per_second:,.0f}", *(f"{1000 * value:.3f}" for value in seconds)]
        rows.append([entry.name, f"{entry.num_verdicts:,}", *shown])
    print(text_table(rows))
    if start_seconds:
        print(f"The workers' start, once per run: {start_seconds:.1f} s")
    return 1 if bad else 0


def list_(*, trl: bool = False) -> int:
    """Prints the rewards that need no path."""
    for entry in registry.describe(with_trl=trl):
        origin = "" if entry.origin in ("lcot_plugin", "trl") else f"  [{entry.origin}]"
        print(f"{entry.name}{f'({entry.parameters})' if entry.parameters else ''}{origin}")
        print(f"    {entry.summary}")
    if not trl:
        print(
            "\n--trl lists those of trl.rewards too; path/to/file.py:function and package.module:function are others."
        )
    return 0
