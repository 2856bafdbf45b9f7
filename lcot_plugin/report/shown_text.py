"""What a model wrote in, HTML that shows it as text out: nothing in it can steer a browser, and its size is bounded.

completion --split_thought--> (thought, answer) ranges
completion, trace --ShownText.html(range)--> escaped text, tokens coloured, what was left out counted
"""

from __future__ import annotations

import html
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from lcot_plugin.errors import DataError
from lcot_plugin.report.token_trace import TokenTrace, decode

MAX_TOKENS = 4000
"""Coloured tokens of one completion: each is an element of the page."""
MAX_BEFORE_THOUGHT = 2000
"""Characters before a tag that opens a thought."""
PROBABILITIES = (0.9, 0.5, 0.1, 0.01)
"""Where a token's colour changes: t0 for 0.9 and more, t4 below 0.01."""
_LEAST_LOG_PROBS = tuple(math.log(probability) for probability in PROBABILITIES)

_STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
r"""Control, direction and invisible characters, and halves of surrogate pairs; `\n` and `\t` are shown as they are."""
_CLOSES = re.compile(
    r"</(?:think(?:ing)?|thought|reasoning|seed:think)>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<channel\|>"
    r"|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)
_OPENS = re.compile(
    r"<(?:think(?:ing)?|thought|reasoning|seed:think)>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|channel>thought"
    r"|<\|channel\|>(?:analysis|commentary)",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"<answer>", re.IGNORECASE)


def visible(text: str) -> str:
    r"""`text` with the characters that steer written out: `\x1b`, `\u202e`."""
    return _STEERS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def escaped(text: object, limit: int | None = None) -> str:
    """Any value as HTML text; with `limit`, its first characters and the number of those left out."""
    shown = "" if text is None else text if isinstance(text, str) else str(text)
    if limit is not None and len(shown) > limit:
        shown = f"{shown[:limit]}\u2026 (+{len(shown) - limit:,})"
    return html.escape(visible(shown))


def split_thought(text: str, opening: str = "") -> tuple[int, bool]:
    """(characters of `text` that are the thought with its delimiters, whether it was closed); 0 without a thought.

    opening: what of the thought's beginning the prompt holds.
    """
    ends = [found.end() for found in _CLOSES.finditer(text)]
    if ends:
        return ends[-1], True
    answers = [found.start() for found in _ANSWER.finditer(text)]
    if answers and text[: answers[-1]].strip():
        return answers[-1], True
    opens = _OPENS.search(opening + text[:MAX_BEFORE_THOUGHT])
    return (len(text), False) if opens else (0, True)


def trace_of(line: Mapping[str, object]) -> TokenTrace | None:
    """The line's log-probabilities; None where it has none. Raises DataError where they do not fit its text."""
    if not line.get("trace"):
        return None
    trace, text = decode(str(line["trace"])), str(line.get("completion") or "")
    if sum(trace.lengths) > len(text):
        raise DataError("The log-probabilities of a completion are those of a longer text.")
    return trace


class ShownText:
    """A text of which at most `max_chars` characters are shown: its beginning and, a third as long, its end."""

    def __init__(self, text: str, texts: Mapping[str, str], max_chars: int, trace: TokenTrace | None = None) -> None:
        self.text = text
        self.texts = texts
        hidden = max(0, len(text) - max_chars)
        first = max_chars - max_chars // 4 if hidden else len(text)
        self.hidden = (first, first + hidden)
        self._trace = trace
        self._starts = [0, *accumulate(trace.lengths)] if trace else []
        """Where each token begins, and the end of the last."""
        num_tokens = len(trace.lengths) if trace else 0
        self._uncoloured = range(MAX_TOKENS - MAX_TOKENS // 4, num_tokens - MAX_TOKENS // 4)

    @property
    def num_uncoloured(self) -> int:
        return len(self._uncoloured)

    def html(self, start: int, end: int) -> str:
        """Characters start to end."""
        first, last = max(start, self.hidden[0]), min(end, self.hidden[1])
        if first >= last:
            return self._run(start, end)
        note = self.texts["left_out"].format(number=f"{last - first:,}")
        return f'{self._run(start, first)}<span class="lcot-cut">{html.escape(note)}</span>{self._run(last, end)}'

    def _run(self, start: int, end: int) -> str:
        if start >= end:
            return ""
        if self._trace is None:
            return escaped(self.text[start:end])
        parts = []
        token = max(0, bisect_right(self._starts, start) - 1)
        while token < len(self._trace.lengths) and self._starts[token] < end:
            if token in self._uncoloured:
                following = self._uncoloured.stop
                piece = self.text[max(start, self._starts[token]) : min(end, self._starts[following])]
                parts.append(escaped(piece))
                token = following
                continue
            piece = self.text[max(start, self._starts[token]) : min(end, self._starts[token + 1])]
            if piece:
                parts.append(_token(piece, self._trace.log_probs[token]))
            token += 1
        rest = self.text[max(start, self._starts[-1]) : end]
        return "".join(parts) + escaped(rest)


def _token(text: str, log_prob: float) -> str:
    level = sum(log_prob < least for least in _LEAST_LOG_PROBS)
    shown = escaped(text)
    if not text.strip():
        shown = shown.replace("\n", "\u21b5\n") if level else shown
    return f'<i class="lcot-t{level}" title="{log_prob:.2f} ({percent(math.exp(log_prob))})">{shown}</i>'


def percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share >= 0.001 else "< 0.1 %"
