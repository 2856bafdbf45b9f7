"""A prompt's image placeholders, as the trainer has them and as vLLM expects them.

In the trainer's prompt every image stands as all of its tokens already; vLLM's processor puts them in itself, in place
of one token, and would put them in once more. So a prompt goes out with each image collapsed to that one token, and
what the server makes of it must be the trainer's prompt again.

    trainer   <|vision_start|> <|image_pad|> <|image_pad|> <|image_pad|> <|image_pad|> <|vision_end|>
    sent      <|vision_start|> <|image_pad|> <|vision_end|>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lcot_plugin.errors import ArgumentError
from lcot_plugin.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADVICE = {
    "internvl": "LLaMA-Factory cuts an image into tiles where `crop_to_patches: true` is written, vLLM unless it is "
    """started with --mm-processor-kwargs '{"crop_to_patches": false}': do one of the two.""",
    "llava_onevision": "Of several images in a prompt, transformers keeps each whole and vLLM cuts each into crops: "
    "write `grpo_rollout_engine: transformers`, or leave out prompts with several images.",
}
"""What to do where the server reads another prompt, by model type."""
OTHER_ADVICE = (
    "Serve the folder that model_name_or_path names, with its own processor and tokenizer files and without "
    "--mm-processor-kwargs, --tokenizer or --hf-overrides. If the tokens of an image differ all the same, write an "
    "image_max_pixels that is not above the processor's own limit."
)
MAX_NEWLINES = 32
"""Line breaks in a row for which a vocabulary may have a token of its own."""


class Placeholders:
    """Of one model family."""

    def __init__(self, vlm: VisionLanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.image: int | None = vlm.image_token_id
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._family = getattr(vlm.config, "model_type", "")
        self._collapse = COLLAPSERS.get(self._family, Placeholders.collapse_runs)
        self.advice = ADVICE.get(self._family, OTHER_ADVICE)
        """What to do where the server reads another prompt."""

    def collapsed(self, token_ids: Sequence[int], num_images: int) -> list[int]:
        """What is sent for a prompt with this many images. Raises ArgumentError where their tokens cannot be told
        apart."""
        if num_images == 0:
            return list(token_ids)
        if self.image is None:
            raise ArgumentError(
                "The model's configuration names no image token (image_token_id), so vLLM cannot be told where an "
                "image stands: write `grpo_rollout_engine: transformers`."
            )
        return self._collapse(self, token_ids, num_images)

    def collapse_runs(self, token_ids: Sequence[int], num_images: int) -> list[int]:
        """Each run of image tokens is one image; a single run may be several of them."""
        runs = [(is_image, list(run)) for is_image, run in groupby(token_ids, lambda token_id: token_id == self.image)]
        num_runs = sum(is_image for is_image, _ in runs)
        if num_runs not in (1, num_images):
            raise ArgumentError(
                f"A prompt has {num_images} images in {num_runs} places, some of them without anything between: vLLM "
                "cannot be told where one ends. Put a line break between their <image> tags, or write "
                "`grpo_rollout_engine: transformers`."
            )
        per_run = num_images if num_runs == 1 else 1
        return [token_id for is_image, run in runs for token_id in (run[:1] * per_run if is_image else run)]

    def collapse_framed(self, token_ids: Sequence[int], num_images: int) -> list[int]:
        """Where vLLM writes the tokens around an image too, and those between its tiles: InternVL, Gemma 4, LFM2-VL."""
        opening, closing = (self._vocabulary.get(name) for name in FRAMES[self._family](self.tokenizer))
        kept: list[int] = []
        start = None
        """In `kept`, of the last frame that may hold an image."""
        for token_id in token_ids:
            kept.append(token_id)
            if token_id == opening:
                start = len(kept) - 1
            elif token_id == closing and start is not None and self.image in kept[start:]:
                kept[start:] = [self.image]
                start = None
        return self._counted(kept, num_images)

    def collapse_tiles(self, token_ids: Sequence[int], num_images: int) -> list[int]:
        """SmolVLM and Idefics3: every tile begins with the same token, the whole image is the last one and ends with
        that token."""
        edge, whole = (self._vocabulary.get(name) for name in ("<fake_token_around_image>", "<global-img>"))
        kept: list[int] = []
        start = None
        """In `kept`, of the image."""
        seen_whole = False
        for token_id in token_ids:
            kept.append(token_id)
            if token_id == edge and start is None:
                start = len(kept) - 1
            elif token_id == edge and seen_whole:
                kept[start:] = [inner for inner in kept[start:] if inner == self.image][:1]
                start, seen_whole = None, False
            elif token_id == whole and start is not None:
                seen_whole = True
        return self._counted(kept, num_images)

    def _counted(self, sent: list[int], num_images: int) -> list[int]:
        found = sum(token_id == self.image for token_id in sent)
        if found != num_images:
            raise ArgumentError(
                f"A prompt has {num_images} images, and the tokens around them show {found}: vLLM cannot be told where "
                "they stand. Write `grpo_rollout_engine: transformers`."
            )
        return sent

    def collapse_paragraphs(self, token_ids: Sequence[int], num_images: int) -> list[int]:
        r"""Where vLLM puts a paragraph in place of the opening token (Gemma 3): `\n\n`, the opening token, the run,
        the closing token, `\n\n`. Line breaks that the tokenizer joined with the text's own are taken apart:
        `</end> \n\n\n` becomes `\n`."""
        names = {name: self._vocabulary.get(name) for name in ("<start_of_image>", "<end_of_image>")}
        opening, closing = names["<start_of_image>"], names["<end_of_image>"]
        breaks = {
            token_id: num
            for num in range(1, MAX_NEWLINES)
            if (token_id := self._vocabulary.get("\n" * num)) is not None
        }
        kept: list[int] = []
        place = 0
        while place < len(token_ids):
            kept.append(token_ids[place])
            place += 1
            if kept[-1] != opening or token_ids[place : place + 1] != [self.image]:
                continue
            kept[-1:] = []
            if kept and kept[-1] in breaks:
                kept[-1:] = self._shorter(breaks, kept[-1])
            kept.append(token_ids[place - 1])
            while place < len(token_ids) and token_ids[place] in (self.image, closing):
                place += 1
            if place < len(token_ids) and token_ids[place] in breaks:
                kept += self._shorter(breaks, token_ids[place])
                place += 1
        return kept

    def _shorter(self, breaks: dict[int, int], token_id: int) -> list[int]:
        """The token with two line breaks less."""
        rest = "\n" * (breaks[token_id] - 2)
        if breaks[token_id] < 2 or (rest and rest not in self._vocabulary):
            return [token_id]
        return [self._vocabulary[rest]] if rest else []

    def difference(self, ours: Sequence[int], theirs: Sequence[int]) -> str | None:
        """In words, where two expanded prompts differ first; None where they do not."""
        if list(ours) == list(theirs):
            return None
        image_sizes = [self.image_sizes(ids) for ids in (ours, theirs)]
        text = [[token_id for token_id in ids if token_id != self.image] for ids in (ours, theirs)]
        if image_sizes[0] != image_sizes[1] and text[0] == text[1]:
            pairs = zip(*image_sizes, strict=False)
            first = next((index for index, (a, b) in enumerate(pairs) if a != b), 0)
            return (
                f"image {first + 1} has {image_sizes[0][first]} tokens here and "
                f"{image_sizes[1][first] if first < len(image_sizes[1]) else 0} on the server: its processor resizes "
                "images differently"
            )
        place = next(
            (place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        return (
            f"token {place} of {len(ours)} is {self.name(ours, place)} here and {self.name(theirs, place)} on the "
            f"server, which counts {len(theirs)}"
        )

    def image_sizes(self, token_ids: Sequence[int]) -> list[int]:
        """Lengths of the runs of image tokens."""
        return [
            len(list(run)) for is_image, run in groupby(token_ids, lambda token_id: token_id == self.image) if is_image
        ]

    def name(self, token_ids: Sequence[int], place: int) -> str:
        """For messages: `'<|im_end|>' (151645)`."""
        if place >= len(token_ids):
            return "nothing"
        return token_name(self.tokenizer, token_ids[place])


def token_name(tokenizer: Any, token_id: int) -> str:
    """For messages: `'<|im_end|>' (151645)`."""
    known = 0 <= token_id < len(tokenizer)
    return f"{tokenizer.decode([token_id])!r} ({token_id})" if known else f"{token_id}, which the tokenizer lacks"


FRAMES: dict[str, Callable[[Any], tuple[str, str]]] = {
    "internvl": lambda tokenizer: ("<img>", "</img>"),
    "lfm2_vl": lambda tokenizer: ("<|image_start|>", "<|image_end|>"),
    "gemma4": lambda tokenizer: (tokenizer.boi_token, tokenizer.eoi_token),
}
"""What stands around an image."""
COLLAPSERS: dict[str, Callable[[Placeholders, Sequence[int], int], list[int]]] = {
    **dict.fromkeys(FRAMES, Placeholders.collapse_framed),
    **dict.fromkeys(("smolvlm", "idefics3"), Placeholders.collapse_tiles),
    "gemma3": Placeholders.collapse_paragraphs,
}
"""By the model type of the configuration; every other family has one token in place of each run."""
