"""The same records are counted alike in every layout in which a trainer may get them."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.step_watch import Counts, counts_of

PAD = 0
# Records of 3 and 5 tokens, padded to 10; the last two tokens of each are trained. One picture of 4 x 6 patches.
IDS = torch.tensor([[11, 12, 13, 21, 22, 23, 24, 25, PAD, PAD]])
LABELS = torch.tensor([[-100, 12, 13, -100, -100, -100, 24, 25, -100, -100]])
NUMBERS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
GRID = torch.tensor([[1, 4, 6]])
EXPECTED = Counts(tokens=8, labels=4, squares=3**2 + 5**2, patches=24, patch_squares=24**2)


def inputs(mask, **more):
    return {"input_ids": IDS, "labels": LABELS, "attention_mask": mask, "image_grid_thw": GRID, **more}


def test_neat_packing_with_numbered_records():
    assert counts_of(inputs(NUMBERS), PAD) == EXPECTED


def test_neat_packing_with_a_mask_of_row_by_row():
    """As LLaMA-Factory builds it for SDPA."""
    from llamafactory.data.collator import prepare_4d_attention_mask

    assert counts_of(inputs(prepare_4d_attention_mask(NUMBERS, torch.bfloat16)), PAD) == EXPECTED


@pytest.mark.parametrize("axes", [1, 3, 4])
def test_neat_packing_without_a_mask(axes):
    """As it gives them to flash-attention 2: positions that begin anew, with padding or without."""
    positions = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 0, 0]).expand(axes, 1, -1)
    if axes == 1:
        positions = positions[0]
    assert counts_of(inputs(None, position_ids=positions), PAD) == EXPECTED
    whole = {"input_ids": IDS[:, :8], "labels": LABELS[:, :8], "position_ids": positions[..., :8]}
    assert counts_of(inputs(None) | whole, PAD) == EXPECTED


def test_a_picture_does_not_begin_a_record():
    """The coordinates of a picture's patches are 0 in some axes, not in all."""
    positions = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 4, 0, 0], [0, 1, 2, 0, 1, 2, 0, 4, 0, 0]])[:, None]
    assert counts_of(inputs(None, position_ids=positions), PAD).squares == EXPECTED.squares


def test_padded_rows():
    ids = torch.tensor([[11, 12, 13, PAD, PAD], [21, 22, 23, 24, 25]])
    labels = torch.tensor([[-100, 12, 13, -100, -100], [-100, -100, -100, 24, 25]])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": (ids != PAD).long(), "image_grid_thw": GRID}
    assert counts_of(batch, PAD) == EXPECTED


def test_a_pack():
    """A third segment without labels, a white picture's, is no record."""
    packed = SimpleNamespace(
        segments=SimpleNamespace(lengths=(3, 5, 4)),
        target_columns=torch.tensor([0, 1, 5, 6]),
        target_weights=torch.ones(4),
        media={"image_grid_thw": GRID},
    )
    assert counts_of({"packed": packed}, PAD) == EXPECTED


def test_sums_are_by_field():
    assert EXPECTED + Counts(1, 1, 1) == Counts(9, 5, 35, 24, 576)
