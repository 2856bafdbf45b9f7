r"""Mathematics as text in, a syntax tree out: LaTeX, plain notation and their mixtures; `expressions` evaluates it.

One recursive-descent reader for `\frac{\sqrt2}{2}`, `sqrt(2)/2` and `√2/2`, whole or not at all: a text with a part
that is not understood, or that mathematicians read in two ways (`a/bc`), is refused. No sympy, no eval, linear time.
"""

from __future__ import annotations

import re
from fractions import Fraction

from lcot_plugin.rewards.kinds.dress import inline, plain_characters
from lcot_plugin.rewards.mathematics.names import NameReader
from lcot_plugin.rewards.mathematics.syntax import Ambiguous, Node, Unreadable, fraction, is_integer, letter, whole
from lcot_plugin.rewards.mathematics.tokens import (
    ACCENTS,
    ENVIRONMENTS,
    FUNCTIONS,
    GREEK,
    LATEX_ONLY,
    MANY_ARGUMENTS,
    NO_PRODUCTS,
    OVER,
    RELATIONS,
    TIMES,
    Token,
    tokens_of,
)

MAX_CHARS = 1000
MAX_DEPTH = 60
"""Of brackets, exponents and roots inside each other."""
MAX_FACTORS = 100
"""Of one product; a tree is as deep as its longest product."""


_GLUED_FUNCTION = re.compile(r"([a-z0-9]?)(sin|cos|tan|cot|sec|csc|ln|log|sqrt|exp)([xyn]?)")


def read_notation(text: str) -> Node:
    """The tree of `text`. Raises Unreadable."""
    if len(text) > MAX_CHARS:
        raise Unreadable("too long")
    return _Reader(tokens_of(inline(plain_characters(text)))).whole()


class _Reader(NameReader):
    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.depth = 0
        self.bars = 0
        """Open absolute values: inside one, the next bar closes it."""

    def whole(self) -> Node:
        node = self.relation()
        if self.position < len(self.tokens):
            raise Unreadable(f"{self.peek()} is one too many")
        return node

    def relation(self) -> Node:
        terms, signs = [self.defined_function() or self.sum()], []
        while self.peek() in RELATIONS:
            signs.append(RELATIONS[self.take().text])
            terms.append(self.sum())
        return Node("relation", tuple(terms), tuple(signs)) if signs else terms[0]

    def sum(self) -> Node:
        terms, remainder = [], False
        while True:
            negative = False
            while self.peek() in ("+", "-"):
                negative ^= self.take().text == "-"
            term = self.product()
            terms.append(Node("negative", (term,)) if negative else term)
            remainder |= term.value == "mod"
            if self.peek() not in ("+", "-"):
                if remainder and (negative or len(terms) > 1):
                    raise Ambiguous("a remainder in a sum has two readings")
                return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def product(self) -> Node:
        result = self.power()
        behind_slash, num_factors = False, 0
        while num_factors < MAX_FACTORS:
            num_factors += 1
            token = self.peek()
            if token in TIMES:
                self.take()
                result, behind_slash = Node("product", (result, self.signed_power())), False
            elif self.accept(r"\bmod"):
                result, behind_slash = Node("call", (result, self.signed_power()), "mod"), True
            elif token in OVER:
                self.take()
                denominator = self.signed_power()
                # 1/2 x is half an x; of x/2y nobody knows.
                behind_slash = not (is_integer(result) and is_integer(denominator))
                result = fraction(result, denominator)
            elif not self.starts_factor():
                return result
            elif behind_slash:
                raise Ambiguous("a product after a slash has two readings")
            elif self.tokens[self.position].kind == "number":
                result = self.number_after(result)
            else:
                result = Node("product", (result, self.power()))
        raise Unreadable("too many factors")

    def number_after(self, result: Node) -> Node:
        """A number right behind a factor: only `3 1/2` is meant by that."""
        spaced = self.tokens[self.position].spaced
        number = self.power()
        if is_integer(result) and spaced and is_integer(number) and self.accept("/"):
            bottom = self.power()
            if is_integer(bottom):
                return Node("sum", (result, fraction(number, bottom)))
        raise Unreadable("a number behind a factor")

    def signed_power(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take().text == "-"
        node = self.power()
        return Node("negative", (node,)) if negative else node

    def starts_factor(self) -> bool:
        if self.position >= len(self.tokens):
            return False
        token = self.tokens[self.position]
        if token.kind == "sign":
            return token.text in ("(", "[", "{", "√", "∛", "∜", "∞", "π", "θ") or (token.text == "|" and not self.bars)
        if token.kind == "command":
            name = token.text
            return name not in RELATIONS and name not in (
                r"\}", r"\right", r"\rvert", r"\rvert", r"\rangle", r"\rfloor", r"\rceil", r"\\", r"\choose", r"\|"
            )  # fmt: skip
        return token.kind in ("number", "word", "letter") or token.text.startswith(r"\begin")

    def power(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        start = self.position
        node = self.primary()
        plain_integer = is_integer(node) and self.position == start + 1
        while True:
            token = self.peek()
            if token == "^":
                self.take()
                node = self.subscript_behind(self.raised(node))
            elif token == "!":
                self.take()
                if self.peek() == "!":
                    raise Unreadable("a double factorial")
                node = Node("call", (node,), "factorial")
            elif token in ("%", r"\%"):
                self.take()
                node = Node("percent", (node,))
            elif token in ("°", r"\degree"):
                self.take()
                node = Node("product", (node, fraction(Node("constant", value="pi"), whole(180))))
            elif plain_integer and token in (r"\frac", r"\dfrac", r"\tfrac"):
                part = self.primary()
                op = "sum" if all(is_integer(arg) for arg in part.args) else "product"
                node = Node(op, (node, part))
            else:
                break
            plain_integer = False
        self.depth -= 1
        return node

    def raised(self, base: Node) -> Node:
        if self.peek() == "{" and self.peek(1) in ("'", r"\prime") and base.op == "name":
            self.position += 2
            self.expect("}")
            return Node("name", value=base.value + "'")
        if self.accept(r"\prime") and base.op == "name":
            return Node("name", value=base.value + "'")
        if self.peek() in ("*", r"\top", r"\intercal", "'") or (self.peek() == "{" and self.peek(1) in ("*", r"\top")):
            raise Unreadable("a star or a transpose")
        return Node("power", (base, self.exponent()))

    def exponent(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take().text == "-"
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        node = self.primary(single=True)
        if self.accept("^"):
            node = Node("power", (node, self.exponent()))
        self.depth -= 1
        return Node("negative", (node,)) if negative else node

    def group(self, closing: str) -> Node:
        """What stands before `closing`, whose opening has been taken."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        bars, self.bars = self.bars, 0
        node = self.sum()
        if closing == "}" and self.accept(r"\choose"):
            node = Node("call", (node, self.sum()), "binomial")
        self.expect(closing)
        self.bars = bars
        self.depth -= 1
        return node

    def argument(self) -> Node:
        r"""An argument of a command: a group, or a single digit or letter (`\frac12`)."""
        if self.accept("{"):
            return self.group("}")
        token = self.tokens[self.position] if self.position < len(self.tokens) else None
        if token is not None and token.kind in ("number", "word") and len(token.text) > 1:
            head, tail = token.text[0], token.text[1:]
            if not head.isalnum() or not tail.isalnum():
                raise Unreadable("an argument without braces")
            value = (Fraction(tail), 0) if tail.isdigit() else None
            self.tokens[self.position] = token._replace(text=tail, value=value)
            return Node("number", value=(Fraction(head), 0)) if head.isdigit() else letter(head)
        return self.primary(single=True)

    def primary(self, single: bool = False) -> Node:
        """`single`: one letter of a word only, as in an exponent."""
        token = self.take()
        text = token.text
        if token.kind == "number":
            return Node("number", value=token.value)
        if token.kind == "word":
            return self.word(token, single)
        if token.kind == "letter":
            if text not in GREEK.values() and text not in ("σ", "ρ", "ν", "γ", "α"):  # noqa: RUF001
                raise Unreadable(f"the letter {text}")
            return self.subscripted(text)
        if token.kind == "environment":
            return self.matrix(re.sub(r".*\{\s*|\s*\}", "", text))
        if token.kind == "command":
            return self.command(text[1:])
        if text == "(":
            return self.group(")")
        if text == "{":
            return self.group("}")
        if text == "[":
            return self.rows() if self.peek() == "[" else self.group("]")
        if text == "|":
            return self.absolute("|")
        if text in ("√", "∛", "∜"):
            return Node("root", (self.radicand(), whole({"√": 2, "∛": 3, "∜": 4}[text])))
        if text == "∞":
            return Node("constant", value="infinity")
        if text == "π":
            return Node("constant", value="pi")
        if text == "θ":
            return self.subscripted("θ")
        raise Unreadable(f"{text} stands where a number or a name should")

    def absolute(self, closing: str) -> Node:
        self.depth += 1
        self.bars += closing == "|"
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        node = self.sum()
        self.expect(closing)
        self.bars -= closing == "|"
        self.depth -= 1
        return Node("call", (node,), "abs")

    def radicand(self) -> Node:
        if self.peek() == "(":
            self.take()
            return self.group(")")
        if self.peek() in ("√", r"\sqrt"):
            return self.primary()
        return self.primary(single=True)

    def word(self, token: Token, single: bool) -> Node:
        text = token.text
        if text in FUNCTIONS and text not in LATEX_ONLY:
            return self.function(FUNCTIONS[text])
        if text == "sqrt":
            return Node("root", (self.radicand(), whole(2)))
        if text in ("pi", "Pi"):
            return Node("constant", value="pi")
        if text in ("inf", "infinity", "Infinity", "oo"):
            return Node("constant", value="infinity")
        if text in GREEK and len(text) > 2:
            return self.subscripted(GREEK[text])
        glued = _GLUED_FUNCTION.fullmatch(text)
        if glued and (glued[1] or glued[3]):
            pieces = [Token("word", piece, False) for piece in glued.groups() if piece]
            self.position -= 1
            self.tokens[self.position : self.position + 1] = pieces
            return self.primary()
        if len(text) > 1:
            if len(text) > 3 + bool(re.search("[a-z][A-Z]", text)) or (
                text.lower() in NO_PRODUCTS and not (text.isupper() and self.peek(-2) == "{")  # \frac{NO}{BO}
            ):
                raise Unreadable(f"the word {text}")
            # xy is x times y; what follows (an exponent, a subscript) belongs to the last letter
            self.position -= 1
            self.tokens[self.position] = token._replace(text=text[1:], spaced=False)
            return letter(text[0])
        if text in ("f", "g", "h", "F", "G") and (self.peek() in ("(", "'") or self.inverse_follows()):
            return self.application(text)
        if text in ("C", "P") and self.peek() == "(":
            return self.selection(text)
        return self.subscripted(text)

    def application(self, name: str) -> Node:
        """`f(x)`, `f'(x)`, `f^{-1}(x)`."""
        if self.inverse_follows():
            self.position += 5 if self.peek(1) == "{" else 3
            name += "^-1"
        while self.accept("'"):
            name += "'"
        if not self.accept("("):
            return Node("name", value=name)
        arguments = [self.sum()]
        while self.accept(","):
            arguments.append(self.sum())
        self.expect(")")
        return Node("apply", tuple(arguments), name)

    def selection(self, name: str) -> Node:
        """`C(5, 2)` and `P(5, 2)`; `C(x)` is C times x."""
        start = self.position
        self.take()
        top = self.sum()
        if self.accept(","):
            bottom = self.sum()
            self.expect(")")
            choose = Node("call", (top, bottom), "binomial")
            return choose if name == "C" else Node("product", (choose, Node("call", (bottom,), "factorial")))
        self.position = start
        if self.depth > 8:  # what stands in the brackets is read twice, once per level
            raise Unreadable("too deep")
        return Node("name", value=name)

    def command(self, name: str) -> Node:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return self.fraction()
        if name == "sqrt":
            index = whole(2)
            if self.peek() == "[":
                self.take()
                index = self.group("]")
            return Node("root", (self.group("}") if self.accept("{") else self.radicand(), index))
        if name in ("binom", "dbinom", "tbinom"):
            return Node("call", (self.argument(), self.argument()), "binomial")
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name])
        if name == "pi":
            return Node("constant", value="pi")
        if name == "infty":
            return Node("constant", value="infinity")
        if name in ("imath", "jmath"):
            return Node("constant", value="i")
        if name in GREEK:
            return self.subscripted(GREEK[name])
        if name in ("lvert", "vert"):
            return self.absolute(r"\rvert" if name == "lvert" else r"\vert")
        if name in ("lfloor", "lceil"):
            node = self.group(r"\r" + name[1:])
            return Node("call", (node,), name[1:])
        if name in ("operatorname", "mathrm", "text"):
            return self.primary()
        if name in ("sum", "prod"):
            return self.summation(name)
        if name in ACCENTS:
            return self.accent(name)
        raise Unreadable(f"the command {name}")

    def summation(self, name: str) -> Node:
        r"""`\sum_{k=1}^{n} k` as an unknown function of its bounds and its summand."""
        self.expect("_")
        self.expect("{")
        index = self.one_letter()
        self.expect("=")
        bounds = self.group("}"), self.exponent() if self.accept("^") else Node("name", value="no bound")
        return Node("apply", (*bounds, self.product()), f"{name} over {index}")

    def fraction(self) -> Node:
        first = [self.peek(index) for index in range(6)]
        if first[1:2] == [r"\partial"] or (first[1] == "d" and first[4].startswith("d")):
            raise Unreadable("a derivative to be computed")
        if (first[0], first[2], first[3], first[5]) == ("{", "}", "{", "}") and all(
            len(word) == 2 and word[0] == "d" and word.isalpha() for word in (first[1], first[4])
        ):
            self.position += 6
            return Node("name", value=f"{first[1]}/{first[4]}")
        top = self.argument()
        return fraction(top, self.argument())

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.peek() in ("^", "_"):
            if self.take().text == "^":
                power = self.exponent()
            elif name == "log":
                base = self.argument() if self.peek() == "{" else self.primary(single=True)
            else:
                raise Unreadable("a subscript of a function")
        arguments = self.function_arguments(name)
        if power is not None and power.op == "negative" and power.args[0] == whole(1):
            name, power = "a" + name, None  # sin^{-1}
            if name not in FUNCTIONS.values():
                raise Unreadable("an inverse function")
        if name == "log" and len(arguments) == 2 and base is None:
            raise Unreadable("a logarithm of two arguments")
        if name == "log" and base is not None:
            call = fraction(Node("call", arguments, "ln"), Node("call", (base,), "ln"))
        elif name == "lg":
            call = fraction(Node("call", arguments, "ln"), Node("call", (whole(10),), "ln"))
        elif name == "exp":
            call = Node("power", (Node("constant", value="e"), arguments[0]))
        elif name == "cbrt":
            call = Node("root", (arguments[0], whole(3)))
        else:
            call = Node("call", arguments, name)
        return call if power is None else Node("power", (call, power))

    def function_arguments(self, name: str) -> tuple[Node, ...]:
        if name == "binomial" or self.peek() == "(":
            self.expect("(")
            bars, self.bars = self.bars, 0
            arguments = [self.sum()]
            while name in MANY_ARGUMENTS and self.accept(","):
                arguments.append(self.sum())
            self.expect(")")
            self.bars = bars
            if name == "binomial" and len(arguments) != 2:
                raise Unreadable("a binomial")
            return tuple(arguments)
        if name in MANY_ARGUMENTS:
            raise Unreadable("arguments without brackets")
        if self.peek() in ("{", "["):
            closing = {"{": "}", "[": "]"}[self.take().text]
            return (self.group(closing),)
        negative = self.accept("-")
        argument = self.power()
        num_factors = 0
        while self.starts_factor() and self.peek() not in ("(", "[") and not self.function_follows():
            num_factors += 1
            if num_factors > MAX_FACTORS:
                raise Unreadable("too many factors")
            argument = Node("product", (argument, self.power()))
        if self.peek() in OVER:
            raise Ambiguous("a slash after a function without brackets has two readings")
        return (Node("negative", (argument,)) if negative else argument,)

    def function_follows(self) -> bool:
        name = self.peek().lstrip("\\")
        return name in FUNCTIONS or _GLUED_FUNCTION.fullmatch(name) is not None

    def matrix(self, environment: str) -> Node:
        if environment not in ENVIRONMENTS:
            raise Unreadable(f"the environment {environment}")
        if environment == "array" and self.accept("{"):
            while not self.accept("}"):
                self.take()
        rows: list[list[Node]] = [[]]
        while True:
            if self.peek().startswith(r"\end") and not rows[-1]:  # a line break after the last row
                rows.pop()
            else:
                rows[-1].append(self.sum())
            if self.accept("&"):
                continue
            if self.accept(r"\\"):
                rows.append([])
                continue
            if re.sub(r"\s", "", self.peek()) != rf"\end{{{environment}}}":
                raise Unreadable("a matrix without an end")
            self.take()
            return _matrix(rows, "determinant" if environment == "vmatrix" else "matrix")

    def rows(self) -> Node:
        """`[[1, 2], [3, 4]]`, its first bracket taken."""
        rows: list[list[Node]] = []
        while True:
            self.expect("[")
            row = [self.sum()]
            while self.accept(","):
                row.append(self.sum())
            self.expect("]")
            rows.append(row)
            if not self.accept(","):
                self.expect("]")
                return _matrix(rows, "matrix")


def _matrix(rows: list[list[Node]], op: str) -> Node:
    if not rows or any(len(row) != len(rows[0]) for row in rows) or not rows[0]:
        raise Unreadable("a matrix with rows of different lengths")
    return Node(op, tuple(entry for row in rows for entry in row), (len(rows), len(rows[0])))
