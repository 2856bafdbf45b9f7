"""The texts of a record in, texts with exactly one `<image>` per image out; `samples` consumes them.

LLaMA-Factory counts `<image>`, `<video>` and `<audio>` over all turns, wherever they stand, and processors expand
their own placeholders (`<|image_pad|>`, `<IMG_CONTEXT>`...) wherever they stand. In a thought or an answer they are
words, so there `<image>` becomes `[image]`.

Repairs that are safe, because they leave no choice of where an image belongs:
- no placeholder at all: every image before the first user turn's text, one per line;
- no `<image>`, but as many of a family's own (`<|vision_start|><|image_pad|><|vision_end|>`, `<IMG_CONTEXT>`,
  `<image_soft_token>`), or of another case (`<Image>`), as there are images: these become `<image>`;
- no `<image>`, but `<image 1>`, `<image_2>`... that count the images in order, each once: the same.
Anything else is PLACEHOLDERS: guessing would show the model the wrong image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lcot_plugin.errors import RecordError
from lcot_plugin.types import RecordFault

IMAGE, VIDEO, AUDIO = "<image>", "<video>", "<audio>"

_MEDIUM = r"(?:image|img|video|vision|audio|media)"
_SPECIAL = re.compile(
    # Families' special tokens for media; a bound on the names keeps the scan linear.
    rf"<\|?/?(?P<piped>[a-z_]{{0,24}}{_MEDIUM}[a-z0-9_]{{0,24}})\|>"
    rf"|<\|(?P<half>{_MEDIUM})>"
    r"|<(?P<plain>/?(?:image|video|audio|img|IMG_CONTEXT|image_soft_token|audio_soft_token|start_of_image"
    r"|end_of_image|image_placeholder|fake_token_around_image|global-img|image_id|slice|ImageHere))>"
    r"|<(?P<tile>row_\d{1,3}_col_\d{1,3})>",
    re.IGNORECASE,
)
_USERS_OWN = re.compile(f"({IMAGE}|{VIDEO}|{AUDIO})")
_OTHER_FORMS = (
    re.compile(r"(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?"),
    re.compile(r"(?:<img>)?<IMG_CONTEXT>(?:</img>)?"),
    re.compile(r"(?:<start_of_image>)?<image_soft_token>(?:<end_of_image>)?"),
    re.compile(r"<start_of_image>|<ImageHere>|<\|image\|>|<image_placeholder>"),
    re.compile(r"<image>", re.IGNORECASE),
)
_NUMBERED = re.compile(r"<\|?image[ _]?(\d{1,3})\|?>", re.IGNORECASE)


def neutralise(text: str) -> str:
    """`text` in which nothing is a placeholder any more: `<image>` reads `[image]`, `<|image_pad|>` `[image_pad]`."""
    return _SPECIAL.sub(lambda token: f"[{next(name for name in token.groups() if name)}]", text)


def place_media(texts: Sequence[str], num_images: int, num_videos: int) -> list[str]:
    """The user turns' `texts` with one `<image>` per image and one `<video>` per video.

    Raises RecordError(PLACEHOLDERS) where they differ and no safe repair does.
    """
    placed = list(texts)
    if num_images and not _count(placed, IMAGE):
        placed = _repaired(placed, num_images)
    placed = [
        "".join(part if index % 2 else neutralise(part) for index, part in enumerate(_USERS_OWN.split(text)))
        for text in placed
    ]
    missing = []
    for placeholder, number in ((IMAGE, num_images), (VIDEO, num_videos), (AUDIO, 0)):
        count = _count(placed, placeholder)
        if count == 0:
            missing += [placeholder] * number
        elif count != number:
            raise RecordError(
                RecordFault.PLACEHOLDERS,
                f"the question has {count} {placeholder} for {number} file(s): write one for each, where it belongs",
            )
    if missing:
        placed[0] = "\n".join([*missing, *filter(None, [placed[0].lstrip("\n")])])
    return placed


def _repaired(texts: list[str], num_images: int) -> list[str]:
    numbers = [int(number) for text in texts for number in _NUMBERED.findall(text)]
    if numbers == list(range(1, num_images + 1)):
        return [_NUMBERED.sub(IMAGE, text) for text in texts]
    for form in _OTHER_FORMS:
        if sum(len(form.findall(text)) for text in texts) == num_images:
            return [form.sub(IMAGE, text) for text in texts]
    return texts


def _count(texts: Sequence[str], placeholder: str) -> int:
    return sum(text.count(placeholder) for text in texts)
