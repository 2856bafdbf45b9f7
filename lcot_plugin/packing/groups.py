"""GRPO's groups as one flat row: each prompt is computed once, its completions are segments that see it.

In: PackGroups, each a prompt with some of its completions. Out: PackedBatch, for the segment attention and the policy
update, whose targets are the completions' tokens: groups in order, completions in order, tokens in order.

A prompt `p q r` with the completions `a b c`, `d e` and `f`, then a prompt `s t` with `g h`:

    columns        0 1 2  3 4  5  6 7  8     segments       0 1 2 3 4
    input_ids      p q r  a b  d  s t  g     lengths        3 2 1 2 1
    position_ids   0 1 2  3 4  3  0 1  2     parents       -1 0 0 -1 3
    targets        a b c from columns 2 3 4, d e from 2 5, f from 2, g h from 7 8

The hidden state of r predicts the first token of each of its completions. A completion's last token predicts nothing,
so c, e, f and h are targets only: a completion of one token has no segment. `parents` counts segments, not groups.

Without sharing, the first group would be 5 + 4 + 3 tokens and its images three times through the vision tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lcot_plugin.packing.batch import join_media, num_patches, two_way_blocks
from lcot_plugin.types import PackedBatch, PackGroup, Segments
from lcot_plugin.vlm import VisionLanguageModel

ROOT = -1
"""Parent of a segment that sees itself only."""


def pack_groups(groups: Sequence[PackGroup], vlm: VisionLanguageModel) -> PackedBatch:
    """One row of all groups, in order; `num_examples` counts completions, every target weighs 1.

    A group without completions is its prompt alone and has no targets. Raises DataError where the images' tensors
    cannot be joined.
    """
    row: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    lengths: list[int] = []
    parents: list[int] = []
    blocks: list[tuple[int, int]] = []
    columns: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    start = 0

    def add_segment(tokens: torch.Tensor, where: torch.Tensor, parent: int) -> None:
        nonlocal start
        row.append(tokens)
        positions.append(where)
        lengths.append(len(tokens))
        parents.append(parent)
        start += len(tokens)

    for group in groups:
        prompt = torch.as_tensor(group.prompt_ids, dtype=torch.int64)[None]
        prompt_positions = vlm.positions(prompt, torch.ones_like(prompt), dict(group.media))
        blocks += two_way_blocks(vlm.token_type_arguments(prompt), start)
        prompt_segment = len(lengths)
        add_segment(prompt[0], prompt_positions, ROOT)
        prompt_end = torch.tensor([start - 1])
        # Text: one number in all rows of mrope, so that what is added to the first position is the same everywhere.
        first_position = vlm.step_positions(vlm.next_positions(prompt_positions))
        for completion in group.completions:
            assert completion, "a completion has at least one token"
            tokens = torch.as_tensor(completion, dtype=torch.int64)
            computed = torch.arange(len(completion) - 1)
            columns += [prompt_end, start + computed]
            ids.append(tokens)
            if len(computed):
                add_segment(tokens[:-1], first_position + computed, prompt_segment)

    input_ids = torch.cat(row)[None]
    target_ids = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)
    media = join_media(
        [group.media for group in groups],
        "lower grpo_micro_batch_tokens until a pack holds one group, or use images of one size.",
    )
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.cat(positions, dim=-1),
        segments=Segments(tuple(lengths), tuple(parents), tuple(blocks)),
        media=media,
        token_types=vlm.token_type_arguments(input_ids),
        target_columns=torch.cat(columns) if columns else torch.empty(0, dtype=torch.int64),
        target_ids=target_ids,
        target_weights=torch.ones(len(target_ids)),
        num_patches=num_patches(media, vlm.config),
        num_examples=len(ids),
    )
