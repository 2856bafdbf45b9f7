"""The examples of a pack as one flat row: what the model computes in one pass.

In: PackExamples, each with the tensors of its own images. Out: PackedBatch, for the segment attention and the loss.

Three examples `a b` (b trained), `I I c d` (an image of two tokens; c and d trained) and `e f` (both trained):

    columns        0 1 2 3 4 5 6 7
    input_ids      a b I I c d e f      segments (2, 4, 2)
    position_ids   0 1 0 1 2 3 0 1      each example counts from 0; mrope gives the image's tokens rows and columns
    targets        column 0 -> b, column 3 -> c, column 4 -> d, column 6 -> f

e is trained, yet column 5 is no target: its hidden state has seen another example.

Every family joins features with placeholders in the order of the row, so the images of all examples simply follow
each other. What depends on the example (positions, tiles by LLaVA-OneVision's batch_num_images) is found per example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch

from lcot_plugin.errors import DataError
from lcot_plugin.types import PackedBatch, PackExample, Segments
from lcot_plugin.vlm import VisionLanguageModel

IGNORE_INDEX = -100
"""Label of a token that is not trained; LLaMA-Factory's and torch's value."""


def pack_examples(
    examples: Sequence[PackExample],
    vlm: VisionLanguageModel,
    *,
    example_weighting: bool = False,
    idle: bool = False,
) -> PackedBatch:
    """One row of all examples, in order.

    `example_weighting`: a target weighs 1 / (targets of its example) instead of 1, so that every example weighs the
    same. `idle`: every target weighs 0. Raises DataError where the images' tensors cannot be joined.
    """
    rows = [torch.as_tensor(example.input_ids, dtype=torch.int64)[None] for example in examples]
    lengths = tuple(row.shape[1] for row in rows)
    starts = [0, *accumulate(lengths)][:-1]
    positions, columns, ids, weights = [], [], [], []
    blocks: list[tuple[int, int]] = []
    for example, row, start in zip(examples, rows, starts, strict=True):
        positions.append(vlm.positions(row, torch.ones_like(row), dict(example.media)))
        labels = torch.as_tensor(example.labels, dtype=torch.int64)
        trained = (labels[1:] != IGNORE_INDEX).nonzero()[:, 0]
        columns.append(start + trained)
        ids.append(labels[trained + 1])
        weight = 0.0 if idle else 1 / max(len(trained), 1) if example_weighting else 1.0
        weights.append(torch.full((len(trained),), weight))
        blocks += two_way_blocks(vlm.token_type_arguments(row), start)
    input_ids = torch.cat(rows, dim=1)
    media = join_media(
        [example.media for example in examples], "use images of one size, or length_aware_packing: false."
    )
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.cat(positions, dim=-1),
        segments=Segments(lengths, image_blocks=tuple(blocks)),
        media=media,
        token_types=vlm.token_type_arguments(input_ids),
        target_columns=torch.cat(columns),
        target_ids=torch.cat(ids),
        target_weights=torch.cat(weights),
        num_patches=num_patches(media, vlm.config),
        num_examples=0 if idle else sum(len(trained) > 0 for trained in ids),
    )


def two_way_blocks(token_types: Mapping[str, torch.Tensor], start: int) -> Iterator[tuple[int, int]]:
    """Flat ranges of one example's image tokens that see each other in both directions; the example begins at `start`.

    Only Gemma 3 has such tokens and asks for `token_type_ids` because of them. As there, image tokens without another
    token between them are one block.
    """
    if "token_type_ids" not in token_types:
        return
    for is_image, run in groupby(enumerate(token_types["token_type_ids"][0].tolist()), key=lambda item: item[1]):
        columns = [column for column, _ in run]
        if is_image:
            yield start + columns[0], start + columns[-1] + 1


def join_media(media: Sequence[Mapping[str, torch.Tensor]], advice: str) -> dict[str, torch.Tensor]:
    """The tensors of several examples along the first axis, in order; an example without media adds nothing.

    A tensor that stands alone is passed on without a copy. Raises DataError, with `advice`, where a family's tensors
    differ in shape from image to image.
    """
    parts = {key: [tensors[key] for tensors in media if key in tensors] for key in sorted(set().union(*media))}
    try:
        return {key: found[0] if len(found) == 1 else torch.cat(found) for key, found in parts.items()}
    except RuntimeError as error:
        shapes = {key: [tuple(tensor.shape) for tensor in found] for key, found in parts.items()}
        raise DataError(
            f"The images of several examples cannot be joined, their tensors differ in shape ({shapes}): {advice}"
        ) from error


def num_patches(media: Mapping[str, torch.Tensor], config: Any) -> int:
    """Patches that the vision tower reads: those of the grids (Qwen), or of all tiles.

    Examples: image_grid_thw `[[1, 6, 8]]` has 48; pixel_values [5, 3, 56, 56] have 80 of 14 x 14 pixels.
    """
    grids = [tensor for key, tensor in media.items() if key.endswith("_grid_thw")]
    if grids:
        return sum(int(grid.prod(-1).sum()) for grid in grids)
    pixels = [tensor for key, tensor in media.items() if key.startswith("pixel_values") and tensor.dim() >= 4]
    size = getattr(getattr(config, "vision_config", None), "patch_size", None)
    if not pixels or size is None:
        return 0
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    return sum(t.shape[:-3].numel() * (t.shape[-2] // rows) * (t.shape[-1] // columns) for t in pixels)
