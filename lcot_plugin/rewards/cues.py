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
