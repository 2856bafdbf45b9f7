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
    RecordFault.NO_GOLD: (
        "Stage grpo needs an answer that can be verified. Where no record has one, name its column in "
        'dataset_info.json, for example "columns": {"prompt": "problem", "images": "images", "gold": "answer"}.'
    ),
    RecordFault.NO_RESPONSE: (
        "SFT needs a response; a set of questions and verifiable answers is for stage: grpo. Where a column taken for "
        'the answer holds worked responses, name it: "columns": {"response": "solution"}, or "formatting": '
        '"lcot_solution"; where short last turns are the responses: "formatting": "lcot_conversations".'
    ),
    RecordFault.OVERLONG: "Raise cutoff_len, or lower image_max_pixels, to keep them.",
    RecordFault.MISSING_IMAGE: "Check that media_dir is the folder that the paths start from.",
    RecordFault.OUTSIDE_MEDIA_DIR: "Paths must lie below media_dir: move the pictures, or set it to their folder.",
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
    import numpy as np

    kept = np.ones(len(dataset), bool)
    bad, stopping = NamedRecords(), NamedRecords()
    for row, name in rows_with_findings(dataset):
        findings = findings_of(name["_findings"])
        report.add(name["_source"], name["_record"], findings)
        if any(finding.handling is Handling.DROPPED for finding in findings):
            kept[row] = False
            bad.add(name, findings)
            if any(policies.stops(finding) for finding in findings):
                stopping.add(name, findings)
    if stopping.num:
        raise stopping.error(len(dataset), policies)
    if bad.num and not kept.any():
        raise bad.error(len(dataset))
    return dataset if kept.all() else dataset.select(np.flatnonzero(kept))


class NamedRecords:
    """Records that cannot be used: how many, and the first few by name."""

    def __init__(self) -> None:
        self.num = 0
        self.lines: list[str] = []
        self.faults: dict[RecordFault, None] = {}

    def add(self, name: dict[str, Any], findings: list[Finding]) -> None:
        """Counts one more; `name` has `_source`, `_file` and `_record`."""
        finding = next(finding for finding in findings if finding.handling is Handling.DROPPED)
        self.num += 1
        self.faults[finding.fault] = None
        if len(self.lines) < MAX_NAMED:
            where = f"{name['_source']} ({name['_file']}), record {name['_record']}"
            self.lines.append(f"{where}: {finding.fault}: {finding.detail}")

    def error(self, num_records: int, policies: Policies | None = None) -> DataError:
        """Names the first records, why each cannot be used, and what to do; `policies` where these stop the run."""
        lines = [f"{self.num} of {num_records} records cannot be used:", *(f"  {line}" for line in self.lines)]
        if self.num > len(self.lines):
            lines.append(f"  and {self.num - len(self.lines)} more")
        advice = [ADVICE[fault] for fault in self.faults if fault in ADVICE]
        if policies is not None:
            if policies.overlong == "error" and RecordFault.OVERLONG in self.faults:
                advice.append("overlong_policy: drop leaves them out, truncate shortens thoughts.")
            if policies.bad_record == "error" and set(self.faults) != {RecordFault.OVERLONG}:
                advice.append(
                    "bad_record_policy: drop leaves them out; `lcot data check` lists those of all data sets."
                )
        return DataError("\n".join([*lines, " ".join(advice)]))


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
        bad = NamedRecords()
        bad.add({"_source": source, "_file": file, "_record": record}, findings)
        if any(self.policies.stops(finding) for finding in findings):
            raise bad.error(1, self.policies)
        self.num_dropped += 1
        if str(self.num_dropped).rstrip("0") == "1":
            logger.warning(
                f"{self.name}: {self.num_dropped} of {self.num_seen} records left out so far. {bad.error(1)}"
            )
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
