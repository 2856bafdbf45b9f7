"""The words that announce an answer, and those that deny one. `extraction` consumes them."""

from __future__ import annotations

import re

CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))\b[*_ ]{0,4}(?:(?:is|are)\b|[:=])[*_ :]{0,4}"
    r"|(?:答案|正确选项)(?:应该|应当)?(?:[是为]:?|:(?:是(?![的否不,，。.\s]|\Z))?)",  # noqa: RUF001
    re.IGNORECASE,
)
WIDER_CUE = re.compile(
    r"\banswer\s(?:(?:to|for|of)\s(?:the|this|your|our)\s(?:\w{1,12}\s){0,2}?(?:question|problem|exercise|equation)\s"
    r"(?:is|are)\b|(?:should|would|will|must|has\sto)\sbe\b|equals\b|turns\sout\sto\sbe\b|comes\sout\sto\b)[*_ :]{0,4}"
    r"|\banswer[ ]{0,3}(?=\$|\\[(\[])|(?:^|\bfinal )answer (?=[-+]?\d+(?:[.,/]\d+)*[½¼¾]?\W{0,3}$)"
    r"|\bans\s{0,2}[:=][*_ ]{0,4}|\bfinal\s(?:result|choice)\b[*_ ]{0,4}(?:is\b|[:=])[*_ :]{0,4}"
    r"|【(?:参考|正确)?答案】\s{0,4}:?"
    r"|(?:故|所以|因此|综上|应该?|本题|答案)[,，]?(?:应该?|答案)?(?:选择|选|填)(?:项)?[*: ]{0,4}"  # noqa: RUF001
    r"|答案(?:应该?|就|即|便)[是为][*: ]{0,4}|答案(?:等于|\s?=)\s?|答案(?=\s?[-\d(A-Z$\\])"
    r"|选择?的(?:答案|选项)?[是为][*: ]{0,4}"
    r"|(?:정답|답)(?:\s?[:은는]|(?=\s[A-Z\d(]))[* ]{0,4}|(?:答え|正解|回答)\s?(?:は|:|[是为])[* ]{0,4}"
    r"|\b(?:réponse|respuesta|resposta|antwort|risposta|ответ)\b(?:\s(?:correcta|correta|correcte|finale?))?"
    r"[* ]{0,4}(?:est\b|es\b|é\b|è\b|ist\b|:)[*: ]{0,4}|^选择?[*: ]{0,4}(?=[A-Z])",
    re.IGNORECASE | re.MULTILINE,
)
HEADING = re.compile(
    r"^[#*_ \t]{0,8}(?:(?:the[ \t])?(?:final[ \t])?answer|最终答案|答案)[*_ \t]{0,4}$", re.IGNORECASE | re.MULTILINE
)
FINAL_ANSWER = re.compile(r"\bfinal\sanswer[\s*_]{0,4}(?:is\b:?|:)[\s*_]{0,6}(?=[-+]?\d|[$]|\\[(])", re.IGNORECASE)
INTRODUCES = re.compile(
    r"\s*(?!.*\b(?:given|wrong|mistakes?|incorrect|false|original|initial|problem|question|try|guess|steps?|check|example"
    r"|attempt|equation|suppose|expected|options?|choices?|possib\w{2,6}|candidates?|step\s\w+|different|other)\b)"
    r"(?:here\s(?:is|are)\b|(?:.*\b)?(?:matrix|matrices|vector|result|solution|final\s\w{1,12})\b)[^:$]{0,40}:\s*",
    re.IGNORECASE,
)
"""Before a colon and the only formula of a last line."""
NOT_STATED = re.compile(
    r"(?:\b(?:not|false|wrong|incorrect|untrue|doubt|unlikely|unclear|impossible|whether|if|suppose|assume|unless)\b|n[’']t\b)"  # noqa: RUF001
    r"(?!\s(?:hard|difficult|surpris))"
    r"(?:\s(?:true|clear|certain|sure|say|think|believe|mean|claim)|(?:\s\w{1,10}){0,3}?\sthat)?"
    r"\s?(?:(?:the|my|our|your)\s)?(?:(?:final|correct|right)\s)?\Z",
    re.IGNORECASE,
)
"""What denies or supposes that the answer is the one that follows."""
DENIES = re.compile(r"\bnot\b|n[’']t\b|\bno\b|\bneither\b|\bnever\b|[不没?？]|\\neq|≠|[<>!]=", re.IGNORECASE)  # noqa: RUF001
DENIES_ABROAD = re.compile(
    r"ではな|じゃな|ではありません|아니|아닙|\b(?:не|nicht|n'est\spas|não|non\sè)\b", re.IGNORECASE
)
ATTRIBUTED = re.compile(
    r"(?:\b(?:some|others|many|someone|one\s(?:might|may|could|would)|(?:an?|the|another|some|most|many)\s(?:\w{1,14}\s){0,2}?"
    r"(?:students?|persons?|people|pupils?|readers?|beginners?|observers?|models?)|students|people)"
    r"(?:\s(?:people|students|might|may|would|could|will|often|mistakenly|wrongly)){0,3}"
    r"\s(?:say|claim|think|believe|argue|guess|conclude|assert|insist|suggest)s?(?:\sthat)?"
    r"|\bif\s(?:\$?\w{1,2}\$?|it|he|she|this|that|the\s\w{1,14}(?<!s))\swere\b[^.\n]{1,60},(?:\sthen)?"
    r"|(?:^|[.!?]\s)\s*had\s(?:it|he|she|they|we|\$?\w{1,2}\$?|the\s\w{1,14})\s[^.\n]{1,60},(?:\sthen)?)"
    r"\s?(?:(?:the|my|our|your)\s)?(?:(?:final|correct|right)\s)?\Z",
    re.IGNORECASE,
)
"""Before an answer that others give, or that would be right if something false were true."""
_WITHDRAWS = re.compile(
    r"[\W_]{0,20}(?:(?:but|and|yet|oh|ah|well|ok|okay|sorry)\b,?\s){0,2}(?:"
    r"wait(?=\s?(?:[,\u2026!:\u2014-]|\.\.)|\s(?:no|that|this|it|i)\b)"
    r"|no[,.!]?\s(?:wait\b|(?:it|that|this|the\sanswer)(?:'s|\sis|\sshould\sbe|\smust\sbe)\s(?!not\b))"
    r"|hmm+\b|actually,?\s|correction\s?[:,\u2014-]|however,|oops\b|on\ssecond\sthought|scratch\sthat|i\swas\swrong"
    r"|i\s(?:have\s)?made\san?\s(?:\w{1,12}\s)?(?:mistake|error)"
    r"|let\sme\s(?:re-?|double[-\s])?check\b(?=.{0,200}\b(?:no|not|wrong|incorrect|should|wait|oops|cannot)\b)"
    r"|(?:that|this|it|the\sanswer)(?:"
    r"(?:'s|\s(?:is|was|seems|looks|must\sbe|may\sbe|might\sbe))(?:\s(?:clearly|obviously|actually|still|also))?"
    r"\s(?:wrong|incorrect|false|impossible|an?\s(?:mistake|error)|not\s(?:right|correct|true|possible))"
    r"|\s(?:isn't|wasn't)\s(?:right|correct|true|possible)"
    r"|\s(?:cannot|can't|can\snot|couldn't|could\snot)\sbe\s(?:right|correct|true|the\s(?:answer|case))"
    r"|\sshould\s(?:have\sbeen|be)\s(?!noted|clear|obvious|easy|enough|emphasi))"
    r"|(?<=but\s)(?:it|that|this|he|she|they|we)\s(?:(?:do|does|did)(?:\snot|n't)\b|(?:is|was|were)(?:\snot|n't)\s?[,.;])"
    r"|等等|等一下|不对|错了)",
    re.IGNORECASE | re.DOTALL,
)
_BREAK = re.compile(r"[.!?][)*_$\"\\\]]{0,4}\s|[。\n]")  # the end of a sentence


def withdraws(remark: str) -> bool:
    """Whether `remark`, which follows an answer, takes it back: `Wait, it is D`, `That cannot be right`."""
    return _WITHDRAWS.match(remark.replace("\u2019", "'") if "\u2019" in remark else remark) is not None


def withdrawal(text: str, start: int, end: int) -> int | None:
    """Where in `text` the answer that stands from `start` to `end` is taken back; None where it is not, or not at once.

    Inside the answer too: of "B. Wait, it is D" an answer may be all of it.
    """
    for found in _BREAK.finditer(text, start):
        if withdraws(text[found.end() : found.end() + 400]):
            return found.end()
        if found.start() >= end:
            break
    return None
