r"""A completion in, the answer it states out; `answers` compares it with the gold answer.

Places are tried in this order, all outside the thought: the last `<answer>...</answer>`, the last balanced
`\boxed{...}`, the last "the answer is ..." or heading "Final answer", a concluding "So x = 5", the last line that is
not blank. Every scan is linear in the length of the completion: a model may write a megabyte of open tags.

    <think>\boxed{4}?</think> Both solve it: \boxed{3} and \boxed{2}.   ->  "3, 2" (boxed)
    It is \boxed{5} or \boxed{6}                                        ->  "5 or 6" (boxed), which matches neither
    So \boxed{\frac{1}{                                                 ->  None: cut off
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lcot_plugin.rewards.cues import (
    ATTRIBUTED,
    CUE,
    DENIES,
    DENIES_ABROAD,
    FINAL_ANSWER,
    HEADING,
    INTRODUCES,
    NOT_STATED,
    WIDER_CUE,
    withdrawal,
)
from lcot_plugin.rewards.kinds.units import UNITS, parse_unit, plain_unit

MAX_ANSWER_CHARS = 4000
"""A longer "answer" is a completion that never stated one."""
MAX_RUN = 64
"""Boxes that together state one answer."""


class Place(StrEnum):
    """Where in the completion an answer was found."""

    TAG = "answer tag"
    BOXED = "boxed"
    CUE = "cue"
    """Behind "the answer is", "答案：" and the like."""  # noqa: RUF001
    HEADING = "heading"
    """Below a heading "Final Answer", or behind `####` in the last line."""
    CONCLUSION = "conclusion"
    """The end of a concluding sentence: "Therefore, x = 5", "故选B", "5 is the answer"."""
    LAST_LINE = "last line"


@dataclass(frozen=True)
class Found:
    """The answer that a completion states."""

    answer: str
    place: Place

    @property
    def explicit(self) -> bool:
        """Whether the model marked it as its answer; a last line is only a guess."""
        return self.place is not Place.LAST_LINE


_THOUGHT_TAG = re.compile(
    r"(?P<opens><(?:think(?:ing)?|thought|reasoning|seed:think)>|◁think▷|\[THINK\]|<\|begin_of_thought\|>"
    r"|<\|channel>thought|<\|channel\|>(?:analysis|commentary))"
    r"|(?P<closes></(?:think(?:ing)?|thought|reasoning|seed:think)>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>"
    r"|<channel\|>|<\|channel\|>final(?:<\|message\|>)?)",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_CONCLUSION_TAG = re.compile(r"<(/?)conclusion>", re.IGNORECASE)
"""LLaVA-CoT's."""
_BOX_TOKEN = re.compile(r"<\|(begin|end)_of_box\|>")
_END_TOKEN = re.compile(
    r"(?:<\|(?:im_end|endoftext|end_of_text|eot_id|end|return|end_of_solution)\|>|</s>|<eos>|<end_of_turn>|\s)+\Z"
)
_OWN_TURN = re.compile(
    r"\A\s{0,9}<(?:\|im_start\|>assistant|start_of_turn>model|\|start_header_id\|>assistant<\|end_header_id\|>)"
)
_TURN = re.compile(r"<\|(?:im_start|im_end|eot_id|endoftext|end_of_text|start_header_id)\|>|<(?:start|end)_of_turn>")
_BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*(?=\{)")
_STRUCK_OUT = re.compile(r"(?<!~)~~(?![~\s])[^~\n]{1,200}(?<!\s)~~(?!~)")
_BARE_ANSWER = re.compile(r"[A-J]|-?\d{1,12}")
_NUMBER_NOT_OTHER = re.compile(r"(-?\d[\d./]{0,15}),\s(?:and\s)?not\s-?\d[\d./]{0,15}")
_BOXED_TOKEN = re.compile(r"\\f?boxed(?:\s*(\d)|\s+([A-Za-z]))(?=\s*(?:\Z|[\n$;。]|[.,](?!\d)|\\[\])]))")
_BOXED_WITHOUT_BACKSLASH = re.compile(r"(?<![\\A-Za-z])boxed\s*(?=\{)")
_SENTENCE_END = re.compile(r"(?<![\s(*][A-Ja-j])(?<!^[A-Ja-j])\.(?:\*\*)?\s+(?=[A-Z])|。|\.\s*$")
_COPULA = re.compile(r"\s?(?:입니다|이다|です)\.?\Z")
"""Of the answer after a Korean or Japanese cue."""
_BEHIND_BOX = re.compile(
    r"(?:\s|\\[,;: ]|~)*(?:\\(?:text|mathrm|textrm|rm)\s?\{(?P<latex>[^{}]{1,30})\}(?P<power>\^\{?[23]\}?)?"
    r"|\$?\s?(?P<sign>\^?\{?\\circ\}?(?!\w)|°(?!\w)|\\?%)"
    r"|\$?\s?(?P<word>[A-Za-z\u4e00-\u9fff°/]{1,12}(?:\^[23]|[²³])?)(?=\s*[$.。]*\s*(?:\n|\Z)))"
)
_BARE_NUMBER = re.compile(r"(?:[\s\d.,{}()^+\-*/!$]|\\(?:[dt]?frac|sqrt|pi|times|cdot|[,!]))*")
_LETTER_WITH_COPULA = re.compile(r"\(?([A-J])\)?\s?(?:です|입니다|이다)[。.]?(?!\s?か)([^A-Z]*)")
_FRAME_LINE = re.compile(r"\s*(?:```\w*|~~~|\$\$|\\[\[\]]|\\(?:begin|end)\{\w{1,12}\*?\}|[-*_=]{3,})\s*")
"""What only frames the lines above or below it."""
_OPENS_BLOCK = re.compile(r"[\[{(]+")
_CLOSES_BLOCK = re.compile(r"[\]})]+")
_HASHES = re.compile(r"(#{3,4})\s*:?\s*(\S.*)")
_PROSE = re.compile(r"[A-Za-z]{3,}")
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|consequently)\b[,:]?\s|(?:所以|因此|故)[,\uff0c]?|^[答解]\s?[:\uff1a]\s?",
    re.IGNORECASE,
)
_STATES_VALUE = re.compile(
    r"(?:\b(?:is|are|equals|be)|[是为])\s*(?:equal\sto\s)?(?=[(\[]?[-+\u2212]?[\d$√π∞]|[-+\u2212]?\.\d|\\[a-zA-Z])"
)
_SEVERAL = re.compile(r"[,;，；、]|\b(?:and|or)\b|和|或")  # noqa: RUF001
_SUPPOSES = re.compile(r"(?:that|if|when|suppose|assume|let|where|for|as)\b", re.IGNORECASE)
_IS_THE_ANSWER = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s)?(\S{1,40}(?:\s\S{1,20}){0,2}?)\sis\s(?:the|my|our)\s"
    r"(?:final\s|correct\s|right\s)?answer[.!*]{0,4}",
    re.IGNORECASE,
)
_SPACING_AROUND = re.compile(r"\A(?:\s|\\[,;:!]|\\q?quad\b)+|(?<!\\)(?:\s|\\[,;:!]|\\q?quad\b)*\\*\Z")
_LETTER_CHOSEN = re.compile(
    r"(?:i\s(?:think|believe)\s(?:that\s)?)?(?:it(?:'s|\sis)\s)?(?:option\s|choice\s)?(\([A-Za-z]\)|(?-i:[A-HJ-Z]))",
    re.IGNORECASE,
)
_CLOSING_FORMULA = re.compile(
    r"([^$]*)\${1,2}([^$]+)\${1,2}(?:\sis\s(?:the|our|my)\s(?:final\s)?(?:solution|answer))?[.\s]*"
)
_COMES_TO = re.compile(
    r"(?:\b(?:is|are|equals|get|obtain|find|find\sthat|therefore|thus|hence|so)|是|为|得到?)[,:]?\s*\Z", re.IGNORECASE
)
_LOOSE = re.compile(r"\b(?:if|when|suppose|or|either|maybe)\b|或|\b(?:let|where|assume|and|for|of)\s*\Z", re.IGNORECASE)
_NAME = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_\{?\w\}?)?)\s{0,2}=\s{0,2}\$?\s{0,2}\Z")
_JOINT_DRESS = re.compile(r"\\(?:quad|qquad|text|[,;: ()\[\]])|[\s$*{}]")
_JOINTS = frozenset([",", ";", "&", "and", ",and", "，", "、", "；", "和", "与", "及", "以及"])  # noqa: RUF001
_MAX_JOINT_CHARS = 60


def outside_thought(text: str) -> str:
    """The part of `text` after the last closed thought and before one that never closes."""
    start, end = 0, len(text)
    for tag in _THOUGHT_TAG.finditer(text):
        if tag["closes"]:
            start, end = tag.end(), len(text)
        elif end == len(text):
            end = tag.start()
    return text[start:end]


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`; None where there is none.

    `\boxed{\frac{1}{2}}` gives `\frac{1}{2}`; escaped braces do not count.
    """
    boxes, _ = _boxes(text, _BOXED)
    return text[boxes[-1].inner_start : boxes[-1].inner_end] if boxes else None


def extract_answer(completion: str, *, include_thought: bool = False) -> Found | None:
    """The answer stated in `completion`, outside its thought; None where there is none.

    An `<answer>` tag or a box that never closes states no answer: its content may have been cut off. With
    `include_thought` a thought is searched too, closed or not, where nothing is stated outside it.
    """
    outside = _stated(outside_thought(completion))
    if not include_thought or (outside is not None and outside.explicit):
        return outside
    anywhere = _stated(_THOUGHT_TAG.sub("\n", completion))
    return outside if outside is not None and not (anywhere and anywhere.explicit) else anywhere


def gold_answer(text: str) -> str:
    """A gold answer without the words of a completion around it: `5` of `<answer> 5 </answer>`, `The answer is 5.`.

    Also `5` of a worked solution that boxes it once, or ends in `#### 5`. Any other text as it is: a gold answer that
    merely mentions an answer states something else.
    """
    tagged = re.fullmatch(r"\s*<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)</answer>\s*", text, re.IGNORECASE)
    if tagged is not None:
        text = tagged[1]
    boxes, cut_off = _boxes(text, _BOXED)
    if len(boxes) == 1 and not cut_off:
        return text[boxes[0].inner_start : boxes[0].inner_end]
    hashes = re.search(r"\n####\s([^\n]+)\s*\Z", text)
    if hashes is not None:
        return hashes[1]
    opening = re.match(r"[\s*#]*(?:the\s)?(?:final\s|correct\s|最终|正确)?", text, re.IGNORECASE)
    cue = CUE.match(text.replace("：", ":"), opening.end()) if opening else None  # noqa: RUF001
    return _first_sentence(text[cue.end() :].strip()) or text if cue else text


class _CutOffError(Exception):
    """The text ends inside what would have stated its answer."""


def _stated(text: str) -> Found | None:
    text = _STRUCK_OUT.sub(" ", _own_turn(text))
    try:
        tagged = _in_tag(text, _ANSWER_TAG)
        if tagged is None:
            tagged = _in_tag(text, _CONCLUSION_TAG)
        found = _marked(text if tagged is None else tagged)
    except _CutOffError:
        return None
    if tagged is not None:
        found = Found(found.answer if found else tagged, Place.TAG)
        if _boxed_otherwise(text, tagged.strip()):
            return None
    elif found is None:
        found = _at_the_end(text)
    answer = found.answer.strip() if found else ""
    if found is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    answer = _SPACING_AROUND.sub("", answer)
    return Found(answer, found.place) if answer else None


def _own_turn(text: str) -> str:
    """`text` without the tokens that end a turn, and without the further turns that a base model invents."""
    text = _TURN.split(_OWN_TURN.sub("", text), maxsplit=1)[0]
    # The end of the text only: the pattern would be tried at every space of a megabyte.
    head, tail = text[:-400], text[-400:]
    return head + _END_TOKEN.sub("", tail)


# Marks: tags, boxes, cues.


@dataclass(frozen=True)
class _Span:
    """A box or tag. Indices only: the contents of boxes inside boxes would be quadratic."""

    start: int
    inner_start: int
    inner_end: int
    end: int


def _in_tag(text: str, pattern: re.Pattern[str]) -> str | None:
    """The content of the last tag, or of several joined ones; _CutOffError where the last never closes."""
    spans, opened = [], None
    for tag in pattern.finditer(text):
        if not tag.group(1):
            opened = tag
        elif opened is not None:
            if text[opened.end() : tag.start()] != " and ":  # "I put it between <answer> and </answer>"
                spans.append(_Span(opened.start(), opened.end(), tag.start(), tag.end()))
            opened = None
    if opened is not None:
        raise _CutOffError
    return _last_run(text, spans, of_boxes=False) if spans else None


def _boxed_otherwise(text: str, answer: str) -> bool:
    """Whether a box behind the last tag, which holds the number or letter `answer`, holds another one."""
    tag = _last(_ANSWER_TAG, text)
    boxed = last_boxed(text[tag.end() :]) if tag is not None and _BARE_ANSWER.fullmatch(answer) else None
    return boxed is not None and _BARE_ANSWER.fullmatch(boxed.strip()) is not None and boxed.strip() != answer


def _marked(text: str) -> Found | None:
    """The last box, else what follows the last cue or heading."""
    if spans := _token_boxes(text):
        content = _last_run(text, spans, of_boxes=True)
        return Found(last_boxed(content) or content, Place.BOXED)
    spans, cut_off = _boxes(text, _BOXED)
    if cut_off:
        raise _CutOffError
    if spans:
        end = spans[-1].end
        final = _last(FINAL_ANSWER, text[end:])
        if final is not None and (cued := _after_cue(text[end:])) and not DENIES.search(cued.answer):
            return cued
        content = _last_run(text, spans, of_boxes=True)
        unit = _unit_behind(text[end : end + 80]) if _BARE_NUMBER.fullmatch(content) else ""
        return Found(content + unit, Place.BOXED)
    token = _last(_BOXED_TOKEN, text)
    if token is not None:
        return Found(token[1] or token[2], Place.BOXED)
    cued = _after_cue(text)
    if cued is not None:
        return cued
    spans, _ = _boxes(text, _BOXED_WITHOUT_BACKSLASH)
    return Found(_last_run(text, spans, of_boxes=True), Place.BOXED) if spans else None


def _boxes(text: str, opening: re.Pattern[str]) -> tuple[list[_Span], bool]:
    """Balanced boxes that stand in no other, in order; and whether the last one never closes."""
    box_starts = {match.end(): match.start() for match in opening.finditer(text)}
    spans: list[_Span] = []
    if not box_starts:
        return spans, False
    # One pass with a stack finds every balanced group.
    open_groups: list[int] = []
    escaped = False
    for index, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "{":
            open_groups.append(index)
        elif char == "}" and open_groups:
            brace = open_groups.pop()
            if brace in box_starts:
                # A box inside a box closes first; the outer one then replaces it.
                while spans and spans[-1].start > brace:
                    spans.pop()
                spans.append(_Span(box_starts[brace], brace + 1, index, index + 1))
    return spans, max(box_starts) in open_groups


def _token_boxes(text: str) -> list[_Span]:
    """GLM's boxes, whose marks are tokens: `<|begin_of_box|>5<|end_of_box|>`."""
    spans, opened = [], None
    for token in _BOX_TOKEN.finditer(text):
        if token[1] == "begin":
            opened = token
        elif opened is not None:
            spans.append(_Span(opened.start(), opened.end(), token.start(), token.end()))
            opened = None
    if opened is not None:
        raise _CutOffError
    return spans


def _last_run(text: str, spans: list[_Span], *, of_boxes: bool) -> str:
    r"""The content of the last span, or of the last ones where they are joined: `\boxed{3} and \boxed{2}` is `3, 2`."""
    first = len(spans) - 1
    joints: list[str] = []
    while first > 0 and len(joints) < MAX_RUN:
        gap = text[spans[first - 1].end : spans[first].start]
        joint = _joint(gap)
        if joint == "" and of_boxes and not gap:
            # Side by side they are one answer as well, unless it is the same one again. A model that repeats boxes
            # puts blanks between them.
            contents = [_content(text, span).strip() for span in spans[first - 1 : first + 1]]
            joint = ", " if contents[0] != contents[1] else None
        if not joint:
            break
        joints.insert(0, joint)
        first -= 1
    if not joints:
        return _content(text, spans[-1])
    items = []
    for span in spans[first:]:
        name = _NAME.search(text[max(0, span.start - 16) : span.start]) if of_boxes else None
        items.append((f"{name[1]} = " if name else "") + _content(text, span).strip())
    return items[0] + "".join(joint + item for joint, item in zip(joints, items[1:], strict=True))


def _joint(gap: str) -> str | None:
    """What joins the two answers around `gap`: a comma, "or", or nothing at all; None where they stand apart."""
    if len(gap) > _MAX_JOINT_CHARS or re.search(r"[.!?。]\s|\n\s*\n", gap):
        return None
    if re.search(r"\bor\b|或", gap, re.IGNORECASE) and "equivalent" not in gap:
        return " or "
    bare = _JOINT_DRESS.sub("", _NAME.sub("", gap)).lower()
    return ", " if bare in _JOINTS else None if bare else ""


def _content(text: str, span: _Span) -> str:
    r"""A span's content; with single backslashes where JSON has doubled them: `\\boxed{\\frac12}`."""
    before = text[max(0, span.start - 3) : span.start]
    doubled = text.startswith("\\", span.start) and (len(before) - len(before.rstrip("\\"))) % 2 == 1
    content = text[span.inner_start : span.inner_end]
    return content.replace("\\\\", "\\") if doubled else content


def _after_cue(text: str) -> Found | None:
    """What follows the last cue or heading, up to the end of its sentence or line."""
    plain = text.replace("：", ":")  # noqa: RUF001
    marks = [
        (mark.end(), mark.start(), place)
        for pattern, place in ((WIDER_CUE, Place.CONCLUSION), (HEADING, Place.HEADING), (CUE, Place.CUE))
        if (mark := _last(pattern, plain)) is not None
    ]
    for end, start, place in sorted(marks, key=lambda mark: mark[0], reverse=True):
        lines = text[end:].split("\n")
        line = next(_telling_lines(lines), "").strip()
        if _OPENS_BLOCK.fullmatch(line):
            return Found(_block(lines), place)
        answer = _first_sentence(line[: MAX_ANSWER_CHARS + 1])
        if answer and (DENIES_ABROAD.search(answer) or NOT_STATED.search(plain[max(0, start - 80) : start])):
            return None
        if not answer:
            continue
        begin = text.find(answer, end)
        behind = begin + len(answer)
        if ATTRIBUTED.search(plain[max(0, start - 120) : start]):
            return _at_the_end(text[behind:])
        withdrawn = withdrawal(text, begin, behind)
        if withdrawn is not None:
            return _at_the_end(text[withdrawn:])
        other = _NUMBER_NOT_OTHER.fullmatch(answer)
        return Found(other[1] if other else answer, place)
    return None


def _unit_behind(text: str) -> str:
    r"""` \text{ m}` behind a box that holds a number: it belongs to the answer."""
    behind = _BEHIND_BOX.match(text)
    if behind is None:
        return ""
    if behind["sign"]:
        return behind["sign"]
    unit = (behind["latex"] or behind["word"]) + (behind["power"] or "")
    return " " + unit.strip() if parse_unit(plain_unit(unit), UNITS) is not None else ""


def _first_sentence(line: str) -> str:
    end = _SENTENCE_END.search(line)
    return _COPULA.sub("", (line[: end.start()] if end else line).strip())


# Without a mark.


def _at_the_end(text: str) -> Found | None:
    """What the last line concludes, or the last line itself."""
    lines = text.split("\n")
    line = next(_telling_lines(reversed(lines)), "").strip()
    if len(line) > MAX_ANSWER_CHARS:
        return None
    if _CLOSES_BLOCK.fullmatch(line):
        return Found(_block(lines[::-1]), Place.LAST_LINE)
    hashes = _HASHES.fullmatch(line)
    if hashes is not None and (len(hashes[1]) == 4 or not _PROSE.search(hashes[2])):
        return Found(hashes[2], Place.HEADING)
    chosen = _IS_THE_ANSWER.fullmatch(line)
    if chosen is not None and not DENIES.search(chosen[1]):
        return Found(chosen[1], Place.CONCLUSION)
    letter = _LETTER_WITH_COPULA.fullmatch(line)
    if letter is not None and not DENIES.search(letter[2]) and not DENIES_ABROAD.search(letter[2]):
        return Found(letter[1], Place.CONCLUSION)
    concluded = _concluded(line) or _closing_formula(line)
    return Found(concluded, Place.CONCLUSION) if concluded else Found(line, Place.LAST_LINE)


def _telling_lines(lines: Iterator[str] | list[str]) -> Iterator[str]:
    return (line for line in lines if line.strip() and not _FRAME_LINE.fullmatch(line))


def _block(lines: list[str]) -> str:
    """The lines of the first bracketed block, `{` to `}`; of the last one where the lines come last first."""
    taken: list[str] = []
    num_chars = depth = 0
    for line in _telling_lines(lines):
        taken.append(line)
        num_chars += len(line)
        depth += sum((char in "[{(") - (char in ")}]") for char in line)
        if depth == 0 or num_chars > MAX_ANSWER_CHARS:
            break
    return "\n".join(taken if _OPENS_BLOCK.fullmatch(taken[0].strip()) else reversed(taken))


def _concluded(line: str) -> str | None:
    """The value that a concluding sentence comes to: `5` of "So the area is 5.", `x = 5` of "Thus x = 5"."""
    word = _last(_CONCLUDES, line)
    if word is None:
        return None
    rest = re.sub(r"(?<!\\)\$", "", line[word.end() :]).strip(" *")
    rest = _first_sentence(rest).strip(" *")
    if word[0][0] in "答解":
        return _value_stated(rest) or rest or None
    letter = _LETTER_CHOSEN.fullmatch(rest)
    return letter[1] if letter is not None else _value_stated(rest)


def _closing_formula(line: str) -> str | None:
    """The only formula of a last sentence that ends in it: `1/2` of "After solving, we get $1/2$"."""
    sentence = line[line.rfind(". ") + 1 :]
    closing = _CLOSING_FORMULA.fullmatch(sentence)
    if closing is None or not (_COMES_TO.search(closing[1]) or INTRODUCES.fullmatch(closing[1])):
        return None
    if DENIES.search(closing[1]) or _LOOSE.search(closing[1]):
        return None
    return closing[2].strip()


def _value_stated(rest: str) -> str | None:
    """`5` of "the area is 5", `x = 5` of "x = 5"; None where it states no value, or denies or supposes one."""
    if not rest or DENIES.search(rest) or _SUPPOSES.match(rest):
        return None
    sides = [side.strip() for side in rest.split("=")]
    if len(sides) > 1:
        named = re.fullmatch(r"\\?[A-Za-z]\w{0,4}", sides[0]) is not None
        if _SEVERAL.search(rest):
            return rest if named else None
        return f"{sides[0]} = {sides[1]}" if named and len(sides) == 2 else sides[-1]
    says = _STATES_VALUE.search(rest)
    return rest[says.end() :] if says else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 (the last match is wanted)
        pass
    return found
