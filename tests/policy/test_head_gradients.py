"""The gradients of the output layer in closed form."""

import pytest
import torch
from loaded_twins import ONE_IMAGE, load_twin, reference_log_probs, written
from logits_probe import logits_rows
from transformers import Qwen2Config, Qwen2ForCausalLM

from lcot_plugin.policy import head
from lcot_plugin.policy.head import HeadTargets, _LinearLogProbs, chunk_log_probs, packed_log_probs, token_log_probs
from lcot_plugin.types import PackedBatch, Segments

FAMILY = "qwen2_5_vl"
TOKENS = [5, 17, 300, 41, 402, 77, 8, 256, 99]


@pytest.fixture
def loaded(twin):
    return load_twin(twin(FAMILY))


VOCABULARY, NUM_TARGETS = 80, 11
BANNED = torch.tensor([3, 7, 79])


def text_model(**settings):
    """A text model of 80 tokens whose distributions are far from flat."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=80, num_key_value_heads=1, initializer_range=0.5, **{**sizes, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config).eval()


def text_batch(num_targets=NUM_TARGETS):
    """20 tokens; the first three targets share a column, as the first tokens of three completions do."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(8, 79, (1, 20), generator=generator)
    columns = torch.tensor([2, 2, 2, 3, 5, 6, 9, 11, 12, 17, 18])[:num_targets]
    token_ids = torch.randint(8, 79, (11,), generator=generator)[:num_targets]
    positions = torch.arange(20)[None]
    return PackedBatch(input_ids, positions, Segments((20,)), {}, {}, columns, token_ids, torch.ones(len(columns)))


def computed(model, batch, chunk_size=4, temperature=0.7, entropy_gradient=True):
    options = {"temperature": temperature, "chunk_size": chunk_size, "entropy_gradient": entropy_gradient}
    return packed_log_probs(model, model, batch, banned=BANNED, **options)


def plainly(model, batch, temperature=0.7):
    """The same from full logits by autograd."""
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    allowed = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, BANNED, False)
    log_probs = torch.full_like(logits[0], -torch.inf)
    log_probs[:, allowed] = (
        (logits[0].to(torch.promote_types(logits.dtype, torch.float32)) / temperature)[:, allowed]
        .log_softmax(-1)
        .to(logits.dtype)
    )
    found = log_probs[batch.target_columns, batch.target_ids]
    kept = log_probs[batch.target_columns][:, allowed]
    return found, -(kept.exp() * kept).sum(-1)


def both(log_probs, entropies):
    """A scalar that weighs each log-probability and each entropy differently."""
    weights = torch.linspace(-1.5, 2.0, len(log_probs), dtype=log_probs.dtype)
    return (weights * log_probs).sum() + (weights.flip(0) * entropies).sum()


def gradients(model, total):
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(total, list(named.values()), allow_unused=True), strict=True))


def assert_same_gradients(found, expected, tolerance=1e-5):
    """To `tolerance` of the whole gradient's norm."""
    assert found.keys() == expected.keys()
    total = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert total > 0.1
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (found[name].double() - gradient.double()).norm() <= tolerance * total, name


def recompute_always(monkeypatch):
    monkeypatch.setattr(head, "is_plain_linear", lambda *_: False)


@pytest.fixture
def recomputed(monkeypatch):
    """The chunk size of each computation that was left to recomputation."""
    calls = []

    def counted(*arguments):
        calls.append(arguments[1])
        return recomputed_chunks(*arguments)

    recomputed_chunks = head.recomputed_chunks
    monkeypatch.setattr(head, "recomputed_chunks", counted)
    return calls


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4, NUM_TARGETS, 1000])
@pytest.mark.parametrize("tied", [False, True])
def test_values_and_gradients_of_full_logits(tied, chunk_size, recompute, recomputed, monkeypatch):
    model, batch = text_model(tie_word_embeddings=tied), text_batch()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    if recompute:
        recompute_always(monkeypatch)
    log_probs, entropies = computed(model, batch, chunk_size)
    # In float64, for a reference that rounding does not blur; what is left is the rounding of the layers below.
    exact = text_model(tie_word_embeddings=tied).double()
    expected = plainly(exact, batch)
    assert log_probs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close((log_probs.double(), entropies.double()), expected, rtol=1e-5, atol=1e-5)
    wanted = gradients(exact, both(*expected))
    assert_same_gradients(gradients(model, both(log_probs, entropies)), wanted)
    assert recomputed == [chunk_size] * recompute


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_the_function_alone_in_float32(chunk_size, entropy_gradient):
    """To 1e-6 of log_softmax in float64, of the largest value and of each gradient's norm."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(64, 16, generator=generator).requires_grad_()
    weight = torch.randn(300, 16, generator=generator).requires_grad_()
    token_ids, banned = torch.randint(0, 200, (64,), generator=generator), torch.arange(250, 300)

    def scalar(log_probs, entropies):
        return both(log_probs, entropies if entropy_gradient else entropies.detach())

    found = _LinearLogProbs.apply(hidden, weight, token_ids, banned, 0.9, chunk_size, entropy_gradient)
    exact = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    allowed = (exact[0] @ exact[1].T / 0.9)[:, :250].log_softmax(-1)
    expected = allowed.gather(-1, token_ids[:, None])[:, 0], -(allowed.exp() * allowed).sum(-1)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=0, atol=1e-6 * reference.abs().max().item())
    gradients_found = torch.autograd.grad(scalar(*found), (hidden, weight))
    for ours, reference in zip(gradients_found, torch.autograd.grad(scalar(*expected), exact), strict=True):
        assert (ours - reference).norm() <= 1e-6 * reference.norm()


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_the_function_alone_in_float64(entropy_gradient):
    """Numerical differentiation, and plain log_softmax to 1e-12."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    token_ids, banned = torch.tensor([0, 3, 8, 3, 5]), torch.tensor([1, 7])

    def ours(hidden, weight):
        return _LinearLogProbs.apply(hidden, weight, token_ids, banned, 0.6, 2, entropy_gradient)

    log_probs, entropies = ours(hidden, weight)
    expected = (hidden @ weight.T / 0.6).index_fill(-1, banned, -1e9).log_softmax(-1)
    torch.testing.assert_close(log_probs, expected.gather(-1, token_ids[:, None])[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(entropies, -(expected.exp() * expected).sum(-1), rtol=0, atol=1e-12)
    assert entropies.requires_grad == entropy_gradient
    assert torch.autograd.gradcheck(ours, (hidden, weight))


@pytest.mark.parametrize("recompute", [False, True])
def test_entropies_without_gradient(recompute, monkeypatch):
    if recompute:
        recompute_always(monkeypatch)
    model, batch = text_model(), text_batch()
    log_probs, entropies = computed(model, batch, entropy_gradient=False)
    with_gradient = computed(model, batch)
    assert log_probs.requires_grad and not entropies.requires_grad
    torch.testing.assert_close((log_probs, entropies), with_gradient)
    weights = torch.linspace(-1.5, 2.0, NUM_TARGETS)
    expected = gradients(model, (weights * plainly(model, batch)[0]).sum())
    assert_same_gradients(gradients(model, (weights * log_probs).sum()), expected)
    # The entropies' own part is what the other tests would miss if it were lost.
    of_both = gradients(model, both(*with_gradient))
    assert (of_both["lm_head.weight"] - expected["lm_head.weight"]).norm() > 0.1


def test_temperature_and_banned_ids_matter():
    model, batch = text_model(), text_batch()
    at_07, _ = computed(model, batch)
    at_1, _ = computed(model, batch, temperature=1.0)
    everything = packed_log_probs(model, model, batch, banned=BANNED[:0], temperature=0.7, chunk_size=4)[0]
    assert (at_07 - at_1).abs().max() > 0.1
    assert (at_07 - everything).max() > 1e-2 and (at_07 >= everything - 1e-5).all()


def test_a_banned_token_gets_no_gradient():
    """Of the output layer's rows; the row of a token that none of the targets is gets some."""
    model, batch = text_model(tie_word_embeddings=False), text_batch()
    gradient = gradients(model, both(*computed(model, batch)))["lm_head.weight"]
    assert not gradient[BANNED].any()
    allowed = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, BANNED, False)
    assert gradient[allowed].any(-1).all()


def test_packed_equals_padded_rows():
    """One row read as a pack and as padded rows: the same targets, the same numbers."""
    model, batch = text_model(), text_batch()
    rows = torch.zeros_like(batch.target_columns)
    targets = HeadTargets(rows, batch.target_columns, batch.target_ids, BANNED, 0.7, 4)
    expected = token_log_probs(model, model, targets, {"input_ids": batch.input_ids})
    torch.testing.assert_close(computed(model, batch), expected, rtol=0, atol=1e-6)


def test_a_pack_with_images(loaded, recomputed):
    sequence = written(loaded.prompts[ONE_IMAGE], TOKENS)
    prompt = sequence.prompt.record.input_ids
    input_ids = torch.tensor([prompt + TOKENS])
    media = dict(sequence.prompt.media)
    columns = torch.arange(len(prompt) - 1, input_ids.shape[1] - 1)
    batch = PackedBatch(
        input_ids,
        loaded.vlm.positions(input_ids, torch.ones_like(input_ids), media),
        Segments((input_ids.shape[1],)),
        media,
        loaded.vlm.token_type_arguments(input_ids),
        columns,
        torch.tensor(TOKENS),
        torch.ones(len(TOKENS)),
    )
    banned = loaded.vlm.banned_token_ids
    options = {"banned": torch.tensor(banned), "temperature": 0.8, "chunk_size": 4}
    log_probs, _ = packed_log_probs(loaded.model, loaded.model, batch, **options)
    expected = reference_log_probs(loaded.model, sequence, banned, 0.8)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=2e-5)
    assert not recomputed
    in_half = loaded.fresh_model().bfloat16()  # whose vision tower refuses float32 pixels
    assert packed_log_probs(in_half, in_half, batch, **options)[0].isfinite().all()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pack_without_targets_still_reaches_every_parameter(recompute, monkeypatch):
    if recompute:
        recompute_always(monkeypatch)
    model, batch = text_model(), text_batch(num_targets=0)
    log_probs, entropies = computed(model, batch, entropy_gradient=False)
    assert log_probs.shape == entropies.shape == (0,)
    for name, gradient in gradients(model, log_probs.sum()).items():
        assert gradient is not None and not gradient.any(), name


@pytest.mark.parametrize("frozen", ["lm_head", "model"])
def test_what_is_frozen_gets_no_gradient(frozen, recomputed):
    model, batch = text_model(tie_word_embeddings=False), text_batch()
    getattr(model, frozen).requires_grad_(False)
    found = gradients(model, both(*computed(model, batch)))
    assert ("lm_head.weight" in found) == (frozen == "model") and not recomputed
    assert_same_gradients(found, gradients(model, both(*plainly(model, batch))))


def test_without_gradients():
    model, batch = text_model(), text_batch()
    expected = computed(model, batch)
    with torch.no_grad():
        found = computed(model, batch)
    assert not found[0].requires_grad and not found[1].requires_grad
    torch.testing.assert_close(found, (expected[0].detach(), expected[1].detach()), rtol=0, atol=0)


def test_another_layer_than_a_plain_one_is_recomputed(recomputed):
    model, batch = text_model(), text_batch()
    plain, _ = computed(model, batch)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, VOCABULARY))
    found = computed(model, batch)
    assert recomputed == [4]
    expected = plainly(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert_same_gradients(gradients(model, both(*found)), gradients(model, both(*expected)))
    assert (found[0] - plain).abs().max() > 0.1


# --- number formats ---------------------------------------------------------------------------------------------------


def test_autocast(recomputed, monkeypatch):
    model, batch = text_model(), text_batch()
    exact, _ = computed(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs, entropies = computed(model, batch)
    assert log_probs.dtype == entropies.dtype == torch.float32 and not recomputed
    assert 1e-4 < (log_probs - exact).abs().max() < 1.0, "computed in bfloat16"
    found = gradients(model, both(log_probs, entropies))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}

    recompute_always(monkeypatch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = computed(model, batch)
    assert recomputed == [4]
    torch.testing.assert_close((log_probs, entropies), again, rtol=0, atol=1e-5)
    assert_same_gradients(found, gradients(model, both(*again)), tolerance=2e-2)


def test_float16_is_recomputed(recomputed):
    model = text_model()
    with torch.autocast("cpu", dtype=torch.float16):
        computed(model, text_batch())
    assert recomputed == [4]


def test_many_chunks_lose_nothing_in_bfloat16():
    """A model whose weights are bfloat16: each chunk adds less than the sum's last digit."""
    generator = torch.Generator().manual_seed(2)
    hidden = (1 + 0.1 * torch.randn(1024, 8, generator=generator)).bfloat16()
    token_ids, banned = torch.randint(16, (1024,), generator=generator), torch.tensor([], dtype=torch.long)
    weight = torch.zeros(16, 8, dtype=torch.bfloat16)
    weight[0] = 1.0  # token 0 has nearly all the probability, wrongly
    weight.requires_grad_()

    exact = weight.detach().double().requires_grad_()
    log_probs = (hidden.double() @ exact.T).log_softmax(-1)
    total = log_probs.gather(-1, token_ids[:, None]).sum() - (log_probs.exp() * log_probs).sum()
    (expected,) = torch.autograd.grad(total, exact)

    def error(log_probs, entropies):
        (found,) = torch.autograd.grad(log_probs.sum() + entropies.sum(), weight)
        return ((found.double() - expected).norm() / expected.norm()).item()

    def chunk(inputs, ids):
        return torch.stack(chunk_log_probs(inputs @ weight.T, ids, banned, 1.0, entropy_gradient=True), dim=-1)

    ours = error(*_LinearLogProbs.apply(hidden, weight, token_ids, banned, 1.0, 1, True))
    in_bfloat16 = error(*head.recomputed_chunks(chunk, 1, hidden, token_ids).unbind(-1))
    assert ours < 5e-3 < 0.1 < in_bfloat16


# --- memory of a pack -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_no_more_logits_of_a_pack_than_a_chunk_exist(entropy_gradient):
    model, batch = text_model(), text_batch()

    def compute(chunk_size):
        return torch.cat(computed(model, batch, chunk_size, entropy_gradient=entropy_gradient))

    for chunk_size, seen in ((3, 3), (1000, NUM_TARGETS)):
        assert logits_rows(model.lm_head, lambda size=chunk_size: compute(size)) == (0, seen)
    kept, seen = logits_rows(model.lm_head, lambda: model(batch.input_ids).logits.log_softmax(-1))
    assert min(kept, seen) >= NUM_TARGETS, "the count can see"


# --- gradients that are known beforehand ------------------------------------------------------------------------------


def foretold(model, batch, known, chunk_size=4):
    options = {"temperature": 0.7, "chunk_size": chunk_size, "known_gradients": known}
    return packed_log_probs(model, model, batch, banned=BANNED, **options)


@pytest.mark.parametrize("factor", [1.0, -3.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("tied", [False, True])
def test_known_gradients_give_the_same(tied, chunk_size, factor):
    """Up to a factor: the trainer multiplies the loss by the processes."""
    model, batch = text_model(tie_word_embeddings=tied).double(), text_batch()
    known = torch.linspace(-1.5, 2.0, NUM_TARGETS, dtype=torch.float64)
    parameters = list(model.parameters())
    log_probs, entropies = foretold(model, batch, known, chunk_size)
    found = torch.autograd.grad((factor * known * log_probs).sum(), parameters)
    plain, plain_entropies = plainly(model, batch)
    expected = torch.autograd.grad((factor * known * plain).sum(), parameters)
    torch.testing.assert_close(log_probs, plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(entropies, plain_entropies, atol=1e-10, rtol=0)
    assert not entropies.requires_grad
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_known_gradients_that_turn_out_otherwise_are_noticed():
    model, batch = text_model(), text_batch()
    log_probs, _ = foretold(model, batch, torch.linspace(-1.5, 2.0, NUM_TARGETS))
    with pytest.raises(AssertionError, match="another gradient than was foretold"):
        log_probs.square().sum().backward()


def test_a_pass_that_weighs_nothing():
    model, batch = text_model(), text_batch()
    log_probs, _ = foretold(model, batch, torch.zeros(NUM_TARGETS))
    (0.0 * log_probs.sum()).backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_no_more_logits_than_a_chunk_exist_where_gradients_are_known():
    model, batch, known = text_model(), text_batch(), torch.ones(NUM_TARGETS)
    kept, seen = logits_rows(model.lm_head, lambda: foretold(model, batch, known, chunk_size=4)[0])
    assert kept == 0 and seen == 4
