"""Every token of a completion with its log-probability, in about a byte a token.

In: how many characters each token has in the completion's text, and the log-probability that it was drawn with. Out: a
short text for a line of completions.jsonl, and back. Consumers: report.completions (writes), the rollout viewer (reads).

    lengths    3 1 5      "The", " ", "area "; sum = len(text); 0 for a token that completes no character yet
    log_probs  -0.02 -1.9 -0.3    nats

A log-probability is kept to 1/16 nat, which no eye tells apart in a colour, and down to -15.9375; less is kept as -16.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from lcot_plugin.errors import DataError

STEPS_PER_NAT = 16
LEAST = -16.0
"""What stands for it and everything below, -inf among it."""
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


def token_lengths(pieces: Sequence[str]) -> list[int]:
    """[T] characters of each token, of the text decoded up to and including each of them.

    pieces: [T] texts of growing prefixes. A prefix may end inside a character (decoded as U+FFFD, one or several): that
    character counts for the token that completes it.
    """
    lengths, done = [], 0
    for piece in pieces:
        whole = len(piece.rstrip("�"))
        lengths.append(max(0, whole - done))
        done = max(done, whole)
    return lengths
