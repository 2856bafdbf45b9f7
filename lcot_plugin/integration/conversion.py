"""Records of a data set with an `lcot_...` formatting in, LLaMA-Factory's aligned columns out.

    record --data.formats--> RawRecord --data.samples--> Sample --data.policy, data.targets--> _prompt, _response, ...

A record that cannot be used becomes a row with findings and nothing else; settling.py counts it and leaves it out, or
stops, as the run's policy says. Every set has the same features, so any can be joined with any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lcot_plugin.data.formats import get_format, recognise
from lcot_plugin.data.images import candidate_paths
from lcot_plugin.data.policy import settle
from lcot_plugin.data.samples import to_sample, verifiable_answer
from lcot_plugin.data.targets import TARGETS, THINK_WORDS, boxed
from lcot_plugin.data.traces import READERS, read_trace
from lcot_plugin.errors import DataError, RecordError
from lcot_plugin.integration.cache import digest_of, file_stamp, functions_digest
from lcot_plugin.integration.pass_rates import as_pass_rate, pass_rate_column
from lcot_plugin.rewards.requests import verification_request
from lcot_plugin.rewards.settings import settings_text
from lcot_plugin.types import (
    Finding,
    GoldAnswer,
    Handling,
    Outcome,
    RawRecord,
    RecordFault,
    Sample,
    Turn,
)
from lcot_plugin.user_functions import split_file_spec

FORMAT_PREFIX = "lcot_"
JSON_COLUMN = "_json"
"""A record of a JSON file as text: whatever types its fields have from record to record, the column has one."""
BROKEN_LINE = "_broken_line"
"""The only key of a record that stands for a line that is not JSON; its value says why."""
NUM_RECORDS_TO_RECOGNISE = 32
IMAGE_FAULTS = (RecordFault.MISSING_IMAGE, RecordFault.BROKEN_IMAGE, RecordFault.OUTSIDE_MEDIA_DIR)


def is_ours(formatting: str) -> bool:
    """Whether `formatting` of dataset_info.json names one of our formats, or a user's `path/to/file.py:function`."""
    return formatting.startswith(FORMAT_PREFIX) or split_file_spec(formatting) is not None


def aligned_features() -> Any:
    """The columns of every aligned set; media as `{"bytes", "path"}`, which holds a path as well as a file."""
    from datasets import Features, Value
    from datasets import Sequence as ListOf

    text = Value("string")
    turns = [{"role": text, "content": text}]
    media = [{"bytes": Value("binary"), "path": text}]
    return Features(
        {
            "_prompt": turns,
            "_response": turns,
            "_system": text,
            "_tools": text,
            "_images": media,
            "_videos": ListOf(text),
            "_audios": ListOf(text),
            **record_features(),
        }
    )


def record_features() -> dict[str, Any]:
    """The columns that say which record a row is, and what is known of it."""
    from datasets import Value

    text = Value("string")
    return {
        "_gold": text,
        "_answer_type": text,
        "_match": text,
        "_pass_rate": Value("float64"),
        "_problem_id": text,
        "_source": text,
        "_file": text,
        "_record": Value("int64"),
        "_findings": text,
    }


@dataclass(frozen=True)
class RecordConverter:
    """Turns records of one data set into aligned rows; sent to worker processes."""

    format_name: str
    columns: Mapping[str, str]
    media_dir: str | None
    stage: str
    cot_format: str
    malformed_trace_policy: str
    thought_words: tuple[str, str]
    source: str
    file: str
    pass_rate_column: str | None = None
    """As dataset_info.json names it."""

    def __call__(self, records: list[dict[str, Any]], indices: list[int]) -> dict[str, list[Any]]:
        """One row per record, in order."""
        rows = [self.row(record, index) for record, index in zip(records, indices, strict=True)]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def row(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        """The aligned row of one record; without prompt where it cannot be used."""
        record = plain(record)
        column = pass_rate_column(record, self.pass_rate_column)
        raw, sample = None, None
        problem = ""
        try:
            problem = self._problem_id(record)
            raw = self._read(record)
            read = to_sample(raw, Path(self.media_dir) if self.media_dir else None)
            sample, findings = self._settle(read)
        except RecordError as error:
            findings = [Finding(error.fault, Handling.DROPPED, error.detail)]
        stamps = {}
        if raw is not None and any(finding.fault in IMAGE_FAULTS for finding in findings):
            stamps = image_stamps(raw, self.media_dir)
        return {
            **(self._aligned(sample) if sample else EMPTY_ROW),
            "_pass_rate": as_pass_rate(record.get(column)) if column else None,
            "_problem_id": problem,
            "_source": self.source,
            "_file": self.file,
            "_record": index,
            "_findings": findings_text(findings, stamps),
        }

    def _problem_id(self, record: dict[str, Any]) -> str:
        column = self.columns.get("problem_id")
        if column and column not in record:
            raise RecordError(
                RecordFault.MALFORMED,
                f"column '{column}', which dataset_info.json names for 'problem_id', is not there",
            )
        return problem_id(record[column]) if column else ""

    def _read(self, record: dict[str, Any]) -> RawRecord:
        if BROKEN_LINE in record:
            raise RecordError(RecordFault.MALFORMED, record[BROKEN_LINE])
        return get_format(self.format_name).read(record, self.columns)

    def _settle(self, sample: Sample) -> tuple[Sample | None, list[Finding]]:
        if self.stage == "grpo":
            if not verifiable_answer(sample):
                column = self.columns.get("gold")
                where = f"column {column} is empty in this record" if column else "the record has none"
                raise RecordError(RecordFault.NO_GOLD, f"{where} (question: {sample.question[:60]!r})")
            return sample, []
        if sample.trace is None:
            raise RecordError(
                RecordFault.NO_RESPONSE,
                f"read as {get_format(self.format_name).formatting} (question: {sample.question[:60]!r})",
            )
        return settle(sample, self.malformed_trace_policy, agrees)

    def _aligned(self, sample: Sample) -> dict[str, Any]:
        response = []
        if self.stage != "grpo" and sample.trace is not None:
            text = TARGETS[self.cot_format].write(sample.trace, self.thought_words)
            response = [{"role": "assistant", "content": text}]
        turns = [{"role": turn.role, "content": self._written(turn)} for turn in sample.history]
        return {
            "_prompt": [*turns, {"role": "user", "content": sample.question}],
            "_response": response,
            "_system": sample.system or "",
            "_tools": "",
            "_images": [as_media(image) for image in sample.images],
            "_videos": [as_video(video) for video in sample.videos],
            "_audios": [],
            "_gold": verifiable_answer(sample),
            "_answer_type": sample.answer_type,
            "_match": settings_text(sample.match),
        }

    def _written(self, turn: Turn) -> str:
        """An earlier turn; a thought in it takes the same form as that of the response."""
        if turn.role == "assistant" and self.stage != "grpo":
            trace = read_trace(turn.content)
            if trace.thought is not None and trace.fault is None:
                return TARGETS[self.cot_format].write(trace, self.thought_words)
        return turn.content


EMPTY_ROW: dict[str, Any] = {
    "_prompt": [],
    "_response": [],
    "_system": "",
    "_tools": "",
    "_images": [],
    "_videos": [],
    "_audios": [],
    "_gold": None,
    "_answer_type": "auto",
    "_match": "",
}


def as_media(image: str | bytes) -> dict[str, Any]:
    """An image as `{"bytes", "path"}`."""
    return {"bytes": image, "path": None} if isinstance(image, bytes) else {"bytes": None, "path": image}


def as_video(video: Any) -> str:
    """A video's path. Raises RecordError for frames and for contents, which no column of paths can hold."""
    if not isinstance(video, str):
        kind = "a list of frames" if isinstance(video, list) else "contents"
        raise RecordError(RecordFault.MALFORMED, f"a video is given as {kind}: write it to a file and give its path")
    return video


def agrees(answer: str, gold: GoldAnswer) -> bool | None:
    """Whether a stated answer is the gold answer; None where the two cannot be compared."""
    from lcot_plugin.rewards.verifier import shared_verifier

    outcome = shared_verifier().verify_batch([verification_request(boxed(answer), gold)])[0].outcome
    return {Outcome.MATCHED: True, Outcome.MISMATCHED: False}.get(outcome)


def problem_id(value: Any) -> str:
    """A problem's id as text; empty where the record has none."""
    if isinstance(value, float) and value.is_integer():  # pandas and Arrow make numbers of ids where one is missing
        value = int(value)
    return "" if value is None else str(value).strip()


def findings_text(findings: list[Finding], stamps: Mapping[str, Any] | None = None) -> str:
    """Findings as one cell of a column; empty where there are none."""
    if not findings:
        return ""
    return json.dumps({"findings": [asdict(finding) for finding in findings], "stamps": dict(stamps or {})})


def findings_of(text: str) -> list[Finding]:
    """The findings in a cell that `findings_text` wrote."""
    if not text:
        return []
    return [
        Finding(RecordFault(item["fault"]), Handling(item["handling"]), item["detail"])
        for item in json.loads(text)["findings"]
    ]


def image_stamps(raw: RawRecord, media_dir: str | None) -> dict[str, Any]:
    """Size and time of the files that a faulty record's images may be: a cached fault holds while they are the same."""
    folder = Path(media_dir) if media_dir else None
    return {path: file_stamp(path) for image in raw.images for path in candidate_paths(image, folder)}


def stamps_hold(text: str) -> bool:
    """Whether the files behind a cached fault are still what they were."""
    stamps = json.loads(text)["stamps"] if text else {}
    return all(file_stamp(path) == stamp for path, stamp in stamps.items())


@cache
def thought_words(template_name: str | None) -> tuple[str, str]:
    """What opens and closes a thought in the model's own format."""
    from llamafactory.data.template import TEMPLATES

    template = TEMPLATES.get(template_name or "")
    return template.thought_words if template else THINK_WORDS


def make_converter(dataset: Any, dataset_attr: Any, data_args: Any, stage: str) -> tuple[RecordConverter, str]:
    """The converter of a data set, and what is to be said about it (what `lcot_auto` decided).

    Raises DataError for an unknown format, and where `lcot_auto` recognises none.
    """
    name = dataset_attr.formatting.removeprefix(FORMAT_PREFIX)
    source, note = dataset_attr.lcot_name, ""
    if name == "auto":
        records = first_records(dataset)
        try:
            recognition = recognise(records, dataset_attr.lcot_columns)
        except DataError as error:
            raise DataError(f"Data set {source} ({dataset_attr.dataset_name}): {error}") from error
        name, note = recognition.format.name, recognition.reason
    get_format(name)  # an unknown one is told before the first record is read
    converter = RecordConverter(
        format_name=name,
        columns=dataset_attr.lcot_columns,
        media_dir=data_args.media_dir,
        stage=stage,
        cot_format=data_args.cot_format,
        malformed_trace_policy=data_args.malformed_trace_policy,
        thought_words=thought_words(data_args.template),
        source=source,
        file=dataset_attr.dataset_name,
        pass_rate_column=dataset_attr.pass_rate,
    )
    return converter, note


def first_records(dataset: Any) -> list[dict[str, Any]]:
    """The first few records, images undecoded."""
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        records = list(dataset.take(NUM_RECORDS_TO_RECOGNISE))
    else:
        records = dataset.with_format("arrow")[:NUM_RECORDS_TO_RECOGNISE].to_pylist()
    return [record for record in map(plain, records) if BROKEN_LINE not in record]


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as its file has it."""
    return json.loads(record[JSON_COLUMN]) if JSON_COLUMN in record else record


@dataclass(frozen=True)
class ArrowConverter:
    """A RecordConverter for `Dataset.map` on Arrow batches: pictures stay the bytes that they are."""

    converter: RecordConverter

    def __call__(self, table: Any, indices: list[int]) -> dict[str, list[Any]]:
        return self.converter(table.to_pylist(), indices)


def convert(dataset: Any, converter: RecordConverter, num_proc: int | None, use_cache: bool) -> Any:
    """The aligned data set, one row per record, from the cache where it holds."""
    code = functions_digest([get_format(converter.format_name).build, *READERS.values()])
    fingerprint = digest_of(dataset._fingerprint, converter, code)

    def mapped(load_from_cache_file: bool) -> Any:
        return dataset.with_format("arrow").map(
            ArrowConverter(converter),
            batched=True,
            batch_size=200,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=aligned_features(),
            num_proc=num_proc,
            load_from_cache_file=load_from_cache_file,
            new_fingerprint=fingerprint,
            desc=f"Reading {converter.source}",
        )

    aligned = mapped(use_cache).with_format(None)
    if use_cache and not all(stamps_hold(name["_findings"]) for _, name in rows_with_findings(aligned)):
        aligned = mapped(False).with_format(None)
    return aligned


def convert_stream(dataset: Any, converter: RecordConverter) -> Any:
    """The aligned stream, one row per record."""

    def batch(examples: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        return converter(
            [dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True)], indices
        )

    columns = list(next(iter(dataset)))
    # Without `features`: `datasets` 4.0 cannot filter a stream that declares them.
    return dataset.map(batch, batched=True, batch_size=32, with_indices=True, remove_columns=columns)


def rows_with_findings(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and `_source`, `_file`, `_record`, `_findings` of the rows that have findings, one at a time."""
    import pyarrow.compute as pc

    columns = ["_source", "_file", "_record", "_findings"]
    offset = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        rows = pc.indices_nonzero(pc.not_equal(batch["_findings"], ""))
        for row, name in zip(rows.to_pylist(), batch.take(rows).to_pylist(), strict=True):
            yield offset + row, name
        offset += len(batch)
