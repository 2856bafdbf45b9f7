"""Text with hundreds of placeholders per picture in, its token ids out, the same as the tokenizer's and sooner.

A tokenizer reads a run of 700 `<|image_pad|>` one by one, which takes longer than the rest of the record. Here a run is
folded into one placeholder, and unfolded among the ids:

    <|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>   ->  one <|image_pad|>, 3 times
    [5, 6, 7]                                                               ->  [5, 6, 6, 6, 7]

That gives the same ids because a tokenizer cuts the text at its added tokens first: what stands between two of them
does not depend on how many follow each other. Added tokens that swallow spaces beside them are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


class FoldingTokenizer:
    """A tokenizer whose `encode` folds runs of placeholders; everything else is the tokenizer's own."""

    def __init__(self, tokenizer: Any, placeholders: Iterable[str | None]) -> None:
        """`placeholders`: tokens that may come in runs; those that are no plain added tokens are ignored."""
        self.tokenizer = tokenizer
        added = {token.content: (token_id, token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._ids: dict[str, int] = {}
        for content in filter(None, placeholders):
            if content in added:
                token_id, token = added[content]
                if not (token.lstrip or token.rstrip or token.single_word or token.normalized):
                    self._ids[content] = token_id
        self._runs = re.compile("|".join(f"(?P<run{i}>(?:{re.escape(text)})+)" for i, text in enumerate(self._ids)))

    def __getattr__(self, name: str) -> Any:
        # Unpickling looks for methods before `tokenizer` is there.
        if name == "tokenizer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **settings: Any) -> list[int]:
        """The ids that the tokenizer's own `encode` gives."""
        if not self._ids:
            return self.tokenizer.encode(text, **settings)
        counts: list[int] = []

        def fold(run: re.Match[str]) -> str:
            placeholder = next(content for content in self._ids if run[0].startswith(content))
            counts.append(len(run[0]) // len(placeholder))
            return placeholder

        folded = self._runs.sub(fold, text)
        ids = self.tokenizer.encode(folded, **settings)
        if len(folded) == len(text):
            return ids
        own = set(self._ids.values())
        if sum(token_id in own for token_id in ids) != len(counts):
            # A tokenizer told to split its special tokens (`split_special_tokens`) reads placeholders as text.
            return self.tokenizer.encode(text, **settings)
        remaining = iter(counts)
        unfolded: list[int] = []
        for token_id in ids:
            if token_id in own:
                unfolded += [token_id] * next(remaining)
            else:
                unfolded.append(token_id)
        return unfolded
