"""When a completion has ended: an end token, a stop string, or its limit.

In: token ids. Out: an Ending, and the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcot_plugin.types import EncodedPrompt, Ending, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 8
"""Tokens decoded before those that can hold a stop string: the first ones may be parts of characters, or lose a blank
that they have in the whole text."""


class StopRule:
    """Decides after every token whether a completion has ended."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        stop_strings: Sequence[str],
        skip_special_tokens: bool,
    ):
        self.tokenizer = tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        self.stop_strings = [string for string in stop_strings if string]
        self.skip_special_tokens = skip_special_tokens
        special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._invisible = special | set(tokenizer.all_special_ids) if skip_special_tokens else set()
        # A token that is seen stands for at least one byte.
        self._num_tail = MARGIN + max((len(string.encode()) for string in self.stop_strings), default=0)

    def ending(self, token_ids: Sequence[int], limit: int) -> Ending | None:
        """After the last of `token_ids` was written; None to go on."""
        if token_ids[-1] in self.end_token_ids or (self.stop_strings and self._holds_stop_string(token_ids)):
            return Ending.STOPPED
        return Ending.TRUNCATED if len(token_ids) >= limit else None

    def _holds_stop_string(self, token_ids: Sequence[int]) -> bool:
        """Looked for at the end only, since it was not there one token ago; what is found is checked in the text."""
        if token_ids[-1] in self._invisible:
            return False
        tail: list[int] = []
        for token_id in reversed(token_ids):
            if token_id not in self._invisible:
                tail.append(token_id)
            if len(tail) == self._num_tail:
                break
        decoded = self._decode(tail[::-1])
        return any(string in decoded for string in self.stop_strings) and any(
            string in self._decode(token_ids) for string in self.stop_strings
        )

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=self.skip_special_tokens)

    def text(self, token_ids: Sequence[int]) -> str:
        """Without the end token; with the stop string."""
        return self._decode(token_ids[:-1] if token_ids[-1] in self.end_token_ids else token_ids)


def token_limit(prompt: EncodedPrompt, sampling: SamplingParams) -> int:
    """The most tokens that a completion of this prompt may have, at least 1."""
    if prompt.max_new_tokens is None:
        return sampling.max_new_tokens
    return max(1, min(sampling.max_new_tokens, prompt.max_new_tokens))
