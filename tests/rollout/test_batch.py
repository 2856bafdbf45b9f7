"""Decoding with the model's own cache, for families whose layers are not all attention over keys and values of their
own: linear attention (Qwen3.5), short convolutions (LFM2-VL), layers that share keys and values (Gemma 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_twins import FAMILY_TEMPLATES
from loaded_twins import LoadedTwin, as_sequences, load_twin, reference_log_probs

from lcot_plugin.packing.families import why_not_packable
from lcot_plugin.policy.head import token_log_probs
from lcot_plugin.types import SamplingParams

FAMILIES = [family for family in ("lfm2_vl", "qwen3_5", "gemma4") if family in FAMILY_TEMPLATES]
SAMPLED = SamplingParams(num_generations=3, max_new_tokens=10, temperature=1.0, seed=11)
CLOSE = {"rtol": 0, "atol": 3e-5}


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, twin: Any) -> LoadedTwin:
    return load_twin(twin(request.param))


def test_it_is_not_packed(loaded: LoadedTwin) -> None:
    assert why_not_packable(loaded.model) is not None


def test_greedy_is_that_of_generate(loaded: LoadedTwin) -> None:
    """Four prompts with two, one and no images, left padded in one batch, against each alone."""
    greedy = replace(SAMPLED, num_generations=1, temperature=0.0)
    groups = loaded.engine().generate(loaded.model, loaded.prompts, greedy, range(4))
    for prompt, group in zip(loaded.prompts, groups, strict=True):
        ids = torch.tensor([prompt.record.input_ids])
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=greedy.max_new_tokens,
            suppress_tokens=loaded.vlm.banned_token_ids,
            eos_token_id=loaded.end_token_ids,
            pad_token_id=loaded.tokenizer.pad_token_id,
            **(dict(prompt.media) | loaded.vlm.token_type_arguments(ids)),
        )
        assert group.completions[0].token_ids == output[0, ids.shape[1] :].tolist()
    assert len({tuple(group.completions[0].token_ids) for group in groups}) > 2


def test_sampler_update_and_a_plain_pass_agree(loaded: LoadedTwin) -> None:
    """The cache is repeated for a group's completions and loses those that have ended, the states of all its layers."""
    ends = [*loaded.end_token_ids, *range(0, loaded.vlm.vocab_size, 8)]
    groups = loaded.engine(ends).generate(loaded.model, loaded.prompts, SAMPLED, range(4))
    sequences = as_sequences(groups)
    lengths = [len(sequence.completion.token_ids) for sequence in sequences]
    assert len(set(lengths)) > 1, "some end before others"
    sampled = torch.tensor([value for sequence in sequences for value in sequence.completion.sampler_logps])
    banned = loaded.vlm.banned_token_ids
    with torch.no_grad():
        alone = torch.cat([reference_log_probs(loaded.model, sequence, banned, 1.0) for sequence in sequences])
        model_inputs, targets = loaded.rows(sequences, 1.0)
        updated, _ = token_log_probs(loaded.model, loaded.model, targets, model_inputs)
    torch.testing.assert_close(sampled, alone, **CLOSE)
    torch.testing.assert_close(updated, alone, **CLOSE)


def test_few_rows_at_once_draw_the_same(loaded: LoadedTwin) -> None:
    whole, parts = (
        loaded.engine(max_rows=rows).generate(loaded.model, loaded.prompts, SAMPLED, range(4)) for rows in (None, 2)
    )
    for one, other in zip(whole, parts, strict=True):
        assert [c.token_ids for c in one.completions] == [c.token_ids for c in other.completions]
