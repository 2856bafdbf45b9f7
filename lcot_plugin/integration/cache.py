"""Settings and files in, the fingerprint of what is made from them out: the key of a cached data set.

`datasets` derives a key from the pickled function, which differs from run to run for tokenizers and from machine to
machine for classes. Ours is made of contents: settings, tokenizer and processor files, the code of this package, and
size and time of every picture. A second run finds its data sets in seconds; one where anything changed makes new ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

CODE = ("data", "render", "rewards", "integration", "types.py")
"""What of this package decides about tokens."""


def may_use_cache(data_args: Any, training_args: Any) -> bool:
    """Whether cached results serve: other processes always take what the first one has just written."""
    return not data_args.overwrite_cache or training_args.local_process_index != 0


def digest_of(*parts: Any) -> str:
    """A hexadecimal fingerprint of JSON-like values and dataclasses, and of the code."""
    text = json.dumps([code_digest(), *parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}]
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no stable fingerprint")


@cache
def code_digest() -> str:
    """Of the source files that decide about tokens, and of the libraries' versions."""
    from importlib import metadata

    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for name in ("llamafactory", "transformers", "tokenizers", "datasets"):
        digest.update(f"{name} {metadata.version(name)}\n".encode())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Of a tokenizer's vocabulary, merges, added tokens and normalisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
    else:  # a tokenizer in Python: its vocabulary and its settings
        text = json.dumps([tokenizer.get_vocab(), repr(tokenizer)], sort_keys=True)
    special = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
    return hashlib.sha256((text + special).encode()).hexdigest()


def file_stamp(path: str) -> list[int] | None:
    """Size in bytes and time of change in nanoseconds; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character
        return None
    return [status.st_size, status.st_mtime_ns]


def media_paths(aligned: Any) -> Iterator[list[str]]:
    """The files of an aligned data set's images, videos and audios, some thousand at a time."""
    import pyarrow as pa

    media = [name for name in ("_images", "_videos", "_audios") if name in aligned.column_names]
    for batch in aligned.select_columns(media).with_format("arrow").iter(batch_size=10_000):
        for name in media:
            files = batch[name].combine_chunks()
            while pa.types.is_list(files.type) or pa.types.is_large_list(files.type):  # a video may be a list of frames
                files = files.flatten()
            if pa.types.is_struct(files.type):
                files = files.field("path")
            if not pa.types.is_null(files.type):  # no record has one
                yield [path for path in files.to_pylist() if isinstance(path, str)]


def functions_digest(functions: Iterable[Callable[..., Any]]) -> str:
    """Of the files that functions are written in: formats and readers that a user has registered."""
    digest = hashlib.sha256()
    for file in sorted({inspect.getfile(inspect.unwrap(function)) for function in functions}):
        if Path(file).is_file():  # else from an interactive session
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def media_digest(batches: Iterable[list[str]]) -> str:
    """Of size and time of every file, in order; asked in threads, since a network file system answers slowly."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as threads:
        for paths in batches:
            for stamp in threads.map(file_stamp, paths):
                digest.update(repr(stamp).encode())
    return digest.hexdigest()
