r"""The kinds of several answers in one: `sequence`, which `auto` infers and whose brackets say whether order matters
(`(2, 3)`, `{1, 2}`, `3 and 2`, `x = \pm 3`), and the declared ones: list, set, tuple, coordinate, interval.

What separates answers are commas, semicolons, line breaks, "and", "or" and their Chinese twins outside brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lcot_plugin.rewards.extraction import Found
from lcot_plugin.rewards.kinds.algebra import bracket_depths, split_assignment, without_condition
from lcot_plugin.rewards.kinds.base import Gold, Kind, NeedsSolver, Solver
from lcot_plugin.rewards.kinds.dress import inline, undress
from lcot_plugin.rewards.kinds.intervals import Piece, Pieces, read_pieces
from lcot_plugin.types import MatchSettings, Outcome

ReadItem = Callable[[str, MatchSettings], Gold | None]
JudgeItem = Callable[[Gold, Found, MatchSettings, Solver | None], Outcome]

MAX_SEQUENCE_ITEMS = 64
MAX_DEPTH = 3
"""Sequences inside sequences."""
_MAX_BRACKETS = MAX_DEPTH + 8
_PLUS_MINUS = re.compile(r"\\pm(?![a-z])\s*|±\s*")
_AROUND = re.compile(r"(-?\d{1,9})\s*(?:\\pm|±)\s*(\d{1,9})")
_CONJUNCTION = re.compile(r",?\s+(?:and|or)\s+|(?<=[)\]}])\s*(?:and|or)\s*(?=[(\[{])|\s*(?:或者|以及|或|和|及)\s*")
_SOLUTIONS = re.compile(r"\s*(?:;|,?\s+or\s+|或者?)\s*")
_OR = re.compile(r"\s(?:or)\s|或")
_NUMBERED = re.compile(r"([a-zA-Z])_?\{?[1-9]\}?")
_SEPARATOR = re.compile(r"[,;]")
_COLUMN = re.compile(r"\\begin\s*\{([bp]?matrix|cases|array)\}(?:\{[clr|]+\})?([^&]*)\\end\s*\{\1\}")
_ANGLES = re.compile(r"\\langle(?![a-z])(.*)\\rangle|<([^<>=]*,[^<>=]*)>|⟨(.*)⟩")
_POINT_LABEL = re.compile(r"^([A-Z]['\d]?)\s*=?\s*(?=\()")
_POINT = re.compile(r"^(?:(?:the\s+)?(?:points?|coordinates?)(?:\s+(?:is|are))?\s+|坐标[为是]?|点)", re.IGNORECASE)
_EMPTY = re.compile(r"\\(?:emptyset|varnothing)|[∅Øø]|\\?\{\s*\\?\}|(?:the )?empty set|空集", re.IGNORECASE)
_CIRCLED = re.compile("(?:[①-⑳][\\s,;和与及]*){2,20}")
_MEMBER = re.compile(r"([a-zA-Z])\s*(?:\\in|∈)\s*(?=\\?\{)")
_PART = re.compile(r"\(([a-e])\)\s*")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")


@dataclass(frozen=True)
class Items:
    """The value of a gold answer of this kind."""

    items: tuple[Gold, ...]
    brackets: str
    """`()`, `[)` and the like; `{}` or nothing where the order does not matter."""
    name: str
    """`x` of `x = (1, 2)`."""
    names: tuple[str, ...] = ()
    """`x`, `y` of `x = 1, y = 2`; empty strings where an answer has none."""

    @property
    def depth(self) -> int:
        """1 for a sequence of plain answers."""
        return 1 + max((item.value.depth for item in self.items if isinstance(item.value, Items)), default=0)


@dataclass(frozen=True)
class Union:
    """The value of a gold answer that is an interval or several."""

    pieces: tuple[tuple[Piece, Gold | None, Gold | None], ...]
    """Each with its endpoints read; None for an infinite one."""
    name: str

    @property
    def depth(self) -> int:
        return 1


@dataclass(frozen=True)
class Rules:
    """How a kind takes what it reads."""

    kind: str
    ordered: bool | None = None
    """None: as the brackets say."""
    brackets: tuple[str, ...] | None = None
    """What an answer may stand in; None: what the gold answer stands in."""
    texts: bool = False
    """Whether an element may be plain text."""
    collapses: bool = False
    """Whether equal elements count once."""
    singles: bool = False
    """Whether one element alone is a sequence too."""


_RULES = (
    Rules("sequence"),
    Rules("list", ordered=True, brackets=("", "[]", "()"), texts=True, singles=True),
    Rules("set", ordered=False, brackets=("", "{}", "[]", "()"), texts=True, collapses=True, singles=True),
    Rules("tuple", ordered=True, brackets=("", "()")),
    Rules("coordinate", ordered=True, brackets=("", "()")),
)


def split_sequence(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of `(2, 3)`, `{1, 2}`, `3, 2` or `±3`; None where `text` is no sequence."""
    brackets, items = _split(text)
    return (brackets, items) if len(items) > 1 else None


def _split(text: str) -> tuple[str, list[str]]:
    """Brackets and elements; no elements where `text` is none, one where it holds no separator."""
    brackets, body = _open_brackets(_linear(inline(text)))
    depths = bracket_depths(body)
    if not depths or depths[-1] != 0 or min(depths) < 0:
        return "", []
    if brackets == "" and re.fullmatch(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", body):
        return "", [body]
    # "1,000, 2,000": with spaced commas, those inside a number group thousands.
    separator = re.compile(r"(?:,(?=\s)|;)") if re.search(r"\d,\d{3}(?!\d)", body) and ", " in body else _SEPARATOR
    cuts = [match.span() for match in separator.finditer(body) if depths[match.start()] == 0]
    cuts += [match.span() for match in _CONJUNCTION.finditer(body) if depths[match.start()] == 0]
    cuts = _merged(cuts, body)
    if len(cuts) >= MAX_SEQUENCE_ITEMS:
        return "", []
    edges = [(0, 0), *cuts, (len(body), len(body))]
    items = [body[left[1] : right[0]].strip() for left, right in pairwise(edges)]
    if not all(items):
        return "", []
    return brackets, [expanded for item in items for expanded in _both_signs(item)]


def _merged(cuts: list[tuple[int, int]], body: str) -> list[tuple[int, int]]:
    """Cuts in order, `, and` as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(cuts):
        if merged and not body[merged[-1][1] : start].strip():
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _linear(text: str) -> str:
    """Columns, systems and angle brackets as sequences in a line."""
    if column := _COLUMN.fullmatch(text):
        rows = [row.strip().rstrip(",;") for row in column[2].split(r"\\")]
        rows = [row for row in rows if row]
        if len(rows) > 1 and (column[1] != "cases" or all("=" in row for row in rows)):
            return ", ".join(rows) if column[1] == "cases" else f"({', '.join(rows)})"
    labels = [match[1] for match in _PART.finditer(text)]
    if len(labels) > 1 and "".join(labels) == "abcde"[: len(labels)] and _PART.match(text):
        parts = [part.strip().rstrip(",;") for part in _PART.split(text)[2::2]]
        return ", ".join(f"{label} = {part}" for label, part in zip(labels, parts, strict=True))
    if _CIRCLED.fullmatch(text):
        return f"{{{', '.join(re.findall('[①-⑳]', text))}}}"
    if solutions := _solutions(text):
        return solutions
    if angles := _ANGLES.fullmatch(text):
        return f"({angles[1] or angles[2] or angles[3]})"
    return text


def _solutions(text: str) -> str | None:
    """`x = 1, y = 2; x = 3, y = 4` as points: `(x, y) = (1, 2), (x, y) = (3, 4)`."""
    groups = [re.split(r"\s*,\s*|\s+and\s+", group) for group in _SOLUTIONS.split(text)]
    if len(groups) == 1 and (period := _period([split_assignment(part)[0] for part in groups[0]])):
        groups = [groups[0][start : start + period] for start in range(0, len(groups[0]), period)]
    if not 2 <= len(groups) <= MAX_SEQUENCE_ITEMS or not 2 <= len(groups[0]) <= 4:
        return None
    points = [dict(split_assignment(part) for part in group) for group in groups]
    names = sorted(points[0])
    if not all(re.fullmatch("[a-z]", name) for name in names) or len(names) != len(groups[0]):
        return None
    if any(sorted(point) != names or len(group) != len(names) for point, group in zip(points, groups, strict=True)):
        return None
    name = f"({', '.join(names)})"
    return ", ".join(f"{name} = ({', '.join(point[letter] for letter in names)})" for point in points)


def _period(names: list[str]) -> int:
    """2 of `x`, `y`, `x`, `y`; 0 where distinct names do not repeat in one order."""
    period = len(set(names))
    repeats = 1 < period < len(names) and len(names) % period == 0 and names == names[:period] * (len(names) // period)
    return period if repeats else 0


def _open_brackets(text: str) -> tuple[str, str]:
    body = re.sub(r"\\([{}])", r"\1", text)
    if body[:1] in "([{" and body[-1:] in ")]}" and len(body) > 2:
        depths = bracket_depths(body)
        if depths[-1] == 0 and min(depths[:-1]) > 0:
            return body[0] + body[-1], body[1:-1].strip()
    return "", body


def _both_signs(item: str) -> list[str]:
    r"""`3` and `-3` of `\pm 3`."""
    if len(_PLUS_MINUS.findall(item)) != 1 or r"\mp" in item:
        return [item]
    name, value = split_assignment(item)
    prefix = f"{name} = " if name else ""
    if middle := _AROUND.fullmatch(value):  # as text, 2 - 1 may be a range
        return [f"{prefix}{int(middle[1]) + sign * int(middle[2])}" for sign in (1, -1)]
    plus = _PLUS_MINUS.sub("+", value).strip()
    return [prefix + plus.removeprefix("+"), prefix + _PLUS_MINUS.sub("-", value).strip()]


def _named(text: str) -> tuple[str, str]:
    """(`x`, `(1, 2)`) of `x = (1, 2)`, (`A`, `(1, 2)`) of `A(1, 2)`; the name is empty where there is none."""
    line = _POINT.sub("", inline(text))
    if member := _MEMBER.match(line):
        return member[1], line[member.end() :]
    name, body = split_assignment(line)
    label = None if name else _POINT_LABEL.match(body)
    if label and _open_brackets(body[label.end() :])[0] and split_sequence(body[label.end() :]) is not None:
        return label[1], body[label.end() :]
    return name, body


def sequence_kinds(read_item: ReadItem, judge_item: JudgeItem) -> dict[str, Kind]:
    """The kinds of this module by name, whose elements are read and judged by these."""
    kinds = {rules.kind: _SequenceKind(rules, read_item, judge_item).kind for rules in _RULES}
    interval = _SequenceKind(Rules("interval"), read_item, judge_item)
    return {**kinds, "interval": Kind(interval.read_interval, interval.compare)}


@dataclass(frozen=True)
class _SequenceKind:
    rules: Rules
    read_item: ReadItem
    judge_item: JudgeItem

    @property
    def kind(self) -> Kind:
        return Kind(self.read, self.compare)

    def read(self, text: str, settings: MatchSettings) -> Gold | None:
        """The elements that `text` is, or the intervals."""
        if len(text) > 1000 and self.rules.kind == "sequence":
            return None
        if without_condition(text) != text:
            return None
        name, body = _named(text)
        if self.rules.kind in ("set", "sequence") and _EMPTY.fullmatch(body):
            return Gold(self.rules.kind, text, Items((), "{}", name))
        if max(bracket_depths(body), default=0) > _MAX_BRACKETS:
            return None
        if self.rules.kind == "sequence" and (union := self.read_interval(text, settings, only=True)) is not None:
            return union
        brackets, parts = _split(body)
        if len(parts) < (1 if self.rules.singles else 2):
            return None
        items = [self._read_element(part, settings) for part in parts]
        texts = self.rules.texts or all(len(part) == 1 and _CIRCLED.match(part * 2) for part in parts)
        if any(item is None or (item.kind == "text" and not texts) for item in items):
            return None
        names = tuple(split_assignment(inline(part))[0] for part in parts)
        value = Items(tuple(item for item in items if item), brackets, name, names)
        if value.depth > MAX_DEPTH:
            return None
        expressions = tuple(expression for item in value.items for expression in item.expressions)
        return Gold(self.rules.kind, text, value, expressions)

    def _read_element(self, part: str, settings: MatchSettings) -> Gold | None:
        return self.read_item(undress(_unquoted(part)), settings)

    def read_interval(self, text: str, settings: MatchSettings, only: bool = False) -> Gold | None:
        """The intervals that `text` is; `only`: where it can be nothing else."""
        name, body = split_assignment(inline(text))
        read = read_pieces(body)
        if read is None or (only and not read.only_interval):
            return None
        pieces = []
        for piece in read.pieces:
            ends = [self.read_item(undress(end), settings) if end else None for end in piece[:2]]
            for written, end in zip(piece[:2], ends, strict=True):
                if written and (end is None or end.kind not in ("number", "expression", "date", "time")):
                    return None
            pieces.append((piece, ends[0], ends[1]))
        golds = [end for piece in pieces for end in piece[1:] if end]
        expressions = tuple(expression for end in golds for expression in end.expressions)
        return Gold(self.rules.kind, text, Union(tuple(pieces), read.name or name), expressions)

    def compare(self, gold: Gold, found: Found, settings: MatchSettings, solver: Solver | None) -> bool | None:
        """Whether `found` has the same elements."""
        answer = undress(_in_one_line(found.answer))
        if max(bracket_depths(answer), default=0) > 4 * _MAX_BRACKETS:
            return None
        if isinstance(gold.value, Union):
            return self._compare_intervals(gold, answer, found, settings, solver)
        value: Items = gold.value
        name, body = _named(answer)
        if self.rules.kind in ("sequence", "interval") and (pair := _as_pair(body)):
            if value.brackets in ("", "{}"):
                return False  # numbers are not what lies between them
            body = pair
        if not value.items:
            return _EMPTY.fullmatch(body) is not None
        brackets, items = _split(body)
        if len(items) < (1 if self.rules.singles else 2):
            return None
        if name and value.name and name != value.name:
            return False
        if any(item.kind in ("text", "choice", "yes_no") for item in value.items) and _OR.search(body):
            return False  # "cat or dog" is a guess, "x = 1 or x = 2" an answer
        if _descending(name) or not self._brackets_agree(value, brackets):
            return False
        names = [split_assignment(inline(item))[0] for item in items]
        a_point = self.rules.kind in ("tuple", "coordinate") or value.brackets == "()"
        if a_point and not any(value.names) and any(names) and (_base(names) or len(set(names)) < len(names)):
            return False  # x = 2 or x = 3 are two roots
        if roots := _numbered_roots(value.names, names):
            items, names = [split_assignment(inline(item))[1] for item in items], [""] * len(items)
        if value.brackets == "()" and brackets == "" and not any(value.names) and not _descending(value.name):
            items, names = _by_coordinate(items, names)
        answers = [Found(_unquoted(item), found.place) for item in items]

        def same(item: Gold, element: Found) -> bool:
            return self.judge_item(item, element, settings, solver) is Outcome.MATCHED

        if not roots and self._ordered(value, brackets, names):
            if _OR.search(body) or len(answers) != len(value.items) or not _names_in_order(value.names, names):
                return False
            return all(same(item, element) for item, element in zip(value.items, answers, strict=True))
        if self.rules.collapses or (value.brackets == "{}" and self.rules.kind == "sequence"):
            return all(any(same(item, element) for element in answers) for item in value.items) and all(
                any(same(item, element) for item in value.items) for element in answers
            )
        if len(answers) != len(value.items):
            return False
        # Equality is transitive, so that the first free match is as good as any.
        for item in value.items:
            match = next((element for element in answers if same(item, element)), None)
            if match is None:
                return False
            answers.remove(match)
        return True

    def _brackets_agree(self, gold: Items, brackets: str) -> bool:
        if self.rules.brackets is not None:
            return brackets in self.rules.brackets or brackets == gold.brackets
        if gold.brackets == "{}":
            return brackets in ("", "{}")
        if brackets in ("[)", "(]") and gold.brackets != brackets:
            return False  # numbers are not the interval between them
        if brackets == "()" and any(gold.names) and len(set(gold.names)) < len(gold.names):
            return False  # x = 2 or x = 3 are no point
        # Named answers say their order themselves: x = 2, y = 3 is the point (2, 3).
        return gold.brackets == "" or brackets == gold.brackets or (brackets == "" and gold.brackets == "()")

    def _ordered(self, gold: Items, brackets: str, names: Sequence[str]) -> bool:
        if self.rules.ordered is not None:
            return self.rules.ordered
        if gold.brackets == "{}":
            return False
        if gold.brackets or brackets not in ("", "{}"):
            return True
        distinct = [len(set(some)) == len(some) and all(some) for some in (gold.names, names)]
        # x = 1, y = 2 against 1, 2: only the order says which is which.
        return distinct[0] != distinct[1]

    def _compare_intervals(
        self, gold: Gold, answer: str, found: Found, settings: MatchSettings, solver: Solver | None
    ) -> bool | None:
        union: Union = gold.value
        name, body = split_assignment(inline(answer))
        read = read_pieces(body)
        if read is None:
            if not re.search(r"[<>≤≥]|\\[lg]eq?(?![a-z])", body) or not re.search("[<>≤≥]|\\\\[lg]e", gold.text):
                return None
            if solver is None:
                raise NeedsSolver
            return solver.equal(gold.text, body)
        if union.name and (read.name or name) and union.name != (read.name or name):
            return False
        return self._same_pieces(union, read, found, settings, solver)

    def _same_pieces(
        self, union: Union, read: Pieces, found: Found, settings: MatchSettings, solver: Solver | None
    ) -> bool:
        def same_end(end: Gold | None, text: str) -> bool:
            if end is None or not text:
                return end is None and not text
            return self.judge_item(end, Found(text, found.place), settings, solver) is Outcome.MATCHED

        answers = list(read.pieces)
        if len(answers) != len(union.pieces):
            return False
        for piece, left, right in union.pieces:
            closed = (piece.left_closed, piece.right_closed)
            match = next(
                (
                    other
                    for other in answers
                    if closed == (other.left_closed, other.right_closed)
                    and same_end(left, other.left)
                    and same_end(right, other.right)
                ),
                None,
            )
            if match is None:
                return False
            answers.remove(match)
        return True


def _by_coordinate(items: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """`y = 3, x = 2` as `x = 2, y = 3`, which is the point (2, 3)."""
    if sorted(names) != list("xyz"[: len(names)]):
        return items, names
    order = sorted(range(len(names)), key=names.__getitem__)
    return [items[index] for index in order], [names[index] for index in order]


def _numbered_roots(gold: Sequence[str], names: Sequence[str]) -> bool:
    """Whether one side numbers the roots of one unknown, x_1 and x_2, and the other does not."""
    numbered, plain = (names, gold) if _base(names) else (gold, names)
    base = _base(numbered)
    return bool(base) and all(name in ("", base) for name in plain)


def _base(names: Sequence[str]) -> str:
    """`x` of `x_1`, `x_2`."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    bases = {match[1] for match in matches if match}
    return bases.pop() if all(matches) and len(bases) == 1 else ""


def _names_in_order(gold: Sequence[str], names: Sequence[str]) -> bool:
    """Whether distinct names of an answer stand where the gold answer's do, or alphabetically where it has none."""
    if not any(names) or (any(gold) and not all(gold)):
        return True
    if len(set(names)) < len(names):
        return not any(gold)
    return list(names) == (list(gold) if any(gold) else sorted(names))


def _descending(name: str) -> bool:
    """Whether a name like `(y, x)` lists its letters out of order."""
    letters = re.findall(r"\w", name) if name.startswith("(") else []
    return letters != sorted(letters)


def _as_pair(text: str) -> str | None:
    """`(2, 3)` of `2 < x < 3`, for a gold answer that may be the open interval."""
    pieces = read_pieces(text)
    if pieces is None or (pieces.bracketed and not pieces.name) or len(pieces.pieces) > 1:
        return None
    left, right, left_closed, right_closed = pieces.pieces[0]
    if not left or not right:
        return None
    return f"{'[' if left_closed else '('}{left}, {right}{']' if right_closed else ')'}"


def _unquoted(item: str) -> str:
    return item[1:-1] if len(item) > 2 and item[0] == item[-1] and item[0] in "'\"" else item


def _in_one_line(answer: str) -> str:
    """Answers on lines of their own, with bullets or without, separated by semicolons."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    one_block = answer.lstrip().startswith(("```", "{", "[", "\\begin", "$$", "\\["))
    if one_block or not 2 <= len(lines) < MAX_SEQUENCE_ITEMS:
        return answer
    lines = [_BULLET.sub("", line).rstrip(",;") for line in lines]
    return "; ".join(undress(line) for line in lines)
