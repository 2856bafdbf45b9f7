"""Two texts in, whether they say the same out: the kind `text`, and ANLS.

Text is equal after normalisation (`The "Red Ball."` is `red ball`), never merely similar, unless `min_anls` says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.numerals import NUMBER_WORDS, read_numeral
from lcot_plugin.rewards.kinds.yes_no import read_truth, truth_word
from lcot_plugin.types import MatchSettings

_QUOTED = re.compile(r"([\"'`“”„‘’«»「」『』])(.*)[\"'`“”‘’«»「」『』]", re.DOTALL)  # noqa: RUF001
_QUOTES = re.compile(r"(?<!\d)[\"`“”„«»「」『』]|(?<![^\W_])['‘’]|(?<=[^\W\d_])['‘’](?![^\W_])|\*\*|__")  # noqa: RUF001
"""Not the feet and inches of 5'10", nor the apostrophe of we're."""
_EDGE = " .,;:!?。"
_BRACKETED = re.compile(r"\(([^\d,()]*)\)|\[([^\d,\[\]]*)\]")
_INITIALS = re.compile(r"(?<![\w.])(?:[^\W\d_]\.\s?)+[^\W\d_]\b\.?")
_ARTICLE = re.compile(r"(?<![\w-])(?:the|an|The|An|THE|AN)\s+(?=\S)|(?:(?<![\w-])a|^A)\s+(?!and\b|or\b)(?=\w\w)")
_STOP = re.compile(r"(?<=[^\W\d_])[.!?](?=\s)|(?<!\d)[,;:](?!/)|[,;:](?![\d/])")
_FACTORIAL = re.compile(r"(?<!\w)\w!\Z")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_AMPERSAND = re.compile(r"(?<=\s)&(?=\s)")
_CJK_SPACE = re.compile(r"(?<=[\u3400-\u9fff\u3040-\u30ff])\s+(?=[\u3400-\u9fff\u3040-\u30ff])")
_NUMBER_WORD = re.compile(r"(?<![a-z-])[a-z]{3,9}(?![a-z])|[一二两三四五六七八九十百千万]+")
_MAX_COUNT_CHARS = 200
_OPENING = re.compile(
    r"(?:it's|it is|this is|that's|that is|they're|they are|these are|those are)\s+|(?:这|那|它)?是(?=[^否的不])"
)


@lru_cache(maxsize=2048)
def normalise_text(text: str) -> str:
    """Case, quotes, markdown, articles, hyphens, punctuation and extra spaces removed; NFKC.

    Digits keep what stands between them: `12:30`, `1,000`, `3.5`; so do `C++` and `-5`. A capital A within a name
    stays: `vitamin A`.
    """
    text = inline(undress(text))
    if (quoted := _QUOTED.fullmatch(text)) is not None and quoted[1] not in quoted[2]:
        text = quoted[2]
    text = _QUOTES.sub("", text.replace("’", "'"))  # noqa: RUF001
    text = _without_edges(text)
    if (bracketed := _BRACKETED.fullmatch(text)) is not None:
        text = _without_edges(bracketed[1] or bracketed[2] or "")
    text = _INITIALS.sub(lambda initials: re.sub(r"[.\s]", "", initials[0]), text)
    text = _STOP.sub(" ", text)
    text = _HYPHEN.sub(" ", text)
    text = _AMPERSAND.sub("and", text)
    text = _ARTICLE.sub("", re.sub(r"\s+", " ", text).strip())
    return _without_edges(_CJK_SPACE.sub("", re.sub(r"\s+", " ", text.casefold())))


def _without_edges(text: str) -> str:
    inner = text.strip(_EDGE)
    if _FACTORIAL.search(text) is not None:
        inner += "!"
    # The point of .5 is no punctuation.
    return "." + inner if inner[:1].isdigit() and text.lstrip(" ,;:").startswith("." + inner[0]) else inner


def same_text(gold: str, answer: str) -> bool:
    """Whether the two are one text, `red` and `It is red.`, or one truth: `yes` is `Yes, it is.`, not `yes and no`."""
    wanted, stated = normalise_text(gold), normalise_text(answer)
    if wanted == stated:
        # Of what is nothing but punctuation nothing is left to compare.
        return bool(wanted) or undress(gold) == undress(answer)
    truth = truth_word(gold)
    if truth is not None:
        return read_truth(answer) is truth
    if len(stated) <= _MAX_COUNT_CHARS and len(wanted) <= _MAX_COUNT_CHARS and _in_digits(wanted) == _in_digits(stated):
        return True
    opening = _OPENING.match(_spoken(answer))
    return opening is not None and bool(wanted) and normalise_text(_spoken(answer)[opening.end() :]) == wanted


@lru_cache(maxsize=2048)
def _in_digits(text: str) -> str:
    """`two dogs` as `2 dogs`; ordinals and fractions as they are."""
    pieces, position = [], 0
    for word in _NUMBER_WORD.finditer(text):
        if word.start() < position or not (word[0] in NUMBER_WORDS or not word[0].isascii()):
            continue
        numeral = read_numeral(text[word.start() :])
        if numeral is not None and numeral.value.denominator == 1 and not numeral.percent:
            pieces += [text[position : word.start()], str(numeral.value)]
            position = word.start() + numeral.end
    return "".join([*pieces, text[position:]])


def _spoken(text: str) -> str:
    return inline(undress(text)).replace("’", "'").casefold()  # noqa: RUF001


# The kind text.


def read(text: str, settings: MatchSettings) -> Gold | None:
    """Any text that is not blank once normalised."""
    return Gold("text", text) if normalise_text(text) else None


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` says the same, or is as similar as `min_anls` asks."""
    answer = undress(found.answer)
    if same_text(gold.text, answer):
        return True
    return settings.min_anls < 1.0 and anls(answer, [gold.text]) >= settings.min_anls


KIND = Kind(read, compare)


# ANLS.


def anls(prediction: str, golds: Sequence[str], threshold: float = 0.5) -> float:
    """Average Normalised Levenshtein Similarity of one answer: the best over `golds`, 0.0 to 1.0.

    `1 - distance / longer length`, case and extra spaces ignored; 0.0 where the normalised distance is `threshold` or
    more. Biten et al. 2019, Scene Text Visual Question Answering. 0.0 for a prediction of more than MAX_ANSWER_CHARS
    characters.
    """
    if len(prediction) > MAX_ANSWER_CHARS:
        return 0.0
    answer = _folded(prediction)
    return max((_similarity(answer, _folded(gold), threshold) for gold in golds), default=0.0)


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(answer: str, gold: str, threshold: float) -> float:
    longer = max(len(answer), len(gold))
    if answer == gold:
        return 1.0
    # The lengths alone cost that many edits.
    if abs(len(answer) - len(gold)) >= threshold * longer:
        return 0.0
    distance = levenshtein(answer, gold) / longer
    return 1.0 - distance if distance < threshold else 0.0


def levenshtein(first: str, second: str) -> int:
    """Insertions, deletions and substitutions that make one text of the other.

    Bit-parallel: one integer of len(first) bits holds a column of the table, so that 4000 characters against 4000 take
    milliseconds. Myers 1999, in the form of Hyyrö 2003.
    """
    if not first or not second:
        return len(first) + len(second)
    where: dict[str, int] = {}
    for index, char in enumerate(first):
        where[char] = where.get(char, 0) | 1 << index
    everywhere, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = everywhere, 0, len(first)
    for char in second:
        equal = where.get(char, 0)
        diagonal = equal | falls
        across = (((equal & rises) + rises) ^ rises) | equal
        up = falls | (everywhere & ~(across | rises))
        down = rises & across
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises = everywhere & (down << 1 | ~(diagonal | up))
        falls = everywhere & up & diagonal
    return distance
