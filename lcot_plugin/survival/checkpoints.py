"""Checkpoint folders that are whole or not there, as files; nothing of a trainer.

In: a folder in which a checkpoint was written. Out: `publish` gives it its name once every file is on the disk;
`newest_whole` finds the one to resume from and says which it passed over. Consumers: survival.trainer, and the seam of
LLaMA-Factory's argument parser.

    saves/run/incomplete_checkpoints/checkpoint-40   being written: a kill leaves it here, where nothing looks for it
    saves/run/checkpoint-40                          whole: renamed, which a file system does at once or not at all
    saves/run/checkpoint-40/checkpoint_files.json    every file with its size, so that a damaged copy is noticed
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

INCOMPLETE = "incomplete_checkpoints"
"""Folder in output_dir. Must not begin with `checkpoint-`, which transformers would list."""
MANIFEST = "checkpoint_files.json"
TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = (
    "no space left on device",
    "disk quota exceeded",
    "file too large",
    "file write failed",
    "unexpected pos",
)


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return Path(run_dir, f"checkpoint-{step}")


def staged_folder(run_dir: str | Path, step: int) -> Path:
    """Where it is written."""
    return checkpoint_folder(Path(run_dir, INCOMPLETE), step)


def write_manifest(folder: Path) -> None:
    """Lists every file with its size, after each has reached the disk."""
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        with path.open("rb") as file:
            # A rename may reach the disk before the contents do: after a power cut the files would be empty.
            os.fsync(file.fileno())
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    partial = folder / f"{MANIFEST}.tmp"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"files": sizes}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)


def publish(staged: Path, final: Path) -> None:
    """Gives a checkpoint its name; an older one of the same name goes only when the new one is whole.

    A kill between the two renames leaves the new one whole but without its name: see `publish_finished`.
    """
    write_manifest(staged)
    older = staged.with_name(f"{staged.name}.replaced")
    if final.exists():
        shutil.rmtree(older, ignore_errors=True)
        final.rename(older)
    staged.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(older, ignore_errors=True)
    with suppress(OSError):  # not empty: of another node that shares the folder
        staged.parent.rmdir()


def publish_finished(run_dir: str | Path) -> None:
    """Ends a `publish` that was killed when every file was on the disk already. Not to be called while one is made."""
    for staged in checkpoints(Path(run_dir, INCOMPLETE)):
        final = Path(run_dir, staged.name)
        with suppress(FileNotFoundError):  # another process has been faster
            if not final.exists() and (staged / MANIFEST).is_file() and fault_of(staged) is None:
                staged.rename(final)
                _sync_folder(final.parent)


def discard(run_dir: str | Path) -> None:
    """Removes what an interrupted save has left."""
    shutil.rmtree(Path(run_dir, INCOMPLETE), ignore_errors=True)


def fault_of(folder: str | Path) -> str | None:
    """Why a checkpoint is not whole, in words; None for a whole one.

    Of a checkpoint without a list of files (transformers' own, or an older version's) the file that is written last
    decides.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _fault_without_manifest(folder)
    except ValueError:
        return f"{MANIFEST} is cut short"
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            if path.suffix not in _TEXTS:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if path.suffix == ".json" and not _is_json(path):
                return f"{name} is cut short"
    return None


_TEXTS = (".md", ".json", ".jinja", ".txt", ".model")
"""A callback may write tokenizer, processor and model card once more when the checkpoint has its name already."""


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _fault_without_manifest(folder: Path) -> str | None:
    state = folder / TRAINER_STATE
    if not state.is_file():
        return f"{TRAINER_STATE}, which is written last, is missing"
    return None if _is_json(state) else f"{TRAINER_STATE} is cut short"


def checkpoints(run_dir: str | Path) -> list[Path]:
    """Every folder that is named like a checkpoint, the newest first."""
    if not os.path.isdir(run_dir):
        return []
    found = [(int(match[1]), path) for path in Path(run_dir).iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def newest_whole(run_dir: str | Path, warn: Callable[[str], None] = print) -> str | None:
    """The checkpoint to resume from; what was passed over is said, each with its reason."""
    for path in checkpoints(Path(run_dir, INCOMPLETE)):
        warn(f"{path} was being written when its run ended: passed over.")
    for path in checkpoints(run_dir):
        fault = fault_of(path)
        if fault is None:
            return str(path)
        warn(f"{path} is not whole, {fault}: passed over.")
    return None


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Of the file system that the folder is on, or would be on."""
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that nothing more could be written. torch's and safetensors' are no OSError."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in _FULL or any(text in str(cause).lower() for text in _FULL_TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems do not let a folder be synchronised
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
