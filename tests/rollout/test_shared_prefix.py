"""Shared prompts and refilled slots in real models, against plain forward passes and by what is held and computed."""

import heapq
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from loaded_twins import FAMILIES, as_sequences, load_twin, reference_log_probs
from twins import TEXT, sharpen

from lcot_plugin.packing.batch import join_media
from lcot_plugin.rollout import prefill, shared_prefix
from lcot_plugin.rollout.block_store import BlockStore
from lcot_plugin.rollout.sampling import policy_log_probs
from lcot_plugin.rollout.shared_prefix import SharedPrefixRollout
from lcot_plugin.rollout.transformers_engine import TransformersEngine
from lcot_plugin.types import EncodedPrompt, PromptRecord, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
SAMPLED = SamplingParams(num_generations=4, max_new_tokens=24, temperature=1.0, seed=5)
SLOTS = range(4)
LIMITS = (24, 7, 1, 15)
"""Of the completions of the four prompts: text and images of unequal lengths, on both sides of a window of 16."""


def limited(prompts):
    return [replace(prompt, max_new_tokens=limit) for prompt, limit in zip(prompts, LIMITS, strict=True)]


def small_blocks(engine, max_rows=5):
    """Several blocks for every prompt and completion."""
    engine.shared_prefix, engine.block_size, engine.max_rows = True, 4, max_rows
    return engine


@pytest.fixture
def short_prompt_blocks(monkeypatch):
    monkeypatch.setattr(shared_prefix, "PROMPT_BLOCK", 12)


def completions_of(groups):
    return [completion for group in groups for completion in group.completions]


def noted(groups):
    return torch.tensor([value for completion in completions_of(groups) for value in completion.sampler_logps])


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_one_at_a_time(family, twin, short_prompt_blocks):
    """Every completion against an unpadded row of its own, by the model's own attention."""
    loaded = load_twin(twin(family))
    prompts = limited(loaded.prompts)
    groups = small_blocks(loaded.endless_engine()).generate(loaded.model, prompts, SAMPLED, SLOTS)
    banned = loaded.vlm.banned_token_ids
    with torch.no_grad():
        expected = [reference_log_probs(loaded.model, row, banned, 1.0) for row in as_sequences(groups)]
    torch.testing.assert_close(noted(groups), torch.cat(expected), rtol=1.3e-6, atol=1e-5)
    assert [len(completion.token_ids) for completion in completions_of(groups)] == [n for n in LIMITS for _ in range(4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_double_precision_they_are_the_same(family, twin, short_prompt_blocks):
    """Float32 rounding hides differences of 1e-5 in the twins; softmax and log-probabilities remain in float32."""
    loaded = load_twin(twin(family))
    model = loaded.fresh_model().double()
    groups = small_blocks(loaded.endless_engine()).generate(model, limited(loaded.prompts), SAMPLED, SLOTS)
    exact = with_media_in(model, torch.float64)
    with torch.no_grad():
        rows = [reference_log_probs(exact, row, loaded.vlm.banned_token_ids, 1.0) for row in as_sequences(groups)]
    torch.testing.assert_close(noted(groups).double(), torch.cat(rows), rtol=0, atol=3e-6)


def with_media_in(model, dtype):
    """Pixels cast as `generate` casts them."""

    def call(**arguments):
        pixels = {k: v.to(dtype) for k, v in arguments.items() if k.startswith("pixel") and v.is_floating_point()}
        return model(**{**arguments, **pixels})

    call.config = model.config
    return call


TEXT_CONFIGS = {
    "llama": {},
    "qwen2": {"hidden_size": 128},
    "qwen3": {},
    "mistral": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}


def text_model(family):
    config = transformers.AutoConfig.for_model(
        family, vocab_size=300, pad_token_id=0, **{**TEXT, **TEXT_CONFIGS[family]}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        sharpen(model)
    return model


def text_prompt(length):
    ids = torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return EncodedPrompt(PromptRecord(ids, [], question="", gold="", source="", record=0), {})


def text_engine(model):
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {str(index): index for index in range(300)},
        decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)),
        all_special_ids=[],
        added_tokens_decoder={},
        pad_token_id=0,
    )
    vlm = VisionLanguageModel(model, tokenizer)
    return TransformersEngine(vlm, tokenizer, [], lambda prompts: join_media([p.media for p in prompts], ""))


def alone(model, groups):
    expected = []
    for group in groups:
        prompt = group.prompt.record.input_ids
        for completion in group.completions:
            ids = torch.tensor([prompt + completion.token_ids])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            log_probs = policy_log_probs(logits, 1.0, torch.tensor([], dtype=torch.long))
            expected.append(log_probs.gather(-1, ids[0, len(prompt) :, None])[:, 0])
    return torch.cat(expected)


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_text_models(family, short_prompt_blocks):
    """Prompts shorter and longer than the windows of Mistral and Gemma 3, completions that outgrow them."""
    model = text_model(family)
    prompts = [text_prompt(length) for length in (3, 40, 11)]
    sampling = replace(SAMPLED, max_new_tokens=30)
    groups = small_blocks(text_engine(model)).generate(model, prompts, sampling, range(3))
    with torch.no_grad():
        torch.testing.assert_close(noted(groups), alone(model, groups), rtol=0, atol=1e-5)


def test_a_window_forgotten_while_decoding_shows(monkeypatch):
    """The wrong control of the test above."""
    model = text_model("mistral")
    original = shared_prefix.DecodePass.attend
    monkeypatch.setattr(
        shared_prefix.DecodePass, "attend", lambda *a, **k: original(*a, **{**k, "sliding_window": None})
    )
    groups = small_blocks(text_engine(model)).generate(model, [text_prompt(40)], SAMPLED, [0])
    with torch.no_grad():
        assert (noted(groups) - alone(model, groups)).abs().max() > 0.01


def test_another_rows_completion_shows(monkeypatch):
    """The wrong control of all of them: every row reads its neighbour's blocks, and the prompt of the neighbour."""
    model = text_model("qwen3")
    original = SharedPrefixRollout._find_readers

    def exchanged(self):
        nobody = len(self.rows)
        return tuple(
            replace(readers, rows=np.where(readers.rows < nobody, (readers.rows + 1) % nobody, nobody))
            for readers in original(self)
        )

    monkeypatch.setattr(SharedPrefixRollout, "_find_readers", exchanged)
    groups = text_engine(model).generate(model, [text_prompt(9), text_prompt(14)], SAMPLED, [0, 1])
    with torch.no_grad():
        assert (noted(groups) - alone(model, groups)).abs().max() > 0.01


def test_bfloat16(twin):
    """Near float32's, as near as the model's own cache comes."""
    loaded = load_twin(twin("qwen3_vl"))
    model = loaded.fresh_model().bfloat16()
    groups = small_blocks(loaded.endless_engine()).generate(model, loaded.prompts, SAMPLED, SLOTS)
    banned = loaded.vlm.banned_token_ids
    with torch.no_grad():
        references = [
            torch.cat([reference_log_probs(used, row, banned, 1.0).float() for row in as_sequences(groups)])
            for used in (with_media_in(model, torch.bfloat16), loaded.model)
        ]
    own, exact = ((noted(groups) - reference).abs().mean() for reference in references)
    rounding = (references[0] - references[1]).abs().mean()
    assert 0 < own < 2 * rounding and exact < 2 * rounding


def test_autocast(twin):
    """As the trainer calls it under bf16: the stores hold bfloat16."""
    loaded = load_twin(twin("qwen3_vl"))
    with torch.autocast("cpu", torch.bfloat16):
        groups = small_blocks(loaded.endless_engine()).generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    banned = loaded.vlm.banned_token_ids
    with torch.no_grad():
        expected = torch.cat([reference_log_probs(loaded.model, row, banned, 1.0) for row in as_sequences(groups)])
    difference = (noted(groups) - expected).abs()
    assert 0 < difference.mean() < 0.3


def test_the_configuration_is_as_before(twin):
    loaded = load_twin(twin("gemma3"))
    configs = {id(m.config): m.config for m in loaded.model.modules() if hasattr(m, "config")}.values()
    before = [config._attn_implementation for config in configs]
    loaded.engine().generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    assert [config._attn_implementation for config in configs] == before


# --- scheduling -------------------------------------------------------------------------------------------------------


def passes(model, function):
    """(rows, columns) of every forward pass while `function` runs."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        result = function()
    finally:
        hook.remove()
    return result, shapes


def makespan(lengths, num_slots):
    """Decoding steps when each completion, in order, takes the slot that is free first; of n tokens the first comes
    with the slot and costs no step."""
    slots = [0] * num_slots
    for length in lengths:
        heapq.heappush(slots, heapq.heappop(slots) + length - 1)
    return max(slots)


@pytest.mark.parametrize("max_rows", [1, 3, 5, 16])
def test_slots_are_refilled_at_once(max_rows):
    """As many decoding steps as a perfect queue needs, fewer than whole batches take; each prompt computed once."""
    model = text_model("llama")
    lengths = [[9, 2, 1, 25], [3, 3, 14, 1], [1, 1, 1, 1], [6, 30, 2, 2]]
    prompts = [text_prompt(length) for length in (5, 8, 6, 12)]
    engine = small_blocks(text_engine(model), max_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedPrefixRollout, "limit", lambda self, prompt, index: lengths[prompt][index])
        groups, shapes = passes(model, lambda: engine.generate(model, prompts, SAMPLED, SLOTS))
    assert [[len(c.token_ids) for c in group.completions] for group in groups] == lengths
    decoded = [rows for rows, columns in shapes if columns == 1]
    flat = list(chain.from_iterable(lengths))
    assert len(decoded) == makespan(flat, max_rows)
    assert sum(decoded) == sum(flat) - len(flat), "no row is computed after its end"
    assert max(decoded) <= max_rows
    assert sum(columns for _, columns in shapes if columns > 1) == 5 + 8 + 6 + 12
    in_batches = sum(max(flat[i : i + max_rows]) - 1 for i in range(0, 16, max_rows))
    assert max_rows in (1, 16) or len(decoded) < in_batches


def test_prompts_wait_for_their_slot_and_share_passes():
    """Two rows: the prompts come in one after the other. Many rows: as many in a pass as the budget holds."""
    model, prompts = text_model("llama"), [text_prompt(length) for length in (5, 8, 6, 12)]
    for max_rows, budget, expected in ((4, 100, [5, 8, 6, 12]), (16, 100, [31]), (16, 14, [13, 6, 12])):
        engine = small_blocks(text_engine(model), max_rows)
        engine.prefill_tokens = budget
        sampling = replace(SAMPLED, max_new_tokens=5)
        _, shapes = passes(
            model, lambda engine=engine, sampling=sampling: engine.generate(model, prompts, sampling, SLOTS)
        )
        assert [columns for _, columns in shapes if columns > 1] == expected


def test_prompts_whose_images_differ_in_shape_take_turns():
    """Joined they would be an error."""
    wide, high = ({"pixel_values": torch.zeros(2, 3, *shape)} for shape in ((28, 56), (56, 28)))
    prompts = [
        replace(text_prompt(length), media=media) for length, media in ((5, wide), (8, {}), (6, wide), (7, high))
    ]
    taken = [[len(prompt.record.input_ids) for prompt in some] for some in prefill.passes(prompts, 100)]
    assert taken == [[5, 8, 6], [7]]


# --- what is held -----------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """After every decoding step of a rollout: its rows and prompts, and the blocks that are taken in the two stores."""
    steps = []
    original = SharedPrefixRollout._decode

    def watched(self):
        logits = original(self)
        steps.append((self.rows, dict(self.prefixes), self.prompt_store, self.completion_store))
        lengths = [len(row.draft.token_ids) for row in self.rows]
        assert self.completion_store.num_taken == sum(-(-length // 4) for length in lengths)
        live = {row.prompt for row in self.rows} | {prompt for prompt, _ in self.pending if prompt in self.prefixes}
        assert set(self.prefixes) == live
        assert self.prompt_store.num_taken == sum(len(prefix.blocks) for prefix in self.prefixes.values())
        return logits

    monkeypatch.setattr(SharedPrefixRollout, "_decode", watched)
    return steps


@pytest.mark.parametrize("max_rows", [3, 8, 16])
def test_a_prompt_is_held_once_and_given_back_and_completions_in_blocks(held, max_rows, short_prompt_blocks):
    model = text_model("llama")
    prompts = [replace(text_prompt(20), max_new_tokens=limit) for limit in (17, 3, 9, 6)]
    engine = small_blocks(text_engine(model), max_rows)
    engine.generate(model, prompts, SAMPLED, SLOTS)
    _, _, prompt_store, completion_store = held[-1]
    assert prompt_store.num_taken == completion_store.num_taken == 0
    assert max(len(prefixes) for _, prefixes, _, _ in held) == {3: 2, 8: 2, 16: 4}[max_rows]
    # Two blocks of 12 tokens for each prompt that was alive at once, no copies for its rows, and half as many to spare.
    keys, _ = prompt_store.read(0)
    assert 2 * max(len(prefixes) for _, prefixes, _, _ in held) <= len(keys) <= 12
    assert keys.shape[1:] == (TEXT["num_key_value_heads"], 12, TEXT["head_dim"])
    assert completion_store.read(0)[0].shape[2] == 4


def test_growth_is_by_blocks(monkeypatch):
    """One row of 30 tokens in blocks of 4: the store is enlarged a few times, not at every token."""
    sizes = []
    original = BlockStore._fitting

    def watched(self, tensor, states):
        fitting = original(self, tensor, states)
        if fitting is not tensor and self.block_size == 4:
            sizes.append(len(fitting))
        return fitting

    monkeypatch.setattr(BlockStore, "_fitting", watched)
    model = text_model("llama")
    sampling = replace(SAMPLED, num_generations=1, max_new_tokens=30)
    small_blocks(text_engine(model)).generate(model, [text_prompt(9)], sampling, [0])
    per_tensor = sizes[:: 2 * TEXT["num_hidden_layers"]]
    assert per_tensor == [1, 2, 3, 4, 6, 9]
