import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.errors import DataError
from lcot_plugin.report.token_trace import LEAST, MAX_PENDING, STEPS_PER_NAT, TokenTracer, decode, encode
from lcot_plugin.types import Completion, Ending

TOKENS = st.lists(st.tuples(st.integers(0, 1000), st.floats(max_value=0.001, allow_nan=False)), max_size=60)


@given(TOKENS)
def test_what_goes_in_comes_out_to_a_sixteenth_of_a_nat(tokens):
    lengths, log_probs = [length for length, _ in tokens], [value for _, value in tokens]
    text = encode(lengths, log_probs)
    assert text.isascii() and not set(text) & set('"\\\n')
    trace = decode(text)
    assert trace.lengths == lengths
    for kept, value in zip(trace.log_probs, log_probs, strict=True):
        assert LEAST <= kept <= 0
        if value > LEAST + 1 / STEPS_PER_NAT:
            assert abs(kept - value) <= 0.5 / STEPS_PER_NAT + 0.001
        else:
            assert kept <= LEAST + 1.5 / STEPS_PER_NAT


def test_a_token_takes_about_a_byte():
    generator = random.Random(0)
    log_probs = [-generator.expovariate(3) for _ in range(4000)]
    lengths = [generator.choice([1, 2, 3, 4, 5, 6]) for _ in log_probs]
    assert len(encode(lengths, log_probs)) < 1.5 * len(log_probs)


@pytest.mark.parametrize(
    ("lengths", "log_probs"), [([1], []), ([1, 2], [-0.1]), ([-1], [-0.1]), ([1], [math.nan])], ids=str
)
def test_what_is_no_trace_is_refused(lengths, log_probs):
    with pytest.raises(ValueError):
        encode(lengths, log_probs)


@pytest.mark.parametrize("text", ["", "not a trace", "ü", encode([1, 2], [-1.0, -2.0])[:-3], "c-muRWdH#c1_m}pMn(n"])
def test_a_text_that_is_no_trace_says_so(text):
    with pytest.raises(DataError, match="cannot be read"):
        decode(text)


# --- of a completion --------------------------------------------------------------------------------------------------


WORDS = {256: b"The ", 257: b"area", 300: b""}


class Bytes:
    """A tokenizer whose tokens are bytes, but for a few; 300 is an end token."""

    def __call__(self, token_ids):
        contents = b"".join(WORDS.get(token_id, bytes([token_id % 256])) for token_id in token_ids)
        return contents.decode("utf-8", "replace")


class Pieces:
    """As SentencePiece: a text does not begin with the blank that its first token has."""

    words = ("▁The", "▁area", "▁is", "5")

    def __call__(self, token_ids):
        return "".join(self.words[token_id] for token_id in token_ids).replace("▁", " ").removeprefix(" ")


def test_tokens_of_whole_characters():
    tracer = TokenTracer(Bytes())
    assert tracer.lengths([256, 257, 0x35, 300], "The area5") == [4, 4, 1, 0]


def test_an_end_token_that_has_a_text_but_was_left_out():
    tracer = TokenTracer(Bytes())
    assert tracer.lengths([256, 0x21], "The ") == [4, 0]


def test_a_character_counts_for_the_token_that_completes_it():
    tracer = TokenTracer(Bytes())
    ids = [256, *"√2😀".encode()]
    assert tracer.lengths(ids, "The √2😀") == [4, 0, 0, 1, 1, 0, 0, 0, 1]


def test_a_blank_that_a_token_by_itself_loses():
    tracer = TokenTracer(Pieces())
    assert tracer.lengths([0, 1, 2, 3], "The area is5") == [3, 5, 3, 1]


def test_bytes_that_are_no_text_still_add_up():
    tracer = TokenTracer(Bytes())
    ids = [0x80] * (3 * MAX_PENDING) + [0x41]
    text = Bytes()(ids)
    assert sum(tracer.lengths(ids, text)) == len(text)


@given(st.lists(st.integers(0, 300), max_size=40), st.text(max_size=5))
def test_lengths_add_up_to_any_text(ids, other):
    """A decoder may tidy up what it wrote: another text than the tokens' is spread over them all the same."""
    tracer = TokenTracer(Bytes())
    for text in (Bytes()(ids), other):
        lengths = tracer.lengths(ids, text)
        assert len(lengths) == len(ids) and all(length >= 0 for length in lengths)
        assert sum(lengths) == (len(text) if ids else 0)


def completion(**values):
    return Completion(
        **{"token_ids": [256], "sampler_logps": [-1.0], "ending": Ending.STOPPED, "text": "The ", **values}
    )


def test_the_policys_own_log_probabilities_are_kept():
    """Not those of what top-p left over."""
    tracer = TokenTracer(Bytes())
    assert decode(tracer(completion())).log_probs == [-1.0]
    assert decode(tracer(completion(policy_logps=[-2.0]))).log_probs == [-2.0]
    assert decode(tracer(completion(sampler_logps=[-math.inf]))).log_probs == [LEAST]


@pytest.mark.parametrize("log_probs", [[], [math.nan]])
def test_a_completion_without_log_probabilities_has_no_trace(log_probs):
    assert TokenTracer(Bytes())(completion(sampler_logps=log_probs)) is None
