r"""The vocabulary of mathematical notation, and text cut into its tokens; `notation` reads them.

A number keeps what it says: `1,000`, `1.5e3`, `0.1\overline{6}` and `0.333...` are one token each.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from lcot_plugin.rewards.mathematics.syntax import Unreadable

MAX_DIGITS = 300
"""Of one number."""

FUNCTIONS = {
    **{name: name for name in re.findall(r"\w+", "sin cos tan cot sec csc sinh cosh tanh coth sech csch")},
    **{name: name for name in re.findall(r"\w+", "exp ln log lg")},
    **{f"{prefix}{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc") for prefix in ("arc", "a")},
    **{f"{prefix}{name}": f"a{name}" for name in ("sinh", "cosh", "tanh") for prefix in ("arc", "ar", "a")},
    **{name: name for name in re.findall(r"\w+", "abs sign floor ceil gcd lcm max min det Re Im")},
    "sgn": "sign", "arctg": "atan", "tg": "tan", "ctg": "cot", "cosec": "csc", "th": "tanh", "sh": "sinh", "ch": "cosh",
    "cbrt": "cbrt", "ceiling": "ceil", "binom": "binomial", "binomial": "binomial", "factorial": "factorial",
}  # fmt: skip
LATEX_ONLY = frozenset({"th", "sh", "ch", "tg", "ctg", "lg", "Re", "Im"})
"""As plain words these are rather products of letters, or no mathematics."""
MANY_ARGUMENTS = frozenset({"gcd", "lcm", "max", "min", "binomial"})
NO_PRODUCTS = frozenset(re.findall(r"\w+", "and or if for mod not is no the dx dy"))
"""Short words that are no letters multiplied."""
GREEK = {
    "alpha": "\u03b1", "beta": "β", "gamma": "\u03b3", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ",
    "eta": "η", "theta": "θ", "vartheta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "\u03bd", "xi": "ξ",
    "rho": "\u03c1", "varrho": "\u03c1", "sigma": "\u03c3", "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ",
    "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π",
    "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "ell": "\u2113", "hbar": "ℏ", "upsilon": "\u03c5",
    "iota": "\u03b9",
}  # fmt: skip
ACCENTS = frozenset(
    re.findall(
        r"\w+",
        "vec hat bar overline tilde dot ddot widehat widetilde overrightarrow underline boldsymbol bm mathbb mathcal "
        "mathfrak mathscr",
    )
)
FONTS = frozenset({"underline", "boldsymbol", "bm", "mathbb", "mathcal", "mathfrak", "mathscr"})
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "≠": "!=", "<=": "<=", ">=": ">=",
    "!=": "!=", "==": "=", r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=",
    "≈": "≈", r"\approx": "≈", r"\simeq": "≈",
    r"\geqslant": ">=", r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\equals": "=",
}  # fmt: skip
TIMES = frozenset({"*", "×", "·", "⋅", r"\cdot", r"\times", r"\ast", "∗"})  # noqa: RUF001
OVER = frozenset({"/", "÷", r"\div"})
ENVIRONMENTS = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix"}
_TOKEN = re.compile(
    r"\s+"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<repeats>(?:\.{3}|…|\\l?dots\b))?"
    r"(?P<exponent>[eE][+-]?\d{1,3}(?![\w.(]))?"
    r"|(?P<environment>\\(?:begin|end)\s*\{\s*[A-Za-z]+\*?\s*\})"
    r"|(?P<command>\\[A-Za-z]+|\\\\|\\.)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<relation><=|>=|!=|==|[<>=≤≥⩽⩾≠≈])"
    r"|(?P<sign>\*\*|[-+*/^_(){}\[\]|!%°,;&'÷×·⋅∗√∛∜∞πθ])"  # noqa: RUF001
    r"|(?P<letter>[^\W\d_a-zA-Z])"
)
_REPEATING = re.compile(
    r"(?P<head>\d*\.\d*)(?:(?:\\overline|\\bar)\s*\{?\s*(?P<block>\d{1,12})\s*\}?|\((?P<bracketed>\d{1,12})\)(?=\s*$)"
    r"|(?P<dotted>\\dot\s*(?:\d|\{\s*\d\s*\})(?:\d{0,10}\\dot\s*(?:\d|\{\s*\d\s*\}))?))"
)


class Token(NamedTuple):
    kind: str
    text: str
    spaced: bool
    """Whether a space stands before it."""
    value: Any = None


def tokens_of(text: str) -> list[Token]:
    """The tokens of `text`. Raises Unreadable."""
    text = text.replace("**", "^")
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        repeating = _REPEATING.match(text, position)
        if repeating:
            tokens.append(Token("number", repeating.group(), spaced, (_repeating(repeating), None)))
            position, spaced = repeating.end(), False
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"{text[position]!r} is no mathematics")
        kind = match.lastgroup
        if kind is None:
            spaced = True
        elif match["number"]:
            tokens.append(Token("number", match.group(), spaced, _number(match)))
            spaced = False
        else:
            tokens.append(Token(kind, match.group(), spaced))
            spaced = False
        position = match.end()
    return tokens


def _repeating(match: re.Match[str]) -> Fraction:
    """0.1\\overline{6} as 1/6, 0.\\dot{1}4285\\dot{7} as 1/7: the dots stand on the first and the last digit."""
    whole, _, decimals = match["head"].partition(".")
    block = match["block"] or match["bracketed"] or re.sub(r"\D", "", match["dotted"])
    if len(whole) + len(decimals) > MAX_DIGITS:
        raise Unreadable("too many digits")
    tail = Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(decimals))
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals)) + tail


def _number(match: re.Match[str]) -> tuple[Fraction, int | None]:
    digits = match["number"].replace(",", "")
    if len(digits) > MAX_DIGITS:
        raise Unreadable("too many digits")
    decimals = len(digits.partition(".")[2])
    value = Fraction(digits)
    if match["repeats"]:
        # 0.333..., 0.1212...: a block of digits must have been written twice, a single digit three times.
        written = re.search(r"(\d)\1\1$|(\d{2,6})\2$", digits.partition(".")[2])
        if written is None:
            raise Unreadable("an ellipsis that repeats nothing")
        block = written[1] or written[2]
        return value + Fraction(int(block), (10 ** len(block) - 1) * 10**decimals), None
    if match["exponent"]:
        return value * Fraction(10) ** int(match["exponent"][1:]), None
    return value, decimals


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index].text if index < len(self.tokens) else ""

    def take(self) -> Token:
        if self.position >= len(self.tokens):
            raise Unreadable("it ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def accept(self, *texts: str) -> bool:
        if self.peek() in texts and self.peek():
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise Unreadable(f"{text} expected")
