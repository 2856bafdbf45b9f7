"""Attention within segments equals attention with a dense mask, in values and gradients, on every backend that runs
here, and inside real models."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_reference import dense_attention, rows, seen_keys, windows

from lcot_plugin.packing import attention, varlen
from lcot_plugin.packing.attention import PackedRow, segment_attention, segment_attention_forward
from lcot_plugin.packing.sdpa import Masks, sdpa_attention
from lcot_plugin.packing.segments import query_pieces
from lcot_plugin.packing.varlen import VarlenCall, choose_kernel, varlen_attention, varlen_layout
from lcot_plugin.types import Segments

SCALE = 0.3
PROMPT_AND_TWO = Segments((5, 3, 2), (-1, 0, 0))
LAYER = SimpleNamespace()


def random_states(num_tokens: int, key_heads: int, seed: int = 0) -> list[torch.Tensor]:
    """Query with 4 heads, key and value with `key_heads`; [1, heads, num_tokens, 8] with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, num_tokens, 8) for heads in (4, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def outputs_and_gradients(states: list[torch.Tensor], compute: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    output = compute(*states)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), states)]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def reference_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: VarlenCall, scale: float | None
) -> torch.Tensor:
    """What a flash kernel computes, sequence by sequence, from the boundaries and the window alone."""
    assert scale is not None
    outputs = []
    for index in range(len(call.cu_queries) - 1):
        queries = query[call.cu_queries[index] : call.cu_queries[index + 1]]
        keys = key[call.cu_keys[index] : call.cu_keys[index + 1]]
        values = value[call.cu_keys[index] : call.cu_keys[index + 1]]
        assert len(queries) <= call.max_queries and len(keys) <= call.max_keys
        distance = torch.arange(len(keys)) - torch.arange(len(queries))[:, None] - (len(keys) - len(queries))
        left, right = call.window
        seen = (distance >= -left if left >= 0 else True) & (distance <= right if right >= 0 else distance == distance)
        states = (states.transpose(0, 1)[None] for states in (queries, keys, values))
        outputs.append(dense_attention(*states, seen, scale)[0].transpose(0, 1))
    return torch.cat(outputs)


@settings(deadline=None, max_examples=60)
@given(rows(), windows, st.none() | st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_sdpa_equals_a_dense_mask(row, window, max_queries, key_heads):
    pieces = query_pieces(row, window, max_queries)
    masks = Masks(pieces)
    states = random_states(row.num_tokens, key_heads)
    ours = outputs_and_gradients(states, lambda *states: sdpa_attention(*states, pieces, masks, SCALE, 0.0))
    seen = seen_keys(row, window)
    assert_same(ours, outputs_and_gradients(states, lambda *states: dense_attention(*states, seen, SCALE)))


@settings(deadline=None, max_examples=60)
@given(rows(), windows, st.sampled_from([1, 2, 4]))
def test_varlen_equals_a_dense_mask(row, window, key_heads):
    layout = varlen_layout(query_pieces(row, window), torch.device("cpu"))

    def ours(*states: torch.Tensor) -> torch.Tensor:
        flat = [state[0].transpose(0, 1) for state in states]
        return varlen_attention(*flat, layout, reference_kernel, SCALE).transpose(0, 1)[None]

    states, seen = random_states(row.num_tokens, key_heads), seen_keys(row, window)
    expected = outputs_and_gradients(states, lambda *states: dense_attention(*states, seen, SCALE))
    assert_same(outputs_and_gradients(states, ours), expected)


@pytest.mark.parametrize(
    "wrong",
    [Segments((10,)), Segments((5, 3, 2)), Segments((5, 3, 2), (-1, 0, 1)), Segments((5, 3, 2), (-1, 0, 0), ((1, 3),))],
    ids=["one causal row", "no parents", "another parent", "an image block"],
)
def test_other_segments_give_other_outputs(wrong):
    states = random_states(10, 2)
    right = dense_attention(*states, seen_keys(PROMPT_AND_TWO), SCALE)
    pieces = query_pieces(wrong)
    assert (sdpa_attention(*states, pieces, Masks(pieces), SCALE, 0.0) - right).abs().max() > 0.1


# --- varlen layout and kernels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "window", "num_calls"),
    [
        (Segments((5, 3, 2)), None, 1),
        (PROMPT_AND_TWO, None, 1),
        (PROMPT_AND_TWO, 6, 1),
        (Segments((9, 30), image_blocks=((2, 5), (12, 16))), None, 2),
        (Segments((9, 30), image_blocks=((2, 5), (12, 16))), 8, 2),
    ],
)
def test_a_layer_takes_one_call_or_two_with_images(row, window, num_calls):
    assert len(varlen_layout(query_pieces(row, window), torch.device("cpu")).calls) == num_calls


def test_a_row_without_parents_is_not_copied():
    (call,) = varlen_layout(query_pieces(Segments((5, 3, 2))), torch.device("cpu")).calls
    assert call.query_rows is None and call.key_rows is None
    assert call.cu_queries.tolist() == call.cu_keys.tolist() == [0, 5, 8, 10]
    assert (call.max_queries, call.max_keys) == (5, 5)


def test_the_gradient_of_shared_keys_is_summed_in_float32():
    values = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    taken = varlen._TakeRows.apply(values, torch.zeros(600, dtype=torch.int64))
    taken.backward(torch.ones_like(taken))
    # Summed in bfloat16, ones stop counting at 256.
    assert values.grad is not None and values.grad.flatten().tolist() == [600.0, 0.0]


def fake_varlen(captured: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """A stand-in with the signature of torch's `varlen_attn`."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        captured["enable_gqa"] = enable_gqa
        assert enable_gqa or query.shape[1] == key.shape[1]
        call = VarlenCall(cu_seq_q, cu_seq_k, max_q, max_k, window_size, None, None)
        return reference_kernel(query, key, value, call, scale)

    return varlen_attn


def without_grouped_heads(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    return fake_varlen({})(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def fake_flash(query, key, value, **arguments):
    """A stand-in with the keywords of flash-attention's `flash_attn_varlen_func`."""
    causal, window = arguments["causal"], arguments["window_size"]
    call = VarlenCall(
        arguments["cu_seqlens_q"],
        arguments["cu_seqlens_k"],
        arguments["max_seqlen_q"],
        arguments["max_seqlen_k"],
        (window[0], 0) if causal else window,
        None,
        None,
    )
    return reference_kernel(query, key, value, call, arguments["softmax_scale"])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("kernel", ["torch", "torch without grouped heads", "flash 2", "flash 3", "flash 3 with lse"])
def test_kernels_are_called_in_their_own_terms(kernel, key_heads, window, monkeypatch):
    captured: dict[str, Any] = {}
    replacement: Callable[..., Any] = fake_varlen(captured)
    if kernel == "torch without grouped heads":
        replacement = without_grouped_heads
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", replacement)
    for name in ("flash_attn", "flash_attn_interface"):
        module = ModuleType(name)
        module.flash_attn_varlen_func = (  # type: ignore[attr-defined]
            (lambda *states, **arguments: (fake_flash(*states, **arguments), None)) if "lse" in kernel else fake_flash
        )
        monkeypatch.setitem(sys.modules, name, module)
    function = {"torch": varlen.torch_varlen, "flash 2": varlen.flash_attention_2}.get(
        kernel.removesuffix(" without grouped heads"), varlen.flash_attention_3
    )
    row = Segments((6, 5, 4), (-1, 0, -1), ((1, 3),))
    layout = varlen_layout(query_pieces(row, window), torch.device("cpu"))
    states = random_states(row.num_tokens, key_heads)
    output = varlen_attention(*(state[0].transpose(0, 1) for state in states), layout, function, SCALE)
    expected = dense_attention(*states, seen_keys(row, window), SCALE)
    torch.testing.assert_close(output.transpose(0, 1)[None], expected, atol=1e-5, rtol=1e-5)
    if captured:
        assert captured["enable_gqa"] == (key_heads != 4)


@pytest.mark.parametrize(
    ("implementation", "changes", "chosen"),
    [
        ("sdpa", {}, varlen.torch_varlen),
        ("eager", {}, varlen.torch_varlen),
        ("flash_attention_2", {}, varlen.flash_attention_2),
        ("flash_attention_3", {}, varlen.flash_attention_3),
        ("flash_attention_2", {"dtype": torch.float32}, None),
        ("sdpa", {"dtype": torch.float32}, None),
        ("sdpa", {"is_cuda": False}, None),
        ("sdpa", {"shape": (1, 4, 10, 512)}, None),
    ],
)
def test_the_kernel_follows_device_dtype_and_the_users_choice(implementation, changes, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    properties = {"is_cuda": True, "dtype": torch.bfloat16, "shape": (1, 4, 10, 64), "device": "cuda:0", **changes}
    assert choose_kernel(implementation, SimpleNamespace(**properties)) is chosen  # type: ignore[arg-type]


def test_old_gpus_have_no_flash_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    query = SimpleNamespace(is_cuda=True, dtype=torch.float16, shape=(1, 4, 10, 64), device="cuda:0")
    assert choose_kernel("sdpa", query) is None  # type: ignore[arg-type]


# --- the function that transformers calls -----------------------------------------------------------------------------


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Callable[[Segments], None]:
    """`within(segments)`: as inside `segment_attention`, without a model."""
    return lambda segments: monkeypatch.setattr(attention, "_row", PackedRow(segments, "sdpa"))


def test_heads_come_after_tokens_in_what_is_returned(within):
    within(PROMPT_AND_TWO)
    states = random_states(10, 2)
    output, weights = segment_attention_forward(LAYER, *states, None, scaling=SCALE)
    expected = dense_attention(*states, seen_keys(PROMPT_AND_TWO), SCALE).transpose(1, 2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert output.is_contiguous() and weights is None


def test_the_varlen_path_returns_the_same(within, monkeypatch):
    within(PROMPT_AND_TWO)
    states = random_states(10, 2)
    expected, _ = segment_attention_forward(LAYER, *states, None, scaling=SCALE, sliding_window=4)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: reference_kernel)
    output, _ = segment_attention_forward(LAYER, *states, None, scaling=SCALE, sliding_window=4)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="attention_dropout: 0"):
        segment_attention_forward(LAYER, *states, None, scaling=SCALE, dropout=0.1)


def test_dropout_is_honoured(within):
    within(PROMPT_AND_TWO)
    states = random_states(10, 2)
    plain, _ = segment_attention_forward(LAYER, *states, None, scaling=SCALE)
    dropped, _ = segment_attention_forward(LAYER, *states, None, scaling=SCALE, dropout=0.5)
    assert (dropped - plain).abs().max() > 0.1


def test_autocast_decides_the_dtype(within):
    within(PROMPT_AND_TWO)
    query, key, value = random_states(10, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = segment_attention_forward(LAYER, query, key, value.bfloat16(), None, scaling=SCALE)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "num_tokens", "message"),
    [
        ({}, 9, "the segments have 10 tokens together, but the model computes 1 row"),
        ({"attention_mask": torch.ones(1, 1, 10, 10)}, 10, "leave attention_mask out"),
        ({"softcap": 50.0}, 10, "length_aware_packing: false"),
        ({"s_aux": torch.ones(4)}, 10, "length_aware_packing: false"),
    ],
)
def test_what_cannot_be_computed_is_refused(arguments, num_tokens, message, within):
    within(PROMPT_AND_TWO)
    with pytest.raises(ValueError, match=message):
        segment_attention_forward(
            LAYER, *random_states(num_tokens, 2), **{"attention_mask": None, "scaling": SCALE, **arguments}
        )


def test_outside_the_context_is_refused():
    with pytest.raises(ValueError, match="within segment_attention"):
        segment_attention_forward(LAYER, *random_states(10, 2), None)


def test_a_short_row_after_a_long_one_sees_nothing_of_it():
    model = SimpleNamespace(config=FakeConfig())
    model.get_decoder = lambda: torch.nn.Module()
    for row in (PROMPT_AND_TWO, Segments((4, 6)), Segments((3, 3)), PROMPT_AND_TWO):
        states = random_states(row.num_tokens, 2)
        with segment_attention(model, row):
            assert model.config._attn_implementation == "lcot_segments"
            output, _ = segment_attention_forward(LAYER, *states, None, scaling=SCALE)
        expected = dense_attention(*states, seen_keys(row), SCALE).transpose(1, 2)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
        assert model.config._attn_implementation == "flash_attention_2"


class FakeConfig:
    _attn_implementation = "flash_attention_2"

    def get_text_config(self) -> "FakeConfig":
        return self


def test_contexts_nest_and_the_users_choice_is_kept():
    model = SimpleNamespace(config=FakeConfig(), get_decoder=torch.nn.Module)
    with segment_attention(model, PROMPT_AND_TWO):
        with segment_attention(model, Segments((4,))):
            assert attention._row is not None and attention._row.segments == Segments((4,))
            assert attention._row.implementation == "flash_attention_2"
        assert attention._row.segments == PROMPT_AND_TWO
        assert model.config._attn_implementation == "lcot_segments"
    assert attention._row is None and model.config._attn_implementation == "flash_attention_2"
