"""Data sets as they were loaded and the pass rates of their records in, the same records with pass rates out.

    <name>.jsonl or .parquet      every record as it was, with `pass_rate`, `num_rollouts` and `difficulty`
    <name>_easy, _medium, _hard   those of one difficulty
    <name>_learnable              those with a pass rate between 0 and 1, for GRPO
    dataset_info.json             an entry for each, which reads it as the original's entry does

JSON sets become JSON lines, so that no field of a record changes; every other set, hub sets among them, becomes a
parquet file with its pictures in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafactory.data import loader

from lcot_plugin.errors import DataError
from lcot_plugin.integration.conversion import BROKEN_LINE
from lcot_plugin.integration.data import current_run
from lcot_plugin.integration.json_files import json_paths, record_lines
from lcot_plugin.report.data import DataReport
from lcot_plugin.report.difficulty import PARTS, SetDifficulty

COLUMNS = ("pass_rate", "num_rollouts", "difficulty")
PLACE_KEYS = (
    "file_name",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "subset",
    "split",
    "folder",
    "num_samples",
)
"""Keys of an entry of dataset_info.json that say where its data are, not how to read them."""


@dataclass(frozen=True)
class LoadedSource:
    """A data set before anything is selected or converted."""

    dataset: Any
    """A `datasets.Dataset`; its row numbers are the record numbers."""
    json_files: list[str]
    """Its files, where they are JSON."""
    report: DataReport
    """What became of the records of all data sets that were loaded with it."""


@contextmanager
def recorded_sources() -> Iterator[dict[str, LoadedSource]]:
    """Name -> source of every data set that is loaded within; `num_samples` of an entry is ignored meanwhile."""
    sources: dict[str, LoadedSource] = {}
    original = loader.load_dataset

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        dataset = original(*args, **kwargs)
        run = current_run()
        if run is not None:
            run.attribute.num_samples = None  # it draws records at random: a row would no longer be a record
            sources[run.attribute.lcot_name] = LoadedSource(dataset, json_paths(kwargs), run.report)
        return dataset

    loader.load_dataset = load_dataset
    try:
        yield sources
    finally:
        loader.load_dataset = original


def write_set(source: LoadedSource, measured: SetDifficulty, entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes the data set with pass rates, and one file per part; returns the entries for dataset_info.json.

    entry: the data set's own entry. A part without records gets no file, since an empty one cannot be loaded.
    """
    counts = measured.counts()
    suffix = ".jsonl" if source.json_files else ".parquet"
    paths = {
        part: folder / f"{part_name(measured.name, part)}{suffix}" for part in ("", *PARTS) if not part or counts[part]
    }
    for part in PARTS:
        (folder / f"{part_name(measured.name, part)}{suffix}").unlink(missing_ok=True)  # of an earlier measurement
    if source.json_files:
        _write_json(source, measured, paths)
    else:
        _write_parquet(source.dataset, measured, paths)
    reading = {key: value for key, value in entry.items() if key not in PLACE_KEYS}
    return {part_name(measured.name, part): {"file_name": path.name, **reading} for part, path in paths.items()}


def part_name(name: str, part: str = "") -> str:
    """What a part of the data set `name` is called, and the whole for an empty `part`."""
    stem = name.replace("/", "__")
    return f"{stem}_{part}" if part else stem


def merge_json(path: Path, entries: dict[str, Any]) -> None:
    """Writes `entries` into a JSON object, which keeps its others, but for those whose `file_name` is gone."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: entry for name, entry in earlier.items() if (path.parent / entry.get("file_name", "")).exists()}
    path.write_text(json.dumps({**kept, **entries}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def added_columns(columns: list[str]) -> list[str]:
    """What the new columns are called beside these: a set may have a `difficulty` of its own, which it keeps."""
    return [f"lcot_{name}" for name in COLUMNS] if set(COLUMNS).intersection(columns) else list(COLUMNS)


def values_of(measured: SetDifficulty, record: int) -> tuple[float | None, int, str]:
    """Pass rate, number of rollouts and difficulty; None, 0 and an empty text for a record that was not measured."""
    rate = measured.pass_rates.get(record)
    if rate is None:
        return None, 0, ""
    return rate, measured.num_rollouts, measured.thresholds.difficulty(rate).value


def _write_json(source: LoadedSource, measured: SetDifficulty, paths: dict[str, Path]) -> None:
    def records() -> Iterator[dict[str, Any]]:
        for file in source.json_files:
            yield from map(json.loads, record_lines(Path(file)))

    columns = {column for record in records() for column in record}
    names = added_columns(list(columns))
    num_records = 0
    with ExitStack() as stack:
        files = {part: stack.enter_context(path.open("w", encoding="utf-8")) for part, path in paths.items()}
        for record in records():
            values = values_of(measured, num_records)
            line = json.dumps({**record, **dict(zip(names, values, strict=True))}, ensure_ascii=False) + "\n"
            # A record that cannot be read keeps its number, and is left out: it was counted in reading.
            for part in ("", *measured.parts(num_records)) if BROKEN_LINE not in record else ():
                files[part].write(line)
            num_records += 1
    if num_records != measured.num_records:
        raise DataError(f"{measured.name} has changed since it was measured: run the same command again.")


def _write_parquet(dataset: Any, measured: SetDifficulty, paths: dict[str, Path]) -> None:
    import pyarrow as pa
    from datasets import Features, Value
    from pyarrow import parquet

    names = added_columns(dataset.column_names)
    types = (Value("float64"), Value("int64"), Value("string"))
    schema = Features({**dataset.features, **dict(zip(names, types, strict=True))}).arrow_schema
    first = 0
    with ExitStack() as stack:
        writers = {part: stack.enter_context(parquet.ParquetWriter(path, schema)) for part, path in paths.items()}
        for batch in dataset.with_format("arrow").iter(batch_size=200):
            records = range(first, first + len(batch))
            values = [values_of(measured, record) for record in records]
            first += len(batch)
            for name, column, feature in zip(names, zip(*values, strict=True), types, strict=True):
                batch = batch.append_column(name, pa.array(column, feature.pa_type))
            batch = batch.cast(schema)
            for part, writer in writers.items():
                own = [not part or part in measured.parts(record) for record in records]
                rows = batch.filter(pa.array(own))
                if len(rows):
                    writer.write_table(rows)
