"""Two trees of `notation` in, whether they are equal out. Imported by the worker process only.

Expressions are compared by value: without variables at once, with variables at random points. The digits of a
comparison grow with the numbers in it, so that 2^1000 and 2^1000 + 1 differ, and two sides are equal only where they
agree to 40 digits more than their largest and smallest intermediate values need. What is too large to be computed in a
moment raises TooLarge: `9^{9^{9^9}}` is refused before it is begun.

Points where a root or a logarithm leaves the real numbers count for neither side: `\\sqrt{a}\\sqrt{b}` is `\\sqrt{ab}`.
Points where both are real decide: `\\sqrt{x^2}` is not x. Where one side has an absolute value to say where it is
defined, the domains must agree: `\\ln|x|` is not `\\ln x`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from lcot_plugin.rewards.mathematics.syntax import Node, contains, names_in

MAX_EXPONENT_BITS = 6000
"""Of any intermediate value; the digits of a comparison follow from it."""
MAX_EXACT_BITS = 100_000
"""Of a rational number that is computed exactly."""
MAX_DIGITS = 4000
"""Of a comparison of values that are not rational."""
_GUARD_DIGITS = 40
_BITS_PER_DIGIT = math.log2(10)
_NUM_POINTS = 12
_MIN_AGREEING = 4

Environment = dict[str, Any]


class TooLarge(ArithmeticError):
    """The expression is too large, or of a form, to be evaluated."""


class Undefined(ArithmeticError):
    """The expression has no value at this point."""


class Evaluation:
    """One tree evaluated at one point, at the working precision of mpmath."""

    def __init__(self, point: Environment, log_base_ten: bool) -> None:
        self.point = point
        self.log_base_ten = log_base_ten
        self.spread = 0
        """Most bits between one and an intermediate value, or digits that a number was written with."""
        self.left_reals = False

    def __call__(self, node: Node) -> Any:
        value = _OPERATIONS[node.op](self, node)
        if isinstance(value, mpmath.matrix):
            return value
        if mp.isnan(value):
            raise Undefined
        if value and mp.isfinite(value):
            magnitude = mp.mag(value)
            if node.op in ("sum", "call") and magnitude < -(_GUARD_DIGITS * _BITS_PER_DIGIT + self.spread):
                return mp.mpf(0)  # what rounding left of a zero
            if abs(magnitude) > MAX_EXPONENT_BITS:
                raise TooLarge
            if magnitude > 0 or node.op not in ("sum", "call"):
                self.spread = max(self.spread, abs(magnitude))
        return value

    def number(self, node: Node) -> Any:
        value: Fraction = node.value[0]
        self.spread = max(self.spread, value.numerator.bit_length() + value.denominator.bit_length())
        return mp.mpf(value.numerator) / value.denominator

    def name(self, node: Node) -> Any:
        return self.point[node.value]

    def constant(self, node: Node) -> Any:
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1), "infinity": mp.inf}[node.value] * 1

    def sum(self, node: Node) -> Any:
        total = self(node.args[0])
        for arg in node.args[1:]:
            value = self(arg)
            if isinstance(total, mpmath.matrix) != isinstance(value, mpmath.matrix):
                raise TooLarge  # mpmath would add the number to every entry
            total = total + value
        return total

    def negative(self, node: Node) -> Any:
        return -self(node.args[0])

    def product(self, node: Node) -> Any:
        return self(node.args[0]) * self(node.args[1])

    def quotient(self, node: Node) -> Any:
        top, bottom = self(node.args[0]), self(node.args[1])
        if isinstance(bottom, mpmath.matrix):
            raise TooLarge
        if bottom == 0:
            raise Undefined
        return top / bottom

    def percent(self, node: Node) -> Any:
        return self(node.args[0]) / 100

    def power(self, node: Node) -> Any:
        exponent_exactly = exact(node.args[1])
        base, exponent = self(node.args[0]), self(node.args[1])
        if isinstance(exponent, mpmath.matrix):
            raise TooLarge
        if isinstance(base, mpmath.matrix):
            if exponent_exactly is None or exponent_exactly.denominator != 1 or abs(exponent_exactly) > 64:
                raise TooLarge
            return base ** int(exponent_exactly)
        return self._raise(base, exponent, exponent_exactly)

    def root(self, node: Node) -> Any:
        degree_exactly = exact(node.args[1])
        base, degree = self(node.args[0]), self(node.args[1])
        if degree == 0:
            raise Undefined
        return self._raise(base, 1 / degree, 1 / degree_exactly if degree_exactly else None)

    def _raise(self, base: Any, exponent: Any, exactly: Fraction | None) -> Any:
        if mp.isinf(base) or mp.isinf(exponent):
            raise Undefined
        if base == 0:
            if mp.re(exponent) < 0 or exponent == 0:
                raise Undefined
            return mp.mpf(0)
        if abs(exponent) * (abs(mp.log(abs(base), 2)) + 1) > MAX_EXPONENT_BITS:
            raise TooLarge
        if exactly is not None and exactly.denominator == 1 and abs(exactly) < 10**6:
            return base ** int(exactly)
        if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0:
            if exactly is not None and exactly.denominator % 2 == 1:
                root = mp.power(-mp.re(base), exponent)  # the real root of a negative number, as at school
                return -root if exactly.numerator % 2 else root
            if exactly is not None or exponent != mp.nint(exponent):
                self.left_reals = True
        return mp.power(base, exponent)

    def call(self, node: Node) -> Any:
        values = [self(arg) for arg in node.args]
        if any(isinstance(value, mpmath.matrix) for value in values):
            return _matrix_call(node.value, values)
        if any(mp.isinf(value) for value in values):
            raise Undefined
        if node.value in ("ln", "log") and values[0] == 0:
            raise Undefined
        if max(map(abs, values)) > _LARGEST_ARGUMENTS.get(node.value, math.inf):
            raise TooLarge
        try:
            value = _CALLS[node.value](*values)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            raise Undefined from error
        if node.value == "log" and self.log_base_ten:
            value = value / mp.log(10)
        if mp.im(value) != 0 and all(mp.im(argument) == 0 for argument in values):
            self.left_reals = True
        return value

    def apply(self, node: Node) -> Any:
        """An unknown function: a fixed value that depends on its name and arguments."""
        value = self.point[node.value]
        for index, arg in enumerate(node.args):
            value = mp.sin(value * (index + 2) + self(arg))
        return value

    def matrix(self, node: Node) -> Any:
        rows, columns = node.value
        entries = [self(arg) for arg in node.args]
        if rows * columns > 100 or any(isinstance(entry, mpmath.matrix) for entry in entries):
            raise TooLarge
        return mp.matrix([entries[row * columns : (row + 1) * columns] for row in range(rows)])

    def determinant(self, node: Node) -> Any:
        matrix = self.matrix(node)
        if matrix.rows != matrix.cols or matrix.rows > 6:
            raise TooLarge
        return _determinant([[matrix[row, column] for column in range(matrix.cols)] for row in range(matrix.rows)])

    def relation(self, node: Node) -> Any:
        raise TooLarge  # a relation inside an expression has no value


_OPERATIONS: dict[str, Callable[[Evaluation, Node], Any]] = {
    name: getattr(Evaluation, name)
    for name in re.findall(
        r"\w+",
        "number name constant sum negative product quotient percent power root call apply matrix determinant relation",
    )
}


def _determinant(rows: list[list[Any]]) -> Any:
    """By expansion, which divides by nothing."""
    if len(rows) == 1:
        return rows[0][0]
    minors = ([row[:column] + row[column + 1 :] for row in rows[1:]] for column in range(len(rows)))
    return mp.fsum((-1) ** column * rows[0][column] * _determinant(minor) for column, minor in enumerate(minors))


def _matrix_call(name: str, values: list[Any]) -> Any:
    if name == "det" and values[0].rows == values[0].cols <= 6:
        size = range(values[0].rows)
        return _determinant([[values[0][row, column] for column in size] for row in size])
    raise TooLarge


def _integers(values: Iterable[Any]) -> list[int]:
    integers = [int(mp.nint(value)) for value in values]
    if any(mp.mpf(integer) != value for integer, value in zip(integers, values, strict=True)):
        raise ValueError
    return integers


def _remainder(value: int, modulus: int) -> int:
    if value < 0 or modulus <= 0:
        raise ValueError
    return value % modulus


def _real(value: Any) -> Any:
    if mp.im(value) != 0:
        raise ValueError
    return mp.re(value)


def _rounded(value: Any, rounding: Callable[[Any], Any]) -> Any:
    """A value that noise keeps off an integer is that integer."""
    nearest = mp.nint(_real(value))
    return nearest if abs(nearest - value) < mp.mpf(10) ** (10 - mp.dps) else rounding(value)


_CALLS: dict[str, Callable[..., Any]] = {
    **{name: getattr(mp, name) for name in re.findall(r"\w+", "sin cos tan cot sec csc ln")},
    **{name: getattr(mp, name) for name in re.findall(r"\w+", "sinh cosh tanh coth sech csch")},
    **{name: getattr(mp, name) for name in re.findall(r"\w+", "asin acos atan acot asec acsc asinh acosh atanh")},
    "log": mp.ln, "abs": abs, "sign": mp.sign, "Re": mp.re, "Im": mp.im,
    "floor": lambda value: _rounded(value, mp.floor),
    "ceil": lambda value: _rounded(value, mp.ceil),
    # Between the integers they are seldom meant, and take seconds.
    "factorial": lambda value: mp.factorial(*_integers([value])),
    "binomial": lambda *values: mp.binomial(*_integers(values)),
    "mod": lambda *values: mp.mpf(_remainder(*_integers(values))),
    "gcd": lambda *values: mp.mpf(math.gcd(*_integers(values))),
    "lcm": lambda *values: mp.mpf(math.lcm(*_integers(values))),
    "max": lambda *values: max(map(_real, values)),
    "min": lambda *values: min(map(_real, values)),
}  # fmt: skip


_LARGEST_ARGUMENTS = {
    **{name: 10**9 for name in re.findall(r"\w+", "sin cos tan cot sec csc sinh cosh tanh coth sech csch")},
    **{name: 10**40 for name in re.findall(r"\w+", "floor ceil gcd lcm mod")},
    "factorial": 20_000,
    "binomial": 20_000,
}


def exact(node: Node) -> Fraction | None:
    """The rational number that a tree is, where arithmetic alone comes to it; None otherwise. Raises TooLarge."""
    if node.op == "number":
        return node.value[0]
    if node.op not in ("sum", "negative", "product", "quotient", "power", "percent") and node.value != "factorial":
        return None
    values: list[Fraction] = []
    for arg in node.args:
        value = exact(arg)
        if value is None:
            return None
        values.append(value)
    first = values[0]
    if node.op == "negative":
        return -first
    if node.op == "percent":
        return first / 100
    if node.op == "sum":
        return sum(values, Fraction(0))
    if node.op == "call":
        if first.denominator != 1 or first < 0:
            return None
        if first > 3000:
            raise TooLarge
        return Fraction(math.factorial(int(first)))
    second = values[1]
    if node.op == "product":
        return first * second
    if node.op == "quotient":
        return first / second if second else None
    if second.denominator != 1 or (first == 0 and second <= 0):
        return None
    size = max(first.numerator.bit_length(), first.denominator.bit_length()) - (abs(first) == 1)
    if size and size * abs(second) > MAX_EXACT_BITS:
        raise TooLarge
    return first ** (int(second) if abs(first) != 1 else int(second) % 2)


def closed_value(node: Node) -> float | None:
    """The value of a tree without variables; None where it has none or it is not real. Raises TooLarge."""
    with mp.workdps(30):
        try:
            value = Evaluation({}, log_base_ten=True)(node)
        except (Undefined, ZeroDivisionError):
            return None
        if isinstance(value, mpmath.matrix) or mp.im(value) != 0:
            return None
        return float(mp.re(value))


def same(gold: Node, answer: Node) -> bool:
    """Whether two trees are equal: expressions by value, relations by what they say. Raises TooLarge."""
    if contains(gold, "relation") or contains(answer, "relation"):
        from lcot_plugin.rewards.mathematics.relations import same_relation, without_approximation

        left, right = without_approximation(gold), without_approximation(answer)
        if left is None or right is None:
            return False
        if left.op == "relation" or right.op == "relation":
            return same_relation(left, right)
        gold, answer = left, right
    if gold == answer:
        same_value(gold, answer)  # raises TooLarge where nothing else could be compared with it
        return True
    return same_value(gold, answer)


def same_value(gold: Node, answer: Node) -> bool:
    """Whether two expressions are equal wherever both are defined. Raises TooLarge."""
    if gold.op == "percent" or answer.op == "percent":
        return _same_percentage(gold, answer)
    exactly = exact(gold), exact(answer)
    if exactly[0] is not None and exactly[1] is not None:
        return exactly[0] == exactly[1] or rounds(gold, answer)
    infinite = _infinity(gold), _infinity(answer)
    if infinite != (0, 0):
        return infinite[0] == infinite[1]
    if contains(gold, "infinity") or contains(answer, "infinity"):
        return False
    if agree(gold, answer):
        return True
    return not names_in(gold) and not names_in(answer) and rounds(gold, answer)


def _same_percentage(gold: Node, answer: Node) -> bool:
    """50% is 50 and one half."""
    hundred = Node("number", value=(Fraction(100), 0))
    inner = [node.args[0] if node.op == "percent" else node for node in (gold, answer)]
    plain = [Node("quotient", (node.args[0], hundred)) if node.op == "percent" else node for node in (gold, answer)]
    return same_value(*inner) or (gold.op != answer.op and same_value(*plain))


def _infinity(node: Node) -> int:
    """1 or -1 for plus or minus infinity, else 0."""
    if node.op == "negative":
        return -_infinity(node.args[0])
    return int(node.op == "constant" and node.value == "infinity")


def rounds(gold: Node, answer: Node) -> bool:
    """Whether one is a long decimal (six significant digits, four of them decimals) that rounds the other."""
    for short, long in ((gold, answer), (answer, gold)):
        number = short.args[0] if short.op == "negative" else short
        if number.op != "number" or (number.value[1] or 0) < 4:
            continue
        other = long.args[0] if long.op == "negative" else long
        decimals = number.value[1]
        if other.op == "number" and other.value[1] is not None and other.value[1] <= decimals:
            continue
        step = Fraction(1, 10**decimals)
        if number.value[0] < step * 10**5:
            continue
        with mp.workdps(decimals + 30):
            evaluation = Evaluation({}, log_base_ten=True)
            try:
                difference = evaluation(short) - evaluation(long)
            except (Undefined, ZeroDivisionError):
                continue
            tolerance = step / 2
            if number.value[0] >= step * 10**14:  # the shortest digits that tell a double apart are off by more
                tolerance = max(tolerance, number.value[0] / 2**52)
            if mp.im(difference) == 0 and abs(difference) <= mp.mpf(tolerance.numerator) / tolerance.denominator:
                return True
    return False


def agree(gold: Node, answer: Node) -> bool:
    """Whether two expressions have the same value at every point that is tried and in both domains."""
    bases = (True, False) if contains(gold, "log") or contains(answer, "log") else (True,)
    return any(_agree_everywhere(gold, answer, log_base_ten) for log_base_ten in bases)


def _agree_everywhere(gold: Node, answer: Node, log_base_ten: bool) -> bool:
    names = sorted(names_in(gold) | names_in(answer))
    if not names:
        return _agree_at(gold, answer, {}, log_base_ten)[0] is True
    agreeing = outside = 0
    imaginary = contains(gold, "i") or contains(answer, "i")
    domains_matter = contains(gold, "abs", "sign") != contains(answer, "abs", "sign")
    too_large: TooLarge | None = None
    for point in points(names, integers=_counts(gold, answer, names)):
        try:
            same_here, left_reals = _agree_at(gold, answer, point, log_base_ten)
        except TooLarge as reason:
            too_large = reason
            continue
        if not imaginary and any(left_reals):
            if domains_matter and not all(left_reals):
                return False
            outside += same_here is True
            continue
        if same_here is None:
            continue
        if not same_here:
            return False
        agreeing += 1
        if agreeing >= 2 * _NUM_POINTS:
            return True
    if too_large and not agreeing:
        raise too_large
    return agreeing >= _MIN_AGREEING or (agreeing == 0 and outside >= 2 * _NUM_POINTS)


def _counts(gold: Node, answer: Node, names: list[str]) -> bool:
    """Whether the variables count things: any in factorials; k, m, n in powers of -1 or multiples of pi too."""
    trees = (gold, answer)
    if any(contains(tree, "factorial", "binomial") for tree in trees):  # between integers they take seconds
        return True
    if not set(names) <= {"k", "m", "n"}:
        return False
    return any(contains(tree, "sin", "cos", "tan", "floor", "ceil") or _signs(tree) for tree in trees)


def _signs(node: Node) -> bool:
    if node.op == "power" and (base := exact(node.args[0])) is not None and base < 0:
        return True
    return any(_signs(arg) for arg in node.args)


def points(names: list[str], integers: bool = False) -> Iterator[dict[str, Fraction]]:
    """Points to compare at, the same at every call: near and far, half of them positive, half of mixed signs."""
    source = random.Random(20)
    if integers:
        for _ in range(2 * _NUM_POINTS):
            yield {name: Fraction(source.randint(1, 24)) for name in names}
        return
    for index in range(4 * _NUM_POINTS):
        size = (1, 3, 100, 2, 10, 1000)[index % 12 // 2]
        point = {}
        for name in names:
            value = Fraction(source.randint(1, 1 << 24), 1 << 24) * size + Fraction(1, 1 << 10)
            point[name] = -value if index % 2 and source.random() < 0.6 else value
        yield point


def _agree_at(
    gold: Node, answer: Node, point: dict[str, Fraction], log_base_ten: bool
) -> tuple[bool | None, tuple[bool, bool]]:
    """Whether the values are equal, None where either is undefined; and which left the real numbers."""
    digits = 60
    for _ in range(4):
        with mp.workdps(digits):
            values = {name: mp.mpf(value.numerator) / value.denominator for name, value in point.items()}
            evaluations = Evaluation(values, log_base_ten), Evaluation(values, log_base_ten)
            try:
                left, right = evaluations[0](gold), evaluations[1](answer)
            except (Undefined, ZeroDivisionError, ValueError):
                return None, (evaluations[0].left_reals, evaluations[1].left_reals)
            spread = math.ceil(max(evaluation.spread for evaluation in evaluations) / _BITS_PER_DIGIT) + 1
            if digits >= 60 + 2 * spread:
                equal = _close(left, right, mp.mpf(10) ** -(_GUARD_DIGITS + spread))
                return equal, (evaluations[0].left_reals, evaluations[1].left_reals)
            digits = 60 + 2 * spread
            if digits > MAX_DIGITS:
                raise TooLarge
    return None, (False, False)  # every digit more shows that still more are needed


def _close(left: Any, right: Any, tolerance: Any) -> bool:
    if isinstance(left, mpmath.matrix) or isinstance(right, mpmath.matrix):
        if not (isinstance(left, mpmath.matrix) and isinstance(right, mpmath.matrix)):
            return False
        if (left.rows, left.cols) != (right.rows, right.cols):
            return False
        return all(abs(one - other) <= tolerance for one, other in zip(left, right, strict=True))
    return bool(abs(left - right) <= tolerance)
