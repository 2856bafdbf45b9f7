import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from loaded_twins import FAMILIES, SHORT_TEXT, TEXT, TWO_IMAGES, load_twin

from lcot_plugin.errors import ArgumentError, LcotError
from lcot_plugin.types import Ending, SamplingParams

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
GREEDY = SamplingParams(num_generations=1, max_new_tokens=12, temperature=0.0)
SAMPLED = SamplingParams(num_generations=4, max_new_tokens=12, temperature=1.0, seed=11)
SLOTS = range(4)
CLOSE = {"rtol": 0, "atol": 2e-5}
"""Two ways of computing a twin in float32: each is up to 1.4e-5 from float64, and so is a plain forward pass."""


def token_ids(groups):
    return [[completion.token_ids for completion in group.completions] for group in groups]


def logps(groups):
    return torch.tensor([v for group in groups for c in group.completions for v in c.sampler_logps])


@contextmanager
def recorded_shapes(model):
    """The (rows, columns) of every forward pass."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


def hugging_face_greedy(loaded, prompt, **settings):
    """transformers' own greedy completion of one prompt, end token included."""
    ids = torch.tensor([prompt.record.input_ids])
    inputs = dict(prompt.media) | loaded.vlm.token_type_arguments(ids)
    output = loaded.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        suppress_tokens=loaded.vlm.banned_token_ids,
        eos_token_id=loaded.end_token_ids,
        pad_token_id=loaded.tokenizer.pad_token_id,
        **settings,
        **inputs,
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_that_of_generate(family, repetition_penalty, twin):
    """Four prompts with two, one and no images, left padded in one batch, against each alone."""
    loaded = load_twin(twin(family))
    sampling = replace(GREEDY, repetition_penalty=repetition_penalty)
    groups = loaded.engine().generate(loaded.model, loaded.prompts, sampling, SLOTS)
    expected = [hugging_face_greedy(loaded, p, repetition_penalty=repetition_penalty) for p in loaded.prompts]
    assert token_ids(groups) == [[ids] for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 2


@pytest.fixture
def loaded(twin):
    return load_twin(twin("qwen2_5_vl"))


@pytest.fixture
def endless(loaded):
    """Completions that nothing ends, 12 tokens each."""
    return loaded.endless_engine().generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)


def test_groups(loaded, endless):
    assert [group.prompt for group in endless] == loaded.prompts
    assert [len(group.completions) for group in endless] == [4] * 4
    completions = [completion for group in endless for completion in group.completions]
    assert len({tuple(completion.token_ids) for completion in completions}) == 16
    for completion in completions:
        assert completion.ending is Ending.TRUNCATED
        assert len(completion.token_ids) == len(completion.sampler_logps) == 12
        assert completion.text == loaded.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_finished_rows_leave_the_batch_and_change_nothing(loaded, endless):
    """Each end token cuts the endless completions at its first place; the others go on as they were."""
    all_ids = [ids for group in token_ids(endless) for ids in group]
    ends = [all_ids[0][1], all_ids[5][3], all_ids[9][2], all_ids[14][6]]
    assert not set(ends) & set(loaded.end_token_ids)
    with recorded_shapes(loaded.model) as shapes:
        groups = loaded.engine(ends).generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    endings = set()
    completions = [completion for group in groups for completion in group.completions]
    for completion, full in zip(completions, all_ids, strict=True):
        length = next((i + 1 for i, token in enumerate(full) if token in ends), len(full))
        assert completion.token_ids == full[:length]
        stopped = full[length - 1] in ends
        assert completion.ending is (Ending.STOPPED if stopped else Ending.TRUNCATED)
        assert len(completion.sampler_logps) == length
        endings.add(completion.ending)
    assert endings == {Ending.STOPPED, Ending.TRUNCATED}
    full_logps = [c.sampler_logps for group in endless for c in group.completions]
    kept = torch.tensor([v for c, full in zip(completions, full_logps, strict=True) for v in full[: len(c.token_ids)]])
    torch.testing.assert_close(logps(groups), kept, **CLOSE)

    prefilled, decoded = shapes[0], shapes[1:]
    num_tokens = sum(len(prompt.record.input_ids) for prompt in loaded.prompts)
    assert prefilled == (1, num_tokens), "every prompt is prefilled once, in one row"
    rows = [num for num, _ in decoded]
    assert rows == sorted(rows, reverse=True) and rows[0] == 16 and rows[-1] < 16
    assert all(columns == 1 for _, columns in decoded)


def test_decoding_ends_with_the_last_row(loaded, endless):
    ends = sorted({ids[1] for group in token_ids(endless) for ids in group})
    with recorded_shapes(loaded.model) as shapes:
        groups = loaded.engine(ends).generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    assert max(len(ids) for group in token_ids(groups) for ids in group) == 2
    assert len(shapes) == 2


@pytest.mark.parametrize("max_rows", [1, 3, 4, 9, 100])
def test_rows_at_once_change_nothing(loaded, endless, max_rows):
    """Rows are filled across groups; a prompt is prefilled when its first completion gets a slot, and once."""
    with recorded_shapes(loaded.model) as shapes:
        groups = loaded.endless_engine(max_rows).generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    assert token_ids(groups) == token_ids(endless)
    torch.testing.assert_close(logps(groups), logps(endless), **CLOSE)
    assert [group.prompt for group in groups] == loaded.prompts
    lengths = [len(prompt.record.input_ids) for prompt in loaded.prompts]
    # All completions are equally long, so that slots come free all at once.
    starts = {1: [[0], [1], [2], [3]], 3: [[0], [1], [2], [3]], 4: [[0], [1], [2], [3]], 9: [[0, 1, 2], [3]]}
    expected = starts.get(max_rows, [[0, 1, 2, 3]])
    assert [columns for _, columns in shapes if columns > 1] == [sum(lengths[i] for i in some) for some in expected]
    assert all(rows == 1 for rows, columns in shapes if columns > 1)
    assert max(rows for rows, columns in shapes if columns == 1) == min(max_rows, 16)


def test_a_family_that_always_gives_all_logits(loaded, endless, monkeypatch):
    """Not every `forward` takes logits_to_keep."""
    plain = loaded.model.forward

    def forward(**arguments):
        assert "logits_to_keep" not in arguments
        return plain(**arguments)

    engine = loaded.endless_engine()
    engine.vlm = copy.copy(loaded.vlm)
    engine.vlm._forward_parameters = {"input_ids": None, "mm_token_type_ids": None}
    monkeypatch.setattr(loaded.model, "forward", forward)
    groups = engine.generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    assert token_ids(groups) == token_ids(endless)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_alone_is_completed_as_in_company(family, twin):
    loaded = load_twin(twin(family))
    engine = loaded.engine()
    together = engine.generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    for slot in (TWO_IMAGES, SHORT_TEXT):
        alone = engine.generate(loaded.model, [loaded.prompts[slot]], SAMPLED, [slot])
        assert token_ids(alone) == token_ids(together[slot : slot + 1])


def test_slot_and_seed_decide(loaded):
    engine, prompts = loaded.endless_engine(), [loaded.prompts[TEXT]] * 2
    first, second = token_ids(engine.generate(loaded.model, prompts, SAMPLED, [0, 1]))
    assert first != second, "the same prompt in two slots is explored twice"
    again = token_ids(engine.generate(loaded.model, prompts, SAMPLED, [1, 0]))
    assert again == [second, first]
    other_seed = replace(SAMPLED, seed=12)
    assert token_ids(engine.generate(loaded.model, prompts, other_seed, [0, 1])) != [first, second]


def test_every_end_token_stops(loaded):
    """Not only the tokenizer's own: a completion that ends in `<|endoftext|>` is not truncated."""
    primary = loaded.tokenizer.eos_token_id
    (secondary,) = set(loaded.end_token_ids) - {primary}
    for end in (primary, secondary):
        with favoured(loaded.model, [end]):
            (group,) = loaded.engine().generate(loaded.model, loaded.prompts[:1], GREEDY, [0])
        (completion,) = group.completions
        assert completion.token_ids == [end] and completion.ending is Ending.STOPPED
        assert completion.text == ""


def test_an_end_token_at_the_limit_stops(loaded, endless):
    last = endless[0].completions[0].token_ids
    end = last[-1]
    assert end not in last[:-1]
    groups = loaded.engine([end]).generate(loaded.model, loaded.prompts, SAMPLED, SLOTS)
    assert groups[0].completions[0].token_ids == last
    assert groups[0].completions[0].ending is Ending.STOPPED


@contextmanager
def favoured(model, ids):
    """The model's output layer adds 1000 to the logits of these tokens."""
    bonus = torch.zeros(model.get_output_embeddings().weight.shape[0])
    bonus[ids] = 1000.0
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits + bonus)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_placeholders_are_never_written(family, sampling, twin):
    loaded = load_twin(twin(family))
    banned = set(loaded.vlm.banned_token_ids)
    usual = loaded.engine().generate(loaded.model, loaded.prompts, sampling, SLOTS)
    with favoured(loaded.model, sorted(banned)):
        groups = loaded.engine().generate(loaded.model, loaded.prompts, sampling, SLOTS)
        unguarded = loaded.engine()
        unguarded.vlm = copy.copy(loaded.vlm)
        unguarded.vlm.banned_token_ids = []
        one_token = replace(sampling, max_new_tokens=1)
        free = unguarded.generate(loaded.model, loaded.prompts, one_token, SLOTS)
    written = {token for group in token_ids(groups) for ids in group for token in ids}
    assert not written & banned
    assert token_ids(groups) == token_ids(usual), "what is banned has no say in the others' probabilities"
    torch.testing.assert_close(logps(groups), logps(usual), **CLOSE)
    assert {token for group in token_ids(free) for ids in group for token in ids} <= banned


@pytest.mark.parametrize("shape", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_narrowed_draw_is_greedy_but_keeps_its_log_probabilities(loaded, shape):
    """One token is left to draw from, with certainty; under the policy it is as probable as ever."""
    narrow = SamplingParams(2, 12, temperature=1.0, seed=1, **shape)
    groups = loaded.endless_engine().generate(loaded.model, loaded.prompts, narrow, SLOTS)
    greedy = loaded.endless_engine().generate(loaded.model, loaded.prompts, GREEDY, SLOTS)
    for group, (best,) in zip(token_ids(groups), token_ids(greedy), strict=True):
        assert group == [best, best]
    for group, best in zip(groups, greedy, strict=True):
        expected = torch.tensor(best.completions[0].sampler_logps)
        for completion in group.completions:
            torch.testing.assert_close(torch.tensor(completion.policy_logps), expected, **CLOSE)
            assert expected.mean() < -0.1
            assert completion.sampler_logps == [0.0] * 12
        assert best.completions[0].policy_logps is None


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batch"])
def test_a_plain_draw_notes_the_policy_once(loaded, shared):
    engine = loaded.endless_engine()
    engine.shared_prefix = shared
    (group,) = engine.generate(loaded.model, loaded.prompts[:1], SAMPLED, [0])
    assert [completion.policy_logps for completion in group.completions] == [None] * 4


def test_the_mode_of_the_model_is_kept_and_nothing_is_recorded(loaded):
    model = loaded.fresh_model().train()
    model.gradient_checkpointing_enable()
    loaded.engine().generate(model, loaded.prompts[:1], GREEDY, [0])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    loaded.engine().generate(model.eval(), loaded.prompts[:1], GREEDY, [0])
    assert not model.training

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    model.train().lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loaded.engine().generate(model, loaded.prompts[:1], GREEDY, [0])
    assert model.training


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batch"])
@pytest.mark.parametrize("max_rows", [None, 4, 3])
def test_progress_counts_every_completion_and_every_token_once(loaded, endless, max_rows, shared):
    ends = [endless[0].completions[0].token_ids[1], endless[2].completions[1].token_ids[3]]
    counts = []
    engine = loaded.engine(ends, max_rows)
    engine.shared_prefix = shared
    groups = engine.generate(loaded.model, loaded.prompts, SAMPLED, SLOTS, lambda *both: counts.append(both))
    ended, tokens = zip(*counts, strict=True)
    assert sum(ended) == 16 and min(ended) >= 0 and len(counts) > 2
    assert sum(tokens) == sum(len(ids) for group in token_ids(groups) for ids in group)


def test_a_lora_policy_writes(loaded):
    """The engine is given the PEFT model and decodes with the adapter."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(loaded.fresh_model(), config)
    groups = loaded.endless_engine().generate(model, loaded.prompts, GREEDY, SLOTS)
    merged = loaded.endless_engine().generate(model.merge_and_unload(), loaded.prompts, GREEDY, SLOTS)
    base = loaded.endless_engine().generate(loaded.model, loaded.prompts, GREEDY, SLOTS)
    assert token_ids(groups) == token_ids(merged) != token_ids(base)


# --- two ways, one result ---------------------------------------------------------------------------------------------

ALL_AT_ONCE = replace(SAMPLED, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)


@pytest.mark.parametrize("sampling", [SAMPLED, ALL_AT_ONCE], ids=["plain", "narrowed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_write_the_same(family, sampling, twin):
    loaded = load_twin(twin(family))
    shared, batch = loaded.engine(max_rows=5), loaded.engine()
    shared.shared_prefix, batch.shared_prefix = True, False
    groups = shared.generate(loaded.model, loaded.prompts, sampling, SLOTS)
    expected = batch.generate(loaded.model, loaded.prompts, sampling, SLOTS)
    assert token_ids(groups) == token_ids(expected)
    torch.testing.assert_close(logps(groups), logps(expected), **CLOSE)
    if sampling is ALL_AT_ONCE:
        pairs = zip(completions_of(groups), completions_of(expected), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(torch.tensor(one.policy_logps), torch.tensor(other.policy_logps), **CLOSE)


def completions_of(groups):
    return [completion for group in groups for completion in group.completions]


def test_a_family_that_cannot_be_packed_is_decoded_in_padded_batches(loaded, endless, monkeypatch):
    model = loaded.fresh_model()
    monkeypatch.setattr(model.config, "model_type", "another")
    with recorded_shapes(model) as shapes:
        groups = loaded.endless_engine().generate(model, loaded.prompts, SAMPLED, SLOTS)
    assert token_ids(groups) == token_ids(endless)
    assert shapes[0] == (4, max(len(prompt.record.input_ids) for prompt in loaded.prompts))
    engine = loaded.endless_engine()
    engine.shared_prefix = True
    with pytest.raises(ArgumentError, match="'another' is not supported"):
        engine.generate(model, loaded.prompts, SAMPLED, SLOTS)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batch"])
def test_a_prompt_may_have_a_limit_of_its_own(loaded, endless, shared):
    limits = [3, None, 1, 100]
    prompts = [replace(prompt, max_new_tokens=limit) for prompt, limit in zip(loaded.prompts, limits, strict=True)]
    engine = loaded.endless_engine(3)
    engine.shared_prefix = shared
    groups = engine.generate(loaded.model, prompts, SAMPLED, SLOTS)
    for group, full, length in zip(token_ids(groups), token_ids(endless), [3, 12, 1, 12], strict=True):
        assert group == [ids[:length] for ids in full]
    assert {completion.ending for completion in completions_of(groups)} == {Ending.TRUNCATED}


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batch"])
def test_stop_strings_stop(loaded, endless, shared):
    """Each completion ends with the first token after which its text holds the string, and keeps it."""
    decode = loaded.tokenizer.decode
    full = [completion.token_ids for completion in completions_of(endless)]
    texts = [decode(ids[3:6], skip_special_tokens=True) for ids in full]
    stops = tuple(sorted({text for text in texts if len(text) > 2 and "\N{REPLACEMENT CHARACTER}" not in text})[:5])
    assert len(stops) == 5
    engine = loaded.endless_engine(5)
    engine.shared_prefix = shared
    groups = engine.generate(loaded.model, loaded.prompts, replace(SAMPLED, stop_strings=stops), SLOTS)
    num_stopped = 0
    for completion, ids in zip(completions_of(groups), full, strict=True):
        holding = [
            length
            for length in range(1, 13)
            if any(stop in decode(ids[:length], skip_special_tokens=True) for stop in stops)
        ]
        assert completion.token_ids == ids[: holding[0] if holding else 12]
        assert completion.ending is (Ending.STOPPED if holding else Ending.TRUNCATED)
        assert completion.text == decode(completion.token_ids, skip_special_tokens=True)
        num_stopped += bool(holding)
    assert 5 <= num_stopped < 16


def test_no_prompts(loaded):
    assert loaded.engine().generate(loaded.model, [], SAMPLED, []) == []


def test_modules_keep_their_own_modes(loaded):
    """A frozen vision tower that was put into eval mode stays there."""
    model = loaded.fresh_model().train()
    model.model.visual.eval()
    before = [module.training for module in model.modules()]
    loaded.engine().generate(model, loaded.prompts[:1], GREEDY, [0])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batch"])
def test_a_policy_that_has_diverged_is_told(loaded, shared):
    model = loaded.fresh_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[3].fill_(float("nan"))
    engine = loaded.engine()
    engine.shared_prefix = shared
    with pytest.raises(LcotError, match="logits are not finite"):
        engine.generate(model, loaded.prompts, SAMPLED, SLOTS)
