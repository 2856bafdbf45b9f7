"""Rows with findings in, rows that can be used and a report of the others out.

Records are left out here and nowhere else: counted per data set, named in the log and in data_report.json, or the
reason why the run stops, as `bad_record_policy` and `overlong_policy` say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.logging import get_logger

from lcot_plugin.errors import DataError
from lcot_plugin.integration.conversion import findings_of, rows_with_findings
from lcot_plugin.report.data import DATA_REPORT_FILE, DataReport
from lcot_plugin.types import Finding, Handling, RecordFault

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it

TRACE_FAULTS = (
    RecordFault.UNCLOSED_THOUGHT,
    RecordFault.NO_THOUGHT,
    RecordFault.NO_ANSWER,
    RecordFault.CONTRADICTS_GOLD,
)
"""Faults of a response, which have a policy of their own."""

ADVICE = {
    RecordFault.NO_RESPONSE: (
        'Where short last turns are the responses, and not gold answers, write "formatting": "lcot_conversations" or '
        '"lcot_messages" in dataset_info.json.'
    ),
    RecordFault.OVERLONG: "Raise cutoff_len, or lower image_max_pixels, to keep them.",
    RecordFault.MISSING_IMAGE: "Check that media_dir is the folder that the paths start from.",
    RecordFault.OUTSIDE_MEDIA_DIR: "Set media_dir to a folder that holds all pictures.",
}
MAX_NAMED = 10
"""Records named in an error."""
MIN_FOLDED = 8
"""Equal tokens in a row that are printed as one."""


@dataclass(frozen=True)
class Policies:
    """What a dropped record means."""

    bad_record: str
    overlong: str

    def stops(self, finding: Finding) -> bool:
        """Whether the run must stop because of a finding."""
        if finding.handling is not Handling.DROPPED or finding.fault in TRACE_FAULTS:
            return False
        return (self.overlong if finding.fault is RecordFault.OVERLONG else self.bad_record) == "error"


def settled(dataset: Any, policies: Policies, report: DataReport) -> Any:
    """The rows that can be used; the findings of all are counted in `report`.

    Raises DataError naming records where the policy says so, and where no record is left.
    """
    found = [(row, findings_of(text)) for row, text in rows_with_findings(dataset)]
    if not found:
        return dataset
    names = dataset.select_columns(["_source", "_file", "_record"]).select([row for row, _ in found])
    dropped, bad = set(), []
    for name, (row, findings) in zip(names, found, strict=True):
        report.add(name["_source"], name["_record"], findings)
        if any(finding.handling is Handling.DROPPED for finding in findings):
            dropped.add(row)
            bad.append((name, findings))
    stopping = [item for item in bad if any(policies.stops(finding) for finding in item[1])]
    if stopping or (bad and len(dropped) == len(dataset)):
        raise unusable_records(stopping or bad, len(dataset))
    if not dropped:
        return dataset
    return dataset.select([row for row in range(len(dataset)) if row not in dropped])


def unusable_records(bad: list[tuple[dict[str, Any], list[Finding]]], num_records: int) -> DataError:
    """An error that names the first records, why each cannot be used, and what to do."""
    lines, faults = [], []
    for name, findings in bad:
        finding = next(finding for finding in findings if finding.handling is Handling.DROPPED)
        lines.append(
            f"{name['_source']} ({name['_file']}), record {name['_record']}: {finding.fault}: {finding.detail}"
        )
        faults.append(finding.fault)
    more = f"\n  and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    advice = " ".join(ADVICE[fault] for fault in dict.fromkeys(faults) if fault in ADVICE)
    return DataError(
        f"{len(lines)} of {num_records} records cannot be used:\n  "
        + "\n  ".join(lines[:MAX_NAMED])
        + more
        + "\n"
        + advice
    )


class DropFromStream:
    """A filter for streams: drops what cannot be used, and says so at the 1st, 10th, 100th... such record."""

    def __init__(self, policies: Policies, name: str) -> None:
        self.policies = policies
        self.name = name
        self.num_dropped = 0
        self.num_seen = 0

    def __call__(self, text: str, source: str, file: str, record: int) -> bool:
        self.num_seen += 1
        findings = findings_of(text)
        if not any(finding.handling is Handling.DROPPED for finding in findings):
            return True
        name = {"_source": source, "_file": file, "_record": record}
        error = unusable_records([(name, findings)], 1)
        if any(self.policies.stops(finding) for finding in findings):
            raise error
        self.num_dropped += 1
        if str(self.num_dropped).rstrip("0") == "1":
            logger.warning(f"{self.name}: {self.num_dropped} of {self.num_seen} records left out so far. {error}")
        return False


def settled_stream(dataset: Any, policies: Policies, name: str) -> Any:
    """The records of a stream that can be used; counted as they pass, since a stream has no end."""
    return dataset.filter(DropFromStream(policies, name), input_columns=["_findings", "_source", "_file", "_record"])


def publish(report: DataReport, training_args: Any) -> None:
    """One table in the log and data_report.json in output_dir, from the first process."""
    if not report.sets:
        return
    if training_args.should_save and training_args.output_dir:
        report.write(Path(training_args.output_dir))
    if not training_args.should_log:
        return
    if report.num_findings:
        where = f"Every record is counted in {Path(training_args.output_dir or '.', DATA_REPORT_FILE)}."
        logger.warning(f"What became of the data:\n{report.table()}\n{where}")
    else:
        total = sum(entry.num_records for entry in report.sets.values())
        logger.info(f"Data: {total:,} records of {len(report.sets)} data set(s), all used as they are.")


def say(training_args: Any, message: str) -> None:
    """A line in the log of the first process."""
    if training_args.should_log:
        logger.info(message)


def print_example(example: dict[str, Any], tokenizer: Any, is_eval: bool) -> None:
    """What the first row looks like to the model."""
    print("eval example:" if is_eval else "training example:")
    print(f"inputs:\n{folded(example['input_ids'], tokenizer)}")
    if "labels" in example:
        print(f"labels:\n{folded([token for token in example['labels'] if token != IGNORE_INDEX], tokenizer)}")
    else:
        print(f"gold answer: {example['gold']} (type {example['answer_type']}, from {example['source']})")


def folded(token_ids: list[int], tokenizer: Any) -> str:
    """The text of some tokens, a picture's hundreds of placeholders as `<|image_pad|>[752 times]`."""
    parts, run = [], []
    for token_id, group in groupby(token_ids):
        num_times = len(list(group))
        if num_times < MIN_FOLDED:
            run += [token_id] * num_times
            continue
        parts += [tokenizer.decode(run, skip_special_tokens=False), tokenizer.decode([token_id])]
        parts.append(f"[{num_times} times]")
        run = []
    return "".join([*parts, tokenizer.decode(run, skip_special_tokens=False)])
