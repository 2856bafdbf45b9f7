"""Sizes are counted as the processor and the model see them; what is larger than a pack is left out by policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from loaded_twins import load_twin

from lcot_plugin.errors import DataError
from lcot_plugin.integration.example_sizes import Admission, SizeCounter, StreamSizes, measure, patches_per_placeholder
from lcot_plugin.packing.batch import num_patches
from lcot_plugin.types import PackLimits

IMAGE = 7
COUNTER = SizeCounter((IMAGE,), 4)
ROWS = [
    {"input_ids": [1, IMAGE, IMAGE, 2], "labels": [-100, -100, -100, 2]},
    {"input_ids": [1, 2], "labels": [-100, 2]},
    {"input_ids": [1, 3, 4, 5, 6], "labels": [-100, 3, 4, 5, 6]},
    {"input_ids": [IMAGE] * 3, "labels": [-100, -100, IMAGE]},
]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list(ROWS)


def test_sizes_of_every_row(dataset: Dataset) -> None:
    sizes = COUNTER.of_dataset(dataset)
    assert sizes.tokens.tolist() == [4, 2, 5, 3]
    assert sizes.patches.tolist() == [8, 0, 0, 12]
    assert sizes.labels.tolist() == [1, 1, 4, 1]
    assert {array.dtype for array in vars(sizes).values()} == {np.dtype(np.int64)}
    assert [COUNTER.of_row(row) for row in ROWS] == list(zip(*(vars(sizes).values()), strict=True))


def test_rows_that_were_selected_keep_their_order(dataset: Dataset) -> None:
    assert COUNTER.of_dataset(dataset.select([3, 1])).tokens.tolist() == [3, 2]
    assert COUNTER.of_dataset(dataset.select([2, 3])).patches.tolist() == [0, 12]


def test_batches_follow_each_other(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcot_plugin.integration.example_sizes.BATCH_SIZE", 3)
    assert COUNTER.of_dataset(dataset).patches.tolist() == [8, 0, 0, 12]


def test_what_fits_is_kept_as_it_is(dataset: Dataset) -> None:
    sizes, kept = measure(dataset, COUNTER, PackLimits(5, 12), "error")
    assert kept is None and len(sizes) == 4


@pytest.mark.parametrize(("limits", "rows"), [(PackLimits(4), [0, 1, 3]), (PackLimits(5, 8), [0, 1, 2])])
def test_what_is_larger_than_a_pack_is_left_out(dataset: Dataset, limits: PackLimits, rows: list[int]) -> None:
    sizes, kept = measure(dataset, COUNTER, limits, "drop")
    assert kept is not None and kept.tolist() == rows
    assert sizes.tokens.tolist() == [len(ROWS[row]["input_ids"]) for row in rows]


def test_or_stops_the_run(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"Example 3 .* 12 image patches, pack_max_patches is 8"):
        measure(dataset, COUNTER, PackLimits(5, 8), "error")
    with pytest.raises(DataError, match="No example fits into a pack: example 0: 4 tokens, pack_max_tokens is 1"):
        measure(dataset, COUNTER, PackLimits(1), "truncate")


def test_a_stream_counts_what_it_leaves_out() -> None:
    size_of = StreamSizes(COUNTER, Admission(PackLimits(4), "drop"))
    assert [size_of(row) for row in ROWS] == [(4, 8, 1), (2, 0, 1), None, (3, 12, 1)]
    assert size_of.admission.num_left_out == 1
    assert size_of.admission.named == ["example 2: 5 tokens, pack_max_tokens is 4"]


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llava", "smolvlm"])
def test_patches_are_those_of_the_vision_tower(family: str, twin: Any) -> None:
    loaded = load_twin(twin(family))
    counter = SizeCounter.of_model(loaded.model.config, loaded.vlm)
    for prompt in loaded.prompts:
        row = {"input_ids": prompt.record.input_ids, "labels": prompt.record.input_ids}
        assert counter.of_row(row)[1] == num_patches(prompt.media, loaded.model.config)
    assert patches_per_placeholder(loaded.model.config) == counter.patches_per_placeholder
