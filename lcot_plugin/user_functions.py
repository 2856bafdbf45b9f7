"""Functions that users write in files of their own: `path/to/file.py:function` in, the function out.

Rewards, losses and advantages are loaded by it. What is wrong with the file is told with the error class of whoever
asks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lcot_plugin.errors import LcotError

_IN_FILE = re.compile(r"(?P<path>.*\.py):(?P<name>[^:]+)", re.DOTALL)


def split_file_spec(text: str) -> tuple[Path, str] | None:
    """(absolute path, function) of `path/to/file.py:function`; None where the text is no such spec."""
    match = _IN_FILE.fullmatch(text)
    return None if match is None else (Path(match["path"]).expanduser().resolve(), match["name"])


def function_in_file(path: Path, name: str, kind: str, error: type[LcotError]) -> Callable[..., Any]:
    """The function `name` of a file, which is imported once.

    kind: what the messages call it, `reward`. Raises `error` where there is no such file or function, or where the
    file cannot be imported.
    """
    if not path.is_file():
        raise error(f"{kind} file {path} does not exist; write path/to/file.py:function")
    try:
        module = _file_module(path)
    except Exception as problem:
        raise error(f"{kind} file {path} cannot be imported: {type(problem).__name__}: {problem}") from problem
    return function_of(module, name, f"{kind} file {path}", error)


def function_of(module: object, name: str, place: str, error: type[LcotError]) -> Callable[..., Any]:
    """The function `name` of a module; raises `error`, with the functions that there are, where it has none."""
    function = getattr(module, name, None)
    if function is None:
        defined = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise error(f"{place} has no function {name!r}; it defines {', '.join(defined) or 'none'}")
    return checked_callable(function, name, place, error)


def checked_callable(function: Any, name: str, place: str, error: type[LcotError]) -> Callable[..., Any]:
    """`function` itself; raises `error` where it cannot be called."""
    if not callable(function):
        raise error(f"{name!r} in {place} is {type(function).__name__}, not a function")
    return function


@lru_cache(maxsize=64)
def _file_module(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(
        f"lcot_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}", path
    )
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
