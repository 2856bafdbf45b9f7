"""Rows of the training set as the loop takes them: PromptRecords with their indices.

In: a tokenised data set. Out: the items of the GRPO data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from lcot_plugin.errors import DataError
from lcot_plugin.types import EncodedPrompt, PromptRecord


class PromptEncoding(Protocol):
    """Reads a prompt's media."""

    def __call__(self, record: PromptRecord) -> EncodedPrompt: ...

    def white_image(self, tokenizer: Any) -> EncodedPrompt:
        """A small image and the tokens that stand for it, nothing else."""
        ...


class NumberedPrompts(Dataset):
    """A data set's rows with their indices."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        return index, self.rows[index]


def numbered_records(items: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, PromptRecord]]:
    records = prompt_records([row for _, row in items])
    return [(index, record) for (index, _), record in zip(items, records, strict=True)]


def prompt_records(rows: Sequence[dict[str, Any]]) -> list[PromptRecord]:
    """Data set rows as records."""
    return [
        PromptRecord(**{**row, **{media: row[media] or [] for media in ("images", "videos", "audios")}}) for row in rows
    ]


def check_images_only(dataset: Any) -> None:
    """Raises DataError where a prompt has a video or a sound.

    For weights that are sharded: an image more or less calls the vision tower as often, a video calls it once more, and
    a process that calls a layer more often than the others waits for ever.
    """
    if any(any(dataset[media]) for media in ("videos", "audios")):
        raise DataError(
            "Prompts with videos or sounds cannot be trained on with sharded weights (ZeRO-3, FSDP): use DDP, or "
            "DeepSpeed with a ZeRO-1 or ZeRO-2 configuration."
        )
