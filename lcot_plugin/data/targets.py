r"""A Trace in, the text that a model learns to write out; the tokeniser of SFT data consumes it.

    think_boxed    <think>\n2 + 3 = 5\n</think>\n\nThe sum is \boxed{5}.
    think_answer   <think>\n2 + 3 = 5\n</think>\n\nIt is the sum, 5.\n\n<answer>5</answer>
    native         the family's own words around the thought, then the conclusion as it was

Every form is read back before it is used: whatever characters an answer is made of, `extract_answer` finds it in what
was written. A conclusion that has the target's form already is kept byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lcot_plugin.data.traces import bare_answer, find_mark, read_answer
from lcot_plugin.rewards.extraction import Place, extract_answer, last_boxed
from lcot_plugin.types import RecordFault, Trace

THINK_WORDS = ("<think>\n", "\n</think>\n\n")
STEP_BY_STEP = "Reason step by step, then state the final answer."
"""The system prompt of target `native` for a family that does not reason by itself."""

_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
_ANNOUNCEMENT = re.compile(
    r"[#*_\s]*(?:(?:so|thus|hence|therefore),?\s)?\s*(?:the\s)?\s*(?:final\s|correct\s)?\s*"
    r"answer[*_ ]*(?:is\b)?[*_ :]*[$*_.\s]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Target:
    """One form of response."""

    name: str
    system_prompt: str
    """What asks a model for this form; empty for `native`, see STEP_BY_STEP."""
    conclude: Callable[[str, str], str]
    """(conclusion, answer) -> the conclusion in this form."""
    own_words: bool = False
    """Whether the family's own words stand around the thought instead of `<think>` and `</think>`."""

    def write(self, trace: Trace, thought_words: tuple[str, str] = THINK_WORDS) -> str:
        """`trace` as text. `thought_words`: what the family writes before and after a thought, for `native` only.

        A thought that never closed stays open, and a trace without an answer gets none: what becomes of those is
        decided by `policy.settle`.
        """
        opening, closing = thought_words if self.own_words else THINK_WORDS
        if trace.fault is RecordFault.UNCLOSED_THOUGHT:
            return f"{opening}{trace.thought}"
        conclusion = trace.conclusion
        if trace.answer is not None:
            conclusion = self.conclude(conclusion, bare_answer(trace.answer))
        if trace.thought is None:
            return conclusion
        # A family without words for a thought just goes on to its conclusion.
        return f"{opening}{trace.thought}{closing or _PARAGRAPH}{conclusion}".rstrip()


def boxed(answer: str) -> str:
    r"""`answer` in `\boxed{}`; as escaped text where its braces do not balance."""
    plain = rf"\boxed{{{answer}}}"
    if _states(plain, answer, Place.BOXED):
        return plain
    text = re.sub(r"[\\{}]", lambda char: r"\textbackslash{}" if char[0] == "\\" else "\\" + char[0], answer)
    return rf"\boxed{{\text{{{text}}}}}"


def tagged(answer: str) -> str:
    """`answer` in `<answer>`; boxed within it where it would be misread there, as `my answer is 5` would."""
    plain = f"<answer>{answer}</answer>"
    return plain if _states(plain, answer, Place.TAG) else f"<answer>{boxed(answer)}</answer>"


def _conclude_boxed(conclusion: str, answer: str) -> str:
    for form in _boxed_forms(conclusion, answer):
        if _states(form, answer, Place.BOXED):
            return form
    return boxed(answer)


def _boxed_forms(conclusion: str, answer: str) -> Iterator[str]:
    """Ways to put `answer` into a box, the one that changes least first."""
    yield conclusion
    if bare_answer(conclusion) == answer:
        yield boxed(answer)
    *_, tag = None, *_TAGGED.finditer(conclusion)
    if tag is not None:
        inside = tag[1].strip()
        before, after = _without_tags(conclusion[: tag.start()]), _without_tags(conclusion[tag.end() :])
        yield f"{before}{inside}{after}"
        yield f"{before}{boxed(answer)}{after}"
    conclusion = _without_tags(conclusion)
    mark = find_mark(conclusion)
    place = conclusion.find(answer, mark[1]) if mark else conclusion.rfind(answer)
    if place >= 0 and read_answer(conclusion) == answer:
        yield f"{conclusion[:place]}{boxed(answer)}{conclusion[place + len(answer) :]}"
    yield _paragraphs(conclusion, boxed(answer))


def _conclude_tagged(conclusion: str, answer: str) -> str:
    if _states(conclusion, answer, Place.TAG):
        return conclusion
    explanation = _without_tags(_unboxed(conclusion)).strip()
    around = "".join(explanation.rpartition(answer)[::2])
    says_more = bare_answer(explanation) != answer and not (len(around) < 80 and _ANNOUNCEMENT.fullmatch(around))
    form = _paragraphs(explanation if says_more else "", tagged(answer))
    return form if _states(form, answer, Place.TAG) else tagged(answer)


def _conclude_natively(conclusion: str, answer: str) -> str:
    if read_answer(conclusion) == answer:
        return conclusion
    conclusion = _without_tags(conclusion)
    forms = [_paragraphs(conclusion, f"The answer is {answer}.") if conclusion else answer]
    return next((form for form in forms if read_answer(form) == answer), _paragraphs(conclusion, boxed(answer)))


def _states(text: str, answer: str, place: Place) -> bool:
    found = extract_answer(text)
    return found is not None and found.place is place and bare_answer(found.answer) == answer


def _unboxed(text: str) -> str:
    r"""`text` with the content of its last `\boxed{}` in the box's stead."""
    content = last_boxed(text)
    if content is None:
        return text
    before, box, after = text.rpartition(rf"\boxed{{{content}}}")
    return f"{before}{content}{after}" if box else text


def _without_tags(text: str) -> str:
    return _ANSWER_TAG.sub("", text)


_PARAGRAPH = "\n\n"


def _paragraphs(*texts: str) -> str:
    return _PARAGRAPH.join(stripped for text in texts if (stripped := text.strip()))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "think_boxed",
            r"Reason step by step between <think> and </think>, then give the final answer in \boxed{}.",
            _conclude_boxed,
        ),
        Target(
            "think_answer",
            "Reason step by step between <think> and </think>, then give the final answer between <answer> and "
            "</answer>.",
            _conclude_tagged,
        ),
        Target("native", "", _conclude_natively, own_words=True),
    )
}
r"""By `cot_format` of the YAML: the form of TBAC-VLR1 (`\boxed{}`), that of R1 (`<answer>`), the family's own."""
