"""The rollout engine, the policy update and a plain forward pass agree on every token's log-probability."""

import pytest
import torch
from loaded_twins import (
    FAMILIES,
    MROPE_FAMILIES,
    ONE_IMAGE,
    SHORT_TEXT,
    TEXT,
    TWO_IMAGES,
    as_sequences,
    load_twin,
    reference_log_probs,
    written,
)

from lcot_plugin.policy.head import token_log_probs
from lcot_plugin.types import SamplingParams

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")


def rollout(loaded, temperature, num_generations=4, max_new_tokens=10):
    sampling = SamplingParams(num_generations, max_new_tokens, temperature=temperature, seed=3)
    return loaded.engine(frequent_end_tokens(loaded)).generate(loaded.model, loaded.prompts, sampling, range(4))


def frequent_end_tokens(loaded):
    """Every tenth token ends a completion, so that lengths differ."""
    return [token for token in range(loaded.vlm.vocab_size) if token % 10 == 0]


def largest_gap(left, right):
    return (left - right).abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sampler_policy_and_plain_forward_agree(family, temperature, twin):
    """One, two and no images and four prompt lengths in one batch, in float32."""
    loaded = load_twin(twin(family))
    sequences = as_sequences(rollout(loaded, temperature))
    lengths = {len(sequence.completion.token_ids) for sequence in sequences}
    assert len(lengths) > 2 and len({len(prompt.record.input_ids) for prompt in loaded.prompts}) > 2

    banned = loaded.vlm.banned_token_ids
    reference = torch.cat([reference_log_probs(loaded.model, s, banned, temperature) for s in sequences])
    sampler = torch.tensor([logp for s in sequences for logp in s.completion.sampler_logps])
    model_inputs, targets = loaded.rows(sequences, temperature, chunk_size=7)
    policy, entropies = token_log_probs(loaded.model, loaded.model, targets, model_inputs)
    assert largest_gap(sampler, reference) <= 1e-5
    assert largest_gap(policy, reference) <= 1e-5
    assert largest_gap(policy, sampler) <= 1e-5
    assert policy.dtype == entropies.dtype == torch.float32
    # Another temperature, or no ban, is told apart.
    assert largest_gap(policy, torch.cat([reference_log_probs(loaded.model, s, banned, 0.9) for s in sequences])) > 0.05


@pytest.mark.parametrize("family", MROPE_FAMILIES)
@torch.no_grad()
def test_one_dimensional_positions_are_wrong_for_mrope(family, twin):
    loaded = load_twin(twin(family))
    sequences = as_sequences(rollout(loaded, 1.0))
    model_inputs, targets = loaded.rows(sequences, 1.0)
    assert model_inputs["position_ids"].shape == (3, *model_inputs["input_ids"].shape)
    right, _ = token_log_probs(loaded.model, loaded.model, targets, model_inputs)
    counted = (model_inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    wrong, _ = token_log_probs(loaded.model, loaded.model, targets, {**model_inputs, "position_ids": counted})
    assert largest_gap(right, wrong) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_forward(family, twin):
    loaded = load_twin(twin(family))
    sequences = as_sequences(rollout(loaded, 1.3, num_generations=2, max_new_tokens=6))
    parameters = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}

    def gradients(log_probs, advantages):
        found = torch.autograd.grad((log_probs * advantages).sum(), list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    lengths = torch.tensor([len(s.completion.token_ids) for s in sequences])
    advantages = torch.tensor([s.advantage for s in sequences]).repeat_interleave(lengths)
    banned = loaded.vlm.banned_token_ids
    reference = torch.cat([reference_log_probs(loaded.model, s, banned, 1.3) for s in sequences])
    expected = gradients(reference, advantages)
    model_inputs, targets = loaded.rows(sequences, 1.3, chunk_size=7)
    found = gradients(token_log_probs(loaded.model, loaded.model, targets, model_inputs)[0], advantages)
    assert_same_gradients(found, expected)
    assert any("vis" in name and gradient is not None for name, gradient in found.items())


def assert_same_gradients(found, expected):
    """To 1e-5 of the length, over all parameters and for each whose share is more than rounding noise."""
    assert [name for name, g in found.items() if g is None] == [name for name, g in expected.items() if g is None]
    total = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert total > 1
    squares = 0.0
    for name, gradient in expected.items():
        if gradient is not None:
            gap = (found[name] - gradient).norm()
            squares += gap.square()
            assert gap <= 1e-5 * max(gradient.norm(), 0.1 * total), name
    assert squares.sqrt() <= 1e-5 * total


def test_layout_of_rows(twin):
    """Prompts of 24 and 37 tokens: columns point at the token before, padding is on the right and masked."""
    loaded = load_twin(twin("qwen2_5_vl"))
    short, long = loaded.prompts[SHORT_TEXT], loaded.prompts[TEXT]
    num_short, num_long = len(short.record.input_ids), len(long.record.input_ids)
    sequences = [written(short, [11, 12]), written(long, [13]), written(short, [14, 15, 16])]
    model_inputs, targets = loaded.rows(sequences, 1.0)
    assert model_inputs["input_ids"].shape == (3, num_long + 1)
    assert model_inputs["input_ids"][0].tolist() == (
        short.record.input_ids + [11, 12] + [loaded.tokenizer.pad_token_id] * (num_long + 1 - num_short - 2)
    )
    assert model_inputs["attention_mask"].sum(-1).tolist() == [num_short + 2, num_long + 1, num_short + 3]
    assert model_inputs["attention_mask"][0, : num_short + 2].all()
    assert targets.rows.tolist() == [0, 0, 1, 2, 2, 2]
    first = num_short - 1
    assert targets.columns.tolist() == [first, first + 1, num_long - 1, first, first + 1, first + 2]
    assert targets.token_ids.tolist() == [11, 12, 13, 14, 15, 16]
    following = model_inputs["input_ids"][targets.rows, targets.columns + 1]
    assert torch.equal(following, targets.token_ids)


def test_images_of_rows_follow_the_rows(twin):
    """Rows with two, none, one and two images: five grids, in row order."""
    loaded = load_twin(twin("qwen2_5_vl"))
    order = [TWO_IMAGES, TEXT, ONE_IMAGE, TWO_IMAGES]
    model_inputs, _ = loaded.rows([written(loaded.prompts[i], [11]) for i in order], 1.0)
    grids = [loaded.prompts[i].media["image_grid_thw"] for i in order if i != TEXT]
    assert torch.equal(model_inputs["image_grid_thw"], torch.cat(grids))
    assert len(model_inputs["pixel_values"]) == sum(int(grid.prod(-1).sum()) for grid in grids)
    assert "pixel_values" not in loaded.rows([written(loaded.prompts[TEXT], [11])], 1.0)[0]


def test_greedy_completions_have_a_policy(twin):
    """At temperature 0 the log-probability is that at temperature 1: dividing by 0 has no meaning."""
    loaded = load_twin(twin("qwen2_5_vl"))
    _, targets = loaded.rows([written(loaded.prompts[TEXT], [11])], 0.0)
    assert targets.temperature == 1.0
