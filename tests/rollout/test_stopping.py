from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import QWEN_SPECIAL_TOKENS, qwen_tokenizer

from lcot_plugin.rollout.stopping import StopRule, token_limit
from lcot_plugin.types import EncodedPrompt, Ending, PromptRecord, SamplingParams


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return qwen_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_an_end_token_stops_before_the_limit_truncates(tokenizer):
    rule = StopRule(tokenizer, [5, 6], (), True)
    assert rule.ending([1, 2], 3) is None
    assert rule.ending([1, 2, 3], 3) is Ending.TRUNCATED
    assert rule.ending([1, 2, 6], 3) is Ending.STOPPED
    assert rule.text([*tokenizer.encode("the end"), 5]) == "the end"


def first_stop(rule, token_ids):
    """After how many tokens it stops; None where it does not."""
    lengths = (length for length in range(1, len(token_ids) + 1) if rule.ending(token_ids[:length], 10**6))
    return next(lengths, None)


def test_a_stop_string_may_begin_and_end_within_tokens(tokenizer):
    ids = tokenizer.encode("think step by step therefore \\boxed{3} then")
    rule = StopRule(tokenizer, [], ("p by ste", "xed{"), True)
    length = first_stop(rule, ids)
    assert "p by ste" in tokenizer.decode(ids[:length]) and "p by ste" not in tokenizer.decode(ids[: length - 1])
    assert first_stop(StopRule(tokenizer, [], ("never",), True), ids) is None
    assert first_stop(StopRule(tokenizer, [], ("",), True), ids) is None


def test_special_tokens_in_between_are_skipped_where_the_text_skips_them(tokenizer):
    special = tokenizer.convert_tokens_to_ids(QWEN_SPECIAL_TOKENS[1])
    left, right = tokenizer.encode("</ans"), tokenizer.encode("wer>")
    ids = [*left, *[special] * 40, *right]
    assert first_stop(StopRule(tokenizer, [], ("</answer>",), True), ids) == len(ids)
    assert first_stop(StopRule(tokenizer, [], ("</answer>",), False), ids) is None
    assert first_stop(StopRule(tokenizer, [], (QWEN_SPECIAL_TOKENS[1],), False), ids) == len(left) + 1


TEXTS = st.text(alphabet="ab \n<>/éß漢字😀", min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(text=TEXTS, stop=st.text(alphabet="ab \n</é漢😀", min_size=1, max_size=6), noise=st.lists(st.integers(0, 400)))
def test_stops_exactly_when_the_text_first_holds_it(tokenizer, text, stop, noise):
    ids = [*noise, *tokenizer.encode(text)]
    rule = StopRule(tokenizer, [], (stop,), True)
    decoded = [tokenizer.decode(ids[:length], skip_special_tokens=True) for length in range(len(ids) + 1)]
    assert first_stop(rule, ids) == next((length for length, whole in enumerate(decoded) if stop in whole), None)


@dataclass
class Characters:
    """A tokenizer of characters that, as SentencePiece's, drops a blank at the beginning of what it decodes."""

    all_special_ids = ()
    added_tokens_decoder = {}  # noqa: RUF012

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids)).removeprefix(" ")


def test_a_blank_that_decoding_drops_is_not_missed():
    ids = list(map(ord, "a long text, and then stop here"))
    assert first_stop(StopRule(Characters(), [], (" then",), True), ids) == len("a long text, and then")


@pytest.mark.parametrize(("own", "expected"), [(None, 12), (5, 5), (100, 12), (0, 1), (-3, 1)])
def test_token_limit(own, expected):
    record = PromptRecord([1], [], question="", gold="", source="", record=0)
    assert token_limit(EncodedPrompt(record, {}, max_new_tokens=own), SamplingParams(1, 12)) == expected
