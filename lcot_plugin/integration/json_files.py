"""JSON files in, a data set of one column with a record's text per row out, for `lcot_...` formats.

`datasets` gives every field one type for the whole file and fails where it changes: an answer that is a number here and
text there, images that are missing in the first thousand records. A column of texts has no such trouble; the format
reads each record by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcot_plugin.data.files import iterate_records
from lcot_plugin.integration.cache import code_digest, file_stamp
from lcot_plugin.integration.conversion import BROKEN_LINE, JSON_COLUMN

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def json_paths(arguments: dict[str, Any]) -> list[str]:
    """The JSON files that a `load_dataset` call would read; empty where it reads anything else."""
    files = arguments.get("data_files") or []
    files = [files] if isinstance(files, str) else list(files)
    return files if files and all(str(file).endswith(SUFFIXES) for file in files) else []


def load_json(paths: list[str], cache_dir: str | None) -> Any:
    """The records of some files, one after another; cached until a file changes. Memory does not grow with them."""
    from datasets import Dataset, Features, Value

    return Dataset.from_generator(
        record_texts,
        features=Features({JSON_COLUMN: Value("string")}),
        cache_dir=cache_dir,
        gen_kwargs={
            "paths": [str(path) for path in paths],
            "stamps": [file_stamp(str(path)) for path in paths],
            "code": code_digest(),
        },
    )


def record_texts(paths: list[str], stamps: list[Any], code: str) -> Iterator[dict[str, str]]:
    """One row per record. `stamps` and `code` only make the cache's key."""
    for path in paths:
        for line in record_lines(Path(path)):
            yield {JSON_COLUMN: line}


def record_lines(path: Path) -> Iterator[str]:
    """Each record as JSON; in the place of one that cannot be read, what is wrong with it under BROKEN_LINE."""
    for record in iterate_records(path, lambda error: {BROKEN_LINE: str(error)}):
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"{line[error.start]!r} is half a character, which no tokenizer reads: write the whole one"
            line = json.dumps({BROKEN_LINE: half})
        yield line
