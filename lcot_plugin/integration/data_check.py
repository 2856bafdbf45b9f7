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
from lcot_plugin.integration.data_command import measure, print_error
from lcot_plugin.integration.data_sets import (
    DataRecipe,
    Findings,
    LoadedSet,
    add_overlong,
    encoded_image,
    golds_of,
    load_sets,
    read_recipe,
    tokenise_set,
)
from lcot_plugin.integration.template_check import differences
from lcot_plugin.integration.tokenising import num_workers
from lcot_plugin.rewards import Verifier, gold_is_usable
from lcot_plugin.types import Handling, Outcome, RecordFault, ScoringRequest, Verdict

MAX_PRINTED = 10
"""Different entries printed per check; the JSON file has them all."""
DECODING_COST = 50
"""Records that are tokenised in the time in which one image is decoded."""
WRONG, NOTE, GOOD = "WRONG", "note", "ok"


@dataclass
class Check:
    """One thing that was looked at."""

    title: str
    """What the entries are: `images that cannot be decoded`."""
    level: str = WRONG
    """What the entries mean: WRONG, or NOTE where training can well do with them."""
    looked_at: str = ""
    """What was compared, for the line of a check without entries: `1,200 images`."""
    entries: list[tuple[str, int | None, str]] = field(default_factory=list)
    """(data set, record, what is wrong); record None where it is about the whole set."""

    @property
    def wrong(self) -> bool:
        return self.level == WRONG and bool(self.entries)

    def add(self, source: str, record: int | None, detail: str) -> None:
        self.entries.append((source, record, detail))

    def __str__(self) -> str:
        if not self.entries:
            return f"{GOOD:<5}  no {self.title}" + (f" ({self.looked_at})" if self.looked_at else "")
        lines = [f"{self.level:<5}  {self.title}: {len(self.entries):,}"]
        alike: dict[tuple[str, str], list[int | None]] = {}
        for source, record, detail in self.entries:
            alike.setdefault((source, " ".join(detail.split())), []).append(record)
        for (source, detail), records in list(alike.items())[:MAX_PRINTED]:
            place = source if records[0] is None else f"{source} record {records[0]}"
            more = f" and {len(records) - 1:,} more" if len(records) > 1 else ""
            lines.append(f"         {place}{more}: {detail}")
        if len(alike) > MAX_PRINTED:
            lines.append(f"         and {sum(map(len, list(alike.values())[MAX_PRINTED:])):,} more")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        entries = [{"source": source, "record": record, "detail": detail} for source, record, detail in self.entries]
        level = self.level if entries else GOOD
        return {"check": self.title, "level": level, "count": len(entries), "entries": entries}


def check(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    json_file: Path | None = None,
) -> int:
    """Prints every check, and all entries as JSON into `json_file`; 1 where something is wrong."""
    recipe = read_recipe(config, overrides, datasets, dataset_dir)
    report, sets = Findings(), []
    unreadable = Check("data sets that cannot be read or tokenised")
    for loaded in load_sets(recipe, report):
        if isinstance(loaded, LoadedSet):
            sets.append(loaded)
        else:
            print_error(*loaded)
            unreadable.add(loaded[0], None, str(loaded[1]))
    usable = []
    for loaded in sets:
        try:
            usable.append(use(recipe, loaded, report))
        except Exception as error:  # the template of another family fails in ways of its own
            unreadable.add(loaded.source, None, f"tokenising fails with {type(error).__name__}: {error}")
    golds = {loaded.source: golds_of(recipe, loaded) for loaded in usable}
    broken, num_images, duplicates = check_images(recipe, usable, golds)
    checks = [
        unreadable,
        check_template(recipe),
        *check_golds(recipe, usable, golds),
        broken,
        *duplicates,
        *check_findings(report),
    ]
    num_wrong = sum(item.wrong for item in checks)
    print(f"\n{report.table()}\n")
    print("\n".join(map(str, checks)))
    print(f"{num_wrong} of {len(checks)} checks failed" if num_wrong else "everything is in order")
    if json_file is not None:
        result = {
            "ok": not num_wrong,
            "images": num_images,
            "checks": [item.as_dict() for item in checks],
            "report": report.as_dict(),
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(json_file)
    return 1 if num_wrong else 0


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
        item = checks.setdefault((finding.fault, finding.handling), Check(title, WRONG if lost else NOTE))
        item.add(source, record, finding.detail)
    return list(checks.values())


def check_template(recipe: DataRecipe) -> Check:
    """Whether the template writes what the model's own chat template writes."""
    item = Check("differences between the template and the model's chat template", looked_at=recipe.data_args.template)
    try:
        difference = differences(recipe.template, recipe.processor or recipe.tokenizer)
    except Exception as error:  # the template of another family fails in ways of its own
        difference = f"it cannot write a question with an image ({type(error).__name__}: {error})"
    if difference:
        item.add(f"template {recipe.data_args.template}", None, difference)
    return item


Golds = dict[str, dict[int, tuple[str, str]]]
"""Data set -> record -> (gold answer, answer type)."""


def check_golds(recipe: DataRecipe, sets: Sequence[LoadedSet], golds: Golds) -> list[Check]:
    """Whether every gold answer scores 1.0 under its own verifier, and no response contradicts its gold answer."""
    distinct = list(dict.fromkeys(pair for of_set in golds.values() for pair in of_set.values()))
    total = sum(map(len, golds.values()))
    unusable = Check("gold answers that do not score 1.0 under their own verifier", looked_at=f"{total:,} golds")
    contradicting = Check("responses that contradict their gold answer")
    num_workers = os.cpu_count() or 1
    with Verifier(num_workers=num_workers) as verifier, ThreadPoolExecutor(num_workers) as threads:
        usable = dict(
            zip(
                distinct,
                tqdm(
                    threads.map(lambda pair: gold_is_usable(*pair, verifier=verifier), distinct),
                    total=len(distinct),
                    desc="Verifying gold answers",
                ),
                strict=True,
            )
        )
        for loaded in sets:
            for record, (gold, answer_type) in golds[loaded.source].items():
                if not usable[gold, answer_type]:
                    unusable.add(loaded.source, record, f"{gold!r} (type {answer_type})")
            if recipe.stage == "sft" and not loaded.ours:  # those of ours are in the findings
                for record, verdict in contradictions(loaded, golds[loaded.source], verifier):
                    contradicting.add(
                        loaded.source, record, f"it states {verdict.extracted!r}, the gold answer is {verdict.gold!r}"
                    )
    return [unusable, contradicting]


def contradictions(
    loaded: LoadedSet, golds: dict[int, tuple[str, str]], verifier: Verifier
) -> list[tuple[int, Verdict]]:
    """(record, verdict) of the responses whose answer is not the gold answer."""
    found = []
    rows = loaded.aligned.select_columns(["_record", "_response"])
    for batch in tqdm(rows.iter(batch_size=1000), total=-(-len(rows) // 1000), desc=f"Verifying {loaded.source}"):
        requests = []
        for record, response in zip(batch["_record"], batch["_response"], strict=True):
            if response and record in golds:
                gold, answer_type = golds[record]
                text = response[0]["content"]
                requests.append(ScoringRequest(text, gold, answer_type=answer_type, record=record))
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


EMPTY_FINGERPRINT: dict[str, Any] = {"content": "", "gradients": b"", "thumbnail": b"", "width": 0, "height": 0}


def decode_images(recipe: DataRecipe, loaded: LoadedSet) -> Any:
    """`read_pictures` of a whole set, in processes, from the cache where it holds."""
    from datasets import Features, Value

    types = {"record": "int64", "content": "string", "gradients": "binary", "thumbnail": "binary"}
    types |= {"width": "int32", "height": "int32", "fault": "string"}
    written = recipe.data_args.preprocessing_num_workers
    return loaded.aligned.select_columns(["_record", "_images"]).map(
        read_pictures,
        batched=True,
        batch_size=32,
        remove_columns=["_record", "_images"],
        features=Features({name: Value(kind) for name, kind in types.items()}),
        num_proc=num_workers(written, len(loaded.aligned) * DECODING_COST),
        new_fingerprint=digest_of(loaded.aligned._fingerprint, "pictures", media_digest(media_paths(loaded.aligned))),
        desc=f"Decoding images of {loaded.source}",
    )


def check_images(recipe: DataRecipe, sets: Sequence[LoadedSet], golds: Golds) -> tuple[Check, int, list[Check]]:
    """Whether every image decodes; how many there are; duplicates and overlaps."""
    pictures: list[Fingerprint] = []
    places: dict[tuple[str, int], list[int]] = {}
    broken = Check("images that cannot be decoded")
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
    broken.looked_at = f"{num_images:,} images"
    groups = groups_of(pictures).tolist()
    problems = []
    for loaded in sets:
        for row in loaded.aligned.select_columns(["_record", "_prompt"]):
            record = row["_record"]
            question = normalise_question(" ".join(turn["content"] for turn in row["_prompt"]))
            looks = tuple(groups[place] if place >= 0 else place for place in places.get((loaded.source, record), ()))
            gold = golds[loaded.source].get(record, (None, ""))[0]
            problems += [Problem(loaded.source, record, side, question, looks, gold) for side in loaded.sides]
    return broken, num_images, check_duplicates(problems)


def check_duplicates(problems: Sequence[Problem]) -> list[Check]:
    """Records that ask the same, and what training shares with evaluation."""
    duplicates = find_duplicates(problems)
    looked_at = f"{len(problems):,} records"
    shared = Check("problems of evaluation that training has too", WRONG, looked_at)
    pictures = Check("images of evaluation that training has with another question or answer", NOTE, looked_at)
    same = Check("problems that stand in the data more than once", NOTE, looked_at)
    disagreeing = Check("problems that stand in the data with different gold answers", NOTE, looked_at)
    for groups, default in ((duplicates.shared_problem, shared), (duplicates.shared_picture, pictures)):
        for group in groups:
            evaluated = next(problem for problem in group if problem.evaluation)
            trained = [problem for problem in group if not problem.evaluation]
            # The same words under pictures that look alike, with another answer: a figure with another label.
            other_answer = evaluated.gold and all(problem.gold not in (None, evaluated.gold) for problem in trained)
            item = pictures if other_answer else default
            item.add(evaluated.source, evaluated.record, f"also {places_of(trained)}")
    for group in duplicates.same_problem:
        first, *others = group
        golds = sorted({problem.gold for problem in group if problem.gold})
        if len(golds) > 1:
            disagreeing.add(first.source, first.record, f"also {places_of(others)}; golds {', '.join(golds)}")
        else:
            same.add(first.source, first.record, f"also {places_of(others)}")
    return [shared, pictures, same, disagreeing]


def places_of(problems: Sequence[Problem], limit: int = 5) -> str:
    """`train record 3, train record 8 and 2 more`."""
    more = f" and {len(problems) - limit:,} more" if len(problems) > limit else ""
    return ", ".join(problem.place for problem in problems[:limit]) + more
