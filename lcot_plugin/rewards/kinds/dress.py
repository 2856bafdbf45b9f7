r"""An answer as written in, the same answer without its dress out: `**$\text{B}$.**` becomes `B`.

Also the translation of plain notation (`2*sqrt(3)`, `2√3`) to LaTeX, which is the only notation that calculus (sums,
integrals, limits) is read in: sympy's parser of plain expressions evaluates Python and must never see a model's text.
"""

from __future__ import annotations

import html
import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ", "0123456789+-nx")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ]+")
# Of a variable, a logarithm or a number (101₂); those of H₂O are the formula's letters' and become plain digits.
_SUBSCRIPT_RUN = re.compile(r"(?:(?<=log)|(?<=(?<![A-Za-z])[a-z])|(?<=[0-9]))[₀-₉]+")
_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])")
_LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("−‐‑‒–—﹣－", "-"),  # noqa: RUF001
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067"),
        **dict.fromkeys("\u2068\u2069"),
        "\u2044": "/",
        "\u2215": "/",
        "\u2032": "'",
        "\u211d": r"\mathbb{R}",
        "º": "°",
        "˚": "°",
        "、": ",",
    }
)
_BUT_CIRCLED = re.compile("[^①-⑳]+")
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=[A-Za-z]{2}|[{}])")
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-fA-F]{1,5}|[A-Za-z]{2,8}\d{0,2});")
_SCRIPT_TAG = re.compile(r"<(su[pb])>\s*([^<>]{1,40}?)\s*</\1>")
_MARKUP_TAG = re.compile(r"</?(?:b|i|u|em|strong|span|p|div|font|code|br)\s*/?>|<(?:span|p|div|font)\s[^<>]{0,200}>")
_COLOUR_OF_GROUP = re.compile(r"\\(?:text)?color\s*(?:\{[^{}]{0,40}\}|\[[^\][{}]{0,20}\]\{[^{}]{0,40}\})\s*(?=\{)")
_COLOUR = re.compile(r"\\color\s*\{[^{}]{0,40}\}")
_COLOURED_GROUP = re.compile(r"\{\s*\\color\s*\{[^{}]{0,40}\}([^{}]*)\}")
_FENCE = re.compile(r"```[A-Za-z]{0,12}\s")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox"
    r"|hbox|fbox|ensuremath|operatorname\*?|underline|boldsymbol|bm)(?![A-Za-z])\s*"
)
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("```", "```"),
    ("`", "`"),
    ("*", "*"),
    ('"', '"'),
    ("“", "”"),
    (r"\begin{equation}", r"\end{equation}"),
    (r"\begin{equation*}", r"\end{equation*}"),
    (r"\begin{align*}", r"\end{align*}"),
    (r"\begin{align}", r"\end{align}"),
    (r"\begin{aligned}", r"\end{aligned}"),
)
_GEOMETRIC_SIGNS = {r"\angle": "∠", r"\triangle": "△", r"\parallel": "∥", r"\perp": "⊥"}
_GEOMETRY = re.compile(r"\s*(\\(?:angle|triangle|parallel|perp)(?![a-zA-Z])|[∠△∥⊥])\s*")
_SPACING = re.compile(
    r"(\\\\)|\\(?:[,;:! ]|q?quad(?:\b|(?=[A-Za-z](?:_|\s?=)))|displaystyle\b|textstyle\b|(?:no)?limits\b|allowbreak\b)"
    r"|\\left\s*\.|\\right\s*\.|\\middle\s*(?=[|/])"
    r"|\\(?:left|right|[bB]ig{1,2}[lrm]?)(?=[\s(\[{|\\)\]}.<>/])|~"
)
_EDGE_SPACING = re.compile(r"^(?:\\[,;:! ]|~)+|(?<!\\)(?:\\[,;:!]|~)+$")
_SPACES = re.compile(r"\s+")


def plain_characters(text: str) -> str:
    """Look-alike characters as their ASCII twins: minus signs, spaces, full-width forms, superscripts, fractions, and
    what HTML writes for them."""
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity.group()), text)
    if "<" in text:
        text = _SCRIPT_TAG.sub(lambda tag: ("^{" if tag[1] == "sup" else "_{") + tag[2] + "}", text)
        text = _MARKUP_TAG.sub("", text)
    if text.isascii():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + unicodedata.normalize("NFKC", run.group()) + "}", text)
    text = _VULGAR_FRACTION.sub(" ", text).translate(_LOOKALIKES)
    # Circled digits number statements: ①③ is not 13.
    return _BUT_CIRCLED.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text).translate(_LOOKALIKES)


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


def _group_ends(text: str) -> dict[int, int]:
    """Index just after each balanced `{...}` by the index where it opens."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer("[{}]", text):
        if match.group() == "{":
            opened.append(match.start())
        elif opened:
            ends[opened.pop()] = match.end()
    return ends


def _escaped_once(text: str) -> str:
    r"""LaTeX that was escaped twice, as in many data sets: `\\frac` is `\frac`; in a matrix `\\` ends a row."""
    if "\\\\" not in text or re.search(r"(?<!\\)\\begin", text):
        return text
    return text.replace("\\\\", "\\") if r"\\begin" in text else _ESCAPED_TWICE.sub(r"\\", text)


def undress(text: str) -> str:
    """`text` without the markdown, math delimiters, text commands and final stop around it."""
    text = re.sub(r"\\n(?![A-Za-z])", " ", _escaped_once(plain_characters(text))).strip()
    text = re.sub(r"&\s*=|=\s*&", "=", text)
    if coloured := _COLOURED_GROUP.fullmatch(text):
        text = coloured[1]
    text = _COLOUR.sub("", _COLOUR_OF_GROUP.sub(r"\\mbox", text))
    text = re.sub(r"^#{1,6}\s+", "", _FENCE.sub("```", text))
    for _ in range(8):  # dress is worn in layers; eight is more than anyone wears
        before = text
        text = _EDGE_SPACING.sub("", text.strip()).rstrip(";,")
        text = text.rstrip("\\").rstrip() if text.endswith("\\") else text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        elif text.endswith("。"):
            text = text[:-1]
        text = re.sub(r"^\\(?:displaystyle|textstyle|bf|rm|it|large|Large|huge|Huge)(?![A-Za-z])\s*(?!\{)", "", text)
        if text.count("**") == 1:  # what cut the text out took its twin
            text = text.removesuffix("**").removeprefix("**")
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
    text = _SPACES.sub(" ", text)  # or the patterns below would look at every run of spaces from each of its spaces
    pieces, position, ends = [], 0, _group_ends(text)
    for command in _TEXT_COMMAND.finditer(text):
        if command.start() < position or text[command.end() : command.end() + 1] != "{":
            continue
        end = ends.get(command.end(), -1)
        if end < 0:
            continue
        pieces += [text[position : command.start()], " ", text[command.end() + 1 : end - 1], " "]
        position = end
    text = "".join([*pieces, text[position:]])
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") - text.count(r"\$") > 1 else text
    text = text.replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$").replace("−", "-")  # noqa: RUF001
    text = re.sub(r"\\[dtc]frac\b|\\[dtc]frac(?=\d)", r"\\frac", text)
    text = re.sub(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ\b|\{\s*°\s*\}|°)|\\degree\b", "°", text)
    text = _GEOMETRY.sub(lambda sign: _GEOMETRIC_SIGNS.get(sign[1], sign[1]), text)
    text = re.sub(r"(?<=\d),\s?\\!\s?(?=\d{3})", ",", text)
    # A thin space inside a number separates thousands: 1\,000.
    text = re.sub(r"(?<=\d)\\[,;! ](?=\d{3}(?!\d))", ",", text)
    return _SPACES.sub(" ", _SPACING.sub(lambda space: space[1] or " ", text)).strip()


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
