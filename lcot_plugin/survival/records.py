"""Our own records in a checkpoint, read back without running anything that the file might hold.

In: dataclasses of lcot_plugin, enums, tensors, numbers, texts. Out: the same objects. `torch.load` with
`weights_only=True` makes objects of the listed classes only: a file that names anything else (a function to be called,
as malicious pickles do) is refused before that is imported.

Pillow images, whose own pickles are code of another library, are saved as the bytes of a PNG.
"""

from __future__ import annotations

import io
import pickle
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from lcot_plugin.types import Completion, EncodedPrompt, Ending, MatchSettings, PromptRecord, TrainingSequence

COMMON = (Completion, EncodedPrompt, Ending, MatchSettings, PromptRecord, TrainingSequence, array, dict)
PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
"""That a PNG keeps exactly; TIFF keeps the others (CMYK, F...)."""


def save_records(records: Any, path: Path) -> None:
    """As torch.save; pictures become `{"bytes": ..., "path": None}`, which is one of the forms they come in."""
    torch.save(records, path, pickle_module=SimpleNamespace(__name__=__name__, Pickler=_Pickler))


def load_records(path: Path, *classes: type) -> Any:
    """What `save_records` wrote. classes: those of the records beside the common ones.

    Raises ValueError for a file that holds anything else, or is cut short.
    """
    try:
        with torch.serialization.safe_globals([*COMMON, *classes]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something that this version of lcot_plugin does not write, and was not read: "
            f"{_reason(error)} Nothing of it was run. If you trust where it comes from, resume with the version that "
            "wrote it; else resume from another checkpoint."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {_reason(error)} Resume from another checkpoint of this run.") from error


class _Pickler(pickle.Pickler):
    def reducer_override(self, item: Any) -> Any:
        if not isinstance(item, Image.Image):
            return NotImplemented
        buffer = io.BytesIO()
        item.save(buffer, format="PNG" if item.mode in PNG_MODES else "TIFF")
        return dict, ([("bytes", buffer.getvalue()), ("path", None)],)


def _reason(error: BaseException) -> str:
    """The sentence of torch's advice that says what was found."""
    sentences = [line.strip() for line in str(error).splitlines()]
    found = [line for line in sentences if "GLOBAL" in line or "class" in line]
    sentence = (found or sentences or [type(error).__name__])[0].split(" Please use ")[0]
    return sentence if sentence.endswith(".") else f"{sentence}."
