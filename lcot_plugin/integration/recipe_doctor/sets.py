"""The data sets of a recipe: what dataset_info.json says of them, then what a sample of their records says.

In: the recipe. Out: findings. `entry_lines` opens no data; `record_lines` reads, tokenises and verifies the first
records, with the code of `lcot data check` and `lcot data stats`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llamafactory.data import loader
from numpy.typing import NDArray

from lcot_plugin.command_checks import check_dataset_names, near_names
from lcot_plugin.errors import LcotError
from lcot_plugin.integration.conversion import is_ours
from lcot_plugin.integration.data_check import Check, check_findings, check_golds, check_template, read_sets
from lcot_plugin.integration.data_command import measure
from lcot_plugin.integration.data_sets import DataRecipe, Findings, golds_of, tokenise_set
from lcot_plugin.integration.recipe_doctor.golds import reward_line
from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, SKIPPED, SUBJECT_WIDTH, WRONG, Line
from lcot_plugin.integration.recipe_doctor.settings import looks_local
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.types import RecordFault

OVERLONG = str(RecordFault.OVERLONG)
SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
OF_ENTRIES = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags", "media_dir")
"""Keys of an entry; what is like none of them may be a remark."""
MANY = 0.1
"""Share of records above which what is left out, or cut short, is wrong and not a note."""


def set_names(run: RunArguments) -> list[str]:
    """Training's, then evaluation's."""
    return list(dict.fromkeys([*(run.data.dataset or []), *(run.data.eval_dataset or [])]))


def entry_lines(run: RunArguments, dry_run: bool) -> tuple[list[str], list[Line]]:
    """The sets that are on this machine, and findings about all entries. dry_run: files need not be there yet."""
    folder, names = run.data.dataset_dir, set_names(run)
    if not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return [], [Line(SKIPPED, "data sets", f"dataset_dir {folder} is not on this machine")]
    if dry_run and looks_local(folder) and not Path(folder).exists():
        return [], [Line(NOTE, "data sets", f"dataset_dir {folder} is not there yet")]
    try:
        check_dataset_names(names, folder, "dataset_dir")
    except LcotError as error:
        return [], [Line(WRONG, "data sets", str(error))]
    entries = json.loads(Path(folder, "dataset_info.json").read_text(encoding="utf-8"))
    here, lines = [], []
    for name in names:
        if problem := _entry_problem(entries[name]):
            lines.append(Line(WRONG, "data set", f"{name}: its entry in {folder}/dataset_info.json {problem}"))
            continue
        try:
            (attribute,) = loader.get_dataset_list([name], folder)
        except (ValueError, KeyError, TypeError, AttributeError, LcotError) as error:
            lines.append(Line(WRONG, "data set", f"{name}: {error}"))
            continue
        needs_gold = run.finetuning.stage == "grpo" and not is_ours(attribute.formatting)
        if needs_gold and getattr(attribute, "gold", None) is None:
            advice = """add `"gold": "COLUMN"` to its `columns`, or write `"formatting": "lcot_auto"`."""
            lines.append(Line(WRONG, "data set", f"{name} names no column of gold answers: {advice}"))
            continue
        line, is_here = _place(name, entries[name], Path(folder), NOTE if dry_run else WRONG)
        lines.append(line)
        if is_here:
            here.append(name)
    return here, lines


def _entry_problem(entry: Any) -> str:
    """What of an entry LLaMA-Factory fails on, or leaves aside without a word."""
    if not isinstance(entry, dict):
        return 'is no object: write {"file_name": ...}.'
    if not any(key in entry for key in SOURCES):
        return f"says not where the data are: {near_names(entry, SOURCES) or 'add a file_name.'}"
    known = (*SOURCES, *OF_ENTRIES)
    strange = [key for key in entry if key not in known and near_names([key], known)]
    return f"has the key {strange[0]}: {near_names(strange[:1], known)}" if strange else ""


def _place(name: str, entry: Mapping[str, Any], folder: Path, missing: str) -> tuple[Line, bool]:
    """Where a set comes from, and whether it is here. missing: the level of a file that is not."""
    for key, site in (("hf_hub_url", "Hugging Face"), ("ms_hub_url", "ModelScope"), ("om_hub_url", "Openmind")):
        if key in entry:
            return Line(NOTE, "data set", f"{name}: from {site}, {entry[key]}"), False
    file = folder / str(entry.get("file_name") or entry.get("script_url") or entry.get("cloud_file_name"))
    if "cloud_file_name" in entry:
        return Line(NOTE, "data set", f"{name}: from {entry['cloud_file_name']}"), False
    if not file.exists():
        return Line(missing, "data set", f"{name}: there is no {file}"), False
    return Line(GOOD, "data set", f"{name}: {file}"), True


def record_lines(recipe: DataRecipe, run: RunArguments, sampled: int) -> tuple[dict[str, Any], list[Line]]:
    """What the first records of every set say; and their measures for the estimates.

    The measures: `records` (number read, by set), `image_tokens` (most of a record), `image_share` (of all tokens),
    `longest` (tokens of a record that is not left out).
    """
    report = Findings()
    usable, unreadable = read_sets(recipe, report)
    golds = {loaded.source: golds_of(recipe, loaded) for loaded in usable}
    checks = [unreadable, check_template(recipe), *check_golds(recipe, usable, golds, report)]
    if recipe.stage == "grpo":  # which trains on no responses
        checks = [check for check in checks if check.outcome != SKIPPED or not check.name.startswith("responses")]
    lines = [_line(check) for check in checks]
    if run.finetuning.stage == "grpo" and run.training.do_train and (rewards := reward_line(recipe, run, golds)):
        lines.append(rewards)
    # Records that are too long have a line of their own, with all lengths.
    others = [check for check in check_findings(report) if check.entries and OVERLONG not in check.title]
    measures: dict[str, Any] = {"records": {}, "image_tokens": 0}
    num_tokens = num_image_tokens = 0
    of_lengths = []
    for loaded in usable:
        if not len(loaded.aligned):
            of_lengths.append(Line(WRONG, "lengths", f"{loaded.source} has no record that can be used"))
            continue
        tokens, _ = tokenise_set(recipe, loaded, Findings())
        counts = measure(recipe, loaded.source, tokens).counts
        totals, images = counts["total"], counts["image"]
        measures["records"][loaded.source] = len(totals)
        measures["image_tokens"] = max(measures["image_tokens"], int(images.max(initial=0)))
        kept = totals[totals <= recipe.data_args.cutoff_len]
        measures["longest"] = max(measures.get("longest", 0), int(kept.max(initial=0)))
        num_tokens, num_image_tokens = num_tokens + int(totals.sum()), num_image_tokens + int(images.sum())
        of_lengths.append(_length_line(recipe, run, loaded.source, totals))
    num_read = sum(measures["records"].values()) + sum(len(check.entries) for check in others)
    lines += [_of_records(check, run, num_read) for check in others] + of_lengths
    measures["image_share"] = num_image_tokens / max(num_tokens, 1)
    if any(number >= sampled for number in measures["records"].values()):
        lines.append(
            Line(
                NOTE,
                "records",
                f"the first {sampled:,} of each set were looked at; --records N for more, `lcot data check` for all",
            )
        )
    return measures, lines


def _of_records(check: Check, run: RunArguments, num_read: int) -> Line:
    """What is wrong with some records stops a run only where its policy says so, or where they are many."""
    line = _line(check)
    if run.data.bad_record_policy == "error":
        return Line(WRONG, line.subject, f"{line.text}\n       > bad_record_policy: error ends the run at the first.")
    few = len(check.entries) <= MANY * num_read
    return Line(NOTE, line.subject, line.text) if few else line


def _line(check: Check) -> Line:
    text = str(check)[len(check.outcome) :].strip().removeprefix(f"{check.name}: ")
    if len(check.name) <= SUBJECT_WIDTH:
        return Line(check.outcome, check.name, text)
    return Line(check.outcome, check.name.split()[0], text if check.outcome != SKIPPED else f"{check.name}: {text}")


def _length_line(recipe: DataRecipe, run: RunArguments, source: str, totals: NDArray[np.int64]) -> Line:
    """How many records are longer than cutoff_len, and what becomes of them. totals: [N] tokens of each, N > 0."""
    cutoff_len, policy = recipe.data_args.cutoff_len, run.data.overlong_policy
    # Of the records themselves: a percentile between two of them is no record's length.
    p50, p99 = (int(value) for value in np.percentile(totals, (50, 99), method="higher"))
    what = "prompts" if run.finetuning.stage == "grpo" else "records"
    text = f"{source}: {what} of {p50:,} tokens (median), {p99:,} (99 %), {int(totals.max()):,} (longest)"
    num = int((totals > cutoff_len).sum())
    if not num:
        return Line(GOOD, "lengths", f"{text}; all within cutoff_len {cutoff_len:,}")
    becomes = {"error": "the run ends at the first", "truncate": "their thoughts are shortened"}
    if what == "prompts":
        becomes.pop("truncate")  # a prompt is never cut
    text += f"; {num:,} of {len(totals):,} ({num / len(totals):.1%}) exceed cutoff_len {cutoff_len:,}: "
    text += f"{becomes.get(policy, 'they are left out')} (overlong_policy: {policy})"
    if policy != "error" and num <= MANY * len(totals):
        return Line(NOTE, "lengths", text)
    return Line(WRONG, "lengths", f"{text}: raise cutoff_len to {p99:,}, or lower image_max_pixels.")
