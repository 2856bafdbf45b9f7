r"""The answer verifier beside math-verify, mathruler and TRL's accuracy_reward, and under inputs that hang others.

    pip install --no-deps mathruler pylatexenc
    python benchmarks/verifier.py [--verdicts 10000] [--deadline 1.0] [--seed 0] [--quick]

1. The pairs of tests/rewards/pairs through all four: share of right decisions in percent, false positives (paid for a
   wrong answer) and false negatives. Every verifier decides about paying, so that None (TRL skips an example), an error
   and a time-out are "not paid"; None and time-outs are counted too. The others get what they are made for: a bare
   answer is put into \boxed{}, a gold answer with LaTeX and no dollar signs into dollars, mathruler gets the content
   of <answer> where there is no box (as EasyR1 does). They know nothing of answer types, options and settings. Each
   runs in a process of its own, which is killed after 10 seconds at one pair. Ours was mended on these pairs: its
   figure shows that nothing has come back, not what it makes of pairs that nobody has seen.
2. Mixed verdicts, 1 % of them on inputs that hang: nested exponentials, giant factorials, a megabyte of text, deep
   braces, algebra that runs for minutes. Once from one thread and once from eight; what must be equal to a run without
   those inputs is compared. Seconds over the deadlines: wall-clock less (verdicts timed out x deadline / workers).
   Memory is the resident set of all processes, sampled four times a second; pages they share count for each.
3. Verdicts per second, for answers that need no worker process, and for those that do.

The last line is JSON; accuracies in percent. Results are kept in benchmarks/results/verifier.md. --quick: some pairs of
every kind, none of which hang, and a tenth of the verdicts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import select
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lcot_plugin.rewards.command import timing  # noqa: E402
from lcot_plugin.rewards.verifier import Verifier  # noqa: E402
from lcot_plugin.types import MatchSettings, Outcome, ScoringRequest, Verdict  # noqa: E402

PAIRS = ROOT / "tests" / "rewards" / "pairs"
PEERS = {"math_verify": "math-verify", "mathruler": "mathruler", "trl": "trl"}  # name: distribution
PEER_SECONDS = 10.0
"""At one pair; math-verify gives up by itself after 5 at parsing and 5 at comparing, where it can."""
START_SECONDS = 120.0
QUICK_PAIRS = 10
NUM_WORKERS = 2
NUM_SYMBOLIC = 300
"""Of the mixed verdicts: right answers that need algebra, no two alike; the rest are the pairs, over and over."""
THREAD_COUNTS = (1, 8)
BATCH = 2500
"""Verdicts per call."""


# pairs


@dataclass
class Tally:
    """What one verifier made of one kind's pairs."""

    num_pairs: int = 0
    num_right: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    num_none: int = 0
    num_timed_out: int = 0

    def add(self, paid: bool | str | None, matched: bool) -> None:
        """paid: a string where there was no decision: `timed out`, or the error."""
        self.num_pairs += 1
        self.num_right += (paid is True) == matched
        self.false_positives += paid is True and not matched
        self.false_negatives += paid is not True and matched
        self.num_none += paid is None
        self.num_timed_out += paid == "timed out"

    @property
    def accuracy(self) -> float:
        return 100 * self.num_right / self.num_pairs if self.num_pairs else 0.0


def read_pairs(quick: bool, seed: int) -> dict[str, list[dict[str, Any]]]:
    pairs = {}
    for path in sorted(PAIRS.glob("*.jsonl")):
        kind = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if quick:
            kind = random.Random(seed).sample(kind, QUICK_PAIRS) if path.stem != "hangs" else []
        if kind:
            pairs[path.stem] = kind
    return pairs


def request_of(pair: dict[str, Any]) -> ScoringRequest:
    settings = {"options": pair.get("options", ()), **pair.get("settings", {})}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return ScoringRequest(
        pair["prediction"], pair["gold"], answer_type=pair["answer_type"], settings=MatchSettings(**plain)
    )


def is_bare(prediction: str) -> bool:
    """Whether it is an answer and not a completion."""
    marks = ("\n", "\\boxed", "\\fbox", "<", "nswer", "答案", "故选", "选择", ". ")
    return bool(prediction.strip()) and not any(mark in prediction for mark in marks)


def dressed(pair: dict[str, Any]) -> dict[str, str]:
    """The pair as peers expect it."""
    gold, prediction = pair["gold"], pair["prediction"]
    if "$" not in gold and any(mark in gold for mark in "\\^_{"):
        gold = f"${gold}$"
    if is_bare(prediction):
        prediction = f"\\boxed{{{prediction.strip()}}}"
    return {"gold": gold, "prediction": prediction}


def peer_function(name: str) -> Callable[[str, str], bool | None]:
    """(gold, prediction) -> whether it pays, None where it abstains. Imports the peer."""
    if name == "math_verify":
        from math_verify import parse, verify

        return lambda gold, prediction: bool(verify(parse(gold), parse(prediction)))
    if name == "mathruler":
        from mathruler.grader import extract_boxed_content, grade_answer

        def ruled(gold: str, prediction: str) -> bool:
            answer = extract_boxed_content(prediction)
            if answer == "None" and "<answer>" in prediction:
                answer = prediction.rpartition("<answer>")[2].partition("</answer>")[0].strip()
            return bool(grade_answer(answer, gold.removeprefix("$").removesuffix("$")))

        return ruled
    # trl is imported after llamafactory: the other order fails with transformers 5.3 and later.
    import llamafactory.data  # noqa: F401
    from trl.rewards import accuracy_reward

    def rewarded(gold: str, prediction: str) -> bool | None:
        (reward,) = accuracy_reward([[{"role": "assistant", "content": prediction}]], solution=[gold])
        return None if reward is None else reward > 0.5

    return rewarded


def serve_peer(name: str) -> None:
    """Answers JSON lines until there are none: the other end of Peer."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    pays = peer_function(name)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            paid: bool | str | None = pays(pair["gold"], pair["prediction"])
        except Exception as error:
            paid = type(error).__name__
        print(json.dumps(paid), file=replies, flush=True)


class Peer:
    """A verifier in a process of its own, in whose main thread its signals work; killed where it hangs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen[str] | None = None

    def pays(self, pair: dict[str, Any]) -> bool | str | None:
        if self._process is None:
            command = [sys.executable, __file__, "--peer", self.name]
            environment = {**os.environ, "LCOT_PLUGIN": "0", "HF_HUB_OFFLINE": "1"}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            assert self._reply(START_SECONDS) == "ready", f"{self.name} does not start: {' '.join(command)}"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dressed(pair)) + "\n")
        self._process.stdin.flush()
        return self._reply(PEER_SECONDS)

    def _reply(self, seconds: float) -> Any:
        assert self._process is not None and self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            self.close()
            return "timed out" if not readable else "died"
        return json.loads(line)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def compare(pairs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Tally]]:
    """Verifier -> kind -> tally."""
    from tqdm import tqdm

    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    with Verifier(num_workers=NUM_WORKERS) as verifier:
        for kind, rows in tqdm(pairs.items(), desc="ours"):
            for row, verdict in zip(rows, verifier.verify_batch(list(map(request_of, rows))), strict=True):
                paid: bool | str = "timed out" if verdict.outcome is Outcome.TIMED_OUT else verdict.matched
                tallies["ours"][kind].add(paid, row["matched"])
    for name in PEERS:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: pip install {PEERS[name]} (mathruler: --no-deps, with pylatexenc)")
            continue
        peer = Peer(name)
        rows = [(kind, row) for kind, kind_rows in pairs.items() for row in kind_rows]
        for kind, row in tqdm(rows, desc=name):
            tallies[name][kind].add(peer.pays(row), row["matched"])
        peer.close()
    return tallies


def overall(tallies: dict[str, Tally]) -> Tally:
    total = Tally()
    for tally in tallies.values():
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    return total


def print_comparison(tallies: dict[str, dict[str, Tally]], pairs: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n{'right %, false positives, false negatives':<42}" + "".join(f"{name:>22}" for name in tallies))
    for kind in [*pairs, "all"]:
        cells = []
        for by_kind in tallies.values():
            tally = overall(by_kind) if kind == "all" else by_kind[kind]
            cells.append(f"{tally.accuracy:>10.1f}{tally.false_positives:>6}{tally.false_negatives:>6}")
        number = sum(map(len, pairs.values())) if kind == "all" else len(pairs[kind])
        print(f"{kind:<34}{number:>8}" + "".join(cells))
    for label, name in (("None", "num_none"), ("timed out", "num_timed_out")):
        print(f"{label:<42}" + "".join(f"{getattr(overall(tally), name):>22}" for tally in tallies.values()))


# hanging inputs


def hanging(index: int) -> ScoringRequest:
    """An input that hangs, or may; no two alike."""
    rest = index // 10
    gold, prediction = (
        ("5", rf"\boxed{{9^{{9^{{9^{{9^{{{rest + 2}}}}}}}}}}}"),
        (r"\sqrt{2}+1", rf"\boxed{{\sqrt{{2}}^{{99999^{{9999^{{{rest + 99}}}}}}}+1}}"),
        ("120", rf"\boxed{{{99_999_999 + rest}!}}"),
        (r"\frac{x}{2}", rf"\boxed{{\frac{{x\cdot {9_999_999 + rest}!!}}{{{99_999_999 + rest}!}}}}"),
        ("7", f"<answer>{'7 ' * 500_000}{rest}</answer>"),
        (r"x+1", "\\boxed{" * 150_000 + str(rest)),
        (r"x+1", rf"\boxed{{{'{' * 1900}x+{rest}{'}' * 1900}}}"),
        # The solver works on these for minutes.
        (
            rf"\int_0^{{\pi}} \frac{{x^{{{rest + 3}}}\sin x}}{{1+\cos^4 x}} dx",
            rf"\boxed{{\int_0^{{\pi}} \frac{{\cos x}}{{2+\sin^{{{rest + 3}}} x}} dx}}",
        ),
        (
            rf"\sum_{{n=1}}^{{\infty}} \frac{{\sin(n^2)}}{{n^3+{rest + 2}}}",
            rf"\boxed{{\sum_{{n=1}}^{{\infty}} \frac{{\cos(n^2)}}{{n^5+{rest + 3}}}}}",
        ),
        (rf"\int_0^1 e^{{x^{{{rest + 3}}}}}\sin(x^2)\,dx", rf"\boxed{{\int_0^1 e^{{x^{{{rest + 3}}}}}\cos(x^3)\,dx}}"),
    )[index % 10]
    return ScoringRequest(prediction, gold)


def mixed_requests(
    pairs: dict[str, list[dict[str, Any]]], number: int, seed: int
) -> tuple[list[ScoringRequest], list[bool]]:
    """(requests in random order, whether each hangs)."""
    generator = random.Random(seed)
    easy = [request_of(row) for kind, rows in pairs.items() for row in rows if kind != "hangs"]
    num_hanging, num_symbolic = number // 100, NUM_SYMBOLIC * number // 10_000
    symbolic = [
        ScoringRequest(rf"\boxed{{2\sin x\cos x+{index}x}}", rf"\sin(2x)+{index + index % 2}x")
        for index in range(num_symbolic)
    ]
    calm = symbolic + generator.choices(easy, k=number - num_hanging - num_symbolic)
    both = [(request, False) for request in calm] + [(hanging(index), True) for index in range(num_hanging)]
    generator.shuffle(both)
    return [request for request, _ in both], [hangs for _, hangs in both]


@dataclass
class Memory:
    """Samples of the resident set of this process and its descendants, in MiB."""

    samples: list[float] = field(default_factory=list)

    def __enter__(self) -> Memory:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.25):
            self.samples.append(tree_mib(os.getpid()))

    @property
    def peak(self) -> float:
        return max(self.samples, default=0.0)

    @property
    def growth(self) -> float:
        """Mean of the last third less that of the middle one."""
        third = max(len(self.samples) // 3, 1)
        middle, last = self.samples[third : 2 * third], self.samples[2 * third :]
        return sum(last) / len(last) - sum(middle) / len(middle) if middle and last else 0.0


def tree_mib(root: int) -> float:
    """Resident MiB of a process and its descendants; 0 where there is no /proc."""
    children, resident = defaultdict(list), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children[int(fields[1])].append(int(folder.name))
        resident[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    total, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        total += resident.get(pid, 0.0)
        waiting += children[pid]
    return total


@dataclass
class HangResult:
    """One run of the mixed verdicts."""

    seconds: float
    verdicts: list[Verdict | None]
    memory: Memory

    @property
    def num_timed_out(self) -> int:
        # A gold answer that the worker cannot read before the deadline costs the deadline too, and is not counted here.
        return sum(verdict is not None and verdict.outcome is Outcome.TIMED_OUT for verdict in self.verdicts)

    def seconds_over(self, deadline: float) -> float:
        return self.seconds - self.num_timed_out * deadline / NUM_WORKERS


def run_mixed(requests: list[ScoringRequest], deadline: float, num_threads: int, label: str) -> HangResult:
    """All verdicts, in calls of BATCH, each thread with a slice of its own."""
    from tqdm import tqdm

    verdicts: list[Verdict | None] = [None] * len(requests)
    share = -(-len(requests) // num_threads)
    with (
        Verifier(deadline, NUM_WORKERS) as verifier,
        tqdm(total=len(requests), desc=label) as progress,
        Memory() as memory,
    ):

        def work(first: int) -> None:
            for start in range(first, min(first + share, len(requests)), BATCH):
                stop = min(start + BATCH, first + share, len(requests))
                verdicts[start:stop] = verifier.verify_batch(requests[start:stop])
                progress.update(stop - start)

        begun = time.perf_counter()
        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, len(requests), share)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
    return HangResult(seconds, verdicts, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--verdicts", type=int, default=10_000, help="of the run with hanging inputs")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds, of the run with hanging inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="some pairs, a tenth of the verdicts")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return serve_peer(arguments.peer)
    number = arguments.verdicts // 10 if arguments.quick else arguments.verdicts
    pairs = read_pairs(arguments.quick, arguments.seed)

    tallies = compare(pairs)
    requests, hangs = mixed_requests(pairs, number, arguments.seed)
    calm_requests = [request for request, hanging_one in zip(requests, hangs, strict=True) if not hanging_one]
    calm = run_mixed(calm_requests, arguments.deadline, 1, "no hanging inputs")
    runs = {
        threads: run_mixed(requests, arguments.deadline, threads, f"{threads} threads") for threads in THREAD_COUNTS
    }
    lost = {}
    for threads, run in runs.items():
        expected = iter(calm.verdicts)
        lost[threads] = sum(
            verdict is None or (not hanging_one and verdict != next(expected))
            for verdict, hanging_one in zip(run.verdicts, hangs, strict=True)
        )
    timings, start_seconds = timing.measure(timing.examples(), num_workers=NUM_WORKERS)

    installed = [name for name in (*PEERS.values(), "sympy") if importlib.util.find_spec(name.replace("-", "_"))]
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in installed)
    )
    print_comparison(tallies, pairs)
    print(
        f"\n{number} verdicts, {sum(hangs)} on hanging inputs, deadline {arguments.deadline} s, {NUM_WORKERS} workers"
    )
    print(f"{'':<20}{'seconds':>10}{'deadlines s':>13}{'over s':>9}{'lost':>6}{'peak MiB':>10}{'growth MiB':>12}")
    for label, run, missing in [
        ("no hanging inputs", calm, 0),
        *((f"{threads} thread{'s' * (threads > 1)}", run, lost[threads]) for threads, run in runs.items()),
    ]:
        over = run.seconds_over(arguments.deadline)
        print(
            f"{label:<20}{run.seconds:>10.1f}{run.seconds - over:>13.1f}{over:>9.1f}{missing:>6}"
            f"{run.memory.peak:>10.0f}{run.memory.growth:>12.1f}"
        )
    of_hanging = Counter(
        verdict.outcome.value if verdict else "lost"
        for verdict, hanging_one in zip(runs[1].verdicts, hangs, strict=True)
        if hanging_one
    )
    print("outcomes of the hanging inputs: " + ", ".join(f"{name} {times}" for name, times in of_hanging.most_common()))
    print(f"\n{'':<14}{'verdicts/s':>12}{'median ms':>11}{'99 % ms':>9}")
    for entry in timings:
        print(
            f"{entry.name:<14}{entry.per_second:>12.0f}{1000 * entry.percentile(50):>11.3f}"
            f"{1000 * entry.percentile(99):>9.3f}"
        )
    print(f"workers start in {start_seconds:.1f} s")

    totals = {name: overall(by_kind) for name, by_kind in tallies.items()}
    figures: dict[str, Any] = {name: None for name in ("ours", *PEERS)}
    figures |= {name: round(total.accuracy, 2) for name, total in totals.items()}
    figures["pairs"] = totals["ours"].num_pairs
    figures["hang_seconds_over_deadline"] = round(max(run.seconds_over(arguments.deadline) for run in runs.values()), 1)
    figures["lost"] = sum(lost.values())
    figures |= {f"{name}_false_positives": total.false_positives for name, total in totals.items()}
    figures |= {f"{name}_false_negatives": total.false_negatives for name, total in totals.items()}
    figures["hang_seconds"] = {str(threads): round(run.seconds, 1) for threads, run in runs.items()}
    figures["hang_timed_out"] = {str(threads): run.num_timed_out for threads, run in runs.items()}
    figures["peak_mib"] = round(max(run.memory.peak for run in runs.values()))
    figures["growth_mib"] = round(max(run.memory.growth for run in runs.values()), 1)
    figures["easy_per_second"], figures["symbolic_per_second"] = (round(entry.per_second) for entry in timings)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
