"""Rows of the training set as the loop takes them: PromptRecords with their indices.

In: a tokenised data set. Out: the items of the GRPO data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from lcot_plugin.types import PromptRecord


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
