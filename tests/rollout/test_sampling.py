import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lcot_plugin.errors import LcotError
from lcot_plugin.rollout.sampling import (
    DRAW_CHUNK,
    TokenSampler,
    check_finite,
    draw,
    penalised,
    policy_log_probs,
    row_uniforms,
    uniform_numbers,
)
from lcot_plugin.types import SamplingParams

VOCABULARY = 40
BANNED = torch.tensor([0, 7, 39])


@pytest.fixture
def logits():
    """[3, 40], peaked."""
    return 2.0 * torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def previous(logits):
    """[3, 5]: the likeliest four tokens and one of them again, so that a penalty matters."""
    best = logits.topk(4).indices
    return torch.cat([best, best[:, :1]], dim=1)


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_uniforms_depend_on_every_key_and_on_nothing_else():
    np.random.seed(1)
    first = uniform_numbers(1, 2, 3, 50)
    np.random.seed(2)
    assert (uniform_numbers(1, 2, 3, 50) == first).all()
    assert first.dtype == np.float64 and (first >= 0).all() and (first < 1).all()
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert not (uniform_numbers(*other, 50) == first).any()


def test_more_tokens_keep_the_first_ones():
    assert (uniform_numbers(1, 2, 3, 100)[:50] == uniform_numbers(1, 2, 3, 50)).all()


def test_row_uniforms_are_those_of_each_key():
    rows = row_uniforms(5, [(0, 0), (0, 1), (4, 0)], 6)
    assert rows.shape == (3, 6) and rows.dtype == torch.float64
    assert rows[2].tolist() == uniform_numbers(5, 4, 0, 6).tolist()


# --- draw -------------------------------------------------------------------------------------------------------------


def test_draw_inverts_the_cumulative_distribution():
    """The example of the docstring, at the edges too: probabilities .2 .0 .8."""
    log_probs = torch.tensor([[0.2, 0.0, 0.8]]).log().expand(5, -1)
    uniforms = torch.tensor([0.0, 0.1, 0.25, 0.9, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(log_probs, uniforms).tolist() == [0, 0, 2, 2, 2]


@settings(deadline=None)
@given(
    logits=st.lists(st.one_of(st.just(-np.inf), st.floats(-200.0, 200.0, width=32)), min_size=1, max_size=30),
    uniform=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.sampled_from([0.0, np.nextafter(1.0, 0.0)])),
)
def test_draw_never_returns_a_token_without_probability(logits, uniform):
    if max(logits) == -np.inf:
        logits = [*logits, 0.0]
    log_probs = torch.tensor([logits]).log_softmax(-1)
    token = draw(log_probs, torch.tensor([uniform], dtype=torch.float64)).item()
    assert log_probs[0, token].double().exp() > 0
    # It is the token whose share of [0, 1) holds the number.
    before = log_probs[0, :token].double().exp().sum().item()
    assert before - 1e-6 <= uniform <= before + log_probs[0, token].double().exp().item() + 1e-6


@pytest.mark.parametrize("vocabulary", [7, DRAW_CHUNK, 3 * DRAW_CHUNK, 3 * DRAW_CHUNK + 11])
def test_draw_in_chunks_is_one_search_in_the_cumulative_sum(vocabulary):
    log_probs = torch.randn(500, vocabulary, generator=torch.Generator().manual_seed(1)).mul(3).log_softmax(-1)
    uniforms = torch.from_numpy(uniform_numbers(3, 0, 0, 500))
    cumulated = log_probs.double().exp().cumsum(-1)
    expected = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)[:, 0]
    assert torch.equal(draw(log_probs, uniforms), expected)


def test_frequencies_are_the_probabilities():
    """Chi-square of 20 000 draws over 8 tokens, 7 degrees of freedom: 24.3 is passed once in a thousand."""
    probabilities = torch.tensor([0.3, 0.0, 0.05, 0.25, 0.1, 0.001, 0.149, 0.1, 0.05])
    num = 20_000
    uniforms = torch.from_numpy(uniform_numbers(0, 0, 0, num))
    drawn = draw(probabilities.log().expand(num, -1), uniforms)
    counts = torch.bincount(drawn, minlength=len(probabilities))
    possible = probabilities > 0
    expected = num * probabilities[possible]
    chi_square = ((counts[possible] - expected).square() / expected).sum().item()
    assert counts[~possible].sum() == 0
    assert chi_square < 24.3


# --- TokenSampler -----------------------------------------------------------------------------------------------------


def seen_in(previous):
    """[rows, VOCABULARY] bool of ids [rows, length]."""
    return torch.zeros(len(previous), VOCABULARY, dtype=torch.bool).scatter_(1, previous, True)


def test_policy_log_probs_renormalise_over_what_is_allowed(logits):
    log_probs = policy_log_probs(logits, 0.7, BANNED)
    allowed = [token for token in range(VOCABULARY) if token not in BANNED]
    torch.testing.assert_close(log_probs[:, allowed], (logits[:, allowed] / 0.7).log_softmax(-1))
    assert (log_probs[:, BANNED] == -torch.inf).all()
    assert policy_log_probs(logits.bfloat16(), 1.0, BANNED).dtype == torch.float32


def test_policy_log_probs_leave_the_logits_as_they_are(logits):
    before = logits.clone()
    policy_log_probs(logits, 1.0, BANNED)
    policy_log_probs(logits, 0.0, BANNED)
    assert torch.equal(logits, before)


def test_penalised_is_the_penalty_of_transformers(logits, previous):
    expected = RepetitionPenaltyLogitsProcessor(1.7)(previous, logits.clone())
    assert torch.equal(penalised(logits, seen_in(previous), 1.7), expected)
    assert not torch.equal(expected, logits)


def test_greedy_takes_the_best_allowed_token(logits):
    logits[0, 7] = 1e4
    sampler = TokenSampler(SamplingParams(1, 1, temperature=0.0), BANNED)
    drawn, logps, policy_logps = sampler(logits, torch.zeros(3))
    allowed = logits.index_fill(-1, BANNED, -torch.inf)
    assert torch.equal(drawn, allowed.argmax(-1)) and 7 not in drawn
    torch.testing.assert_close(logps, allowed.log_softmax(-1).amax(-1))
    assert policy_logps is None


def test_only_the_repetition_penalty_narrows_greedy(logits):
    plain = TokenSampler(SamplingParams(1, 1, temperature=0.0), BANNED)(logits, torch.zeros(3)).token_ids
    shaped = SamplingParams(1, 1, temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
    assert torch.equal(TokenSampler(shaped, BANNED)(logits, torch.zeros(3)).token_ids, plain)
    sampler = TokenSampler(SamplingParams(1, 1, temperature=0.0, repetition_penalty=50.0), BANNED)
    drawn = sampler(logits, torch.zeros(3), seen_in(plain[:, None]))
    assert (drawn.token_ids != plain).all()
    policy = logits.index_fill(-1, BANNED, -torch.inf).log_softmax(-1)
    torch.testing.assert_close(drawn.sampler_logps, policy.gather(-1, drawn.token_ids[:, None])[:, 0])


SHAPES = {
    "plain": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.15},
    "penalty": {"repetition_penalty": 1.5},
    "all": {"top_k": 8, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3},
}


def rarely_passed(freedom):
    """What chi-square passes once in a thousand (Wilson and Hilferty, 1931)."""
    share = 2 / (9 * freedom)
    return freedom * (1 - share + 3.09 * share**0.5) ** 3


def chi_square(counts, probabilities):
    """Statistic and degrees of freedom; tokens expected fewer than five times are one class."""
    expected = counts.sum() * probabilities
    frequent = expected >= 5
    observed = [*counts[frequent].tolist(), counts[~frequent].sum().item()]
    wanted = [*expected[frequent].tolist(), expected[~frequent].sum().item()]
    if wanted[-1] < 1e-9:
        assert observed.pop() == 0
        wanted.pop()
    return sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True)), len(wanted) - 1


def distribution(logits, previous, sampling):
    """[rows, VOCABULARY] probabilities, by transformers' processors in the order of `generate`: penalty, ban,
    temperature, top-k, top-p, min-p."""
    scores = logits
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(previous, scores)
    scores = scores.index_fill(-1, BANNED, -torch.inf)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(previous, scores).softmax(-1)


@pytest.mark.parametrize("name", SHAPES)
def test_draws_from_the_distribution_of_generate(name, logits, previous):
    """10 000 tokens of every row: chi-square, the log-probabilities of what was drawn from, and those of the policy."""
    sampling = SamplingParams(1, 1, temperature=0.8, **SHAPES[name])
    num = 10_000
    expected = distribution(logits, previous, sampling)
    policy = logits.index_fill(-1, BANNED, -torch.inf).div(0.8).log_softmax(-1)
    assert name == "plain" or (policy.exp() - expected).abs().max() > 0.01
    for row in range(len(logits)):
        repeated = logits[row].expand(num, -1)
        seen = seen_in(previous[row : row + 1]).expand(num, -1)
        uniforms = torch.from_numpy(uniform_numbers(0, row, 0, num))
        drawn, logps, policy_logps = TokenSampler(sampling, BANNED)(repeated, uniforms, seen)
        counts = torch.bincount(drawn, minlength=VOCABULARY)
        assert not counts[expected[row] == 0].any()
        statistic, freedom = chi_square(counts, expected[row].double())
        assert statistic < rarely_passed(freedom) if freedom else len(counts.nonzero()) == 1
        if name == "penalty":  # the test can tell distributions apart
            assert chi_square(counts, policy[row].double().exp())[0] > rarely_passed(VOCABULARY)
        torch.testing.assert_close(logps, expected[row].log()[drawn])
        if name == "plain":
            assert policy_logps is None
        else:
            torch.testing.assert_close(policy_logps, policy[row, drawn])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [{}, {"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0}])
def test_logits_that_are_not_finite_are_told_and_break_nothing_else(value, kind):
    """The ids stay legal (a wrong one would end a CUDA process for good), their log-probabilities tell."""
    logits = torch.randn(3, VOCABULARY)
    logits[1, 5] = value
    logits[2] = value
    drawn = TokenSampler(SamplingParams(1, 8, **kind), BANNED)(logits, torch.full((3,), 0.99, dtype=torch.float64))
    assert ((drawn.token_ids >= 0) & (drawn.token_ids < VOCABULARY)).all()
    check_finite(drawn.sampler_logps[:1].tolist())
    for row in (1, 2):
        with pytest.raises(LcotError, match=r"logits are not finite.*bf16.*lower learning_rate"):
            check_finite(drawn.sampler_logps[row:].tolist())
