"""The kind `choice`: which options a text chooses, by their labels or by what they say.

Where the options are known, `5 cm`, `0.05 m`, `B` and `B) 5 cm` are all option B, and `B) 6 cm`, which contradicts
itself, is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from lcot_plugin.rewards.cues import withdraws
from lcot_plugin.rewards.extraction import Found, Place, gold_answer
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.dress import undress
from lcot_plugin.rewards.kinds.labels import DEFAULT_LETTERS, LETTERS, label_reader, read_line
from lcot_plugin.rewards.kinds.texts import normalise_text, same_text
from lcot_plugin.types import MatchSettings, Outcome

ReadItem = Callable[[str, MatchSettings], Gold | None]
JudgeItem = Callable[[Gold, Found, MatchSettings, Solver | None], Outcome]

_PLAIN = MatchSettings()
_ONE_LETTER = re.compile(r"\(?[A-Z]\)?[.:)]?|\([a-z]\)")
_LETTERS_APART = re.compile(r"\(?[A-J]\)?(?:\s*(?:,\s*and\s|[,&]|\s+and\s)\s*\(?[A-J]\)?)+")
_STATEMENTS = re.compile(r"\(\d{1,2}\)(?:\s*[,、和与]?\s*\(\d{1,2}\))+")
"""Numbered statements, `(1)(3)`."""
_LETTERS_TOGETHER = re.compile(r"[A-Z]{2,26}")
_OWN_LETTER = re.compile(r"\s*(?:\(\s?([A-Z])\s?\)|([A-Z])[.):])\s*(?=\S)")
_LABEL_FIRST = re.compile(r"(?P<label>[A-Z])(?:\s?[,.:)=-]|\s)\s?\(?(?P<text>.+?)\)?")
_LABEL_LAST = re.compile(r"(?P<text>.+?)\s?[,=-]?\s?\((?P<label>[A-Z])\)")
_LOWER_CASE = re.compile(r"[a-z]")
_HEDGES = re.compile(r"\bor\b|或", re.IGNORECASE)
_WORDY = ("text", "choice", "yes_no")


class _ContradictionError(Exception):
    """A label with the text of another option."""


@dataclass(frozen=True)
class Choice:
    """The value of a gold answer of this kind."""

    labels: frozenset[str]
    style: str = "letter"
    """`letter`, `digit` or `roman`."""
    glued: bool = False
    """Whether `AC` is A and C; not where the gold answer was only guessed to be letters."""


def read_choice(text: str) -> str | None:
    """The one letter, A to J, that `text` chooses; None where it chooses none, several or hedges."""
    chosen = label_reader().read(read_line(text))
    return next(iter(chosen.labels)) if chosen is not None and len(chosen.labels) == 1 else None


def choice_kind(read_item: ReadItem, judge_item: JudgeItem) -> Kind:
    """The kind `choice`, whose options are read and judged by these."""

    @lru_cache(maxsize=1024)
    def read_options(options: tuple[str, ...]) -> tuple[tuple[str, Gold | None], ...]:
        """Every option's text with its reading, None for words."""
        texts = bare_options(options)
        readings = [read_item(undress(text), _PLAIN) for text in texts]
        return tuple(
            (text, None if reading is None or reading.kind in _WORDY else reading)
            for text, reading in zip(texts, readings, strict=True)
        )

    def in_words(text: str, options: tuple[str, ...]) -> list[int]:
        """The options that say `text` in the same words."""
        return [index for index, (option, _) in enumerate(read_options(options)) if same_text(option, text)]

    def with_text(text: str, options: tuple[str, ...], solver: Solver | None) -> list[int]:
        """The options that say `text`: in the same words, else with an equal value."""
        known = read_options(options)
        same = in_words(text, options)
        if same or not any(reading for _, reading in known):
            return same
        stated = None if _HEDGES.search(text) else read_item(undress(text), _PLAIN)
        if stated is None or stated.kind in _WORDY:
            return []
        found = Found(text, Place.BOXED)
        return [
            index
            for index, (_, reading) in enumerate(known)
            if reading is not None and judge_item(reading, found, _PLAIN, solver) is Outcome.MATCHED
        ]

    def agrees(label: str, text: str, options: tuple[str, ...], solver: Solver | None) -> bool:
        """Whether `text` may stand behind `label`: the option's own text or a remark, not what another option says."""
        known = read_options(options)
        own = LETTERS.index(label)
        same = with_text(text, options, solver)
        if same:
            return own in same
        remark = normalise_text(text)
        named = [index for index, (option, _) in enumerate(known) if _mentions(remark, normalise_text(option))]
        if named:
            return own in named
        stated = read_item(undress(text), _PLAIN)
        # "B. 7 cm" where B is 5 cm; but "B. The third side" may stand behind any option.
        return known[own][1] is None or stated is None or stated.kind in _WORDY

    def choose(text: str, style: str, settings: MatchSettings, glued: bool, solver: Solver | None) -> frozenset[str]:
        """The labels that `text` chooses, maybe none; _ContradictionError where it says two things."""
        options = settings.options if style == "letter" else ()
        line = read_line(gold_answer(text))
        chosen = label_reader(style, len(options) or DEFAULT_LETTERS).read(line, glued=glued)
        if chosen is not None and any(
            withdraws(remark) and not in_words(remark, options) for remark in chosen.texts.values()
        ):
            raise _ContradictionError  # B. Wait, it is D
        if not options:
            return chosen.labels if chosen is not None else frozenset()
        alone = chosen is not None and not any(chosen.texts.values())
        if chosen is None or (alone and (len(chosen.labels) > 1 or _LOWER_CASE.fullmatch(line))):
            # "A and B" may be what option D says, and "b" a variable.
            same = in_words(line, options)
            labelled = frozenset() if same else text_and_label(line, options, solver)
            if chosen is None and not same and not labelled:
                same = with_text(line, options, solver)
            if labelled or len(same) == 1:
                return labelled or frozenset(LETTERS[same[0]])
            if chosen is None:
                return frozenset()
        for label, remark in chosen.texts.items():
            if remark and not agrees(label, remark, options, solver):
                raise _ContradictionError
        return chosen.labels

    def text_and_label(line: str, options: tuple[str, ...], solver: Solver | None) -> frozenset[str]:
        """`B 5 cm`, `B, 5 cm`, `5 cm (B)`: forms that only the option's text makes clear."""
        for pattern in (_LABEL_FIRST, _LABEL_LAST):
            match = pattern.fullmatch(line)
            own = LETTERS.index(match["label"]) if match else len(options)
            if match is None or own >= len(options):
                continue
            same = with_text(match["text"], options, solver)
            if same and own not in same:
                raise _ContradictionError
            if same:
                return frozenset(match["label"])
        return frozenset()

    def read(text: str, settings: MatchSettings) -> Gold | None:
        try:
            labels = choose(text, "letter", settings, True, None)
        except _ContradictionError:
            return None
        except NeedsSolver:
            # Reading has no solver: of a label with an expression the label alone counts.
            chosen = label_reader("letter", len(settings.options)).read(read_line(text), glued=True)
            labels = chosen.labels if chosen is not None else frozenset()
        together = _LETTERS_TOGETHER.fullmatch(text)
        if labels and not (together and list(text) != sorted(text)):
            return _gold(Choice(labels, glued=True))
        for style in ("digit", "roman"):
            chosen = label_reader(style).read(read_line(text))
            if chosen is not None:
                return _gold(Choice(chosen.labels, style))
        return None

    def infer(text: str, settings: MatchSettings) -> Gold | None:
        if _STATEMENTS.fullmatch(text):
            chosen = label_reader("digit").read(read_line(text))
            return _gold(Choice(chosen.labels, "digit")) if chosen is not None else None
        if not settings.options:
            if _LETTERS_APART.fullmatch(text):
                chosen = label_reader().read(read_line(text))
                return _gold(Choice(chosen.labels)) if chosen is not None else None
            one = _ONE_LETTER.fullmatch(text)
            label = read_choice(text) if one else None
            return _gold(Choice(frozenset(label))) if label is not None else None
        count = len(settings.options)
        if _ONE_LETTER.fullmatch(text) or _LETTERS_APART.fullmatch(text):
            return read(text, settings) if label_reader("letter", count).read(read_line(text)) else None
        try:
            same = with_text(text, settings.options, None)
        except NeedsSolver:
            same = []
        if len(same) == 1:
            return _gold(Choice(frozenset(LETTERS[same[0]]), glued=True))
        chosen = label_reader("letter", count).read(read_line(text), glued=True)
        lettered = chosen is not None and (_LETTERS_TOGETHER.fullmatch(text) or _OWN_LETTER.match(text))
        return read(text, settings) if lettered else None

    def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
        value: Choice = gold.value
        try:
            labels = choose(found.answer, value.style, settings, value.glued, solver)
        except _ContradictionError:
            return False
        return labels == value.labels if labels else None

    return Kind(read, compare, infer)


def bare_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """The first 26 options without their letters, where each carries its own: `A. 5 cm` is `5 cm`."""
    options = options[: len(LETTERS)]
    marks = [_OWN_LETTER.match(option) for option in options]
    if all(mark and (mark[1] or mark[2]) == letter for mark, letter in zip(marks, LETTERS, strict=False)):
        return tuple(option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark)
    return options


def _mentions(text: str, phrase: str) -> bool:
    return bool(phrase) and re.search(rf"(?<![\w.]){re.escape(phrase)}(?![\w]|\.\d)", text) is not None


def _gold(choice: Choice) -> Gold:
    return Gold("choice", ", ".join(sorted(choice.labels)), choice)
