"""What can be told of a `lcot data` command line before torch and LLaMA-Factory are imported, which takes seconds.

In:  the arguments of the command line. Out: nothing, or an ArgumentError that says what to write instead.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lcot_plugin.errors import ArgumentError

DATASET_INFO = "dataset_info.json"
DEFAULT_DATASET_DIR = "data"
"""LLaMA-Factory's."""


def check_data_command(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    record: int | None = None,
    rollouts: int | None = None,
    html: Path | None = None,
    **others: Any,
) -> None:
    """Raises ArgumentError for a recipe, a folder or a data set that there is not, and for numbers below their range.

    others: arguments of which nothing can be told yet.
    """
    if record is not None and record < 0:
        raise ArgumentError(f"--record {record}: records are numbered from 0.")
    if rollouts is not None and rollouts < 1:
        raise ArgumentError(f"--rollouts {rollouts}: at least 1 answer per record is needed, 8 are usual.")
    if html is not None:
        check_folder_of(html)
    written = read_run_file(config, overrides)
    origin = "--dataset-dir" if dataset_dir is not None else "dataset_dir"
    folder = dataset_dir if dataset_dir is not None else written.get("dataset_dir", DEFAULT_DATASET_DIR)
    if isinstance(folder, str) and folder != "ONLINE" and not folder.startswith("REMOTE:"):
        names = _names(datasets) or [*_names(written.get("dataset")), *_names(written.get("eval_dataset"))]
        if names or dataset_dir is not None:
            check_dataset_names(names, folder, origin)


def check_folder_of(file: Path) -> None:
    """Raises ArgumentError where the folder that `--html` would write to does not exist."""
    if not file.absolute().parent.is_dir():
        raise ArgumentError(f"--html {file}: there is no folder {file.absolute().parent}: make it, or name another.")


def read_run_file(config: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a YAML or JSON file, the `key=value` overrides taking precedence. Raises ArgumentError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not config.endswith((".yaml", ".yml", ".json")):
        raise ArgumentError(f"{config} is not a .yaml, .yml or .json file: give the path of a run's configuration.")
    if not Path(config).is_file():
        raise ArgumentError(f"There is no file {config}: give the path of a run's configuration.")
    try:
        loaded = OmegaConf.load(config)
        # A list and keys cannot be merged.
        merged = OmegaConf.merge(loaded, OmegaConf.from_cli(list(overrides))) if OmegaConf.is_dict(loaded) else None
        written = None if merged is None else OmegaConf.to_container(merged)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ArgumentError(f"{config} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict) or not written:
        raise ArgumentError(f"{config} holds no keys: give a run's configuration.")
    return {str(key): value for key, value in written.items()}


def check_dataset_names(names: Sequence[str], folder: str, origin: str) -> None:
    """Raises ArgumentError for a name that the folder's dataset_info.json lacks. origin: what named the folder."""
    path = Path(folder, DATASET_INFO)
    if not path.is_file():
        what = f"no {DATASET_INFO} in it" if path.parent.is_dir() else "no such folder"
        raise ArgumentError(f"{origin} {folder}: there is {what}: give the folder of {DATASET_INFO}.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArgumentError(f"{path} is not JSON: {error}.") from error
    if unknown := [name for name in names if name not in entries]:
        advice = near_names(unknown, entries)
        raise ArgumentError(f"{path} has no entry {', '.join(unknown)}: {advice or 'check the spelling, or add one.'}")


def near_names(unknown: Iterable[str], known: Iterable[str]) -> str:
    """`did you mean cutoff_len?`; empty where nothing is near."""
    known = list(known)
    near = dict.fromkeys(match for name in unknown for match in difflib.get_close_matches(name, known, 2, 0.7))
    return f"did you mean {' or '.join(near)}?" if near else ""


def _names(written: Any) -> list[str]:
    """Of `dataset`: a list, or names joined by commas."""
    parts = written.split(",") if isinstance(written, str) else written or []
    return [str(part).strip() for part in parts if str(part).strip()]
