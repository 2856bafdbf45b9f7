"""Browsing 100,000 completions: the viewer's table beside plain readers of the same file.

    python benchmarks/viewer.py [--completions 100000] [--bytes 1500 6000] [--quick] [--folder saves/bench_viewer]

Writes a completions.jsonl of groups of 8 with one picture per prompt; then every side, in a fresh process, opens it,
shows the first screen, filters, searches and finds what got worse since the middle step. Sides: ours for the first time
(no index), ours again (the saved index), a list of dictionaries by json, pandas.read_json. All must find the same
completions and prompts. The file is in the page cache, but for the line that says it is not. The last line is JSON.
Results are kept in benchmarks/results/viewer.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GROUP, PROMPTS, PER_STEP = 8, 3000, 8
RARE, COMMON = "hypotenuse of 8128", "wait"
TEXT = (
    "so we first look at the picture and count each side then the angle between them is given which means that the "
    "total area equals half of the base times the height therefore wait let me check this step again \\frac{1}{2}"
)
BUDGET = 0.3
"""Seconds that the first screen without an index spends on reading."""


def write_file(folder: Path, num_completions: int, num_bytes: int) -> int:
    """Returns the file's size."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    generator = random.Random(0)
    for number in range(40):
        channels = [Image.effect_noise((200, 150), 60).resize((1600, 1200)) for _ in range(3)]
        Image.merge("RGB", channels).save(folder / "images" / f"{number}.jpg")
    text = " ".join(generator.choices(TEXT.split(), k=400_000))
    with (folder / "completions.jsonl").open("w", encoding="utf-8") as file:
        for row in range(num_completions):
            group, sample = divmod(row, GROUP)
            if sample == 0:
                record = generator.randrange(PROMPTS)
            start = generator.randrange(len(text) - num_bytes)
            thought = text[start : start + int(generator.uniform(0.3, 1.7) * (num_bytes - 580))]
            if row % 1000 == 17:
                thought += f"the {RARE}"
            right = generator.random() < 0.3 + 0.4 * group * GROUP / num_completions
            outcome = "matched" if right else generator.choice(["mismatched", "mismatched", "unparsable"])
            rewards = {"accuracy": float(right), "format": float(outcome != "unparsable")}
            line = {
                "step": group // PER_STEP, "group": group % PER_STEP, "sample": sample,
                "source": ("geometry", "charts", "counting")[record % 3], "record": record,
                "question": f"<image>How large is figure {record}? Give one number.",
                "images": [f"images/{record % 40}.jpg"], "opening": "<think>\n",
                "completion": f"{thought}</think>\n\nThe answer is \\boxed{{{row % 97}}}.", "ending": "stopped",
                "num_tokens": len(thought) // 4, "policy_step": group // PER_STEP, "extracted": str(row % 97),
                "gold": "42", "answer_type": "number", "match": "", "outcome": outcome, "rewards": rewards,
                "reward": rewards["accuracy"] + 0.1 * rewards["format"], "advantage": generator.gauss(0, 1),
            }  # fmt: skip
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return (folder / "completions.jsonl").stat().st_size


# Sides. Each returns seconds and what it found by task.


class Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.found: dict[str, Any] = {}

    def __call__(self, task: str, work: Callable[[], Any]) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        found = work()
        self.seconds[task] = time.perf_counter() - started
        self.cpu[task] = time.process_time() - cpu
        return found


def wishes(last_step: int) -> dict[str, dict[str, Any]]:
    """Filters of the viewer, by task."""
    return {
        "filter: verdict": {"outcome": "unparsable"},
        "filter: data set, steps, reward": {"source": "charts", "first_step": last_step // 2, "min_reward": 1.0},
        "search: rare text": {"text": RARE},
        "search: common text": {"text": COMMON},
        "search: rare text among wrong": {"text": RARE, "outcome": "mismatched"},
    }


def ours(folder: Path, seconds: float | None) -> Stopwatch:
    """With a budget: the first screen only, then the rest of the index."""
    watch = Stopwatch()
    started = time.perf_counter()
    from lcot_plugin.report.completions_table import CompletionsTable, RolloutQuery
    from lcot_plugin.report.pictures import PicturePool
    from lcot_plugin.report.rollout_view import group_html, list_html

    watch.seconds["imports"] = time.perf_counter() - started
    path, pool = folder / "completions.jsonl", PicturePool(folder)

    def screen(table: CompletionsTable, query: RolloutQuery, num_groups: int = 1) -> Any:
        selection = table.select(query)
        page = list_html(selection) + "".join(
            group_html(table.group(ref), pictures=pool) for ref in selection.groups[:num_groups]
        )
        assert not selection.groups or len(page) > 1000
        return selection

    def first() -> CompletionsTable:
        table = CompletionsTable.open(path, folder, seconds=seconds)
        table.facets()
        screen(table, RolloutQuery())
        return table

    table = watch("first screen", first)
    watch.found["share shown first"] = round(table.indexed, 2)
    if not table.complete:
        watch("rest of the index", table.refresh)
        return watch
    last_step = table.facets().steps.last
    for task, wish in wishes(last_step).items():
        selection = watch(task, lambda wish=wish: screen(table, RolloutQuery(**wish)))
        watch.found[task] = selection.num_completions
    watch("next page", lambda: screen(table, RolloutQuery(offset=20)))
    watch("20 whole groups", lambda: screen(table, RolloutQuery(offset=200), 20))
    worse = RolloutQuery(order="got_worse", since_step=last_step // 2)
    watch.found["got worse"] = watch("got worse", lambda: screen(table, worse)).num_groups
    status = path.stat()
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        step = b"".join(next(file) for _ in range(GROUP * PER_STEP)).replace(b'"step": 0,', b'"step": 99999999,')
        file.seek(end)
        file.write(step)
        file.flush()
        watch("one more step", lambda: (table.refresh(), screen(table, RolloutQuery())))
        file.truncate(end)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that the saved index fits again
    return watch


def plain(folder: Path, seconds: float | None) -> Stopwatch:
    """What a notebook does."""
    watch = Stopwatch()

    def read() -> list[dict[str, Any]]:
        with (folder / "completions.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    rows = watch("first screen", read)
    last_step = rows[-1]["step"]
    for task, wish in wishes(last_step).items():

        def fits(row: dict[str, Any], wish: dict[str, Any] = wish) -> bool:
            return (
                all(row[key] == wish[key] for key in ("outcome", "source") if key in wish)
                and row["step"] >= wish.get("first_step", 0)
                and row["reward"] >= wish.get("min_reward", -1e9)
                and ("text" not in wish or wish["text"] in row["completion"].lower() + "\n" + row["question"].lower())
            )

        watch.found[task] = len(watch(task, lambda fits=fits: [row for row in rows if fits(row)]))

    def got_worse() -> int:
        groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for row in rows:
            groups[row["source"], row["record"], row["step"], row["group"]].append(row["reward"])
        sides: dict[tuple[Any, ...], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        for (source, record, step, _), rewards in groups.items():
            sides[source, record][step >= last_step // 2].append(fmean(rewards))
        return sum(bool(old and new) and fmean(new) < fmean(old) - 1e-9 for old, new in sides.values())

    watch.found["got worse"] = watch("got worse", got_worse)
    return watch


def pandas_side(folder: Path, seconds: float | None) -> Stopwatch:
    watch = Stopwatch()
    started = time.perf_counter()
    import pandas

    watch.seconds["imports"] = time.perf_counter() - started
    frame = watch("first screen", lambda: pandas.read_json(folder / "completions.jsonl", lines=True))
    last_step = int(frame.step.iloc[-1])
    for task, wish in wishes(last_step).items():

        def rows(wish: dict[str, Any] = wish) -> int:
            fits = frame.step >= wish.get("first_step", 0)
            for key in ("outcome", "source"):
                fits = fits & (frame[key] == wish[key]) if key in wish else fits
            fits = fits & (frame.reward >= wish.get("min_reward", -1e9))
            if "text" in wish:
                part = frame[fits]
                texts = part.completion.str.lower() + "\n" + part.question.str.lower()
                return int(texts.str.contains(wish["text"], regex=False).sum())
            return int(fits.sum())

        watch.found[task] = watch(task, rows)

    def got_worse() -> int:
        means = frame.groupby(["source", "record", "step", "group"]).reward.mean().reset_index()
        means["after"] = means.step >= last_step // 2
        sides = means.groupby(["source", "record", "after"]).reward.mean().unstack()
        return int((sides[True] < sides[False] - 1e-9).sum())

    watch.found["got worse"] = watch("got worse", got_worse)
    return watch


def arrow_side(folder: Path, seconds: float | None) -> Stopwatch:
    """How long pyarrow takes to parse the file; it keeps all texts and no offsets, so nothing else is done with it."""
    import pyarrow.json

    watch = Stopwatch()
    watch("first screen", lambda: pyarrow.json.read_json(folder / "completions.jsonl"))
    return watch


SIDES: dict[str, tuple[Callable[[Path, float | None], Stopwatch], float | None]] = {
    "ours, first time": (ours, BUDGET),
    "ours": (ours, None),
    "ours, file not in memory": (ours, None),
    "list of json": (plain, None),
    "pandas": (pandas_side, None),
    "pyarrow.json": (arrow_side, None),
}


def side(folder: Path, name: str) -> dict[str, Any]:
    if "not in memory" in name:
        for path in (folder / "completions.jsonl", *folder.glob(".*.npz")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        with (folder / "completions.jsonl").open("rb") as file:
            while file.read(1 << 20):  # a child's peak memory begins at its parent's
                pass
    command = [sys.executable, __file__, "--folder", str(folder), "--side", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(folder: Path, num_completions: int, num_bytes: int) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    size = write_file(folder, num_completions, num_bytes)
    results = {name: side(folder, name) for name in SIDES}
    compared = [results[name]["found"] for name in ("ours", "list of json", "pandas")]
    tasks = compared[1].keys()
    assert all(found[task] == compared[0][task] for found in compared for task in tasks), compared
    print(f"\n{num_completions:,} completions of {num_bytes:,} bytes, {size / 1e6:,.0f} MB; found: {compared[1]}")
    share = results["ours, first time"]["found"]["share shown first"]
    print(f"share of the file that the first screen without an index has read: {share}")
    shown = dict.fromkeys(task for result in results.values() for task in result["seconds"])
    print(f"{'seconds (of processor)':<32}" + "".join(f"{name:>26}" for name in SIDES))
    for task in shown:
        values = [(result["seconds"].get(task), result["cpu"].get(task)) for result in results.values()]
        texts = ["" if wall is None else f"{wall:.3f}" + (f" ({cpu:.3f})" if cpu else "") for wall, cpu in values]
        print(f"{task:<32}" + "".join(f"{text:>26}" for text in texts))
    print(f"{'peak memory, MiB':<32}" + "".join(f"{result['peak_mib']:>26,}" for result in results.values()))
    index = sum(path.stat().st_size for path in folder.glob(".*.npz"))
    print(f"saved index: {index / 1e6:.1f} MB")
    shutil.rmtree(folder)
    return {
        "completions": num_completions,
        "megabytes": round(size / 1e6),
        "index_megabytes": round(index / 1e6, 1),
        "seconds": {
            name: {task: round(value, 3) for task, value in result["seconds"].items()}
            for name, result in results.items()
        },
        "peak_mib": {name: result["peak_mib"] for name, result in results.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, nargs="+", default=[1500, 6000], help="of a line, on average")
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_viewer"))
    parser.add_argument("--quick", action="store_true", help="20,000 completions of 1,500 bytes")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.side:
        work, seconds = SIDES[arguments.side]
        watch = work(folder, seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": watch.seconds, "cpu": watch.cpu, "found": watch.found, "peak_mib": peak}))
        return
    if arguments.quick:
        arguments.completions, arguments.bytes = 20_000, [1500]
    libraries = ("pyarrow", "orjson", "numpy", "pandas")
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(json.dumps([measure(folder, arguments.completions, num_bytes) for num_bytes in arguments.bytes]))


if __name__ == "__main__":
    main()
