"""The rows of one pack as a PackedBatch; runs in the data loader's workers, where pictures are decoded.

In: rows of the tokenised data set, with paths or bytes for pictures. Out: what the training step takes, one pack each.

The data loader's data set yields one pack per item and its batch size is 1: the packs are the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcot_plugin.errors import DataError
from lcot_plugin.integration.media import media_tensors
from lcot_plugin.integration.pictures import MEDIA_ERRORS, with_pictures
from lcot_plugin.packing.batch import IGNORE_INDEX, pack_examples
from lcot_plugin.packing.dataset import PackItem
from lcot_plugin.types import EncodedPrompt, PackExample
from lcot_plugin.vlm import VisionLanguageModel


@dataclass
class PackCollator:
    """Decodes, preprocesses and packs. Can be pickled for worker processes that are not forked; the model stays
    behind."""

    template: Any
    """LLaMA-Factory's; its multimodal plugin preprocesses, its `bad_record_policy` (absent: drop) says what becomes of
    a broken picture."""
    processor: Any
    """The model's multimodal processor; None for a text model."""
    vlm: VisionLanguageModel
    example_weighting: bool = False
    image_filler: EncodedPrompt | None = None
    """Appended to a pack without media, as a segment of its own without targets, so that the vision tower's parameters
    are used on every rank; nothing else sees it. Needed only where several processes train the vision tower."""

    def __call__(self, batch: Sequence[Any]) -> dict[str, Any]:
        """`{"packed": PackedBatch, "input_ids": [1, N] int64}`, the latter for those who count tokens.

        `batch`: one PackItem, or the rows of one pack, in a list of length 1 as the data loader gives it; or those rows
        themselves. Raises DataError for media that cannot be read, and for a broken picture where the policy is
        `error`.
        """
        rows, idle = self._item(batch)
        examples = [self.example(row) for row in rows]
        if self.image_filler is not None and not any(example.media for example in examples):
            ids = self.image_filler.record.input_ids
            examples.append(PackExample(ids, [IGNORE_INDEX] * len(ids), self.image_filler.media))
        packed = pack_examples(examples, self.vlm, example_weighting=self.example_weighting, idle=idle)
        return {"packed": packed, "input_ids": packed.input_ids}

    def _item(self, batch: Sequence[Any]) -> PackItem:
        if isinstance(batch[0], PackItem):
            assert len(batch) == 1, "one pack is one batch"
            return batch[0]
        return PackItem(batch if isinstance(batch[0], dict) else batch[0])

    def example(self, row: dict[str, Any]) -> PackExample:
        """One row with its media preprocessed, by itself: some families treat an image that is alone in its example
        in another way."""
        row = with_pictures(row, getattr(self.template, "bad_record_policy", "drop"))
        media = {name: row.get(name) or [] for name in ("images", "videos", "audios")}
        if not any(media.values()):
            return PackExample(row["input_ids"], row["labels"])
        try:
            tensors = media_tensors(self.template, self.processor, self.vlm, row["input_ids"], **media)
        except MEDIA_ERRORS as error:
            kinds = ", ".join(f"{len(items)} {name}" for name, items in media.items() if items)
            raise DataError(f"The media of a record ({kinds}) cannot be read: {error}") from error
        return PackExample(row["input_ids"], row["labels"], tensors)
