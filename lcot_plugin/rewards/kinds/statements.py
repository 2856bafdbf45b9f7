"""A sentence in, the one number it states out: `There are 5 apples in the picture.` states 5.

Only a sentence with exactly one number in it, in digits or words, states it, and only where nothing negates it or
hedges: `at least 5`, `not 5`, `5 or 6`, `See figure 5` state none. Consumed by `numbers` and `times`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import takewhile

from lcot_plugin.rewards.kinds.dress import inline
from lcot_plugin.rewards.kinds.numerals import NUMBER_WORDS, read_numeral
from lcot_plugin.rewards.kinds.quantities import Quantity, counts, read_quantity
from lcot_plugin.rewards.kinds.units import NOT_UNITS, UNITS, Unit, parse_unit, plain_unit, singular

MAX_STATEMENT_CHARS = 300

HEDGE = re.compile(
    r"\b(?:not|never|no|none|neither|nor|or|cannot|without|except|unless|if|whether|wonder|exclud\w{1,4}|eliminat\w{1,4}|ruled|instead|rather|maybe|perhaps|possibly|probably"
    r"|might|may|could|would|should|likely|unlikely|guess|guessed|unsure|uncertain|unclear|unknown|wrong|incorrect|false"
    r"|mistake|almost|nearly|least|most|more|less|fewer|greater|smaller|larger|bigger|over|under|above|below|beyond|within"
    r"|up\sto|between|minimum|maximum|another|extra|additional|remaining|every|each|per|times|suppose|assume|assuming|let"
    r"|hardly|barely|doubt|doubtful|impossible|can't|\w{2,6}n't|from|to|some|many|few|various|than|(?:before|after|until|till|since)\s(?:the\syear\s)?(?=\d)|only\sif|but|however)\b"
    r"|不|没|非|或|至少|至多|最多|最少|超过|多于|少于|大于|小于|不到|左右|可能|也许|大概|几|吗|以上|以下|以内|将近"
    r"|差不多|每|多个|余|如果|假设|错|另|还有|到",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"(?:[^\W_]|[\s.,;:'\"()%°$€£¥₹，。、；：（）“”’/]|(?<!\s)-(?!\s)|-(?=\.?\d))*")  # noqa: RUF001
"""No symbol that relates or computes: `5!`, `5 - x`, `≢5`."""
_CHINESE_NUMERAL = re.compile("(?<![唯统之])一(?![共起定样般直])|[零二两三四五六七八九十百千万亿]|半(?![径圆球])")
NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|cannot|can't|\w{2,6}n't|maybe|perhaps|possibly|might|guess|unsure|uncertain|wrong|incorrect"
    r"|if|whether|unless|suppose|assume|assuming|let|doubt|doubtful|unlikely|unclear|untrue|impossible)\b"
    r"|不|没|非|可能|也许|如果|假设|错",
    re.IGNORECASE,
)
"""What takes back or doubts the statement it stands in."""
_LABEL = re.compile(
    r"\b(?:figures?|fig|tables?|steps?|questions?|problems?|parts?|sections?|pages?|lines?|equations?|eq|cases?|options?"
    r"|choices?|rows?|columns?|items?|numbers?|no|points?|vertex|class|chapters?|examples?|exercises?|theorem|image|picture"
    r"|grade|level|room|player|team|group|version|type|answer\s[a-j])\.?\s*#?$|#$|第$|图$",
    re.IGNORECASE,
)
_OF = re.compile(r"\bof\s(?:the\s)?(?:exactly|about|approximately|roughly|around|only|just)?\s*$", re.IGNORECASE)
_MEASURE_OF = re.compile(
    r"(?:\b(?:total|value|count|number|length|area|height|width|depth|angle|measure|radius|diameter|perimeter|volume|distance"
    r"|circumference|speed|velocity|acceleration|rate|price|cost|mass|weight|age|amount|quantity|score|population|temperature"
    r"|probability|percentage|slope|capacity|frequency|wavelength|time|duration|period|force|energy|pressure|voltage"
    r"|current|resistance|density|profit|loss|answer|result|group|team|family|year|month|spring|summer|fall|autumn|winter"
    r"|end|beginning|start|january|february|march|april|may|june|july|august|september|october|november|december"
    r"|consists?|consisting|composed|comprised|made|made\sup|discount|increase|decrease|change|bill|fee|tip|salary|income)"
    r"|\ban?\s(?:\w{1,12}\s)?(?:average|mean|median|mode|range|difference|degree))\s$",
    re.IGNORECASE,
)
"""Before `of 5`, where the number is the measure itself: the square of 5 is not 5."""
_STATES = re.compile(
    r"(?:\b(?:is|are|was|were|equals|has|have|had|contains?|shows?|sees?|count(?:ed|s)?|gets?|gives?|totals?|makes?|be|find|est|ist|es|é|è)"
    r"|\b(?:antwort|ergebnis|réponse|résultat|respuesta|resultado|resposta|risposta|ответ|الجواب|answer|result|total)\s?:"
    r"|[有是为共は]|답은|答案:|答:)\s*(?:a\stotal\sof|in\stotal|exactly|approximately|about|roughly|around|just|only|[,:])?\s*$",
    re.IGNORECASE,
)
_FOREIGN_OPENING = re.compile(
    r"(?:(?:die\s|das\s)?(?:antwort|ergebnis)(?:\sist|\s?:)|(?:la\s|le\s)?(?:réponse|résultat)(?:\sest|\s?:)"
    r"|(?:la\s|el\s)?(?:respuesta|resultado)(?:\ses|\s?:)|(?:a\s|o\s)?(?:resposta|resultado)(?:\sé|\s?:)"
    r"|(?:la\s|il\s)?(?:risposta|risultato)(?:\sè|\s?:)|es\s(?:sind|gibt)|il\sy\sa|hay|há|ci\ssono"
    r"|(?:ответ|الجواب)\s?:|(?:정답|답)(?:은|\s?:)|(?:答え|正解)(?:は|\s?:))\s*",
    re.IGNORECASE,
)
"""All that may stand before the number of a sentence in neither English nor Chinese: how those deny is a long list."""
_ENGLISH = re.compile(
    r"\b(?:the|is|are|was|were|has|have|had|there|it|its|it's|this|that's|they|she|he|we|you|answer|result|number|count|value"
    r"|contains?|equals?|shows?|of|about|exactly|only|just|approximately|roughly|around|total"
    r"|his|her|their|my|our|\w{2,12}(?:ed|ing|ght))\b",
    re.IGNORECASE,
)
_NEITHER_ENGLISH_NOR_CHINESE = re.compile(r"[^\W\d_a-zA-Z\u0391-\u03c9\u00b5Å\u4e00-\u9fff]|[\u0391-\u03c9]{3}")
_DENIED_ABROAD = re.compile(
    r"\b(?:nicht|keine?|niet|geen|nie|inte|ikke|pas|non|não|nao|bukan|tidak|falsch|faux|fausse|fals[ao]|errad[ao]|sbagliat[ao]"
    r"|oder|ou|oppure)\b",
    re.IGNORECASE,
)
_FOREIGN_COPULA = re.compile(r"\s?(?:[個개])?\s?(?:です|だ|입니다|이다)?\W*|\s[a-zA-Z\u00c0-\u024f]{2,20}\W*")
_PER = re.compile(r"每[^\W不没非未\d]{1,4}?(?:应该?)?(?=[是为有])")
"""The subject of 每份是5, where 每 is no part of the number."""
_THE_YEAR = re.compile(r"(?:in\s)?the\syear\s", re.IGNORECASE)
_PLAIN_FRACTION = re.compile(r"(?<![\d\\.)}])\(?\s?\\[dt]?frac\s?\{\s?(\d{1,9})\s?\}\s?\{\s?(\d{1,9})\s?\}\s?\)?")
_ADVERB = re.compile(
    r"(?:in|at|on|year|total|exactly|only|just|about|approximately|roughly|around|it's|that's|answer|result)\W*$",
    re.IGNORECASE,
)
_HARMLESS = frozenset(["of", "by", "and", "is", "are", "was", "percent"])
_WORDS = re.compile(r"[A-Za-z]+")
_NUMBER_START = re.compile(r"(?:[-+]\s?|\b(?:minus|negative)\s|负|零下)?(?:[$€£¥₹]\s?)?-?\.?\d")
_BREAKS = frozenset(
    re.findall(r"\w+", "in at as on to of for the a an is are was were and with by from this that there here")
)
_MAX_UNIT_WORDS = 4


NOT_A_NOUN = re.compile(rf"\b(?:{'|'.join(sorted({*NOT_UNITS, *_BREAKS}))})\b|" + HEDGE.pattern, re.IGNORECASE)
"""What the words behind a number may not hold where they only name what is counted."""


def stated_quantity(text: str, unit: Unit | None, *, marked: bool) -> Quantity | None:
    """The quantity that the sentence `text` states, with its unit; None where it states none or several.

    `unit` is the gold answer's: only where it has one do the words behind the number matter. `marked`: the model said
    that this is its answer; any other sentence has to state it with a verb.
    """
    if len(text) > 2 * MAX_STATEMENT_CHARS:
        return None
    line = _PLAIN_FRACTION.sub(r"\1/\2", re.sub(r"\*\*|__|`", "", inline(text)))
    if marked:
        line = _PER.sub("", line, count=1)
    if len(line) > MAX_STATEMENT_CHARS or HEDGE.search(line) or not _PLAIN.fullmatch(line):
        return None
    span = _only_number(line)
    if span is None:
        return None
    before, number, after = line[: span[0]], line[span[0] : span[1]], line[span[1] :]
    if _LABEL.search(before) or (re.search(r"[\w)]$", before) and before[-1:].isascii()):
        return None
    of = _OF.search(before)
    if of is not None and not _MEASURE_OF.search(before[: of.start()]):
        return None
    if not _affirms(before, after):
        return None
    words = _WORDS.findall(after)
    if words and words[0].lower() in NOT_UNITS - _HARMLESS:
        return None  # 5 squared
    if len(before.split()) == 1 and before.isascii() and not (_STATES.search(before) or _ADVERB.match(before)):
        return None  # Apollo 11
    stated = marked or _STATES.search(before) or _THE_YEAR.fullmatch(before)
    if not stated and (before.strip() or len(after.split()) > 3):
        return None
    return _with_unit(number, after, unit)


def _affirms(before: str, after: str) -> bool:
    """Whether the sentence is in a language and of a shape that affirms, as far as negations go."""
    if _DENIED_ABROAD.search(before) or _DENIED_ABROAD.search(after):
        return False
    if _NEITHER_ENGLISH_NOR_CHINESE.search(before + after):
        opened = not before.strip() or _FOREIGN_OPENING.fullmatch(before) is not None
        return opened and _FOREIGN_COPULA.fullmatch(after) is not None
    if len(_WORDS.findall(before)) < 2 or _FOREIGN_OPENING.fullmatch(before):
        return True
    return _ENGLISH.search(before) is not None or not before.isascii()


def denies(text: str) -> bool:
    """Whether something in `text` takes back or doubts what it says."""
    return NEGATION.search(text) is not None or _DENIED_ABROAD.search(text) is not None


def _only_number(line: str) -> tuple[int, int] | None:
    """Where the only number of `line` stands."""
    words = [(match.start(), match.end()) for match in _WORDS.finditer(line) if match.group().lower() in NUMBER_WORDS]
    digits = _NUMBER_START.search(line)
    if digits is not None:
        rest = re.compile(r"(?:[\d,.' ]*\d)?").match(line, digits.end())
        assert rest is not None
        end = rest.end()
        fraction = re.compile(r"/\d{1,9}(?![\d/])").match(line, end)
        if fraction is not None and _STATES.search(line[: digits.start()]):
            end = fraction.end()
        scale = [span for span in words if line[end : span[0]].strip() in ("", "-")]
        if scale:
            end = scale[0][1]
        others = line[: digits.start()] + " " + line[end:]
        if re.search(r"\d", others) or any(span not in scale for span in words) or len(scale) > 1:
            return None
        if _CHINESE_NUMERAL.search(re.sub("^[百千万亿]{1,2}", "", line[end:]) + " " + line[: digits.start()]):
            return None
        return digits.start(), end
    chinese = _CHINESE_NUMERAL.search(line)
    if chinese is None and not words:
        return None
    start = min(span for span in (chinese.start() if chinese else len(line), words[0][0] if words else len(line)))
    if article := re.search(r"\b(?:an?|minus|negative)\s$", line[:start], re.IGNORECASE):
        start = article.start()
    numeral = read_numeral(line[start:])
    if numeral is None:
        return None
    end = start + numeral.end
    # 三角形 and 一样 hold no number; 五个 and 五厘米 do, and so does a numeral that ends the sentence.
    noun = "".join(takewhile(lambda char: "\u4e00" <= char <= "\u9fff", line[end:].lstrip()))
    if not line[end - 1].isascii() and noun and not _counted(noun):
        return None
    if any(begin >= end for begin, _ in words) or _CHINESE_NUMERAL.search(line[end:]):
        return None
    return start, end


def _counted(noun: str) -> bool:
    """Whether a Chinese `noun` begins with a measure word or a unit; 分 alone is one, but not in 十分多, very many."""
    return noun == "分" or any(noun[:size] != "分" and counts(noun[:size]) for size in (1, 2, 3))


def _with_unit(number: str, after: str, gold: Unit | None) -> Quantity | None:
    """The quantity with the longest unit that follows it; another word than the gold answer's is a unit of its own."""
    words = re.match(r"[^.,;:!?。，；]*", after).group().split(" ")  # type: ignore[union-attr]  # noqa: RUF001
    leading = after.startswith(" ")
    words = [word for word in words if word][:_MAX_UNIT_WORDS]
    percent = re.match(r"\s*(?:%|percent\b|per\scent\b)", after)
    if percent:
        return read_quantity(number + "%")
    for count in range(len(words), 0, -1):
        written = " ".join(words[:count])
        if words[count - 1].lower() in _BREAKS and count < len(words):
            continue
        if any(word.lower() in _BREAKS for word in words[: count - 1]):
            continue
        if parse_unit(plain_unit(written), UNITS) is not None:
            return read_quantity(number + (" " if leading else "") + written, glued_letter=gold is not None)
    if re.match(r"[A-Za-z_]", after):
        return None  # 1st, 5x
    if gold is None or not words:
        return read_quantity(number)
    phrase = takewhile(lambda word: word.lower() not in _BREAKS, words)
    nouns = {singular(word.lower()) for word in phrase}
    own = gold.dimension[0][0] if len(gold.dimension) == 1 else ""
    quantity = read_quantity(number)
    same = own and quantity is not None and {singular(word) for word in own.split()} <= nouns
    return replace(quantity, unit=gold) if quantity is not None and same else None


def calculate(written: str) -> Fraction | None:
    """The value of sums and products of plain numbers, `72000 / 18`; None where `written` is anything else."""
    pieces = re.split(r"\s*([-+*/×÷])\s*", written.strip())  # noqa: RUF001
    if not all(re.fullmatch(r"\d{1,15}(?:\.\d{1,15})?", number) for number in pieces[::2]):
        return None
    total, term = Fraction(), Fraction(pieces[0])
    for operator, number in zip(pieces[1::2], pieces[2::2], strict=True):
        value = Fraction(number)
        if operator in "+-":
            total, term = total + term, value if operator == "+" else -value
        elif operator in "*×":  # noqa: RUF001
            term *= value
        elif value:
            term /= value
        else:
            return None
    return total + term
