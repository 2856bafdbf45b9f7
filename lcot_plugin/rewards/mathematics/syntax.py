"""The syntax tree that `notation` makes of mathematics and `identities` evaluates, and the errors of reading it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple


class Unreadable(ValueError):
    """The text is not one expression that this reader knows."""


class Ambiguous(Unreadable):
    """The text is mathematics that has two readings."""


class Node(NamedTuple):
    """One node of a syntax tree."""

    op: str
    """number, name, constant, sum, product, quotient, negative, power, root, call, apply, derivative, percent, matrix,
    determinant or relation."""
    args: tuple[Node, ...] = ()
    value: Any = None
    """number: (Fraction, written decimals or None); name, constant, call, apply: the name; matrix: (rows, columns);
    relation: its signs, one fewer than its args."""


def names_in(node: Node) -> frozenset[str]:
    """The variables of a tree."""
    if node.op == "name":
        return frozenset({node.value})
    own = frozenset({node.value}) if node.op == "apply" else frozenset()
    return own.union(*(names_in(arg) for arg in node.args))


def renamed(node: Node, names: dict[str, Node]) -> Node:
    """The tree with these names and constants replaced."""
    if node.op in ("name", "constant"):
        return names.get(node.value, node)
    return node._replace(args=tuple(renamed(arg, names) for arg in node.args))


def contains(node: Node, *ops: str) -> bool:
    """Whether a node of one of these operations, or a call or constant of one of these names, is in the tree."""
    return (
        node.op in ops
        or (node.op in ("call", "constant") and node.value in ops)
        or any(contains(arg, *ops) for arg in node.args)
    )


def fraction(top: Node, bottom: Node) -> Node:
    """top / bottom."""
    return Node("quotient", (top, bottom))


def is_integer(node: Node) -> bool:
    """Whether a node is a number written without a point or an exponent."""
    return node.op == "number" and node.value[1] == 0 and node.value[0].denominator == 1


def whole(value: int) -> Node:
    """An integer."""
    return Node("number", value=(Fraction(value), 0))


def letter(name: str) -> Node:
    """A variable of one letter, or one of the constants e and i."""
    return Node("constant" if name in ("e", "i") else "name", value=name)
