"""The two layouts of the policy update, and the check of one against the other."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loaded_twins import ONE_IMAGE, TEXT, load_twin, written

from lcot_plugin.errors import LcotError
from lcot_plugin.integration.media import batch_media
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.vision_memo import VisionMemo
from lcot_plugin.policy import layouts
from lcot_plugin.policy.experience import MicroBatch, SequenceSize
from lcot_plugin.policy.layouts import PackedLayout, RowsLayout, check_layout

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")


def packed_layout(vlm, max_tokens=64, memo=None, temperature=1.0):
    cost = CostModel(token=100.0, square=1.0, patch=10.0)
    return PackedLayout(vlm, max_tokens=max_tokens, cost=cost, temperature=temperature, chunk_size=8, memo=memo)


def rows_layout(vlm, rows=3, pad_token_id=0, temperature=1.0):
    return RowsLayout(
        vlm, rows=rows, batch_media=batch_media, pad_token_id=pad_token_id, temperature=temperature, chunk_size=8
    )


NO_MODEL = SimpleNamespace(banned_token_ids=[])


@st.composite
def sizes(draw):
    """Sequences of some groups, in order; those of one group have one prompt."""
    found = []
    for group in range(draw(st.integers(0, 6))):
        prompt, patches = draw(st.integers(1, 30)), draw(st.integers(0, 20))
        found += [
            SequenceSize(group, prompt, patches, draw(st.integers(1, 60))) for _ in range(draw(st.integers(1, 5)))
        ]
    return found


@given(sizes(), st.integers(1, 4), st.booleans())
def test_every_sequence_is_in_one_pass_of_one_rank(sizes, num_ranks, packed):
    layout = packed_layout(NO_MODEL) if packed else rows_layout(NO_MODEL)
    plan = layout.plan(sizes, num_ranks)
    assert len(plan) == num_ranks
    assert len({len(passes) for passes in plan}) == 1 and plan[0], "as many passes on every rank, at least one"
    assert sorted(index for passes in plan for indices in passes for index in indices) == list(range(len(sizes)))
    for indices in (indices for passes in plan for indices in passes):
        if not packed:
            assert len(indices) <= 3
            continue
        groups = [sizes[index].group for index in indices]
        assert groups == sorted(groups, key=groups.index), "sequences of a group follow each other"
        tokens = sum(sizes[groups_first(indices, sizes, g)].prompt_tokens for g in set(groups))
        tokens += sum(sizes[index].tokens for index in indices)
        assert tokens <= 64 or len(indices) == 1


def groups_first(indices, sizes, group):
    return next(index for index in indices if sizes[index].group == group)


def groups_of(loaded):
    """Two prompts, three completions each."""
    sequences = []
    for group, prompt in enumerate((ONE_IMAGE, TEXT)):
        for tokens in ([5, 17, 300], [40], [8, 9, 10, 11, 12]):
            sequence = written(loaded.prompts[prompt], tokens)
            sequence.group = group
            sequences.append(sequence)
    return sequences


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "internvl"])
def test_both_give_the_same(family, temperature, twin):
    loaded = load_twin(twin(family))
    packed, rows = packed_layout(loaded.vlm, temperature=temperature), rows_layout(loaded.vlm, temperature=temperature)
    micro_batch = MicroBatch(groups_of(loaded), 0)
    with torch.no_grad():
        expected = rows.log_probs(loaded.model, loaded.model, micro_batch)
        with packed.computing(loaded.model, micro_batch):
            found = packed.log_probs(loaded.model, loaded.model, micro_batch)
    for values, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(values, reference, atol=2e-5, rtol=0)
    assert check_layout(packed, rows, loaded.model, micro_batch) <= 2e-5


def test_a_packed_update_that_is_wrong_is_refused(twin, monkeypatch):
    """Completions that see each other: what a family would do whose attention ignores the segments."""
    loaded = load_twin(twin("qwen2_5_vl"))
    packed, rows = packed_layout(loaded.vlm), rows_layout(loaded.vlm)
    micro_batch = MicroBatch(groups_of(loaded), 0)
    real = layouts.pack_groups

    def one_segment(*arguments):
        batch = real(*arguments)
        batch.segments = type(batch.segments)((batch.input_ids.shape[1],))
        return batch

    monkeypatch.setattr(layouts, "pack_groups", one_segment)
    with pytest.raises(LcotError, match=r"grpo_update_layout: rows"):
        check_layout(packed, rows, loaded.model, micro_batch)


def test_vision_features_are_computed_once_per_experience(twin):
    loaded = load_twin(twin("qwen2_5_vl"))
    packed = packed_layout(loaded.vlm, memo=VisionMemo())
    micro_batch, calls, model = MicroBatch(groups_of(loaded), 0), [], loaded.fresh_model()
    model.model.visual.requires_grad_(False)
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))

    @torch.no_grad()
    def compute():
        with packed.computing(model, micro_batch):
            packed.log_probs(model, model, micro_batch)

    for _ in range(3):
        compute()
    assert len(calls) == 1
    packed.forget()
    compute()
    assert len(calls) == 2
