r"""An answer as written in, the same answer without its dress out: `**$\text{B}$.**` becomes `B`.

Also the translation of plain notation (`2*sqrt(3)`, `2√3`) to LaTeX, which is the only notation that the symbolic
comparison reads: sympy's parser of plain expressions evaluates Python and must never see a model's text.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])")
_LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–—﹣－", "-"),  # noqa: RUF001
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"),
        "\u2044": "/",
        "\u2215": "/",
        "º": "°",
        "˚": "°",
        "、": ",",
    }
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*")
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ("*", "*"),
)
_SPACING = re.compile(
    r"\\(?:[,;:! ]|quad\b|qquad\b|displaystyle\b|limits\b)"
    r"|\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?=[\s(\[{|\\)\]}.])|~"
)
_SPACES = re.compile(r"\s+")


def plain_characters(text: str) -> str:
    """Look-alike characters as their ASCII twins: minus signs, spaces, full-width forms, superscripts, fractions."""
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _VULGAR_FRACTION.sub(" ", text).translate(_LOOKALIKES)
    return unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)


def balanced_end(text: str, start: int) -> int:
    """Index just after the group that opens at `start` with `{`, `(` or `[`; -1 where it never closes."""
    closer = {"{": "}", "(": ")", "[": "]"}[text[start]]
    depth = 0
    for index in range(start, len(text)):
        if text[index] == text[start]:
            depth += 1
        elif text[index] == closer:
            depth -= 1
            if depth == 0:
                return index + 1
    return -1


def undress(text: str) -> str:
    """`text` without the markdown, math delimiters, text commands and final stop around it."""
    text = plain_characters(text).strip()
    for _ in range(8):  # dress is worn in layers; eight is more than anyone wears
        before = text
        text = text.strip().rstrip(";,")
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        elif text.endswith("。"):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and closing not in inner:
                text = inner.strip()
        command = re.match(r"\\f?boxed\s*(?=\{)", text) or _TEXT_COMMAND.match(text)
        opens = command is not None and text[command.end() : command.end() + 1] == "{"
        if command and opens and balanced_end(text, command.end()) == len(text):
            text = text[command.end() + 1 : -1]
        if text == before:
            break
    return _SPACES.sub(" ", text).strip()


def inline(text: str) -> str:
    r"""Undressed `text` as one line of mathematics: no `$`, no spacing commands, `\text{ cm}` as ` cm `."""
    pieces, position = [], 0
    for command in _TEXT_COMMAND.finditer(text):
        if command.start() < position or text[command.end() : command.end() + 1] != "{":
            continue
        end = balanced_end(text, command.end())
        if end < 0:
            continue
        pieces += [text[position : command.start()], " ", text[command.end() + 1 : end - 1], " "]
        position = end
    text = "".join([*pieces, text[position:]])
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") - text.count(r"\$") > 1 else text
    text = text.replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$").replace("−", "-")  # noqa: RUF001
    text = re.sub(r"\\[dtc]frac\b|\\[dtc]frac(?=\d)", r"\\frac", text)
    text = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ\b|\{\s*°\s*\}|°)|\\degree\b", "°", text)
    # A thin space inside a number separates thousands: 1\,000.
    text = re.sub(r"(?<=\d)\\[,;! ](?=\d{3}(?!\d))", ",", text)
    return _SPACES.sub(" ", _SPACING.sub(" ", text)).strip()


_PLAIN_SYMBOLS = (
    ("**", "^"),
    ("π", r"\pi "),
    ("θ", r"\theta "),
    ("\u03b1", r"\alpha "),
    ("β", r"\beta "),
    ("∞", r"\infty "),
    ("≤", r"\le "),
    ("<=", r"\le "),
    ("≥", r"\ge "),
    (">=", r"\ge "),
    ("≠", r"\neq "),
    ("±", r"\pm "),
    ("×", r"\times "),  # noqa: RUF001
    ("÷", r"\div "),
    ("·", r"\cdot "),
    ("⋅", r"\cdot "),
    ("*", r"\cdot "),
    ("\u222a", r"\cup "),
    ("∩", r"\cap "),
)
_PLAIN_NAME = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|theta|alpha|beta)(?![A-Za-z])"
)
_ROOT = re.compile(r"√|(?<![\\A-Za-z])sqrt(?=\s*[(\d])|\\sqrt(?=\s*[(\d])")


def to_latex(text: str) -> str:
    r"""Plain or LaTeX mathematics as LaTeX: `2*sqrt(3)` and `2√3` become `2\cdot \sqrt{3}` and `2\sqrt{3}`."""
    text = inline(text)
    for symbol, latex in _PLAIN_SYMBOLS:
        text = text.replace(symbol, latex)
    text = _PLAIN_NAME.sub(r"\\\1 ", text)
    text = _group_operands(text, _ROOT, r"\sqrt")
    text = _group_operands(text, re.compile(r"\^(?=\s*[(\d-])"), "^")
    return text.replace("°", r"^{\circ}").strip()


def _group_operands(text: str, operator: re.Pattern[str], latex: str) -> str:
    """`operator` with its operand in braces: a bracketed group loses its brackets, a number is taken whole."""
    pieces, position = [], 0
    while match := operator.search(text, position):
        start = match.end()
        while text[start : start + 1] == " ":
            start += 1
        pieces += [text[position : match.start()], latex]
        position = start
        if text[start : start + 1] == "(" and (end := balanced_end(text, start)) > 0:
            # The inside may hold further operators: it is read again, from after the brace.
            text = text[:start] + "{" + text[start + 1 : end - 1] + "}" + text[end:]
        elif number := re.compile(r"-?\d+(?:\.\d+)?").match(text, start):
            pieces.append("{" + number.group() + "}")
            position = number.end()
    return "".join([*pieces, text[position:]])
