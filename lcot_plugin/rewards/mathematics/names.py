"""The names in mathematical notation: letters with subscripts, primes and accents; the part of `notation` that reads
them."""

from __future__ import annotations

from lcot_plugin.rewards.mathematics.syntax import Node, Unreadable, whole
from lcot_plugin.rewards.mathematics.tokens import FONTS, GREEK, RELATIONS, Cursor

_SUBSCRIPTS = frozenset({*GREEK, "odot", "oplus", "infty"})


class NameReader(Cursor):
    """Reads one name, whose first token has been taken."""

    def inverse_follows(self) -> bool:
        return [self.peek(index) for index in range(5)] == ["^", "{", "-", "1", "}"] or (
            [self.peek(index) for index in range(3)] == ["^", "-", "1"] and self.peek(3) == "("
        )

    def defined_function(self) -> Node | None:
        r"""The left-hand side of `I(t) = ...` and `\Phi(x, y) = ...`; None, and nothing taken, where there is none."""
        start, name = self.position, self.one_letter()
        if name and self.accept("_"):
            name += "_" + self.subscript()
        arguments: list[Node] = []
        if name and self.accept("("):
            while letter := self.one_letter():
                arguments.append(Node("name", value=letter))
                if not self.accept(","):
                    break
        closed = bool(arguments) and self.accept(")") and RELATIONS.get(self.peek()) in ("=", "≈")
        if closed and all(argument.value != name for argument in arguments):
            return Node("apply", tuple(arguments), name)
        self.position = start
        return None

    def subscript_behind(self, power: Node) -> Node:
        """`v^2_0` is the square of v_0."""
        base = power.args[0] if power.op == "power" else power
        if base is power or base.op != "name" or "_" in base.value or not self.accept("_"):
            return power
        return Node("power", (Node("name", value=f"{base.value}_{self.subscript()}"), power.args[1]))

    def one_letter(self) -> str:
        """The letter that comes next, which is taken; else an empty string."""
        text = self.peek()
        letter = GREEK.get(text[1:], "") if text.startswith("\\") else text
        if len(letter) != 1 or not letter.isalpha():
            return ""
        self.position += 1
        return letter

    def subscripted(self, name: str) -> Node:
        if name == "Δ" and len(self.peek()) == 1 and self.peek().isalpha():
            name += self.take().text
        if self.accept("_"):
            name += "_" + self.subscript()
        while self.accept("'"):
            name += "'"
        if name in ("e", "i"):
            return Node("constant", value=name)
        if [self.peek(index) for index in range(3)] == ["(", "0", ")"]:
            self.position += 3  # I(0) is a value of the function I, not I times zero
            return Node("apply", (whole(0),), name)
        return Node("name", value=name)

    def subscript(self) -> str:
        if not self.accept("{"):
            token = self.take()
            if token.kind not in ("word", "number", "letter") and token.text[1:] not in _SUBSCRIPTS:
                raise Unreadable("a subscript")
            return GREEK.get(token.text.lstrip("\\"), token.text)
        pieces: list[str] = []
        while not self.accept("}"):
            token = self.take()
            if token.text in ("{", "_", "^") or len(pieces) > 12:
                raise Unreadable("a subscript")
            pieces.append(GREEK.get(token.text.lstrip("\\"), token.text))
        return "".join(pieces)

    def accent(self, name: str) -> Node:
        if self.accept("{"):
            letters = ""
            while not self.accept("}"):
                token = self.take()
                dotless = {r"\imath": "i", r"\jmath": "j"}.get(token.text, "")
                if token.kind not in ("word", "letter") and token.text[1:] not in GREEK and not dotless:
                    raise Unreadable("an accent over an expression")
                letters += dotless or GREEK.get(token.text[1:], token.text)
        else:
            letters = self.take().text
        if name in FONTS and len(letters) == 1:
            return self.subscripted(letters)
        accent = {"overline": "bar", "overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde"}.get(name, name)
        return self.subscripted(f"{accent}:{letters}")
