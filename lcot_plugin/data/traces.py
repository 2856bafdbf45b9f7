r"""A response as its data set wrote it in, a Trace (thought, conclusion, answer) out; `samples` consumes it.

    "<think>2 + 3 = 5</think>\n\nThe sum is \boxed{5}."  ->  Trace("2 + 3 = 5", r"The sum is \boxed{5}.", "5")

Each way of writing a thought has a reader in READERS; the first that knows the text splits it. Every scan is linear in
the length of the response, and none raises: a model may have written a megabyte of open tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from lcot_plugin.rewards.extraction import MAX_ANSWER_CHARS, Place, extract_answer
from lcot_plugin.rewards.kinds.dress import balanced_end
from lcot_plugin.types import RecordFault, Trace

MAX_PLAIN_ANSWER_CHARS = 200
"""A longer line without a mark is prose, not an answer; so are two sentences."""
MIN_WORKED_STEPS = 2
"""Sentences or lines before a marked answer that make a solution of it: `The answer is 5.` has none."""
MAX_CUE_STEPS = 3
"""Sentences or lines from "the answer is" to the end; with more behind it, it announces no final answer."""

THOUGHT_WORDS = {
    "think": ("<think>", "</think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "kimi": ("◁think▷", "◁/think▷"),
    "open_thoughts": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "gemma4": ("<|channel>thought", "<channel|>"),
}
"""What opens and closes a thought, by who writes it."""


@dataclass(frozen=True)
class Split:
    """A response, cut in two."""

    thought: str
    conclusion: str
    closed: bool = True
    """False where the thought opens and never ends; the conclusion is then empty."""


Reader = Callable[[str], Split | None]
"""Splits a response; None where it is not written in the reader's way."""

_THOUGHT_TAG = re.compile(
    "(?P<open>{})|(?P<close>{})".format(
        *("|".join(re.escape(words[side]) for words in THOUGHT_WORDS.values()) for side in (0, 1))
    ),
    re.IGNORECASE,
)
_SOLUTION_TAG = re.compile(r"<\|(?:begin|end)_of_solution\|>")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_STAGE_TAG = re.compile(r"<(?P<end>/?)(?P<stage>SUMMARY|CAPTION|REASONING|CONCLUSION)>")
_STEP_HEADING = re.compile(r"^###\s*(?:step\s+\d|let's think step by step)", re.IGNORECASE | re.MULTILINE)
_FINAL_HEADING = re.compile(r"^###\s*the final answer is", re.IGNORECASE | re.MULTILINE)
_BOX = re.compile(r"\\f?boxed\s*\{")
_CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))\b[*_ ]{0,4}(?:(?:is|are)\b|[:：=])"  # noqa: RUF001
    r"|(?:答案|正确选项)(?:应该|应当)?[是为:：]|^####[ \t]",  # noqa: RUF001
    re.IGNORECASE | re.MULTILINE,
)
_STEP = re.compile(r"\w(?:[^.!?。！？\n]|[.!?](?!\s|$))*+")  # noqa: RUF001
_SENTENCE_START = re.compile(r"[.!?][\"')*]{0,3}\s+|[。！？]")  # noqa: RUF001
_LIST_NUMBER = re.compile(r"\s*(?:\d{1,3}|[*-])[.)]?\s")
_ANSWER_TITLE = re.compile(r"[#*_\s]*(?:the\s+)?(?:final\s+)?(?:answer|conclusion)[*_:：\s]*", re.IGNORECASE)  # noqa: RUF001
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_GROUP_COMMAND = re.compile(r"\\(?:f?boxed|text|textbf|mathrm|mathbf)\s*(?=\{)")
_OPTION_LETTER = re.compile(r"^[(*]{0,3}[A-J][.)]")
_ESCAPED = re.compile(r"\\textbackslash\{\}|\\([{}])")
_EMPHASISED = re.compile(r"\*\*[^*\n]+\*\*\.?|\$[^$\n]+\$\.?|####\s.+")


def read_trace(response: str, thought: str | None = None) -> Trace:
    """`response`, read; `thought` is the chain of thought where the data set keeps it in a column of its own.

    A step-by-step solution without delimiters is a thought where its final answer is marked. Text before and between
    several thoughts belongs to the thought. A final answer that is cut off (`<answer>5`) is none.
    """
    split = _split(response) if thought is None or not thought.strip() else _beside_column(response, thought)
    if not split.closed:
        return Trace(split.thought.strip(), "", None, RecordFault.UNCLOSED_THOUGHT)
    conclusion = _SOLUTION_TAG.sub("", split.conclusion).strip()
    fault = None
    if not conclusion or _is_cut_off(conclusion):
        fault = RecordFault.NO_ANSWER
    elif not split.thought.strip():
        fault = RecordFault.NO_THOUGHT
    return Trace(split.thought.strip() or None, conclusion, read_answer(conclusion), fault)


def close_thought(thought: str) -> Trace | None:
    r"""A thought that never closed, closed where its final answer begins; None where it never came to one.

    `2 + 3 = 5\n<answer>5</answer>` and `... So the area is \boxed{5}.` have come to an answer; after
    `The answer is 5. Wait,` the thinking goes on.
    """
    solution = _SOLUTION_TAG.search(thought)
    mark = find_mark(thought)
    if solution is not None:
        start = solution.start()
    elif mark is not None:
        start = _conclusion_start(thought, mark[0])
        tag = _last(_ANSWER_TAG, thought)
        if thought[tag.end() :].strip() if tag else _num_steps(thought[start:]) > 1:
            return None
        if not thought[:start].strip() and _BOX.match(thought, mark[0]):
            start = mark[0]  # one sentence, which comes to its answer at its end
    else:
        return None
    conclusion = _SOLUTION_TAG.sub("", thought[start:]).strip()
    answer = read_answer(conclusion)
    if answer is None or _is_cut_off(conclusion) or not thought[:start].strip():
        return None
    return Trace(thought[:start].strip(), conclusion, answer)


def read_answer(conclusion: str) -> str | None:
    """The short final answer that `conclusion` states, without its dress; None where it is prose or cut off."""
    found = extract_answer(conclusion)
    if found is None or _is_cut_off(conclusion):
        return None
    if found.place is Place.CUE and find_mark(conclusion) is None:
        return None
    if found.place is Place.LAST_LINE:
        alone = found.answer == conclusion.strip() and _num_steps(_OPTION_LETTER.sub("", found.answer)) <= 1
        if not (alone or _EMPHASISED.fullmatch(found.answer)) or len(found.answer) > MAX_PLAIN_ANSWER_CHARS:
            return None
    return bare_answer(found.answer) or None


def bare_answer(answer: str) -> str:
    r"""`answer` without the markdown, math delimiters, text commands and final stop around it, else untouched.

    `**$\text{B}$**` gives `B`; `\text{a \} b}` gives `a } b`, as `targets` writes braces that do not balance.
    """
    text = _ANSWER_TAG.sub("", answer)
    while len(text) <= MAX_ANSWER_CHARS:
        before = text
        text = re.sub(r"^#{1,6}\s", "", text.strip()).removesuffix("。")
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and closing not in inner:
                text = inner.strip()
        if text.count("**") == 1:
            # "**Answer: 5**" leaves the closing half only.
            text = text.removesuffix("**").removeprefix("**").strip()
        command = _GROUP_COMMAND.match(text)
        if command and _group_end(text, command.end()) == len(text):
            text = _ESCAPED.sub(lambda escape: escape.group(1) or "\\", text[command.end() + 1 : -1]).strip()
        if text == before:
            break
    return text.strip()


def find_mark(text: str) -> tuple[int, int] | None:
    """Span of what marks the final answer: the last complete `<answer>`, else the last box, else "the answer is"."""
    opened, tagged = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag.group(1):
            opened = tag.span()
        elif opened is not None:
            tagged, opened = opened, None
    if tagged is not None:
        return tagged
    mark = _last(_BOX, text)
    if mark is None:
        mark = _last(_CUE, text)
        if mark is not None and _num_steps(text[_conclusion_start(text, mark.start()) :]) > MAX_CUE_STEPS:
            return None
    return mark.span() if mark is not None else None


# Readers.


def _read_delimited(text: str) -> Split | None:
    """`<think>...</think>` and its kin; the template may have written the opening one (Qwen3-Thinking, DeepSeek)."""
    pieces: list[str] = []
    position, opened, seen = 0, False, False
    for tag in _THOUGHT_TAG.finditer(text):
        seen = True
        if opened and tag["open"]:
            continue  # a thought that speaks of tags
        pieces.append(text[position : tag.start()])
        position, opened = tag.end(), bool(tag["open"])
    if not seen:
        return None
    if opened:
        return Split(_join([*pieces, text[position:]]), "", closed=False)
    if not any(piece.strip() for piece in pieces):
        # An empty thought says nothing: what follows may still be a worked solution.
        return _split(text[position:])
    return Split(_join(pieces), text[position:])


def _read_stages(text: str) -> Split | None:
    """LLaVA-CoT: `<SUMMARY>`, `<CAPTION>` and `<REASONING>` are the thought, `<CONCLUSION>` is the conclusion."""
    tags = list(_STAGE_TAG.finditer(text))
    if not {"REASONING", "CONCLUSION"} & {tag["stage"] for tag in tags}:
        return None
    start = next((tag for tag in reversed(tags) if tag["stage"] == "CONCLUSION" and not tag["end"]), tags[-1])
    thought = _join(_STAGE_TAG.split(text[: start.start()])[::3])
    if start["stage"] != "CONCLUSION" and not start["end"]:
        return Split(_join([thought, text[start.end() :]]), "", closed=False)
    return Split(thought, _join(_STAGE_TAG.split(text[start.end() :])[::3]))


def _read_headings(text: str) -> Split | None:
    """Mulberry: `### Step 1: ...` headings, then `### The final answer is: B`."""
    heading = _last(_FINAL_HEADING, text)
    if heading is not None:
        return Split(text[: heading.start()], text[heading.start() :])
    if len(_STEP_HEADING.findall(text)) >= MIN_WORKED_STEPS and find_mark(text) is None:
        return Split(text, "")
    return None


def _read_worked_solution(text: str) -> Split | None:
    r"""Steps without delimiters, then `\boxed{5}`, `**Answer:** 5`, `#### 5` or "The answer is 5."."""
    mark = find_mark(text)
    if mark is None:
        return None
    start = _conclusion_start(text, mark[0])
    return Split(text[:start], text[start:]) if _num_steps(text[:start]) >= MIN_WORKED_STEPS else None


READERS: dict[str, Reader] = {
    "delimited": _read_delimited,
    "llava_cot": _read_stages,
    "mulberry": _read_headings,
    "worked_solution": _read_worked_solution,
}
"""By name, in the order in which they are tried."""


def register_reader(name: str, reader: Reader) -> None:
    """Adds a way of writing thoughts, tried before worked solutions are guessed; ValueError for a name in use."""
    if name in READERS:
        raise ValueError(f"trace reader {name!r} exists already; take another name or unregister_reader it first")
    guess = READERS.pop("worked_solution")
    READERS.update({name: reader, "worked_solution": guess})


def unregister_reader(name: str) -> None:
    """Takes a reader away again."""
    del READERS[name]


def _split(text: str) -> Split:
    return next((split for reader in READERS.values() if (split := reader(text)) is not None), Split("", text))


def _beside_column(response: str, column: str) -> Split:
    """A response whose thought has a column of its own, which may hold delimiters and an answer as well."""
    own = _read_delimited(column) or Split(column.strip(), "")
    rest = _read_delimited(response) or Split("", response.strip())
    if own.thought in rest.thought:
        return rest
    thought = _join([own.thought, rest.thought])
    conclusion = rest.conclusion
    if own.conclusion.strip():
        answer = read_answer(own.conclusion)
        if not conclusion.strip() or (answer is not None and answer == read_answer(conclusion)):
            conclusion = own.conclusion
        else:
            thought = _join([thought, own.conclusion])
    return replace(rest, thought=thought, conclusion=conclusion if rest.closed else "")


# Places in a text.


def _conclusion_start(text: str, mark: int) -> int:
    """Start of the sentence or line with the mark, of the formula around it, and of the title above it; of the tag."""
    if text.startswith("<", mark):
        return mark
    start = text.rfind("\n", 0, mark) + 1
    number = _LIST_NUMBER.match(text, start, mark)
    for end in _SENTENCE_START.finditer(text, number.end() if number else start, mark):
        start = end.end()
    for opening, closing in ((r"\[", r"\]"), (r"\begin{", r"\end{")):
        if text.count(opening, 0, start) > text.count(closing, 0, start):
            start = text.rfind("\n", 0, text.rfind(opening, 0, start)) + 1
    if text.count("$$", 0, start) % 2:
        start = text.rfind("\n", 0, text.rfind("$$", 0, start)) + 1
    above = text[:start].rstrip()
    title = above.rfind("\n") + 1
    if len(above) - title < 40 and _ANSWER_TITLE.fullmatch(above, title):
        start = title
    return start


def _num_steps(text: str, at_most: int = MAX_CUE_STEPS + 1) -> int:
    """Sentences and lines that say something; counted up to `at_most`, more makes no difference."""
    return sum(1 for _ in islice(_STEP.finditer(text), at_most))


def _is_cut_off(conclusion: str) -> bool:
    """Whether the response ended inside its `<answer>` or its box."""
    tag = _last(_ANSWER_TAG, conclusion)
    if tag is not None:
        return not tag.group(1)
    found = extract_answer(conclusion)
    if found is None:
        return _BOX.search(conclusion) is not None
    return not found.explicit and _BOX.search(found.answer) is not None


def _group_end(text: str, start: int) -> int:
    r"""Index after the group that opens at `start`; braces written `\{` do not count."""
    masked = re.sub(r"\\.", "..", text, flags=re.DOTALL)
    return balanced_end(masked, start)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    *_, match = None, *pattern.finditer(text)
    return match


def _join(pieces: list[str]) -> str:
    return "\n\n".join(stripped for piece in pieces if (stripped := piece.strip()))
