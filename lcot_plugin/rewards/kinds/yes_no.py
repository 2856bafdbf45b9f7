"""Text in, what it affirms or denies out: the kind `yes_no`. `Yes, it is.`, `True`, `是的` affirm.

A text is read clause by clause: the first has to be an answer, and none of the others may take it back.
"""

from __future__ import annotations

import re

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds.base import Gold, Kind, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.types import MatchSettings

_WORDS = {
    **dict.fromkeys(("yes", "yeah", "yep", "yup", "true", "是", "是的", "对", "对的", "正确", "正确的"), True),
    **dict.fromkeys(("no", "nope", "false", "否", "不是", "不是的", "不对", "错", "错的", "错误", "错误的"), False),
    **dict.fromkeys(("√", "✓", "✔"), True),
    **dict.fromkeys(("不正确", "×", "✗", "✘"), False),  # noqa: RUF001
}
"""Words that are an answer whatever the question was."""
_JUDGEMENTS = {"true": True, "correct": True, "right": True}
_JUDGEMENTS |= {"false": False, "incorrect": False, "wrong": False, "untrue": False}
"""Words that judge a statement; right is a side, too, and wrong may be what somebody did."""
_ANY = {**_WORDS, **_JUDGEMENTS, "没有": False, "不": False}

_FILLERS = frozenset(("so", "thus", "hence", "therefore", "well", "then", "ok", "okay", "所以", "因此"))
_SENTENCE_ENDS = ".!?。"
_CLAUSES = re.compile(r"[^,:.!?;。]+")
_ANSWER = re.compile(
    r"(?:(?:so|thus|hence|therefore|well)\s)?"
    rf"(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})"
    r"(?:\s(?:because|since|as|it|there|he|she|they|this|that|we|you|i)(?![a-z]).*)?"
)
_JUDGED = re.compile(
    r"(?:(?:so|thus|hence|therefore)\s)?"
    r"(?:(?:it|this|that|(?:the|this|that)\s(?:statement|claim|sentence|proposition|assertion))(?:'s|\sis)\s)?"
    rf"(?P<denied>not\s)?(?P<word>{'|'.join(_JUDGEMENTS)})"
)
_JOINED = re.compile(rf"(?:\b(?:or|and|but)\s|/|或|和)({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
_SHORT_YES = re.compile(r"(?:it|there|he|she|they|this|that|we|i|you)(?:'s|'re|\s[a-z]{2,4})")
_NEGATION = re.compile(r"(?:\bnot|\bnever|n't)\Z")
_CHINESE_END = re.compile("(不是|不|没有)?(不正确|正确|错误|不对|对|错|不是|是|否)的?\\Z")


def truth_word(text: str) -> bool | None:
    """True for `yes`, `True`, `是` alone, False for their opposites, None for any other text."""
    return _WORDS.get(_spoken(text).rstrip(" .!。"))


def read_truth(text: str) -> bool | None:
    """What `text` affirms or denies; None where it does neither, or both.

    `Yes, it is.`, `That's true` and `No because ...` do; `No one is there`, `yes and no`, `maybe yes` do not.
    """
    line = _spoken(text)
    clauses = [(line[: match.start()].rstrip()[-1:], match[0].strip()) for match in _CLAUSES.finditer(line)]
    clauses = [clause for clause in clauses if clause[1]]
    while clauses and clauses[0][1] in _FILLERS:
        clauses.pop(0)
    if not clauses:
        return None
    stated = _answers(clauses[0][1])
    if stated is None or any(_takes_back(clause, before, stated) for before, clause in clauses[1:]):
        return None
    return None if _joins_other(line, stated) else stated


def _spoken(text: str) -> str:
    text = inline(undress(text)).replace("’", "'").casefold()  # noqa: RUF001
    return re.sub(r"[\"*`“”()]|\s-\s", lambda mark: ", " if "-" in mark[0] else "", text).strip()


def _answers(clause: str) -> bool | None:
    answer = _ANSWER.fullmatch(clause)
    if answer is not None:
        tail = clause[answer.end("word") :].strip()
        taken_back = tail and _takes_back(tail, "", _WORDS[answer["word"]])
        return None if taken_back else _WORDS[answer["word"]]
    judged = _JUDGED.fullmatch(clause)
    if judged is None or (judged["denied"] and not _JUDGEMENTS[judged["word"]]):  # "not wrong" affirms little
        return None
    return _JUDGEMENTS[judged["word"]] and not judged["denied"]


def _takes_back(clause: str, before: str, stated: bool) -> bool:
    """Whether a later clause says the opposite: `. No`, `actually no`, `it isn't`, `that is false`, `答案是错误的`.

    `because there are no dogs` is no answer: the word has to begin a sentence or end the clause.
    """
    words = clause.split()
    answer = _ANSWER.fullmatch(clause)
    if answer is not None and _WORDS[answer["word"]] is not stated:
        return True
    if before in _SENTENCE_ENDS and before and _ANY.get(words[0], stated) is not stated:
        return True
    if _NEGATION.search(clause):
        return stated
    denied = len(words) > 1 and _NEGATION.search(words[-2]) is not None
    said = _ANY.get(words[-1])
    if said is None and (chinese := _CHINESE_END.search(clause)):
        denied, said = bool(chinese[1]), _ANY[chinese[2]]
    if said is not None:
        return (said is not stated) is not denied
    return not stated and _SHORT_YES.fullmatch(clause) is not None


def _joins_other(line: str, stated: bool) -> bool:
    return any(_WORDS[joined[1]] is not stated for joined in _JOINED.finditer(line))


def _gold(truth: bool | None) -> Gold | None:
    return None if truth is None else Gold("yes_no", "yes" if truth else "no", truth)


def read(text: str, settings: MatchSettings) -> Gold | None:
    """What `text` affirms or denies; also `correct`, `wrong`."""
    truth = truth_word(text)
    return _gold(read_truth(text) if truth is None else truth)


def infer(text: str, settings: MatchSettings) -> Gold | None:
    """What `text` says where it is no more than a word for yes or no."""
    return _gold(truth_word(text))


def compare(gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
    """Whether `found` says the same."""
    truth = read_truth(found.answer)
    return None if truth is None else truth is gold.value


KIND = Kind(read, compare, infer)
ALIASES = dict.fromkeys(
    ("yes/no", "yes-no", "yesno", "yn", "boolean", "bool", "binary", "tf", "true/false", "true_false", "judge"),
    "yes_no",
)
