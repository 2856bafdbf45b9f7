"""`lcot data check`: a recipe in, everything that is wrong with its data out.

Golds, traces, images, duplicates, the overlap of training and evaluation, the template, and what the reading left out.
Nothing stops at the first fault; the exit code is 1 where something is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lcot_plugin.data.duplicates import Fingerprint, Problem, find_duplicates, fingerprint, normalise_question
from lcot_plugin.data.duplicates import picture_groups as groups_of
from lcot_plugin.errors import RecordError
from lcot_plugin.integration.cache import digest_of, media_digest, media_paths
from lcot_plugin.integration.data_command import measure, print_report
from lcot_plugin.integration.data_sets import (
    DataRecipe,
    Findings,
    LoadedSet,
    add_overlong,
    describe_error,
    golds_of,
    is_usable,
    load_sets,
    read_recipe,
    states_gold,
    tokenise_set,
)
from lcot_plugin.integration.pictures import encoded_image
from lcot_plugin.integration.template_check import differences
from lcot_plugin.integration.templates import SUFFIX
from lcot_plugin.integration.tokenising import num_workers
from lcot_plugin.report.data import split_advice
from lcot_plugin.rewards import Verifier
from lcot_plugin.rewards.requests import verification_request
from lcot_plugin.types import GoldAnswer, Handling, Outcome, RecordFault, Verdict

MAX_PRINTED = 10
"""Different entries printed per check; the JSON file has them all."""
DECODING_COST = 50
"""Records that are tokenised in the time in which one image is decoded."""
MIN_CONCEALED = 2.0
"""Grey levels: one black pixel of 128 that people see white."""
CONCEALED = (
    "what is transparent is not white beneath. Put it on white, with Pillow "
    "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB')."
)
MAX_RANGES = 6
"""Runs of records printed per entry."""
NUM_SAMPLED = 32
"""Records that say whether their set has gold answers of its own."""
WRONG, NOTE, GOOD, SKIPPED = "WRONG", "note", "ok", "skip"


@dataclass
class Check:
    """One thing that was looked at."""

    name: str
    """What was looked at, in two words: `gold answers`."""
    title: str
    """What the entries are: `images that cannot be decoded`."""
    good: str = ""
    """What holds where there are no entries: `every image decodes whole`."""
    level: str = WRONG
    """What the entries mean: WRONG, or NOTE where training can well do with them."""
    num_looked_at: int | None = None
    """0 where there was nothing to look at; None where a number says nothing."""
    why_nothing: str = ""
    """Why there was nothing to look at."""
    entries: list[tuple[str, int | None, str]] = field(default_factory=list)
    """(data set, record, what is wrong); record None where it is about the whole set."""

    @property
    def outcome(self) -> str:
        """WRONG, NOTE, GOOD or SKIPPED."""
        if self.entries:
            return self.level
        return SKIPPED if self.num_looked_at == 0 else GOOD

    def add(self, source: str, record: int | None, detail: str = "") -> None:
        self.entries.append((source, record, detail))

    def __str__(self) -> str:
        if self.outcome == SKIPPED:
            return f"{SKIPPED:<5}  {self.name}: {self.why_nothing or 'nothing to check'}"
        if not self.entries:
            number = f" ({self.num_looked_at:,})" if self.num_looked_at else ""
            return f"{GOOD:<5}  {self.good}{number}"
        lines = [f"{self.level:<5}  {self.title}: {len(self.entries):,}"]
        alike: dict[tuple[str, str], list[int]] = {}
        advices: dict[str, None] = {}
        for source, record, detail in self.entries:
            fact, advice = split_advice(detail)
            records = alike.setdefault((source, fact), [])
            if record is not None:
                records.append(record)
            if advice:
                advices[advice] = None
        for (source, fact), records in list(alike.items())[:MAX_PRINTED]:
            place = f"{source} {record_ranges(records)}" if records else source
            lines.append(f"         {place}: {fact}" if fact else f"         {place}")
        if len(alike) > MAX_PRINTED:
            lines.append(f"         and {sum(len(of) or 1 for of in list(alike.values())[MAX_PRINTED:]):,} more")
        lines += [f"       > {advice}" for advice in advices]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        entries = [{"source": source, "record": record, "detail": detail} for source, record, detail in self.entries]
        return {
            "check": self.title,
            "level": self.outcome,
            "looked_at": self.num_looked_at,
            "count": len(entries),
            "entries": entries,
        }


def record_ranges(records: Sequence[int]) -> str:
    """`record 3`, or `records 0-19, 25 and 7 more`."""
    runs: list[list[int]] = []
    for record in sorted(set(records)):
        if runs and record == runs[-1][-1] + 1:
            runs[-1].append(record)
        else:
            runs.append([record])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:MAX_RANGES]]
    num_others = sum(map(len, runs[MAX_RANGES:]))
    more = f" and {num_others:,} more" if num_others else ""
    return f"record{'s' if len(set(records)) > 1 else ''} {', '.join(shown)}{more}"


def check(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    json_file: Path | None = None,
) -> int:
    """Prints every check, and all entries as JSON into `json_file`; 1 where something is wrong."""
    recipe = read_recipe(config, overrides, datasets, dataset_dir)
    report = Findings()
    usable, unreadable = read_sets(recipe, report)
    golds = {loaded.source: golds_of(recipe, loaded) for loaded in usable}
    image_checks, num_images, duplicates = check_images(recipe, usable, golds)
    checks = [
        unreadable,
        check_template(recipe),
        *check_systems(recipe, usable),
        *check_golds(recipe, usable, golds, report),
        *image_checks,
        *duplicates,
        *check_findings(report),
    ]
    print_report(report, faults=False)  # each is one of the checks
    print("\n".join(map(str, checks)))
    print(summary(checks))
    ok = not any(item.outcome == WRONG for item in checks)
    if json_file is not None:
        result = {
            "ok": ok,
            "images": num_images,
            "checks": [item.as_dict() for item in checks],
            "report": report.as_dict(),
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(json_file)
    return 0 if ok else 1


def summary(checks: Sequence[Check]) -> str:
    """The last line: `nothing is wrong; 2 notes above`."""
    outcomes = [item.outcome for item in checks]
    num_wrong, num_notes = outcomes.count(WRONG), outcomes.count(NOTE)
    num_made = len(outcomes) - outcomes.count(SKIPPED)
    text = f"{num_wrong} of {num_made} checks failed" if num_wrong else "nothing is wrong"
    return text + (f"; {num_notes} note{'s' if num_notes > 1 else ''} above" if num_notes else "")


def read_sets(recipe: DataRecipe, report: Findings) -> tuple[list[LoadedSet], Check]:
    """The sets that can be read and tokenised; a check with the others."""
    item = Check("data sets", "data sets that cannot be read or tokenised", "every data set can be read and tokenised")
    sets, usable = list(load_sets(recipe, report)), []
    item.num_looked_at = len(sets)
    for loaded in sets:
        if not isinstance(loaded, LoadedSet):
            name, error = loaded
            item.add(name, None, describe_error(report, name, error))
            continue
        try:
            usable.append(use(recipe, loaded, report))
        except Exception as error:  # the template of another family fails in ways of its own
            detail = f"tokenising fails with {type(error).__name__}: {error}"
            report.add_error(loaded.source, detail)
            item.add(loaded.source, None, detail)
    return usable, item


def use(recipe: DataRecipe, loaded: LoadedSet, report: Findings) -> LoadedSet:
    """The set without the records that cannot be tokenised; its overlong ones are reported."""
    tokens, aligned = tokenise_set(recipe, loaded, report)
    add_overlong(recipe, loaded.source, tokens, aligned, measure(recipe, loaded.source, tokens).counts["total"], report)
    return LoadedSet(loaded.source, loaded.sides, loaded.attribute, aligned)


def check_findings(report: Findings) -> list[Check]:
    """What the reading and tokenising found, one check per kind; records that are used all the same are notes."""
    checks: dict[tuple[str, str], Check] = {}
    for source, record, finding in report.every:
        lost = finding.handling is Handling.DROPPED or finding.fault is RecordFault.CONTRADICTS_GOLD
        title = f"records {finding.handling}, {finding.fault}"
        level = WRONG if lost else NOTE
        item = checks.setdefault((finding.fault, finding.handling), Check("records", title, level=level))
        item.add(source, record, finding.detail)
    return list(checks.values())


def check_template(recipe: DataRecipe) -> Check:
    """Whether the template writes what the model's own chat template writes."""
    item = Check(
        "template and the model's chat template",
        "differences between the template and the model's chat template",
        f"the template {recipe.data_args.template} writes what the model's chat template writes",
    )
    try:
        processor = recipe.processor or recipe.tokenizer
        if not getattr(processor, "chat_template", None):
            item.num_looked_at = 0
        difference = differences(recipe.template, processor)
    except Exception as error:  # the template of another family fails in ways of its own
        difference = f"it cannot write a question with an image ({type(error).__name__}: {error})"
    if difference:
        item.add(f"template {recipe.data_args.template}", None, difference)
    return item


def check_systems(recipe: DataRecipe, sets: Sequence[LoadedSet]) -> list[Check]:
    """Records whose own system prompt stands where the template would ask for the form of `cot_format`."""
    if not str(recipe.data_args.template).endswith(SUFFIX) or recipe.data_args.default_system is not None:
        return []
    item = Check(
        "system prompts",
        "records that bring their own system prompt, which takes the place of cot_format's",
        "cot_format's system prompt stands in every record",
        NOTE,
        sum(len(loaded.aligned) for loaded in sets),
    )
    for loaded in sets:
        columns = loaded.aligned.select_columns(["_record", "_system"])[:]
        for record, system in zip(columns["_record"], columns["_system"], strict=True):
            if system:
                item.add(loaded.source, record)
    return [item]


Golds = dict[str, dict[int, GoldAnswer]]
"""Data set -> record -> gold answer."""


def check_golds(recipe: DataRecipe, sets: Sequence[LoadedSet], golds: Golds, report: Findings) -> list[Check]:
    """Whether every gold answer scores 1.0 under its own verifier, and no response contradicts its gold answer."""
    distinct = list(dict.fromkeys(gold for of_set in golds.values() for gold in of_set.values()))
    unusable = Check(
        "gold answers",
        "gold answers that do not score 1.0 under their own verifier",
        "gold answers score 1.0 under their own verifier",
        num_looked_at=sum(map(len, golds.values())),
        why_nothing="no record has a gold answer; stage sft needs none"
        if recipe.stage == "sft"
        else "there is no record with a gold answer",
    )
    contradicting = Check(
        "responses and gold answers",
        "responses that contradict their gold answer",
        "responses agree with their gold answers",
        why_nothing="no record has both a response and a gold answer of its own"
        if recipe.stage == "sft"
        else "stage grpo trains on no responses, the model writes its own",
    )
    num_responses = 0
    num_workers = os.cpu_count() or 1
    with Verifier(num_workers=num_workers) as verifier, ThreadPoolExecutor(num_workers) as threads:
        usable = dict(
            zip(
                distinct,
                tqdm(
                    threads.map(lambda gold: is_usable(gold, verifier), distinct),
                    total=len(distinct),
                    desc="Verifying gold answers",
                ),
                strict=True,
            )
        )
        for loaded in sets:
            for record, gold in golds[loaded.source].items():
                if not usable[gold]:
                    unusable.add(loaded.source, record, f"{gold.text!r} (type {gold.answer_type})")
            if recipe.stage != "sft":
                continue
            if loaded.ours:  # what contradicts is in the findings
                of_set = golds[loaded.source]
                num_responses += len(of_set) if states_gold(recipe, loaded, list(of_set)[:NUM_SAMPLED]) else 0
                continue
            num_responses += len(golds[loaded.source])
            for record, verdict in contradictions(loaded, golds[loaded.source], verifier):
                contradicting.add(
                    loaded.source, record, f"it states {verdict.extracted!r}, the gold answer is {verdict.gold!r}"
                )
    contradicting.num_looked_at = num_responses
    if any(finding.fault is RecordFault.CONTRADICTS_GOLD for _, _, finding in report.every):
        return [unusable, *([contradicting] if contradicting.entries else [])]
    return [unusable, contradicting]


def contradictions(loaded: LoadedSet, golds: dict[int, GoldAnswer], verifier: Verifier) -> list[tuple[int, Verdict]]:
    """(record, verdict) of the responses whose answer is not the gold answer."""
    found = []
    rows = loaded.aligned.select_columns(["_record", "_response"])
    for batch in tqdm(rows.iter(batch_size=1000), total=-(-len(rows) // 1000), desc=f"Verifying {loaded.source}"):
        requests = []
        for record, response in zip(batch["_record"], batch["_response"], strict=True):
            if response and record in golds:
                requests.append(verification_request(response[0]["content"], golds[record], record))
        verdicts = verifier.verify_batch(requests)
        found += [
            (request.record, verdict)
            for request, verdict in zip(requests, verdicts, strict=True)
            if verdict.outcome is Outcome.MISMATCHED
        ]
    return found


# Images and duplicates.


def read_pictures(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """One row per image of a batch of aligned records; `fault` says why one could not be decoded."""
    rows = []
    for record, images in zip(examples["_record"], examples["_images"], strict=True):
        for image in images or []:
            row: dict[str, Any] = {"record": record, **EMPTY_FINGERPRINT, "fault": ""}
            encoded = encoded_image(image)
            try:
                if encoded is None:
                    raise RecordError(RecordFault.BROKEN_IMAGE, f"of type {type(image).__name__}.")
                row |= vars(fingerprint(encoded))
            except RecordError as error:
                row["fault"] = str(error)
            rows.append(row)
    return {name: [row[name] for row in rows] for name in ("record", *EMPTY_FINGERPRINT, "fault")}


EMPTY_FINGERPRINT = vars(Fingerprint(content="", gradients=b"", thumbnail=b"", width=0, height=0, concealed=0.0))


def decode_images(recipe: DataRecipe, loaded: LoadedSet) -> Any:
    """`read_pictures` of a whole set, in processes, from the cache where it holds."""
    from datasets import Features, Value

    types = {"record": "int64", "content": "string", "gradients": "binary", "thumbnail": "binary", "width": "int32"}
    types |= {"height": "int32", "concealed": "float32", "fault": "string"}
    written = recipe.data_args.preprocessing_num_workers
    files = media_digest(media_paths(loaded.aligned))
    return loaded.aligned.select_columns(["_record", "_images"]).map(
        read_pictures,
        batched=True,
        batch_size=32,
        remove_columns=["_record", "_images"],
        features=Features({name: Value(kind) for name, kind in types.items()}),
        num_proc=num_workers(written, len(loaded.aligned) * DECODING_COST),
        new_fingerprint=digest_of(loaded.aligned._fingerprint, "pictures and transparency", files),
        desc=f"Decoding images of {loaded.source}",
    )


def check_images(recipe: DataRecipe, sets: Sequence[LoadedSet], golds: Golds) -> tuple[list[Check], int, list[Check]]:
    """Whether every image decodes, and is seen by a model as by people; how many there are; duplicates and overlaps."""
    pictures: list[Fingerprint] = []
    places: dict[tuple[str, int], list[int]] = {}
    broken = Check("images", "images that cannot be decoded", "every image decodes whole")
    concealed = Check(
        "transparent images",
        "images with transparent parts, which a model sees in the colour beneath them, black as a rule",
        "no image hides anything in transparent parts",
        level=NOTE,
    )
    num_images = 0
    for loaded in sets:
        for row in decode_images(recipe, loaded) if len(loaded.aligned) else ():
            num_images += 1
            record, fault = row.pop("record"), row.pop("fault")
            of_record = places.setdefault((loaded.source, record), [])
            if fault:
                broken.add(loaded.source, record, fault)
                of_record.append(-num_images)  # alike with nothing
            else:
                of_record.append(len(pictures))
                pictures.append(Fingerprint(**row))
                if pictures[-1].concealed >= MIN_CONCEALED:
                    concealed.add(loaded.source, record, CONCEALED)
    broken.num_looked_at = concealed.num_looked_at = num_images
    groups = groups_of(pictures).tolist()
    problems = []
    for loaded in sets:
        for row in loaded.aligned.select_columns(["_record", "_prompt"]):
            record = row["_record"]
            question = normalise_question(" ".join(turn["content"] for turn in row["_prompt"]))
            of_record = places.get((loaded.source, record), [])
            looks = tuple(groups[place] if place >= 0 else place for place in of_record)
            pixels = tuple(pictures[place].content if place >= 0 else str(place) for place in of_record)
            known = golds[loaded.source].get(record)
            gold = known.text if known else None
            problems += [Problem(loaded.source, record, side, question, looks, gold, pixels) for side in loaded.sides]
    return [broken, concealed], num_images, check_duplicates(problems)


def check_duplicates(problems: Sequence[Problem]) -> list[Check]:
    """Records that ask the same, and what training shares with evaluation."""
    duplicates = find_duplicates(problems)
    evaluated = [problem for problem in problems if problem.evaluation]
    # Where a run only trains, or only evaluates, there is nothing to be shared.
    num_compared = len(evaluated) if len(evaluated) < len(problems) else 0
    num_with_pictures = sum(bool(problem.pictures) for problem in evaluated) if num_compared else 0
    shared = Check(
        "problems of training and evaluation",
        "problems of evaluation that training has too",
        "problems of evaluation are new to training",
        WRONG,
        num_compared,
    )
    pictures = Check(
        "images of training and evaluation",
        "images of evaluation that training has with another question or answer",
        "images of evaluation are new to training",
        NOTE,
        num_with_pictures,
    )
    same = Check(
        "duplicates",
        "problems that stand in the data more than once",
        "every problem stands in the data once",
        NOTE,
        len(problems),
    )
    disagreeing = Check(
        "gold answers of duplicates",
        "problems that stand in the data with different gold answers",
        "no problem has two gold answers",
        NOTE,
        sum(problem.gold is not None for problem in problems),
    )
    alike = Check(
        "look-alikes",
        "problems with the same question and different gold answers whose pictures look alike (not identical)",
        level=NOTE,
    )
    for groups, default in ((duplicates.shared_problem, shared), (duplicates.shared_picture, pictures)):
        for group in groups:
            first = next(problem for problem in group if problem.evaluation)
            trained = [problem for problem in group if not problem.evaluation]
            # The same words under pictures that look alike, with another answer: a figure with another label.
            other_answer = first.gold and all(problem.gold not in (None, first.gold) for problem in trained)
            item = pictures if other_answer else default
            item.add(first.source, first.record, f"also {places_of(trained)}")
    for group in duplicates.same_problem:
        if len(distinct_golds(group)) <= 1:
            same.add(group[0].source, group[0].record, f"also {places_of(group[1:])}")
            continue
        identical: dict[tuple[str, ...], list[Problem]] = {}
        for problem in group:
            identical.setdefault(problem.pixels, []).append(problem)
        contradictory = [part for part in identical.values() if len(distinct_golds(part)) > 1]
        for part in contradictory or [group]:
            item = disagreeing if contradictory else alike
            golds = ", ".join(distinct_golds(part))
            item.add(part[0].source, part[0].record, f"also {places_of(part[1:])}; golds {golds}")
    return [shared, pictures, same, disagreeing, *([alike] if alike.entries else [])]


def distinct_golds(problems: Sequence[Problem]) -> list[str]:
    """The gold answers, each once."""
    return sorted({problem.gold for problem in problems if problem.gold})


def places_of(problems: Sequence[Problem], limit: int = 5) -> str:
    """`train record 3, train record 8 and 2 more`."""
    more = f" and {len(problems) - limit:,} more" if len(problems) > limit else ""
    return ", ".join(problem.place for problem in problems[:limit]) + more
