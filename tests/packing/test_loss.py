"""The loss of a pack, without logits, is that of plain cross-entropy over all of them: values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from loaded_twins import ONE_IMAGE, load_twin
from logits_probe import logits_rows
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lcot_plugin.errors import LcotError
from lcot_plugin.packing import loss
from lcot_plugin.packing.loss import packed_nll, rows_per_chunk
from lcot_plugin.types import PackedBatch, Segments

NUM_TARGETS = 11


def text_model(**settings):
    """A text model of 80 tokens, in float64 for a reference that rounding does not blur."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=80, num_key_value_heads=1, initializer_range=0.5, **{**sizes, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


def text_batch(weights=None, num_targets=NUM_TARGETS):
    """20 tokens, of which 11 are trained."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(80, (1, 20), generator=generator)
    columns = torch.randperm(19, generator=generator).sort().values[:num_targets]
    weights = torch.ones(len(columns)) if weights is None else weights
    positions = torch.arange(20)[None]
    return PackedBatch(
        input_ids, positions, Segments((20,)), {}, {}, columns, input_ids[0, columns + 1], weights[: len(columns)]
    )


PER_EXAMPLE = torch.tensor([1 / 4] * 4 + [1 / 7] * 7)
"""Two examples with 4 and 7 trained tokens."""


def reference(model, batch):
    """Sum and single values from full logits."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **batch.media, **batch.token_types}
    logits = model(**inputs, use_cache=False).logits[0, batch.target_columns]
    nll = torch.nn.functional.cross_entropy(logits, batch.target_ids, reduction="none")
    return (nll * batch.target_weights.to(nll.dtype)).sum(), nll


def gradients(model, total):
    """By name; None where a parameter took no part."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(total, list(named.values()), allow_unused=True), strict=True))


def assert_same_gradients(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    total = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert total > 0.1
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (found[name].double() - gradient.double()).norm() <= tolerance * total, name


@pytest.fixture
def recomputed(monkeypatch):
    """One entry for each time that the loss was left to recomputation."""
    calls = []

    def counted(*arguments):
        calls.append(arguments[1])
        return recomputed_chunks(*arguments)

    recomputed_chunks = loss.recomputed_chunks
    monkeypatch.setattr(loss, "recomputed_chunks", counted)
    return calls


def recompute_always(monkeypatch):
    monkeypatch.setattr(loss, "is_plain_linear", lambda *_: False)


# --- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("weights", [None, PER_EXAMPLE], ids=["per_token", "per_example"])
@pytest.mark.parametrize("tied", [False, True])
def test_values_and_gradients_of_full_logits(recompute, weights, tied, recomputed, monkeypatch):
    model = text_model(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    batch = text_batch(weights)
    exact = text_model(tie_word_embeddings=tied).double()
    expected, expected_nll = reference(exact, batch)
    expected_gradients = gradients(exact, expected)
    if recompute:
        recompute_always(monkeypatch)
    for chunk_size in (1, 4, NUM_TARGETS, 1000, 0):
        total, nll = packed_nll(model, model, batch, chunk_size)
        assert total.dtype == nll.dtype == torch.float32
        assert total.shape == () and not nll.requires_grad
        torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(nll.double(), expected_nll.detach(), rtol=0, atol=1e-4)
        assert_same_gradients(gradients(model, total), expected_gradients)
    assert len(recomputed) == (5 if recompute else 0)

    plain, _ = reference(exact, text_batch())
    assert (plain - expected).abs() > 1 or weights is None, "weighting makes no difference here"


def test_a_pack_with_images(twin, recomputed):
    loaded = load_twin(twin("qwen2_5_vl"))
    prompt = loaded.prompts[ONE_IMAGE]
    input_ids = torch.tensor([prompt.record.input_ids])
    media = dict(prompt.media)
    columns = torch.arange(input_ids.shape[1] - 6, input_ids.shape[1] - 1)
    batch = PackedBatch(
        input_ids,
        loaded.vlm.positions(input_ids, torch.ones_like(input_ids), media),
        Segments((input_ids.shape[1],)),
        media,
        loaded.vlm.token_type_arguments(input_ids),
        columns,
        input_ids[0, columns + 1],
        torch.ones(5),
    )
    model = loaded.fresh_model()
    total, _ = packed_nll(model, model, batch, 2)
    expected, _ = reference(model, batch)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, total), gradients(model, expected))
    assert not recomputed

    other_pixels = replace(batch, media={**media, "pixel_values": media["pixel_values"] + 1})
    assert (packed_nll(model, model, other_pixels)[0] - total).abs() > 1e-3
    in_half = loaded.fresh_model().bfloat16()  # whose vision tower refuses float32 pixels
    assert packed_nll(in_half, in_half, batch)[0].isfinite()


def test_the_gradient_follows_what_the_trainer_makes_of_the_sum():
    model, batch = text_model(), text_batch()
    whole = gradients(model, packed_nll(model, model, batch, 3)[0])
    scaled = gradients(model, packed_nll(model, model, batch, 3)[0] * 0.125)
    for name, gradient in whole.items():
        torch.testing.assert_close(scaled[name], 0.125 * gradient, rtol=0, atol=1e-6)


def test_a_second_backward_pass_is_refused():
    model = text_model()
    total, _ = packed_nll(model, model, text_batch(), 3)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_without_gradients(recompute, monkeypatch):
    if recompute:
        recompute_always(monkeypatch)
    model, batch = text_model(), text_batch(PER_EXAMPLE)
    expected, expected_nll = packed_nll(model, model, batch)
    with torch.no_grad():
        total, nll = packed_nll(model, model, batch)
    assert not total.requires_grad
    torch.testing.assert_close((total, nll), (expected.detach(), expected_nll))


# --- packs that train nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "batch", [text_batch(num_targets=0), text_batch(torch.zeros(NUM_TARGETS))], ids=["no_targets", "idle"]
)
def test_a_pack_that_trains_nothing_still_reaches_every_parameter(batch, recompute, monkeypatch):
    if recompute:
        recompute_always(monkeypatch)
    model = text_model()
    total, nll = packed_nll(model, model, batch)
    assert total == 0 and len(nll) == len(batch.target_ids)
    for name, gradient in gradients(model, total).items():
        assert gradient is not None and not gradient.any(), name


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("num_targets", [0, NUM_TARGETS])
def test_distributed_data_parallel(process_group, num_targets, recompute, monkeypatch):
    """Twice: DDP refuses the second forward pass where a parameter's gradient was not seen in the first one."""
    if recompute:
        recompute_always(monkeypatch)
    model, batch = text_model(), text_batch(num_targets=num_targets)
    expected = gradients(model, packed_nll(model, model, batch)[0])
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        packed_nll(wrapped, model, batch, 3)[0].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-4)


# --- what the output layer may be -------------------------------------------------------------------------------------


def test_a_frozen_head_gets_no_gradient(recomputed):
    model, batch = text_model(), text_batch()
    model.lm_head.requires_grad_(False)
    total, _ = packed_nll(model, model, batch, 4)
    assert_same_gradients(gradients(model, total), gradients(model, reference(model, batch)[0]))
    total, _ = packed_nll(model, model, batch, 4)
    total.backward()
    assert model.lm_head.weight.grad is None and not recomputed


def test_only_the_head_is_trained(recomputed):
    model, batch = text_model(), text_batch()
    model.model.requires_grad_(False)
    found = gradients(model, packed_nll(model, model, batch, 4)[0])
    assert list(found) == ["lm_head.weight"] and not recomputed
    assert_same_gradients(found, gradients(model, reference(model, batch)[0]))


@pytest.mark.parametrize("target_modules", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(target_modules, recomputed):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=target_modules, init_lora_weights=False)
        model = get_peft_model(text_model(tie_word_embeddings=False), config).eval()
    batch = text_batch(PER_EXAMPLE)
    total, _ = packed_nll(model, model, batch, 4)
    expected, _ = reference(model, batch)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, total), gradients(model, expected))
    assert len(recomputed) == ("lm_head" in target_modules)
    without = text_model(tie_word_embeddings=False)
    assert (packed_nll(without, without, batch)[0] - total).abs() > 0.05


def with_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, 80))


def with_hook(model):
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))


def with_patch(model):
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden_states: plain(0.5 * hidden_states)


def with_subclass(model):
    class Halved(torch.nn.Linear):
        def forward(self, hidden_states):
            return super().forward(0.5 * hidden_states)

    model.lm_head.__class__ = Halved


def with_sharded_weight(model):
    model.lm_head.weight.ds_id = 0


@pytest.mark.parametrize("change", [with_bias, with_hook, with_patch, with_subclass, with_sharded_weight])
def test_another_layer_than_a_plain_one_is_recomputed(change, recomputed):
    model, batch = text_model(), text_batch()
    plain, _ = packed_nll(model, model, batch)
    assert not recomputed
    change(model)
    total, _ = packed_nll(model, model, batch, 4)
    assert recomputed == [4]
    expected, _ = reference(model, batch)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model, total), gradients(model, expected))
    assert (total - plain).abs() > 1e-2 or change is with_sharded_weight


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_that_scales_its_logits_is_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=80, num_key_value_heads=1, logits_scaling=8.0, **sizes)
    model = GraniteForCausalLM(config).eval()
    with pytest.raises(LcotError, match=r"^length_aware_packing: true does not support granite: its logits are not"):
        packed_nll(model, model, text_batch())


def test_a_model_that_caps_its_logits():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"head_dim": 16, "final_logit_softcapping": 3.0, "initializer_range": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(Gemma2Config(vocab_size=80, num_key_value_heads=1, **sizes, **settings)).eval()
    batch = text_batch(PER_EXAMPLE)
    expected, expected_nll = reference(model, batch)
    total, nll = packed_nll(model, model, batch, 4)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(nll, expected_nll.detach(), rtol=0, atol=1e-4)
    assert_same_gradients(gradients(model, total), gradients(model, expected))


# --- number formats ---------------------------------------------------------------------------------------------------


def test_autocast(recomputed, monkeypatch):
    model, batch = text_model(), text_batch(PER_EXAMPLE)
    exact, _ = packed_nll(model, model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, nll = packed_nll(model, model, batch, 4)
        expected, _ = reference(model, batch)
    assert total.dtype == nll.dtype == torch.float32 and not recomputed
    torch.testing.assert_close(total, expected.float(), rtol=1e-3, atol=0)
    assert 0 < (total - exact).abs() < 0.05 * exact, "computed in bfloat16"
    found = gradients(model, total)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert_same_gradients(found, gradients(model, expected), tolerance=2e-2)

    recompute_always(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = packed_nll(model, model, batch, 4)
    assert len(recomputed) == 1
    assert_same_gradients(gradients(model, total), found, tolerance=2e-2)


def test_float16_is_recomputed(recomputed):
    """Its loss scale reaches the gradients only in the backward pass."""
    model = text_model()
    with torch.autocast("cpu", dtype=torch.float16):
        packed_nll(model, model, text_batch())
    assert len(recomputed) == 1


def test_many_chunks_lose_nothing_in_bfloat16(monkeypatch):
    """A model whose weights are bfloat16: each chunk adds less than the sum's last digit."""
    generator = torch.Generator().manual_seed(2)
    hidden = (1 + 0.1 * torch.randn(1024, 8, generator=generator)).bfloat16()
    token_ids, ones = torch.randint(16, (1024,), generator=generator), torch.ones(1024)
    layer = torch.nn.Linear(8, 16, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.zero_()[0] = 1.0  # token 0 has nearly all the probability, wrongly

    def error(compute):
        total = compute()
        (found,) = torch.autograd.grad(total, layer.weight)
        return ((found.double() - expected).norm() / expected.norm()).item()

    weight = layer.weight.detach().double().requires_grad_()
    logits = hidden.double() @ weight.T
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, token_ids, reduction="sum"), weight)
    ours = error(lambda: loss._LinearNll.apply(hidden, layer.weight, token_ids, ones, 1, True)[0])
    in_bfloat16 = error(
        lambda: loss.recomputed_chunks(lambda x, ids: loss._chunk_nll(layer(x), ids), 1, hidden, token_ids).sum()
    )
    assert ours < 5e-3 < 0.1 < in_bfloat16


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_no_more_logits_than_a_chunk_exist(recompute, monkeypatch):
    if recompute:
        recompute_always(monkeypatch)
    model, batch = text_model(), text_batch()
    for chunk_size, seen in ((3, 3), (1000, NUM_TARGETS), (0, NUM_TARGETS)):
        assert logits_rows(model.lm_head, lambda size=chunk_size: packed_nll(model, model, batch, size)[0]) == (0, seen)
    kept, seen = logits_rows(model.lm_head, lambda: reference(model, batch)[0])
    assert min(kept, seen) >= NUM_TARGETS, "the count can see"


def test_a_chunk_fills_its_bytes_whatever_the_vocabulary():
    assert rows_per_chunk(151_936) == 220
    assert rows_per_chunk(32_000) == 1048
    assert rows_per_chunk(10**9) == 1
