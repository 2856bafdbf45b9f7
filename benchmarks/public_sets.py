"""What becomes of the records of the public data sets: LLaMA-Factory alone, and with this plugin.

    python benchmarks/public_sets.py [--quick] [--sets geometry3k virl39k] [--folder saves/bench_public_sets]

Every fixture of tests/data (small stand-ins in the sets' exact schemas) is loaded and tokenised for a tiny Qwen2.5-VL
and a tiny Qwen3-VL. LLaMA-Factory alone is given the entry of dataset_info.json that fits a set best and runs SFT, its
only stage here, on a record's response or, for sets for RL, on its gold answer. The plugin runs SFT where there are
responses and GRPO where there are answers, each with the set's own format and with `lcot_auto`; a record counts by the
worst of these runs. One record can stop LLaMA-Factory's run over a whole set, so every record is given to it on its own
as well.

A record is right where its tokens, decoded, hold the question, the options, its own images in their places and, as
labels, a response with the thought, the final answer and the end token; in GRPO, where the gold answer is the record's.
The last line is JSON. Results are kept in benchmarks/results/public_sets.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from data.public_sets import PUBLIC_SETS, PublicSet
from judge_rows import KINDS, Row, judge, kind_of, number_of

ROOT = Path(__file__).resolve().parent.parent

TEMPLATES = {
    "llamafactory": {"qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl"},
    "lcot": {"qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl_lcot"},
}
"""Side -> family of the tiny model -> template. LLaMA-Factory's `qwen3_vl` is one of its reasoning templates."""
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
ALL_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
MAX_SHOWN = 20
QUICK_SETS = ("geometry3k", "vlaa_thinking_sft", "r1_onevision", "mm_eureka", "scienceqa", "honey_data_15m")
IMAGE_BLOCK = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)*<\|vision_end\|>")


@dataclass(frozen=True)
class Job:
    """One run over one data set."""

    side: str
    """`llamafactory` or `lcot`."""
    name: str
    entry: str
    """`plain`, `lcot` (the set's own format) or `auto`: the entry of dataset_info.json."""
    stage: str
    family: str

    @property
    def template(self) -> str:
        return TEMPLATES[self.side][self.family]


@dataclass
class Result:
    """What a job made of its data set."""

    job: Job
    rows: list[Row] = field(default_factory=list)
    error: str = ""
    """What stopped the run."""


def alone(data_set: PublicSet) -> list[PublicSet]:
    """Every record as a set of its own: `geometry3k#0`."""
    return [
        replace(
            data_set,
            name=f"{data_set.name}#{number}",
            records=lambda pictures, number=number: [data_set.records(pictures)[number]],
            expected=(expected,),
        )
        for number, expected in enumerate(data_set.expected)
    ]


def jobs_of(data_set: PublicSet, side: str) -> Iterator[Job]:
    """The runs of one side over one set."""
    for family in FAMILIES:
        if side == "llamafactory":
            yield Job(side, data_set.name, "plain", "sft", family)
            continue
        for entry in ("lcot", "auto"):
            if has_responses(data_set):
                yield Job(side, data_set.name, entry, "sft", family)
            yield Job(side, data_set.name, entry, "grpo", family)


def alone_jobs(data_set: PublicSet) -> list[Job]:
    """LLaMA-Factory's runs over each record of a set, for the first family."""
    return [next(jobs_of(part, "llamafactory")) for part in alone(data_set)]


def has_responses(data_set: PublicSet) -> bool:
    return any(expected.answer is not None for expected in data_set.expected)


def write_sets(folder: Path, names: list[str]) -> None:
    """Each set, and each record of it, in a folder of its own, with three entries."""
    for data_set in [part for name in names for part in (PUBLIC_SETS[name], *alone(PUBLIC_SETS[name]))]:
        entry = data_set.write(folder / data_set.name)
        auto = {key: value for key, value in entry.items() if key != "columns"} | {"formatting": "lcot_auto"}
        info = {"plain": with_all_tags(data_set.plain_entry()), "lcot": entry, "auto": auto}
        (folder / data_set.name / "dataset_info.json").write_text(json.dumps(info))


def with_all_tags(entry: dict[str, Any]) -> dict[str, Any]:
    """A tag that is left out is none at all for LLaMA-Factory once others are given; an experienced user gives all."""
    return {**entry, "tags": {**ALL_TAGS, **entry["tags"]}} if "tags" in entry else entry


# The child process of one side


def run_side(folder: Path, side: str, names: list[str]) -> None:
    """Runs every job of one side and writes `<side>.json`; what the libraries print goes to `<side>.log`."""
    import datasets
    import transformers
    from tqdm import tqdm

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    jobs = [job for name in names for job in jobs_of(PUBLIC_SETS[name], side)]
    if side == "llamafactory":
        jobs += [job for name in names for job in alone_jobs(PUBLIC_SETS[name])]
    results = []
    with (folder / f"{side}.log").open("w") as log:
        for job in tqdm(jobs, desc=side, file=sys.__stderr__):
            with redirect_stdout(log), redirect_stderr(log):
                print(f"\n##### {job}", flush=True)
                results.append(run_job(folder, job))
    (folder / f"{side}.json").write_text(json.dumps([asdict(result) for result in results]))


def run_job(folder: Path, job: Job) -> Result:
    """One `get_dataset`; whatever it raises would end the user's run."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    recipe = {
        "model_name_or_path": str(folder / job.family),
        "template": job.template,
        "stage": job.stage,
        "do_train": True,
        "finetuning_type": "full",
        "dataset": job.entry,
        "dataset_dir": str(folder / job.name),
        "media_dir": str(folder / job.name),
        "output_dir": str(folder / "out"),
        "overwrite_cache": True,
        "report_to": "none",
        "use_cpu": True,
    }
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    try:
        loaded = get_dataset(template, model_args, data_args, training_args, stage=job.stage, **module)
    except Exception as error:
        import traceback

        traceback.print_exc()
        cause = error.__cause__ or error  # `datasets` says only that it failed
        return Result(job, error=f"{type(cause).__name__}: {cause}")
    return Result(job, [decoded(row, module["tokenizer"]) for row in loaded["train_dataset"]])


def decoded(row: dict[str, Any], tokenizer: Any) -> Row:
    ids, labels = row["input_ids"], row.get("labels")
    start = end = len(ids)
    if labels is not None:
        while end and labels[end - 1] == -100:
            end -= 1
        start = end
        while start and labels[start - 1] != -100:
            start -= 1
    texts = [tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:start], ids[start:end])]
    prompt, response = (IMAGE_BLOCK.sub("<image>", text) for text in texts)
    return Row(prompt, response, [number_of(image) for image in row["images"] or []], row.get("gold"))


# The parent process


def verdicts_of(result: Result, data_set: PublicSet, folder: Path) -> list[str]:
    """Per record: `right`, `lost`, `crashed`, or what was altered."""
    if result.error:
        return ["crashed"] * len(data_set.expected)
    own = folder / data_set.name
    return judge(result.rows, data_set.expected, data_set.read(own), own, result.job.stage)


def run_in_child(folder: Path, side: str, names: list[str]) -> dict[Job, Result]:
    environment = {
        **os.environ,
        "LCOT_PLUGIN": "1" if side == "lcot" else "0",
        "HF_HOME": str(folder / f"cache_{side}"),
        "HF_DATASETS_CACHE": str(folder / f"cache_{side}" / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "LLAMAFACTORY_VERBOSITY": "WARN",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--sets", *names]
    subprocess.run(command, env=environment, check=True)
    results = [
        Result(Job(**item["job"]), [Row(**row) for row in item["rows"]], item["error"])
        for item in json.loads((folder / f"{side}.json").read_text())
    ]
    return {result.job: result for result in results}


def summary(verdicts: list[str], errors: list[str]) -> str:
    """`2 right`, `1 right, 1 altered (image missing)` or `2 crashed (ValueError: ...)`."""
    kinds = Counter(map(kind_of, verdicts))
    why = {
        "altered": sorted({verdict for verdict in verdicts if kind_of(verdict) == "altered"}),
        "crashed": list(dict.fromkeys(map(short_error, errors))),
    }
    parts = []
    for kind in KINDS:
        if kinds[kind]:
            parts.append(f"{kinds[kind]} {kind}" + (f" ({'; '.join(why[kind])})" if why.get(kind) else ""))
    return ", ".join(parts)


def worst(verdicts: list[list[str]]) -> list[str]:
    """Per record, the worst of several runs."""
    return [max(column, key=lambda verdict: KINDS.index(kind_of(verdict))) for column in zip(*verdicts, strict=True)]


def short_error(error: str, limit: int = 90) -> str:
    line = " ".join(re.sub(r"/\S+/", "", error.replace("|", "/")).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=list(PUBLIC_SETS), metavar="SET", help="all where left out")
    parser.add_argument("--quick", action="store_true", help=f"{len(QUICK_SETS)} sets")
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_public_sets"))
    parser.add_argument("--keep", action="store_true", help="keep the folder with the sets and the logs of both sides")
    parser.add_argument("--side", choices=("llamafactory", "lcot"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    names = arguments.sets or list(QUICK_SETS if arguments.quick else PUBLIC_SETS)
    if arguments.side:
        if arguments.side == "lcot":
            from lcot_plugin.activation import activate

            activate()
        run_side(folder, arguments.side, names)
        return

    import twins

    shutil.rmtree(folder, ignore_errors=True)
    write_sets(folder, names)
    for family in FAMILIES:
        twins.build_twin(family, folder / family)
    results = {**run_in_child(folder, "llamafactory", names), **run_in_child(folder, "lcot", names)}
    figures = report(folder, names, results)
    if not arguments.keep:
        shutil.rmtree(folder)
    print(json.dumps(figures))


def report(folder: Path, names: list[str], results: dict[Job, Result]) -> dict[str, Any]:
    """Prints the tables and returns the figures of the last line."""
    libraries = ("llamafactory", "transformers", "datasets", "torch")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    figures: dict[str, Any] = {"sets": len(names), "records": sum(len(PUBLIC_SETS[n].expected) for n in names)}
    wrong = []
    one_by_one = Counter(dict.fromkeys(KINDS, 0))
    for family in FAMILIES:
        counts = {side: Counter(dict.fromkeys(KINDS, 0)) for side in TEMPLATES}
        templates = [f"`{TEMPLATES[side][family]}`" for side in TEMPLATES]
        print(f"\n### {family}: template {templates[0]}, with the plugin {templates[1]}\n")
        first = family == FAMILIES[0]
        print(
            f"| data set | records | LLaMA-Factory alone |{' record by record |' if first else ''} with lcot-plugin |"
        )
        print("|---|---|---|---|" + ("---|" if first else ""))
        for name in names:
            data_set = PUBLIC_SETS[name]
            cells = []
            for side in TEMPLATES:
                jobs = [job for job in jobs_of(data_set, side) if job.family == family]
                runs = [verdicts_of(results[job], data_set, folder) for job in jobs]
                judged = worst(runs)
                counts[side].update(map(kind_of, judged))
                cells.append(summary(judged, [results[job].error for job in jobs if results[job].error]))
                if side == "lcot":
                    bad = [(job, run) for job, run in zip(jobs, runs, strict=True) if set(run) != {"right"}]
                    wrong += [f"{job}: {run} {short_error(results[job].error, 400)}" for job, run in bad]
            if first:
                parts = [
                    verdicts_of(results[job], part, folder)[0]
                    for job, part in zip(alone_jobs(data_set), alone(data_set), strict=True)
                ]
                one_by_one.update(map(kind_of, parts))
                cells.insert(1, summary(parts, []))
            print(f"| {name} | {len(data_set.expected)} | {' | '.join(cells)} |")
        suffix = "" if first else f"_{family}"
        for side, counter in counts.items():
            figures |= {f"{side}_{kind}{suffix}": number for kind, number in counter.items()}
            print(f"{side}: " + ", ".join(f"{number} {kind}" for kind, number in counter.items()))
    figures |= {f"llamafactory_{kind}_record_by_record": number for kind, number in one_by_one.items()}
    print("llamafactory, record by record: " + ", ".join(f"{number} {kind}" for kind, number in one_by_one.items()))
    if wrong:
        more = f"\n  and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        print("\nRuns of the plugin with a record that is not right:\n  " + "\n  ".join(wrong[:MAX_SHOWN]) + more)
    return figures


if __name__ == "__main__":
    main()
