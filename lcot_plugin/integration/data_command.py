"""`lcot data stats` and `lcot data show`: a recipe in; tables, a picture and one record's page out.

`lcot data check` is in data_check.py. The exit codes are 0, or 1 where a data set or a record cannot be read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from llamafactory.extras.constants import IGNORE_INDEX

from lcot_plugin.command_checks import check_folder_of
from lcot_plugin.data.traces import read_trace
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.cache import digest_of, tokenizer_digest
from lcot_plugin.integration.conversion import findings_of
from lcot_plugin.integration.data_sets import (
    UNLIMITED,
    DataRecipe,
    Findings,
    LoadedSet,
    add_overlong,
    describe_error,
    golds_of,
    is_usable,
    load_sets,
    raw_record,
    raw_records,
    read_recipe,
    states_gold,
    tokenise_set,
)
from lcot_plugin.integration.pictures import encoded_image
from lcot_plugin.integration.tokenising import num_workers
from lcot_plugin.report.data import DATA_REPORT_FILE
from lcot_plugin.report.lengths import KINDS, SetLengths, as_dict, cutoff_table, length_table, plot_lengths
from lcot_plugin.report.raw_view import raw_text
from lcot_plugin.report.token_view import RecordView, to_html, to_terminal, token_pieces
from lcot_plugin.rewards.requests import verification_request
from lcot_plugin.rewards.verifier import shared_verifier
from lcot_plugin.types import Finding, GoldAnswer, Handling, RecordFault

STATS_FOLDER = "data_stats"
PLOT_FILE = "lengths.png"
LENGTHS_FILE = "lengths.json"


# stats


def stats(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    out: Path | None = None,
) -> int:
    """Prints how long the records are, what each cutoff and each fault costs; writes lengths.png and two JSON files.

    `out`: the folder of the files; default: `data_stats` in the recipe's output_dir.
    """
    recipe = read_recipe(config, overrides, datasets, dataset_dir)
    report, sets, num_errors = Findings(), [], 0
    for loaded in load_sets(recipe, report):
        if not isinstance(loaded, LoadedSet):
            print_error(loaded[0], describe_error(report, *loaded))
            num_errors += 1
            continue
        try:
            tokens, aligned = tokenise_set(recipe, loaded, report)
        except Exception as error:  # the template of another family fails in ways of its own
            failure = f"tokenising fails with {type(error).__name__}: {error}"
            report.add_error(loaded.source, failure)
            print_error(loaded.source, failure)
            num_errors += 1
            continue
        lengths = measure(recipe, loaded.source, tokens)
        add_overlong(recipe, loaded.source, tokens, aligned, lengths.counts["total"], report)
        sets.append(lengths)

    print_report(report)
    folder = out if out is not None else recipe.output_dir / STATS_FOLDER
    report.write(folder)
    files = [DATA_REPORT_FILE]
    if any(entry.num_records for entry in sets):
        cutoff_len = recipe.data_args.cutoff_len
        print(f"{length_table(sets)}\n\n{cutoff_table(sets, cutoff_len)}\n")
        plot_lengths(sets, cutoff_len, folder / PLOT_FILE)
        lengths_text = json.dumps(as_dict(sets, cutoff_len), ensure_ascii=False, indent=2)
        (folder / LENGTHS_FILE).write_text(lengths_text + "\n", encoding="utf-8")
        files = [PLOT_FILE, LENGTHS_FILE, DATA_REPORT_FILE]
    print("\n".join(str(folder / name) for name in files))
    return 1 if num_errors else 0


def print_report(report: Findings, *, faults: bool = True) -> None:
    """What was decided for the sets, and what became of their records."""
    print("\n" + "\n\n".join(filter(None, [report.notes_text(), report.table(faults=faults)])) + "\n")


def print_error(source: str, error: str) -> None:
    """A data set that cannot be read at all."""
    print(f"lcot data: {source}: {error}", file=sys.stderr)


@dataclass(frozen=True)
class LengthMeter:
    """Counts the tokens of each kind in tokenised rows; sent to worker processes."""

    tokenizer: Any
    placeholders: frozenset[int]
    closings: tuple[str, ...]
    """What may close a thought, the family's own words first."""
    openings: tuple[str, ...]
    single: dict[str, int] = field(init=False)
    """Closing -> its token, where it is one."""

    def __post_init__(self) -> None:
        vocabulary = self.tokenizer.get_vocab()
        single = {words: vocabulary[words] for words in self.closings if words in vocabulary}
        object.__setattr__(self, "single", single)

    def __call__(self, examples: dict[str, list[Any]]) -> dict[str, list[int]]:
        """One row per record: kind of tokens -> number."""
        labels = examples.get("labels") or [None] * len(examples["input_ids"])
        rows = [self.row(ids, label) for ids, label in zip(examples["input_ids"], labels, strict=True)]
        return {kind: [row[kind] for row in rows] for kind in KINDS}

    def row(self, input_ids: list[int], labels: list[int] | None) -> dict[str, int]:
        """labels: None for a prompt without a response."""
        ids = np.asarray(input_ids)
        is_media = np.isin(ids, list(self.placeholders))
        is_response = np.zeros(len(ids), bool) if labels is None else np.asarray(labels) != IGNORE_INDEX
        response = ids[is_response & ~is_media]
        thought = self.num_thought(response)
        return {
            "prompt": int((~is_response & ~is_media).sum()),
            "image": int(is_media.sum()),
            "thought": thought,
            "answer": len(response) - thought,
            "total": len(ids),
        }

    def num_thought(self, response: Any) -> int:
        """Tokens of `response` up to the end of the words that close its thought; 0 where it has none."""
        for token_id in self.single.values():
            if len(places := np.flatnonzero(response == token_id)):
                return int(places[-1]) + 1
        if not len(response):
            return 0
        text = self.tokenizer.decode(response.tolist(), skip_special_tokens=False)
        for closing in self.closings:
            end = text.rfind(closing)
            if end >= 0:
                thought = self.tokenizer.encode(text[: end + len(closing)], add_special_tokens=False)
                return min(len(thought), len(response))
        opened = any(text.lstrip().startswith(opening) for opening in self.openings)
        return len(response) if opened else 0


def measure(recipe: DataRecipe, source: str, tokens: Any) -> SetLengths:
    """Tokens of each kind in every row, from the cache where it holds."""
    from datasets import Features, Value

    kinds = KINDS if recipe.stage == "sft" else [kind for kind in KINDS if kind not in ("thought", "answer")]
    if not len(tokens):
        return SetLengths(source, {kind: np.empty(0, np.int64) for kind in kinds})
    opening, closing = (words.strip() for words in recipe.template.thought_words)
    meter = LengthMeter(
        tokenizer=recipe.tokenizer,
        placeholders=frozenset(recipe.placeholders),
        closings=tuple(dict.fromkeys(filter(None, (closing, "</think>")))),
        openings=tuple(dict.fromkeys(filter(None, (opening, "<think>")))),
    )
    settings = (sorted(meter.placeholders), meter.closings, meter.openings, tokenizer_digest(recipe.tokenizer))
    columns = ["input_ids", *(["labels"] if "labels" in tokens.column_names else [])]
    counts = tokens.select_columns(columns).map(
        meter,
        batched=True,
        batch_size=200,
        remove_columns=columns,
        features=Features({kind: Value("int64") for kind in KINDS}),
        num_proc=num_workers(recipe.data_args.preprocessing_num_workers, len(tokens)),
        new_fingerprint=digest_of(tokens._fingerprint, *settings),
        desc=f"Measuring {source}",
    )
    return SetLengths(source, {kind: np.asarray(counts[kind][:], np.int64) for kind in kinds})


# show


def show(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    record: int | None = None,
    html: Path | None = None,
    stream: TextIO | None = None,
) -> int:
    """Prints one record as the model sees it, tokens coloured by the loss mask; `html` also writes a page.

    `record`: its 0-based number in the data set; default: the first that can be used. One that training leaves out is
    shown as it stands in the file, with the reason.
    """
    if html is not None:
        check_folder_of(html)
    recipe = read_recipe(config, overrides, datasets, dataset_dir)
    report = Findings()
    loaded = next(load_sets(recipe, report))
    if isinstance(loaded, LoadedSet):
        example = find_record(loaded, record, report)
        view = None
        if example is not None:
            record = int(example["_record"])
            view = record_view(recipe, loaded, example, report)
        if view is None:
            assert record is not None
            view = left_out_view(recipe, loaded.source, record, report)
    elif record is not None and report.of_record(loaded[0], record):  # every record is left out
        view = left_out_view(recipe, loaded[0], record, report)
    else:
        print_error(loaded[0], str(loaded[1]))
        return 1
    stream = stream or sys.stdout
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    print(to_terminal(view, colour=colour), file=stream)
    if html is not None:
        html.write_text(to_html(view), encoding="utf-8")
        print(html.resolve(), file=stream)
    return 0


def find_record(loaded: LoadedSet, record: int | None, report: Findings) -> dict[str, Any] | None:
    """The aligned row of a record; None for one that was left out. Raises ArgumentError for one that there is not."""
    if record is None:
        if not len(loaded.aligned):
            raise ArgumentError(f"{loaded.source}: no record can be used:\n{report.table()}")
        return loaded.aligned[0]
    rows = np.flatnonzero(np.asarray(loaded.aligned["_record"][:]) == record)
    if len(rows):
        return loaded.aligned[int(rows[0])]
    if report.of_record(loaded.source, record):
        return None
    last = report.sets[loaded.source].num_records - 1
    raise ArgumentError(f"{loaded.source} has no record {record}: they are numbered from 0 to {last}.")


def left_out_view(recipe: DataRecipe, source: str, record: int, report: Findings) -> RecordView:
    """What is shown of a record that training leaves out."""
    return RecordView(
        source=source,
        record=record,
        pieces=[],
        findings=[describe_findings([finding]) for finding in report.of_record(source, record)],
        notes=report.sets[source].notes,
        raw=raw_text(raw_record(raw_records(recipe, source), record)),
    )


def record_view(recipe: DataRecipe, loaded: LoadedSet, example: dict[str, Any], report: Findings) -> RecordView | None:
    """What is shown of an aligned row; None for one that cannot be tokenised, the reason is added to `report`."""
    findings = report.of_record(loaded.source, example["_record"])
    row, found = tokenised_row(recipe, example)
    if not row["input_ids"]:
        report.add(loaded.source, example["_record"], found)
        return None
    trained = [label != IGNORE_INDEX for label in row.get("labels", [])] or [False] * len(row["input_ids"])
    response = example.get("_response") or []
    gold = golds_of(recipe, loaded).get(example["_record"])
    trace = read_trace(response[0]["content"]) if response else None
    stated = not gold or states_gold(recipe, loaded, [example["_record"]])
    return RecordView(
        source=loaded.source,
        record=example["_record"],
        pieces=token_pieces(
            row["input_ids"],
            trained,
            lambda ids: recipe.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            recipe.placeholders,
        ),
        question="\n\n".join(turn["content"] for turn in example["_prompt"] if turn["role"] == "user"),
        images=[image for image in map(encoded_image, example["_images"] or []) if image is not None],
        thought=trace.thought if trace else None,
        answer=trace.conclusion if trace else None,
        gold=gold.text if gold else None,
        answer_type=gold.answer_type if gold else "auto",
        gold_origin="" if stated else "taken from the response",
        verdict=verdict_text(gold, response),
        findings=[describe_findings([finding]) for finding in [*findings, *found]],
        template=str(recipe.data_args.template or "the model's own"),
        cutoff_len=recipe.data_args.cutoff_len,
        notes=report.sets[loaded.source].notes,
    )


def tokenised_row(recipe: DataRecipe, example: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The row as training has it, and what was found; whole where training leaves it out for its length.

    A record that cannot be tokenised has no tokens.
    """
    known = len(findings_of(example.get("_findings") or ""))
    row = recipe.tokeniser().row(example)
    findings = findings_of(row["_findings"])[known:]
    if any(finding.fault is RecordFault.OVERLONG and finding.handling is Handling.DROPPED for finding in findings):
        row = recipe.tokeniser(cutoff_len=UNLIMITED).row(example)
    return row, findings


def describe_findings(findings: Sequence[Finding]) -> str:
    """`missing image: a.png does not exist (dropped)`."""
    return "; ".join(f"{finding.fault}: {finding.detail} ({finding.handling})" for finding in findings)


def verdict_text(gold: GoldAnswer | None, response: list[dict[str, str]]) -> str:
    """Whether the gold answer can be verified, and what the verifier says of the response."""
    if not gold:
        return ""
    text = "the gold answer scores 1.0" if is_usable(gold) else "the gold answer itself does not score 1.0"
    if response:
        verdict = shared_verifier().verify_batch([verification_request(response[0]["content"], gold)])[0]
        text += f"; the response states {verdict.extracted!r}: {verdict.outcome}"
    return text
