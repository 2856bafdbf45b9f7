"""Images of a prompt as the model's tensors, through LLaMA-Factory's multimodal plugin, as its SFT collator does.

In: PromptRecord. Out: EncodedPrompt, and the joint tensors of several. A prompt's images are decoded and preprocessed
once per rollout, however many completions and passes use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.extras.constants import IMAGE_PLACEHOLDER
from llamafactory.extras.logging import get_logger
from PIL import Image

from lcot_plugin.errors import DataError
from lcot_plugin.integration.pictures import MEDIA_ERRORS, decode
from lcot_plugin.packing.batch import join_media
from lcot_plugin.types import EncodedPrompt, PromptRecord
from lcot_plugin.vlm import VisionLanguageModel

logger = get_logger(f"llamafactory.{__name__}")


@dataclass(frozen=True)
class PromptEncoder:
    """Decodes and preprocesses."""

    template: Any
    processor: Any
    vlm: VisionLanguageModel
    bad_record_policy: str = "drop"
    context_length: int | None = None
    """Tokens that the model has positions for; a completion ends where they end."""

    def __call__(self, record: PromptRecord) -> EncodedPrompt:
        """Raises DataError naming the record whose media cannot be read, where `bad_record_policy` is `error`, and the
        one whose prompt leaves no room for a completion."""
        room = None if self.context_length is None else self.context_length - len(record.input_ids)
        if room is not None and room < 1:
            raise DataError(
                f"{record.source}, record {record.record}: its prompt has {len(record.input_ids):,} tokens and the "
                f"model positions for {self.context_length:,}: lower cutoff_len, so that it is left out."
            )
        if not (record.images or record.videos or record.audios):
            return EncodedPrompt(record, {}, max_new_tokens=room)
        try:
            pictures, faults = decode(record.images, self.bad_record_policy)
            if faults:
                logger.warning(
                    f"{record.source}, record {record.record} is not trained on, since its picture is broken: "
                    + "; ".join(faults)
                )
            media = media_tensors(
                self.template,
                self.processor,
                self.vlm,
                record.input_ids,
                images=pictures,
                videos=record.videos,
                audios=record.audios,
            )
        except MEDIA_ERRORS as error:
            raise DataError(f"{record.source}, record {record.record}: its media cannot be read: {error}") from error
        return EncodedPrompt(record, media, usable=not faults, max_new_tokens=room)

    def pictures(self, record: PromptRecord) -> list[Image.Image]:
        """The record's pictures as LLaMA-Factory hands them to the processor: RGB, within image_max_pixels and
        image_min_pixels; a grey one for each that is broken."""
        pictures, _ = decode(record.images, "drop")
        sizes = {key: getattr(self.processor, key) for key in ("image_max_pixels", "image_min_pixels")}
        return self.template.mm_plugin._regularize_images(pictures, **sizes)["images"]

    def white_image(self, tokenizer: Any) -> EncodedPrompt:
        """A small white image and the tokens that stand for it, nothing else; what LLaMA-Factory's SFT collator adds
        to a batch without images."""
        images = [Image.new("RGB", (64, 64), (255, 255, 255))]
        plugin, processor = self.template.mm_plugin, self.processor
        turns = [{"role": "user", "content": IMAGE_PLACEHOLDER}]
        turns = plugin.process_messages(turns, images, [], [], processor)
        ids = tokenizer.encode(turns[0]["content"], add_special_tokens=False)
        ids, _ = plugin.process_token_ids(ids, None, images, [], [], tokenizer, processor)
        return self(PromptRecord(ids, images, question="", gold="", source="white image", record=0))


def media_tensors(
    template: Any,
    processor: Any,
    vlm: VisionLanguageModel,
    input_ids: Sequence[int],
    *,
    images: Sequence[Any],
    videos: Sequence[Any],
    audios: Sequence[Any],
) -> dict[str, torch.Tensor]:
    """What the model's forward takes for the media of one sequence of tokens; some plugins count in `input_ids`.

    Raises one of MEDIA_ERRORS where media cannot be read.
    """
    inputs = template.mm_plugin.get_mm_inputs(
        images, videos, audios, [len(images)], [len(videos)], [len(audios)], [input_ids], processor
    )
    # Token types belong to the sequence and are made for each pass; what forward does not take is bookkeeping.
    return {
        key: torch.as_tensor(value)
        for key, value in inputs.items()
        if vlm.accepts(key) and not key.endswith("token_type_ids")
    }


def batch_media(prompts: Sequence[EncodedPrompt]) -> dict[str, torch.Tensor]:
    """The media of several prompts, joined along the first axis, in order; a text-only prompt adds nothing.

    Raises DataError where a family's tensors differ in shape from image to image.
    """
    return join_media(
        [prompt.media for prompt in prompts],
        "use grpo_rollout_batch_size and per_device_train_batch_size that put one prompt in a batch, or images of one "
        "size.",
    )
