"""Text in, the labels of the options it chooses out: `(B)`, `B) 5 cm`, `A and C`; `A triangle` chooses none.

A label is a letter, or a digit or Roman numeral where the gold answer is one. What the options say is not known here:
a label may come with a text, `5 cm`, which `choices` compares with the option.

Read in three steps: labels that the line rejects (`not A`, `A is wrong`) are taken out; an opening (`the answer is`,
`I choose`) is skipped; then come labels, and nothing behind them but "is correct", a reason or the text of the option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lcot_plugin.rewards.kinds.dress import inline, undress

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DEFAULT_LETTERS = 10
"""A to J, where the number of options is not known."""
_MAX_MORE = len(LETTERS) - 1
_W = r"A-Za-z0-9_\u00c0-\u024f"
"""What a label may not touch; a Chinese character it may."""

_ROMAN = "(?:IX|IV|VI{0,3}|I{1,3}|X)"
_AND = r"(?:(?<=[)\]】])\s*(?=[(\[【])|\s*[,;]\s*(?:(?:and|&)\s+|[和与及]\s*)?|\s+and\s+|\s*(?:以及|[&+和与及])\s*|\s+)"
_OR = r"(?:\s*[,;]\s*(?:or\s+|nor\s+|and\s+)?|\s+(?:or|nor|and)\s+|\s*[和或]\s*)"
_OPTION = "(?:(?i:options?|choices?|answers?|letters?|statements?)|选项)"
_BE = r"(?:'s|\s(?i:is|are|must\sbe|should\sbe|would\sbe|will\sbe))"
_OPENING = (
    r"(?:(?:(?i:so|thus|hence|therefore|then|well|clearly|finally|but|and)\b|因此|所以|故|综上所?述?|于是)\s*,?\s*){0,3}"
    r"(?:"
    # The correct option is: option
    r"(?:(?i:the|my|our)\s+)?(?:(?i:final|correct|right|best|closest|only|most\s\w{4,12})\s+){0,2}"
    rf"{_OPTION}(?:\s{_OPTION})?(?:{_BE}|\s?[:=]|\s-)?\s*:?\s*(?:{_OPTION}\s*:?\s*)?"
    # I would choose option
    r"|(?i:i|we)(?:'d|'ll|\s(?:would|will|should|must|can))?\s(?:choose|chose|select|pick|go\swith|answer|say)\b\s*:?\s*"
    rf"(?:{_OPTION}\s*)?"
    # It is; what follows must not be an article.
    rf"|(?:(?i:i\s(?:think|believe)\s(?:that\s)?))?(?i:it|that|this){_BE}\s+(?:{_OPTION}\s+)?(?=[^a-z]|[a-z][.)])"
    r"|(?:我|[本此]题|最终|正确的?)?(?:答案|选项)?(?:应该?|就)?(?:选择|选项|选|是|为)\s*[项为是]?\s*:?\s*"
    r"|(?:最终|正确的?)?(?:答案|选项)\s*:?\s*"
    r")?(?:(?i:both|only|just|definitely|certainly|clearly|for\ssure)\s+)?"
)
_BECAUSE = r"\s*[,.;:]?\s*(?:(?i:because|since|as|due\sto|given|which)\b|因为|由于)"
_CORRECT = (
    r"\s*(?:(?i:is|are|seems|must\sbe)\s+(?i:(?:both|all|also|clearly|indeed)\s+)?(?i:(?:the|my)\s+)?"
    r"(?i:correct|right|true|best|answers?)(?i:\s(?:answers?|options?|choices?|ones?|letters?))?"
    r"(?:\s(?i:here|per|by|for|from|under|according|based|in|given)\b[^.,;!]*)?(?![^\s.,;!])"
    r"|[是为]?(?:正确|对)的?(?:答案|选项)?|(?i:only|alone)\b)"
)
_WRONG = (
    r"(?:(?i:(?:is|are|was|were)\s+(?:(?:clearly|also|both|all|obviously)\s+)?"
    r"(?:wrong|incorrect|false|eliminated|excluded|impossible|ruled\sout|not\b[^,.;]*)"
    r"|(?:is|are|was|were|does|do|can|could)n't\b[^,.;]*|(?:cannot|(?:can|could|does|do)\snot)\b[^,.;]*)"
    r"|是?(?:错误|不正确|不对|错|不符合)的?|不是(?!\s*[(A-Z]))"
)
_REJECTING = (
    r"(?:\b(?i:not|non|neither|rather\sthan|instead\sof|unlike|except|reject|eliminate|exclude|rule\sout|ruling\sout)\s+"
    r"|(?:\b(?i:it|that)\s)?(?i:can't|cannot|can\snot|couldn't|could\snot|isn't|is\snot|won't|doesn't\smake\ssense\sfor\sit\sto)\s"
    r"(?:(?i:be)\s)?|(?:不选|排除|不是|除了)\s*)"
)
_STATEMENT = re.compile(r"([A-Z])[.:)] I")
"""The beginning of an option about numbered statements: "C. I", "D. I and II"."""
_HEDGING = re.compile(r"^(?i:or|and|maybe|perhaps|possibly|probably\snot|except)(?![A-Za-z])|^[或和]|(?:\b(?i:or)|或)$")
_VERDICT = re.compile(r"(?i:wrong|incorrect)\b|错误|不正确")
"""What "B: wrong" says about B, while "B. Incorrect" may be an option."""
_ASIDE = re.compile(
    r"(?i:after|based\son|looking\sat|from|given|considering|comparing|according\sto)\b[^,.;]{1,120},\s"
)
_BRACKETED_LIST = re.compile(r"[(\[{]((?:[A-Za-z\d]{1,4}\s?[,;&]\s?)+[A-Za-z\d]{1,4})[)\]}]")
_CIRCLED = {0x2460 + index: f"({index + 1})" for index in range(20)}
_QUOTES = "\"'`“”‘’"  # noqa: RUF001


@dataclass(frozen=True)
class Chosen:
    """The options that a text chooses: label -> what is written behind the label, mostly nothing."""

    texts: dict[str, str]

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(self.texts)


def read_line(text: str) -> str:
    """`text` in one line, without markdown, math delimiters, quotes and final punctuation."""
    # Before look-alikes become ASCII: in "B、10 cm" the comma marks a label, and in "B, 10 cm" it need not.
    text = re.sub(r"\A([\s*(]*[A-Za-z\d]{1,3}[\s*)]*)、", r"\1. ", text)
    line = undress(inline(undress(text.translate(_CIRCLED)))).replace("*", "").replace("’", "'").strip()  # noqa: RUF001
    if len(line) > 2 and line[0] in _QUOTES and line[-1] in _QUOTES:
        line = line[1:-1]
    if (listed := _BRACKETED_LIST.fullmatch(line)) is not None:
        line = listed[1]
    return re.sub(r"\s+", " ", line).strip(" ,;").rstrip(" .,;:!。")


class Reader:
    """Reads labels of one style: `letter`, the first `count` of them; `digit`; `roman`."""

    def __init__(self, style: str, count: int) -> None:
        last = LETTERS[min(count, len(LETTERS)) - 1]
        upper = {"letter": f"[A-{last}]", "digit": r"(?:\d{1,2})", "roman": _ROMAN}[style]
        either = {"letter": f"[A-{last}a-{last.lower()}]", "digit": r"(?:\d{1,2})", "roman": f"(?i:{_ROMAN})"}[style]
        # No decimal, date, ratio or quantity: 2.5, 2:30 and 2% begin with no label.
        ends = rf"(?![{_W}']|[.:,/-]\d|\s?[%°^=<>/\\+])" if style == "digit" else rf"(?![{_W}'])"
        stop = r"[.:)\]](?!\d)" if style == "digit" else r"[.:)\]]"
        starts = rf"(?<![{_W}'\\-])"
        bracketed = rf"(?:\(\s?{either}\s?\)|\[\s?{either}\s?\]|【\s?{either}\s?】|\{{\s?{either}\s?\}})"
        token = rf"(?:{bracketed}|{starts}{upper}{ends})"
        item = rf"(?:{bracketed}[.:]?|{starts}{either}(?:\s?{stop}|{ends}))"
        rejected = rf"(?:{_OPTION}\s*)?{token}(?:{_OR}(?:{_OPTION}\s*)?{token}){{0,9}}"
        self.style = style
        self._label = re.compile(rf"(?<![{_W}']){either}(?![{_W}'])")
        self._token = re.compile(token)
        self._opening = re.compile(_OPENING)
        self._list = re.compile(rf"{item}(?:{_AND}(?:{_OPTION}\s*)?{item}){{0,{_MAX_MORE}}}")
        self._glued = re.compile(rf"{upper}{{2,{_MAX_MORE + 1}}}(?![{_W}])")
        self._after = re.compile(
            rf"(?:\s*项)?(?:{_CORRECT}(?:\s*$|(?P<more>{_BECAUSE}.*|\s*[.,;!].*))|\s*$|(?P<reason>{_BECAUSE}.*))"
        )
        self._mark = re.compile(
            rf"(?:{bracketed}\s?[.:,-]?|{starts}(?:{upper}\s?{stop}|{either}{stop}\s|{upper}\s+-\s))\s*(?=[^\s.)])"
        )
        # Behind an opening also "B, 5 cm" and "B (5 cm)".
        self._loose_marks = [
            re.compile(rf"{starts}{upper}\s?;\s(?=\S)"),
            re.compile(rf"{starts}{upper}(?:\s?[,;]\s(?=\S)|\s\((?=[^()]+\)$))"),
        ]
        self._rejected = re.compile(rf"{_REJECTING}(?P<named>{rejected})|(?P<judged>{rejected})(?:\s*项)?\s*{_WRONG}")
        self._other = re.compile(
            rf"(?<![{_W}]){bracketed}|{_OPTION}\s*{upper}(?![{_W}])|{starts}{upper}[.:)](?=\s|$)"
            rf"|(?:^|\s)(?:or\s+|[/或]\s*){upper}(?![{_W}])|{starts}{upper}(?=\s(?:is|are)\s(?:also|correct|right|true)\b)"
            rf"|^(?:and\s+|[,&和]\s*){upper}(?![{_W}]|\s(?:is|was)\s(?!also|correct|right|true)|是(?!正确|对))"
        )

    def read(self, line: str, *, glued: bool = False) -> Chosen | None:
        """What `line`, from `read_line`, chooses; None where it chooses nothing or hedges.

        `glued`: whether `AC` is A and C.
        """
        rejected = {
            label
            for match in self._rejected.finditer(line)
            for label in self._labels(match["named"] or match["judged"])
        }
        if rejected:
            line = re.sub(r"\s+", " ", self._rejected.sub(" ", line)).strip(" .,;:-。")
            line = re.sub(r"\s*[,;]?\s*\b(?i:and|but|so)$", "", line)
        starts = [0, self._after_opening(line, 0)]
        aside = _ASIDE.match(line)
        if aside is not None and not self._token.search(aside[0]):
            starts.append(self._after_opening(line, aside.end()))
        readings = (self._at(line, start, glued) for start in dict.fromkeys(starts))
        chosen = next((reading for reading in readings if reading is not None), None)
        return None if chosen is None or chosen.labels & rejected else chosen

    def _after_opening(self, line: str, start: int) -> int:
        opening = self._opening.match(line, start)
        return opening.end() if opening is not None else start

    def _at(self, line: str, start: int, glued: bool) -> Chosen | None:
        listed = self._list.match(line, start)
        if self.style == "letter" and listed is not None and _STATEMENT.fullmatch(listed[0]):
            return self._with_statement(line, start)
        if listed is not None:
            # Of "B. 5 cm" the list is "B.", and what comes after it no reason.
            labels = self._labels(listed[0])
            after = self._after.match(line, listed.end())
            if after is not None and not self._names_other(after["more"] or after["reason"] or "", labels):
                return _distinct(labels)
        together = self._glued.match(line, start) if glued else None
        if together is not None and self._after.match(line, together.end()):
            return _distinct(list(together[0]))
        return self._with_texts(line, start)

    def _with_statement(self, line: str, start: int) -> Chosen | None:
        label, _, statements = line[start:].partition(" ")
        return Chosen({label[0]: statements}) if re.fullmatch(r"[IVX]+(?:(?:, | and )[IVX]+)*", statements) else None

    def _with_texts(self, line: str, start: int) -> Chosen | None:
        """`B) 5 cm`, and `A) 3 cm, C) 5 cm`."""
        marks = list(self._mark.finditer(line, start)) if self._mark.match(line, start) else []
        if not marks and (loose := self._loose_marks[start > 0].match(line, start)):
            marks, line = [loose], line.removesuffix(")") if loose[0].endswith("(") else line
        if not marks:
            return None
        edges = [mark.start() for mark in marks[1:]] + [len(line)]
        labels = [self._labels(mark[0])[0] for mark in marks]
        texts = [line[mark.end() : edge].strip() for mark, edge in zip(marks, edges, strict=True)]
        judged = _VERDICT.match(texts[0]) is not None and re.match(r"[(\[{【]|.*[:-]\s*$", marks[0][0]) is not None
        if judged or any(_HEDGING.search(text) for text in texts):
            return None
        if len(marks) == 1 and (self._names_other(texts[0], labels) or self._only_labels(texts[0])):
            return None
        texts[:-1] = [re.sub(r"\s*[,;.]?\s*(?:\b(?i:and)|[和与及&])?$", "", text) for text in texts[:-1]]
        return Chosen(dict(zip(labels, texts, strict=True))) if _distinct(labels) else None

    def _only_labels(self, text: str) -> bool:
        """Whether `text` is more labels: `B or C`; `A. B or C` hedges."""
        rest = self._token.sub("", text)
        return rest != text and re.fullmatch(r"(?:[\s,;/&.]|\bor\b|\band\b|[或和])*", rest) is not None

    def _names_other(self, text: str, labels: list[str]) -> bool:
        return any(set(self._labels(other[0])) - set(labels) for other in self._other.finditer(text))

    def _labels(self, text: str) -> list[str]:
        return [label.upper() for label in self._label.findall(text)]


def _distinct(labels: list[str]) -> Chosen | None:
    return Chosen(dict.fromkeys(labels, "")) if labels and len(set(labels)) == len(labels) else None


@lru_cache(maxsize=64)
def label_reader(style: str = "letter", count: int = DEFAULT_LETTERS) -> Reader:
    """The reader of these labels."""
    return Reader(style, count)
