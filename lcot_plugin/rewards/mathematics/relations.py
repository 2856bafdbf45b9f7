"""Equations and inequalities as trees in, whether they say the same out. Imported by the worker process only.

Two equations are one where their differences of sides have a constant ratio (`2x + 1 = y` and `2y = 4x + 2`), or where
one is solved for a variable that the other is linear in (`y = 1/x` and `xy = 1`). Two inequalities are one where that
ratio is positive. A definition is its right-hand side: `f(x) = 2x` is `2x`, and `y = 2x`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import reduce
from typing import Any

import mpmath
from mpmath import mp

from lcot_plugin.rewards.mathematics.identities import (
    Evaluation,
    TooLarge,
    Undefined,
    closed_value,
    points,
    same_value,
)
from lcot_plugin.rewards.mathematics.syntax import Node, names_in, whole

_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_DIGITS = 80
_TOLERANCE = -40
"""Power of ten."""
_MIN_AGREEING = 4

Difference = tuple[Node, str]
"""An expression and how it compares with zero: =, !=, > or >=."""


def same_relation(gold: Node, answer: Node) -> bool:
    """Whether two trees, one of which is a relation, say the same. Raises TooLarge."""
    if gold.op != "relation" or answer.op != "relation":
        relation, value = (gold, answer) if gold.op == "relation" else (answer, gold)
        return _defines(relation, value)
    gold_definition, definition = _definition(gold), _definition(answer)
    if gold_definition is not None and definition is not None:
        (gold_name, gold_value), (name, value) = gold_definition, definition
        if (gold_name == name or _only_one_is_named(gold_name, name)) and same_value(gold_value, value):
            return True
    left, right = _differences(gold), _differences(answer)
    if len(left) != len(right):
        return False
    for difference in left:
        match = next((other for other in right if _same_difference(difference, other)), None)
        if match is None:
            return False
        right.remove(match)
    return True


def _definition(relation: Node) -> tuple[Node, Node] | None:
    """(y, 2x) of `y = 2x`, of a name or an unknown function that its value does not contain."""
    if relation.value != ("=",):
        return None
    for name, value in (relation.args, relation.args[::-1]):
        if name.op in ("name", "apply") and not _mentions(value, name.value):
            return name, value
    return None


def _only_one_is_named(gold: Node, answer: Node) -> bool:
    """Whether a function and a plain variable are defined: `f(x) = 2x` and `y = 2x`, `s(t) = 2t` and `s = 2t`."""
    same_name = gold.value == answer.value
    return {gold.op, answer.op} == {"name", "apply"} and (same_name or "y" in (gold.value, answer.value))


def _mentions(node: Node, name: str) -> bool:
    """Whether an unknown occurs in a tree; I(0) in the law of I(t) is a constant."""
    if node.op == "apply" and not any(names_in(arg) for arg in node.args):
        return False
    return (node.op in ("name", "apply") and node.value == name) or any(_mentions(arg, name) for arg in node.args)


def _is_label(node: Node, value: Node) -> bool:
    r"""Whether `node` only names `value`: a name, `f(x)`, a length `|AB|`, the ratio `\frac{NO}{BO}`."""
    if node.op in ("name", "apply"):
        return not _mentions(value, node.value)
    if node.op == "call" and node.value == "abs":
        return _is_segment(node.args[0]) and not names_in(node) & names_in(value)
    if node.op == "quotient":
        return all(map(_is_segment, node.args)) and not names_in(value)
    return _is_segment(node) and not names_in(value)


def _is_segment(node: Node) -> bool:
    """Whether a tree is AB, the product of two points' names, or its length."""
    if node.op == "call" and node.value == "abs":
        node = node.args[0]
    ends = [arg.value for arg in node.args if arg.op == "name"] if node.op == "product" else []
    return len(ends) == len(set(ends)) == 2 and all(re.fullmatch("[A-Z](?:_[0-9])?", end) for end in ends)


def without_approximation(node: Node) -> Node | None:
    r"""`\frac{1}{3} \approx 0.333` as one third, `x \approx 0.333` as x = 0.333; None where the decimals are wrong."""
    if node.op != "relation" or "≈" not in node.value:
        return node
    terms, signs = list(node.args), list(node.value)
    while signs and signs[-1] == "≈" and not (len(terms) == 2 and _is_label(terms[0], terms[1])):
        if not _approximates(terms.pop(), terms[-1]):
            return None
        signs.pop()
    equal = tuple("=" if sign == "≈" else sign for sign in signs)
    return Node("relation", tuple(terms), equal) if signs else terms[0]


def _approximates(rounded: Node, exactly: Node) -> bool:
    """Whether a decimal is a value rounded or cut off where it ends."""
    digits = rounded.args[0] if rounded.op == "negative" else rounded
    if digits.op != "number" or digits.value[1] is None or names_in(exactly):
        return False
    values = closed_value(rounded), closed_value(exactly)
    if values[0] is None or values[1] is None:
        return False
    step = 10.0 ** -digits.value[1]
    near = abs(values[0] - values[1]) <= step * 0.5001
    return near or (0 <= abs(values[1]) - abs(values[0]) < step and values[0] * values[1] > 0)


def _defines(relation: Node, value: Node) -> bool:
    r"""Whether a chain `name = a = b` defines `value`: the last member equals it, and so does every other that is not a
    formula in further variables (`A = \pi r^2 = 36\pi`)."""
    if set(relation.value) != {"="}:
        return False
    first, *members = relation.args
    if len(members) == 1 and not _is_label(first, members[0]) and members[0].op in ("name", "apply"):
        first, members = members[0], [first]  # 2 = x
    if not all(_is_label(first, member) for member in members):
        return all(same_value(value, member) for member in relation.args)
    comparable = [member for member in members[:-1] if names_in(member) <= names_in(value)]
    return all(same_value(value, member) for member in [members[-1], *comparable])


def _differences(relation: Node) -> list[Difference]:
    """`a < b <= c` as b - a > 0 and c - b >= 0."""
    differences = []
    for index, sign in enumerate(relation.value):
        left, right = relation.args[index], relation.args[index + 1]
        if sign in ("<", "<="):
            left, right, sign = right, left, _MIRRORED[sign]
        differences.append((Node("sum", (left, Node("negative", (right,)))), sign))
    return differences


def _same_difference(gold: Difference, answer: Difference) -> bool:
    (left, sign), (right, other_sign) = gold, answer
    if sign != other_sign or names_in(left) != names_in(right):
        return False
    ratio = _constant_ratio(left, right)
    if ratio is not None and (sign in ("=", "!=") or ratio > 0):
        return True
    return sign == "=" and (_solves(left, right) or _solves(right, left))


def _constant_ratio(left: Node, right: Node) -> Any | None:
    """The real number that left / right is at every point; None where it is not one."""
    names = sorted(names_in(left))
    ratio, agreeing = None, 0
    with mp.workdps(_DIGITS):
        tolerance = mp.mpf(10) ** _TOLERANCE
        for point in points(names):
            top, bottom = _value(left, point), _value(right, point)
            if top is None or bottom is None:
                continue
            if abs(top) < tolerance or abs(bottom) < tolerance:
                if max(abs(top), abs(bottom)) > tolerance or not names:
                    return None  # one is zero where the other is not, or neither depends on anything
                continue
            here = top / bottom
            if ratio is not None and abs(here - ratio) > tolerance * abs(ratio):
                return None
            ratio, agreeing = here, agreeing + 1
        return mp.re(ratio) if agreeing >= _MIN_AGREEING and abs(mp.im(ratio)) < tolerance else None


def _solves(solved: Node, equation: Node) -> bool:
    """Whether `solved`, the difference of `v = f`, makes `equation` zero, and that has no other solutions.

    The equation is then (v - f) times f's denominator: `xy - 1`, but not `(x - 1)(y - 2x)`, which x = 1 solves too.
    """
    name, negated = solved.args
    value = negated.args[0]
    if name.op != "name":
        name, value = value, name
    if name.op != "name" or name.value in names_in(value):
        return False
    others = sorted(names_in(value))
    if not others:
        return False
    denominator = _as_fraction(value)[1]
    ratio, agreeing = None, 0
    with mp.workdps(_DIGITS):
        tolerance = mp.mpf(10) ** _TOLERANCE
        for point in points(others):
            root = _value(value, point)
            if root is None:
                continue
            steps = [_value(equation, {**point, name.value: root + step}) for step in (0, 1, 2, Fraction(7, 2))]
            at = [here for here in steps if here is not None]
            if len(at) < len(steps):
                continue
            slope = at[1] - at[0]
            linear = abs(at[2] - 2 * slope) < tolerance and abs(at[3] - slope * 7 / 2) < tolerance
            if abs(at[0]) > tolerance or abs(slope) < tolerance or not linear:
                return False
            bottom = _value(denominator, point)
            if bottom is None or abs(bottom) < tolerance:
                continue
            here = slope / bottom
            if ratio is not None and abs(here - ratio) > tolerance * abs(ratio):
                return False
            ratio, agreeing = here, agreeing + 1
    return agreeing >= _MIN_AGREEING


def _as_fraction(node: Node) -> tuple[Node, Node]:
    """A tree as numerator and denominator, neither of which divides: (1 + x, x) of `1/x + 1`."""
    parts = [_as_fraction(arg) for arg in node.args]
    if node.op == "negative":
        return Node("negative", (parts[0][0],)), parts[0][1]
    if node.op == "product":
        return _product([top for top, _ in parts]), _product([bottom for _, bottom in parts])
    if node.op == "quotient":
        (top, bottom), (other_top, other_bottom) = parts
        return _product([top, other_bottom]), _product([bottom, other_top])
    if node.op == "sum":
        bottoms = list(dict.fromkeys(bottom for _, bottom in parts))
        tops = [_product([top, *(other for other in bottoms if other != bottom)]) for top, bottom in parts]
        return Node("sum", tuple(tops)), _product(bottoms)
    if node.op == "power":
        top, bottom = parts[0]
        exponent = node.args[1]
        if exponent.op == "negative":
            top, bottom, exponent = bottom, top, exponent.args[0]
        return Node("power", (top, exponent)), Node("power", (bottom, exponent))
    return node, whole(1)


def _product(factors: list[Node]) -> Node:
    """Their product, ones left out."""
    factors = [factor for factor in factors if factor != whole(1)] or [whole(1)]
    return reduce(lambda left, right: Node("product", (left, right)), factors)


def _value(node: Node, point: dict[str, Any]) -> Any | None:
    """The value where every root and logarithm is real, else None."""
    values = {
        name: mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value
        for name, value in point.items()
    }
    evaluation = Evaluation(values, log_base_ten=True)
    try:
        value = evaluation(node)
    except (Undefined, ZeroDivisionError, ValueError):
        return None
    if isinstance(value, mpmath.matrix):
        raise TooLarge
    if evaluation.spread > _DIGITS:  # bits; the tolerance holds for plain numbers only
        raise TooLarge
    return None if evaluation.left_reals or mp.isinf(value) else value
