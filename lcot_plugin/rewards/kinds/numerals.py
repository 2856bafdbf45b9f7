"""Number words in, their exact value out: `twenty-one`, `three and a half`, `二十一`, `三分之二`, `百分之五十`.

A numeral is read from the start of a text, so that a unit may follow it; what a word list does not decide is left
alone: `three four` is no number, nor is 二三, which hedges. Consumed by `quantities`, `numbers` and `times`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Numeral:
    """A number that begins a text."""

    value: Fraction
    end: int
    """Where it ends in the text."""
    percent: bool = False
    """`百分之五十`, `三成`."""


_ONES = dict(
    zip(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen",
        ),
        range(20),
        strict=True,
    )
)
_TENS = dict(
    zip(re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), range(20, 100, 10), strict=True)
)
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "quintillion": 10**18,
    "lakh": 10**5,
    "crore": 10**7,
}
_SHORT_SCALES = {"mn": 10**6, "mln": 10**6, "bn": 10**9, "tn": 10**12, "hundred": 100, "dozen": 12}
_ORDINALS = {
    **dict(
        zip(
            re.findall(
                r"\w+",
                "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
                "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth",
            ),
            list(_ONES)[1:],
            strict=True,
        )
    ),
    **{word[:-1] + "ieth": word for word in _TENS},
    "hundredth": "hundred",
    **{word + "th": word for word in _SCALES if word not in ("lakh", "crore")},
}
_VALUES = {**_ONES, **_TENS, "hundred": 100, **_SCALES}
# "Second" is no denominator: "one second" is a time.
_DENOMINATORS = {
    **{word: _VALUES[cardinal] for word, cardinal in _ORDINALS.items() if word not in ("first", "second")},
    "half": 2,
    "quarter": 4,
}
_PLURAL_DENOMINATORS = {**{word + "s": value for word, value in _DENOMINATORS.items()}, "halves": 2}
NUMBER_WORDS = frozenset([*_VALUES, *_ORDINALS, *_DENOMINATORS, *_PLURAL_DENOMINATORS, *_SHORT_SCALES]) | {
    "dozens", "hundreds", "thousands", "millions", "billions", "trillions", "twice", "double", "triple", "thrice",
    "couple", "pair", "both", "several",
}  # fmt: skip
"""English words that say how many."""

_WORD = re.compile(r"([A-Za-z]+)(,?[\s-]+)?")
_MAX_WORDS = 40


@dataclass(frozen=True)
class _Word:
    text: str
    end: int
    glued_by: str
    """What stands before it."""


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    position, before = 0, ""
    while len(words) < _MAX_WORDS and (match := _WORD.match(text, position)):
        words.append(_Word(match[1].lower(), match.end(1), before))
        before, position = match[2] or "", match.end()
        if not before:
            break
    return words


def read_numeral(text: str) -> Numeral | None:
    """The English or Chinese numeral that `text` begins with, a sign included; None where there is none."""
    if text[:1].isascii():
        return _read_english(text)
    return _read_chinese(text)


def scale_after(text: str) -> tuple[int, int]:
    """(factor, end) of the words of scale that `text` begins with: ` million` is (10**6, 8); (1, 0) without any."""
    if match := re.match(r"\s*([A-Za-z]+)(?![A-Za-z])", text):
        word = match[1].lower()
        factor = _SCALES.get(word) or _SHORT_SCALES.get(word)
        if factor is None:
            return 1, 0
        further, end = scale_after(text[match.end() :]) if word in ("hundred", "thousand", "lakh") else (1, 0)
        return factor * further, match.end() + end
    factor, position = 1, 0
    for char in text.lstrip()[:3]:
        if char not in _CHINESE_SCALES:
            break
        factor *= _CHINESE_SCALES[char]
        position += 1
    return factor, position + (len(text) - len(text.lstrip()) if position else 0)


def _read_english(text: str) -> Numeral | None:
    words = _words(text)
    sign, at = 1, 0
    if words and words[0].text in ("minus", "negative"):
        sign, at = -1, 1
    read = _number(words, at)
    if read is None:
        return None
    value, stop = read
    return Numeral(sign * value, words[stop - 1].end)


def _number(words: list[_Word], at: int) -> tuple[Fraction, int] | None:
    """A whole number with what may follow it: decimals, a denominator, "and a half", a scale."""
    if _text(words, at) == "dozen":
        return Fraction(12), at + 1
    fraction = _fraction(words, at)
    if fraction is not None:
        return _scaled(words, *fraction)
    cardinal = _cardinal(words, at)
    if cardinal is None:
        return None
    whole, stop = cardinal
    value = Fraction(whole)
    word = _text(words, stop)
    if word == "point":
        digits = ""
        stop += 1
        while _ONES.get(_text(words, stop), 10) < 10:
            digits += str(_ONES[_text(words, stop)])
            stop += 1
        if not digits:
            return None
        value += Fraction(int(digits), 10 ** len(digits))
    elif word == "and":
        part = _fraction(words, stop + 1)
        if part is not None:
            value, stop = value + part[0], part[1]
    elif word in _PLURAL_DENOMINATORS or word in _DENOMINATORS:
        return None  # "one hundred and two thirds" is 34 or 100 2/3
    return _scaled(words, value, stop)


def _scaled(words: list[_Word], value: Fraction, stop: int) -> tuple[Fraction, int]:
    """`value` times the scale that follows: "two and a half million", "half a dozen"."""
    after = stop
    if value < 1 and _text(words, after) in ("a", "an"):
        after += 1
        if _text(words, after) not in (*_SCALES, "dozen"):
            return value, after  # half an hour
    factor = _SCALES.get(_text(words, after)) or {"dozen": 12}.get(_text(words, after))
    return (value * factor, after + 1) if factor else (value, stop)


def _text(words: list[_Word], at: int) -> str:
    return words[at].text if at < len(words) else ""


def _fraction(words: list[_Word], at: int) -> tuple[Fraction, int] | None:
    """`two thirds`, `a half`, `half`, `a quarter`."""
    word, following = _text(words, at), _text(words, at + 1)
    if word == "half":
        return Fraction(1, 2), at + 1
    if word == "quarter":
        return Fraction(1, 4), at + 1
    if word in ("a", "an", "one") and following in _DENOMINATORS:
        return Fraction(1, _DENOMINATORS[following]), at + 2
    top = _below_hundred(words, at)
    if top is not None and top[0] > 1 and _text(words, top[1]) in _PLURAL_DENOMINATORS:
        return Fraction(top[0], _PLURAL_DENOMINATORS[_text(words, top[1])]), top[1] + 1
    return None


def _below_hundred(words: list[_Word], at: int) -> tuple[int, int] | None:
    word = _text(words, at)
    if word in _ONES:
        return _ONES[word], at + 1
    if word not in _TENS:
        return None
    ones = _ONES.get(_text(words, at + 1), 0)
    return (_TENS[word] + ones, at + 2) if 0 < ones < 10 else (_TENS[word], at + 1)


def _cardinal(words: list[_Word], at: int) -> tuple[int, int] | None:
    """A whole number of groups in falling scales: `two million, one hundred and five thousand and six`."""
    total, last_scale, stop = 0, 10**21, at
    while True:
        start = stop + (total > 0 and _text(words, stop) == "and")
        group = _group(words, start)
        if group is None or (group[0] == 0 and total):
            break
        value, after = group
        scale = _SCALES.get(_text(words, after), 1)
        if scale >= last_scale or (scale > 1 and value == 0):
            return None  # "five thousand two million"
        if (
            start > stop
            and scale == 1
            and (_text(words, after) in _PLURAL_DENOMINATORS or (value == 1 and _text(words, after) in _DENOMINATORS))
        ):
            break  # "two thousand and three quarters"
        total += value * scale
        last_scale = scale
        stop = after + (scale > 1)
        if scale == 1:
            break
    if stop == at:
        return None
    # Another number word right behind is another number, or none that can be read.
    following = _text(words, stop)
    return None if following in _VALUES else (total, stop)


def _group(words: list[_Word], at: int) -> tuple[int, int] | None:
    """A number below ten thousand: `five`, `two hundred and six`, `twenty-one hundred`, the `a` of `a thousand`."""
    word, following = _text(words, at), _text(words, at + 1)
    if word in ("a", "an"):
        if following == "dozen":
            return 1, at + 1
        if following not in ("hundred", *_SCALES):
            return None
        read: tuple[int, int] | None = (1, at + 1)
    else:
        read = _below_hundred(words, at)
    if read is None:
        return None
    value, stop = read
    if _text(words, stop) != "hundred" or value == 0:
        return value, stop
    value, stop = value * 100, stop + 1
    joined = stop + (_text(words, stop) == "and")
    rest = _below_hundred(words, joined)
    if rest is None or rest[0] == 0 or _text(words, rest[1]) in _PLURAL_DENOMINATORS:
        return value, stop
    return value + rest[0], rest[1]


def read_ordinal(text: str) -> int | None:
    """The place that all of `text` names: `21st`, `third`, `twenty-first`, `第三`; None where it names none."""
    if match := re.fullmatch(r"(\d{1,18})\s?(?:\^\{?)?(st|nd|rd|th)\}?", text, re.IGNORECASE):
        number = int(match[1])
        ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return number if match[2].lower() == ending else None
    if match := re.fullmatch(r"第\s?(\d{1,9})", text):
        return int(match[1])
    if text.startswith("第"):
        numeral = _read_chinese(text[1:])
        whole = numeral is not None and numeral.end == len(text) - 1 and numeral.value.denominator == 1
        return int(numeral.value) if numeral and whole and not numeral.percent else None
    words = _words(text)
    if not words or words[-1].end != len(text) or words[-1].text not in _ORDINALS:
        return None
    words[-1] = _Word(_ORDINALS[words[-1].text], len(text), words[-1].glued_by)
    if len(words) == 1 and words[0].text not in (*_ONES, *_TENS):
        return {"hundred": 100, **_SCALES}[words[0].text]
    read = _cardinal(words, 0)
    return read[0] if read is not None and read[1] == len(words) else None


_DIGITS = {
    **{char: value for value, char in enumerate("零一二三四五六七八九")},
    **{char: value for value, char in enumerate("〇壹贰叁肆伍陆柒捌玖")},
    "两": 2,
}
_STEPS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_CHINESE_SCALES = {"百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_MAX_CHINESE = 60


def _read_chinese(text: str) -> Numeral | None:
    text = text[:_MAX_CHINESE]
    sign, at = (-1, 1) if text[:1] == "负" else (1, 0)
    for half in ("一半", "半"):
        if text.startswith(half, at):
            after = at + len(half)
            after += half == "半" and text.startswith("个", after)
            return Numeral(Fraction(sign, 2), after)
    if text.startswith("百分之百", at):
        return Numeral(Fraction(100 * sign), at + 4, percent=True)
    if text.startswith("百分之", at):
        read = _chinese_or_digits(text, at + 3)
        return Numeral(sign * read[0], read[1], percent=True) if read else None
    read = _chinese_decimal(text, at)
    if read is None:
        return None
    value, stop = read
    if text.startswith("又", stop):
        part = _chinese_decimal(text, stop + 1)
        if part is None or not text.startswith("分之", part[1]):
            return None
        top = _chinese_decimal(text, part[1] + 2)
        return Numeral(sign * (value + top[0] / part[0]), top[1]) if top and part[0] else None
    if text.startswith("分之", stop):
        top = _chinese_decimal(text, stop + 2)
        return Numeral(sign * top[0] / value, top[1]) if top and value else None
    if text.startswith("个半", stop):
        return Numeral(sign * (value + Fraction(1, 2)), stop + 2)
    if text.startswith("成", stop) and 0 < value < 10:
        return Numeral(sign * value * 10, stop + 1, percent=True)
    if text[stop : stop + 1] in ("几", "多", "余", "来") and text[stop : stop + 1]:
        return None  # 十几, 二十多: an amount that is not said
    return Numeral(sign * value, stop)


def _chinese_or_digits(text: str, at: int) -> tuple[Fraction, int] | None:
    if match := re.compile(r"\d{1,9}(?:\.\d{1,9})?").match(text, at):
        return Fraction(match.group()), match.end()
    return _chinese_decimal(text, at)


def _chinese_decimal(text: str, at: int) -> tuple[Fraction, int] | None:
    """A whole number, decimals after 点, a scale after those: `一点五万`."""
    whole = _chinese_whole(text, at)
    if whole is None:
        return None
    value, stop = Fraction(whole[0]), whole[1]
    if text.startswith("点", stop):
        digits, after = "", stop + 1
        while text[after : after + 1] in _DIGITS and text[after : after + 1]:
            digits += str(_DIGITS[text[after]])
            after += 1
        if digits and text[after : after + 1] not in _STEPS:
            value, stop = value + Fraction(int(digits), 10 ** len(digits)), after
            if text[stop : stop + 1] in ("万", "亿"):
                return value * _CHINESE_SCALES[text[stop]], stop + 1
    return value, stop


def _chinese_whole(text: str, at: int) -> tuple[int, int] | None:
    """`一百零五`, `三万五`, `二〇二四`; None where two digits meet that name no year: 二三 is two or three."""
    run = re.compile("[" + "".join(_DIGITS) + "]+").match(text, at)
    if run and len(run.group()) >= 2 and text[run.end() : run.end() + 1] not in (*_STEPS, "万", "亿"):
        if len(run.group()) < 4 and not re.search("[零〇]", run.group()):
            return None
        return int("".join(str(_DIGITS[char]) for char in run.group())), run.end()
    total = section = 0
    digit: int | None = None
    zero = False
    step = 10**4
    last = 1
    position = at
    while position < len(text):
        char = text[position]
        if char in _DIGITS and digit is None:
            if _DIGITS[char] == 0 and (section or total):
                if zero:
                    return None
                zero = True
            else:
                digit = _DIGITS[char]
        elif char in _DIGITS:
            return None
        elif char in _STEPS and _STEPS[char] < step and (digit or (char in "十拾" and digit is None)):
            step = last = _STEPS[char]
            section += (1 if digit is None else digit) * step
            digit, zero = None, False
        elif char == "万" and (section or digit) and not total % 10**8:
            total, section, last = total + (section + (digit or 0)) * 10**4, 0, 10**4
            digit, zero, step = None, False, 10**4
        elif char == "亿" and (section or digit or total) and total < 10**8:
            total, section, last = (total + section + (digit or 0)) * 10**8, 0, 10**8
            digit, zero, step = None, False, 10**4
        else:
            break
        position += 1
    if position == at or (digit is None and not section and not total):
        return None
    # 一百五 is 150 and 三万五 35000; 一百零五 and 十五 are what they say.
    shorthand = digit is not None and not zero and last >= 100
    return total + section + (digit or 0) * (last // 10 if shorthand else 1), position
