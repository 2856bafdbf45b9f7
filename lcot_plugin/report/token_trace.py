"""Every token of a completion with its log-probability, in about a byte a token.

In: how many characters each token has in the completion's text, and the policy's log-probability of it. Out: a short
text for a line of completions.jsonl, and back. Consumers: report.completions (writes), the rollout viewer (reads).

    lengths    3 1 5      "The", " ", "area "; sum = len(text); 0 for a token that completes no character yet
    log_probs  -0.02 -1.9 -0.3    nats

A log-probability is kept to 1/16 nat, which no eye tells apart in a colour, and down to -15.9375; less is kept as -16.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from lcot_plugin.errors import DataError
from lcot_plugin.types import Completion

STEPS_PER_NAT = 16
LEAST = -16.0
"""What stands for it and everything below, -inf among it."""
REPLACEMENT = "\ufffd"
"""What a decoder shows of bytes that are no whole character."""
MAX_PENDING = 64
"""Tokens that may wait for a character to be whole; more are no text at all."""
_FORMAT = 1
_LONG = 255
"""Tokens of more characters take a byte for each 255 of them, and one for the rest."""


@dataclass(frozen=True)
class TokenTrace:
    """A completion's tokens."""

    lengths: list[int]
    """[T] characters (not bytes) of each token in the text."""
    log_probs: list[float]
    """[T] nats, in [LEAST, 0], to 1/16."""


def encode(text_lengths: Sequence[int], log_probs: Sequence[float]) -> str:
    """One line of ASCII. text_lengths: [T] characters, 0 or more. log_probs: [T] nats; NaN is not one.

    Raises ValueError where the two differ in number, or hold what is neither.
    """
    if len(text_lengths) != len(log_probs):
        raise ValueError(f"{len(text_lengths)} lengths and {len(log_probs)} log-probabilities are not of one text")
    lengths = bytearray()
    for length in text_lengths:
        if length < 0:
            raise ValueError(f"a token of {length} characters")
        lengths += bytes([_LONG]) * (length // _LONG) + bytes([length % _LONG])
    levels = bytearray()
    for log_prob in log_probs:
        if math.isnan(log_prob):
            raise ValueError("a log-probability is NaN")
        # float32 may give a certain token a little more than 0
        levels.append(min(255, round(-max(LEAST, min(0.0, log_prob)) * STEPS_PER_NAT)))
    packed = zlib.compress(bytes([_FORMAT]) + len(levels).to_bytes(4, "little") + bytes(levels) + bytes(lengths), 9)
    return base64.b85encode(packed).decode("ascii")


def decode(text: str) -> TokenTrace:
    """What `encode` was given, to its precision. Raises DataError for a text that it did not write."""
    try:
        found = zlib.decompress(base64.b85decode(text))
    except (ValueError, binascii.Error, zlib.error) as error:
        raise DataError(f"The log-probabilities of a completion cannot be read: {error}.") from error
    number = int.from_bytes(found[1:5], "little")
    levels, coded = found[5 : 5 + number], found[5 + number :]
    lengths, current = [], 0
    for byte in coded:
        current += byte
        if byte != _LONG:
            lengths.append(current)
            current = 0
    if found[:1] != bytes([_FORMAT]) or len(levels) != number or len(lengths) != number or current:
        raise DataError("The log-probabilities of a completion cannot be read: a later lcot_plugin wrote them.")
    # 255 is the last level there is: -15.9375 and less
    return TokenTrace(lengths, [LEAST if level == 255 else -level / STEPS_PER_NAT for level in levels])


class TokenTracer:
    """Makes the trace of a completion, by the tokenizer that has decoded its text."""

    def __init__(self, decode: Callable[[list[int]], str]):
        """decode: token ids to text, as the completion's text was made of them."""
        self.decode = decode
        self._pieces: dict[int, str] = {}
        """Text of a token by itself."""

    def __call__(self, completion: Completion) -> str | None:
        """None for a completion whose log-probabilities are not known, or are NaN."""
        log_probs = completion.sampler_logps if completion.policy_logps is None else completion.policy_logps
        if len(log_probs) != len(completion.token_ids) or any(math.isnan(value) for value in log_probs):
            return None
        return encode(self.lengths(completion.token_ids, completion.text), log_probs)

    def lengths(self, token_ids: Sequence[int], text: str) -> list[int]:
        """[T] characters of each token; they add up to those of the text. An end token that was left out has 0."""
        for shown in (token_ids, token_ids[:-1]):
            lengths, joined = self._by_piece(shown)
            if joined == text:
                return lengths + [0] * (len(token_ids) - len(shown))
        return _fitted(self._in_context(token_ids), len(text))

    def _by_piece(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """Each token by itself, but for neighbours that share characters; and the text that this gives."""
        lengths: list[int] = []
        texts: list[str] = []
        for partial, run in groupby(token_ids, lambda token_id: REPLACEMENT in self._piece(token_id)):
            tokens = list(run)
            if partial:
                texts.append(self.decode(tokens))
                lengths += _fitted(self._in_context(tokens), len(texts[-1]))
            else:
                pieces = [self._piece(token_id) for token_id in tokens]
                texts += pieces
                lengths += map(len, pieces)
        return lengths, "".join(texts)

    def _piece(self, token_id: int) -> str:
        if token_id not in self._pieces:
            self._pieces[token_id] = self.decode([token_id])
        return self._pieces[token_id]

    def _in_context(self, token_ids: Sequence[int]) -> list[int]:
        """Where a character has several tokens, or a token by itself loses its blank: what each adds to those before.

        A character counts for the token that completes it. Example: `√` has three tokens, `b"\\xe2"`, `b"\\x88"`,
        `b"\\x9a"`: 0, 0, 1.
        """
        lengths, first, done = [], 0, 0  # tokens[first:done] are known, and are context for what follows
        for index in range(len(token_ids)):
            known = self.decode(list(token_ids[first:done]))
            shown = self.decode(list(token_ids[first : index + 1]))
            if (len(shown) > len(known) and not shown.endswith(REPLACEMENT)) or index - done >= MAX_PENDING:
                lengths.append(max(0, len(shown) - len(known)))
                first, done = done, index + 1
            else:
                lengths.append(0)
        return lengths


def _fitted(lengths: Sequence[int], total: int) -> list[int]:
    """The same, cut off at the total, with what is missing given to the last token."""
    fitted, left = [], total
    for length in lengths:
        fitted.append(min(length, left))
        left -= fitted[-1]
    if fitted:
        fitted[-1] += left
    return fitted
