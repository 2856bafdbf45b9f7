import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from loaded_twins import PROBLEMS, load_twin, reference_log_probs, written
from logits_probe import logits_rows
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from lcot_plugin.errors import LcotError
from lcot_plugin.policy.head import HeadTargets, chunk_log_probs, token_log_probs

FAMILY = "qwen2_5_vl"
TOKENS = [5, 17, 300, 41, 402, 77, 8, 256, 99]
NUM_TOKENS = len(TOKENS) * len(PROBLEMS)


@pytest.fixture
def loaded(twin):
    return load_twin(twin(FAMILY))


@pytest.fixture
def sequences(loaded):
    """Completions of 9 tokens for each prompt: 36 tokens."""
    return [written(prompt, TOKENS) for prompt in loaded.prompts]


@pytest.fixture
def weights():
    """One number per token, to make a scalar whose gradient sees each."""
    return torch.linspace(-1.5, 2.0, NUM_TOKENS)


def log_probs_and_gradients(model, loaded, sequences, weights, chunk_size):
    model_inputs, targets = loaded.rows(sequences, 0.8, chunk_size)
    log_probs, entropies = token_log_probs(model, model, targets, model_inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((log_probs * weights).sum(), parameters, allow_unused=True)
    return log_probs.detach(), entropies, [g for g in gradients if g is not None]


def assert_gradients_close(found, expected):
    assert len(found) == len(expected)
    total = torch.stack([g.norm() for g in expected]).norm()
    assert total > 1
    assert torch.stack([(f - e).norm() for f, e in zip(found, expected, strict=True)]).norm() <= 1e-5 * total


# --- values -----------------------------------------------------------------------------------------------------------


def test_chunk_log_probs_by_hand():
    """Probabilities 1/2, 1/4, 1/4 of three allowed tokens: entropy 1.5 bits."""
    logits = torch.tensor([[50.0, 2.0, 1.0, 1.0]]).log() * 0.5
    log_probs, entropies = chunk_log_probs(logits, torch.tensor([2]), torch.tensor([0]), temperature=0.5)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.25]))
    torch.testing.assert_close(entropies, 1.5 * torch.tensor([2.0]).log())


def test_chunk_log_probs_computes_in_float32():
    logits = torch.tensor([[3.0, 1.0, 0.125]], dtype=torch.bfloat16)
    nothing = torch.tensor([], dtype=torch.long)
    log_probs, entropies = chunk_log_probs(logits, torch.tensor([1]), nothing, temperature=1.0)
    torch.testing.assert_close(log_probs, torch.tensor([3.0, 1.0, 0.125]).log_softmax(-1)[1:2], rtol=0, atol=1e-6)
    assert log_probs.dtype == entropies.dtype == torch.float32


def test_entropies_carry_no_gradient(loaded, sequences):
    model_inputs, targets = loaded.rows(sequences, 1.0)
    log_probs, entropies = token_log_probs(loaded.model, loaded.model, targets, model_inputs)
    logits = loaded.model(**model_inputs, use_cache=False).logits[targets.rows, targets.columns].float()
    logits[:, loaded.vlm.banned_token_ids] = -torch.inf
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies.detach(), expected.detach(), rtol=0, atol=1e-5)
    assert log_probs.requires_grad
    gradients = torch.autograd.grad(entropies.sum(), loaded.model.lm_head.weight, allow_unused=True)
    assert gradients[0] is None or not gradients[0].any()


def test_any_chunk_size_gives_the_same_values_and_gradients(loaded, sequences, weights):
    results = [log_probs_and_gradients(loaded.model, loaded, sequences, weights, size) for size in (10_000, 7, 1)]
    for log_probs, entropies, gradients in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(entropies, results[0][1], rtol=0, atol=1e-5)
        assert_gradients_close(gradients, results[0][2])


# --- memory -----------------------------------------------------------------------------------------------------------


def test_no_more_logits_than_a_chunk_exist(loaded, sequences):
    head = loaded.model.lm_head
    model_inputs, targets = loaded.rows(sequences, 1.0, chunk_size=5)
    kept, seen = logits_rows(head, lambda: token_log_probs(loaded.model, loaded.model, targets, model_inputs)[0])
    assert (kept, seen) == (0, 5)
    model_inputs, targets = loaded.rows(sequences, 1.0, chunk_size=512)
    kept, seen = logits_rows(head, lambda: token_log_probs(loaded.model, loaded.model, targets, model_inputs)[0])
    assert (kept, seen) == (0, NUM_TOKENS)

    # What a plain forward pass costs, prompts and padding included; also shows that the count can see.
    def plain():
        logits = loaded.model(**model_inputs, use_cache=False).logits
        return logits.log_softmax(-1)[targets.rows, targets.columns, targets.token_ids]

    kept, seen = logits_rows(head, plain)
    assert kept == seen == model_inputs["input_ids"].numel() > NUM_TOKENS


# --- the output layer stays what it was -------------------------------------------------------------------------------


def test_the_output_layer_is_restored(loaded, sequences):
    model_inputs, targets = loaded.rows(sequences, 1.0)
    before = loaded.model(**model_inputs, use_cache=False).logits
    token_log_probs(loaded.model, loaded.model, targets, model_inputs)
    assert "forward" not in loaded.model.lm_head.__dict__
    assert torch.equal(loaded.model(**model_inputs, use_cache=False).logits, before)

    beyond = HeadTargets(**{**targets.__dict__, "columns": targets.columns + 10_000})
    with pytest.raises(IndexError):
        token_log_probs(loaded.model, loaded.model, beyond, model_inputs)
    assert "forward" not in loaded.model.lm_head.__dict__
    assert torch.equal(loaded.model(**model_inputs, use_cache=False).logits, before)


def test_a_patched_output_layer_keeps_its_patch(loaded, sequences):
    """accelerate puts its mixed precision wrapper on the instance."""
    model = loaded.fresh_model()
    plain = model.lm_head.forward

    def halved(hidden_states):
        return 0.5 * plain(hidden_states)

    model.lm_head.forward = halved
    model_inputs, targets = loaded.rows(sequences, 1.0)
    log_probs, _ = token_log_probs(model, model, targets, model_inputs)
    assert model.lm_head.forward is halved
    _, twice_as_warm = loaded.rows(sequences, 2.0)
    expected, _ = token_log_probs(loaded.model, loaded.model, twice_as_warm, model_inputs)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)


def text_targets():
    """Two tokens of one row of text."""
    input_ids = torch.tensor([[5, 17, 30, 41]])
    one, two = torch.tensor([0, 0]), torch.tensor([1, 2])
    nothing = torch.tensor([], dtype=torch.long)
    return HeadTargets(one, two, input_ids[0, two + 1], nothing, 1.0, 8), {"input_ids": input_ids}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_caps_its_logits(tied):
    """Gemma 2 and 4 do so after the output layer: values and gradients are those of their own logits."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"head_dim": 16, "final_logit_softcapping": 3.0, "tie_word_embeddings": tied, "initializer_range": 0.5}
    config = Gemma2Config(vocab_size=64, num_key_value_heads=1, **sizes, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config).eval()
    targets, model_inputs = text_targets()
    logits = model(**model_inputs).logits
    assert logits.abs().max() > 2.5, "the cap is felt"
    expected = logits.log_softmax(-1)[targets.rows, targets.columns, targets.token_ids]
    log_probs, _ = token_log_probs(model, model, targets, model_inputs)
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.tensor([1.0, -2.0])
    found, wanted = (torch.autograd.grad(values @ weights, parameters) for values in (log_probs, expected))
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    assert model.config.final_logit_softcapping == 3.0, "as it was"
    model.config.final_logit_softcapping = None
    uncapped, _ = token_log_probs(model, model, targets, model_inputs)
    assert (uncapped - log_probs).abs().max() > 0.05


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_a_model_that_scales_its_logits_is_refused(scaling):
    """Granite divides what its output layer returns, which here are log-probabilities."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=64, num_key_value_heads=1, logits_scaling=scaling, **sizes)
    model = GraniteForCausalLM(config).eval()
    targets, model_inputs = text_targets()
    if scaling == 1.0:
        expected = model(**model_inputs).logits.log_softmax(-1)[targets.rows, targets.columns, targets.token_ids]
        log_probs, _ = token_log_probs(model, model, targets, model_inputs)
        torch.testing.assert_close(log_probs, expected)
    else:
        with pytest.raises(LcotError, match=r"does not support granite: its logits are not what its output layer"):
            token_log_probs(model, model, targets, model_inputs)


def test_a_model_that_goes_round_its_output_layer_is_refused(loaded, sequences, monkeypatch):
    def forward(**arguments):
        hidden = loaded.model.model(**arguments).last_hidden_state
        return SimpleNamespace(logits=torch.nn.functional.linear(hidden, loaded.model.lm_head.weight))

    monkeypatch.setattr(loaded.model, "forward", forward)
    model_inputs, targets = loaded.rows(sequences, 1.0)
    with pytest.raises(LcotError, match=r"does not support qwen2_5_vl"):
        token_log_probs(loaded.model, loaded.model, targets, model_inputs)


def test_a_diverged_model_is_not_called_unsupported(loaded, sequences):
    model = loaded.fresh_model()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    model_inputs, targets = loaded.rows(sequences, 1.0)
    log_probs, _ = token_log_probs(lambda **arguments: cloned(model(**arguments)), model, targets, model_inputs)
    assert log_probs.isnan().all()


def cloned(output):
    """DDP may hand on copies of what the model returns."""
    return SimpleNamespace(logits=output.logits.clone())


# --- wrapped models ---------------------------------------------------------------------------------------------------


@contextmanager
def quiet_peft():
    """PEFT warns about tied weights and `save_embedding_layers` for a target that is the output layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("target_modules", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(loaded, sequences, weights, target_modules):
    from peft import LoraConfig, get_peft_model

    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=target_modules, init_lora_weights=False)
        model = get_peft_model(loaded.fresh_model(), config).eval()
    log_probs, _, gradients = log_probs_and_gradients(model, loaded, sequences, weights, 7)
    banned = loaded.vlm.banned_token_ids
    base = model.get_base_model()
    expected = torch.cat([reference_log_probs(base, sequence, banned, 0.8) for sequence in sequences])
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=2e-5)
    trainable = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad((expected * weights).sum(), trainable)
    assert_gradients_close(gradients, wanted)
    without, _, _ = log_probs_and_gradients(loaded.model, loaded, sequences, weights, 7)
    assert (without - log_probs).abs().max() > 0.05


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(loaded, sequences, weights, use_reentrant):
    model = loaded.fresh_model().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    log_probs, _, gradients = log_probs_with_backward(model, loaded, sequences, weights)
    expected = log_probs_with_backward(loaded.fresh_model(), loaded, sequences, weights)
    torch.testing.assert_close(log_probs, expected[0], rtol=0, atol=1e-5)
    assert_gradients_close(gradients, expected[2])


def log_probs_with_backward(model, loaded, sequences, weights):
    """As `log_probs_and_gradients`; reentrant checkpointing has no `torch.autograd.grad`."""
    model_inputs, targets = loaded.rows(sequences, 0.8, 7)
    log_probs, entropies = token_log_probs(model, model, targets, model_inputs)
    (log_probs * weights).sum().backward()
    return log_probs.detach(), entropies, [p.grad for p in model.parameters() if p.grad is not None]
