"""The embedded task: a drawn chain of additions and subtractions, answered modulo 10.

In: a number of problems and a seed. Out: `Problem` records, each with its picture, its gold answer, the long
chain of thought and the short answer. `demo.data` writes them to parquet; `demo.pretrain` draws its batches here.

A picture is a row of 28x28-pixel cells. The first cell holds a digit, each further one a signed digit:

    | 7 | +3 | -5 | +8 |      7+3=0, 0-5=5, 5+8=3 (modulo 10), so the answer is 3

Every operand is uniform over 0..9, so whoever ignores one cell, or guesses, is right one time in ten.

The glyphs are strokes rasterised here with numpy, in operations that IEEE 754 rounds exactly, and the random numbers
come from `numpy.random.RandomState`, whose streams numpy has frozen: the same seed gives the same pixels everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

CELL_SIZE = 28
"""Pixels per side of a cell: one visual token of Qwen2.5-VL (2x2 merged patches of 14x14)."""

QUESTION = "What is the result modulo 10?"
"""The question of every problem in every set."""

READING_QUESTION = "Read the picture."
"""Asks for the expression itself; used to make the base weights only."""

NUM_OPERANDS = (3, 4, 5, 6)
"""How many operands a problem has; a repeated entry is drawn more often."""

_CELL_WIDTH_OF_SYMBOL = {"digit": 9.0, "sign": 6.0}
_GLYPH_HEIGHT = 16.0

# Stroke skeletons in a unit box, x to the right and y downwards.
_SKELETONS: dict[str, list[list[tuple[float, float]]]] = {
    "0": [[(0.3, 0), (0.7, 0), (1, 0.25), (1, 0.75), (0.7, 1), (0.3, 1), (0, 0.75), (0, 0.25), (0.3, 0)]],
    "1": [[(0.2, 0.25), (0.6, 0), (0.6, 1)]],
    "2": [[(0, 0.22), (0.25, 0), (0.75, 0), (1, 0.2), (1, 0.4), (0, 1), (1, 1)]],
    "3": [
        [(0, 0.08), (0.3, 0), (0.8, 0), (1, 0.2), (0.8, 0.46), (0.4, 0.46)],
        [(0.8, 0.46), (1, 0.72), (0.8, 1), (0.25, 1), (0, 0.9)],
    ],
    "4": [[(0.75, 1), (0.75, 0), (0, 0.68), (1, 0.68)]],
    "5": [[(0.95, 0), (0.1, 0), (0.05, 0.45), (0.65, 0.4), (1, 0.62), (0.95, 0.85), (0.7, 1), (0.2, 1), (0, 0.9)]],
    "6": [
        [(0.85, 0), (0.35, 0.2), (0, 0.65), (0.15, 0.92), (0.45, 1), (0.8, 0.95), (1, 0.72), (0.85, 0.5)],
        [(0.85, 0.5), (0.45, 0.45), (0.02, 0.65)],
    ],
    "7": [[(0, 0), (1, 0), (0.35, 1)]],
    "8": [
        [(0.5, 0.47), (0.15, 0.35), (0.1, 0.13), (0.3, 0), (0.7, 0), (0.9, 0.13), (0.85, 0.35), (0.5, 0.47)],
        [(0.5, 0.47), (0.05, 0.65), (0, 0.85), (0.25, 1), (0.75, 1), (1, 0.85), (0.95, 0.65), (0.5, 0.47)],
    ],
    "9": [
        [(0.15, 1), (0.65, 0.8), (1, 0.35), (0.85, 0.08), (0.55, 0), (0.2, 0.05), (0, 0.28), (0.15, 0.5)],
        [(0.15, 0.5), (0.55, 0.55), (0.98, 0.35)],
    ],
    "+": [[(0, 0.5), (1, 0.5)], [(0.5, 0.31), (0.5, 0.69)]],
    "-": [[(0, 0.5), (1, 0.5)]],
}


@dataclass(frozen=True)
class Problem:
    """One picture and everything that is asked of it."""

    start: int
    """The digit of the first cell."""
    operations: tuple[tuple[str, int], ...]
    """One (sign, digit) per further cell, sign "+" or "-"."""
    image: Image.Image
    """Greyscale ("L") picture, 28 pixels high and 28 wide per operand."""

    @property
    def expression(self) -> str:
        """What is drawn, for instance "7+3-5+8"."""
        return expression_of(self.start, self.operations)

    @property
    def answer(self) -> str:
        """The gold answer, one digit."""
        return str(self._running_results()[-1])

    @property
    def thought(self) -> str:
        """One line per step, each with the running result modulo 10; the first line is the start digit."""
        results = self._running_results()
        steps = [
            f"{before}{sign}{digit}={after}"
            for before, (sign, digit), after in zip(results, self.operations, results[1:], strict=False)
        ]
        return "\n".join([str(self.start), *steps])

    @property
    def long_response(self) -> str:
        """The response that reasons first."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.short_response}"

    @property
    def short_response(self) -> str:
        """The response that answers at once."""
        return boxed(self.answer)

    def _running_results(self) -> list[int]:
        results = [self.start]
        for sign, digit in self.operations:
            results.append((results[-1] + (digit if sign == "+" else -digit)) % 10)
        return results


def boxed(answer: str) -> str:
    """The form in which an answer is given."""
    return f"\\boxed{{{answer}}}"


def expression_of(start: int, operations: tuple[tuple[str, int], ...]) -> str:
    """The start digit and its operations as one string."""
    return str(start) + "".join(f"{sign}{digit}" for sign, digit in operations)


def cells_of(start: int, operations: tuple[tuple[str, int], ...]) -> list[str]:
    """The text of each cell, left to right."""
    return [str(start)] + [f"{sign}{digit}" for sign, digit in operations]


def draw_chain(
    rng: np.random.RandomState, num_operands: Sequence[int] = NUM_OPERANDS
) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Draw a start digit and operations; digits, signs and the entries of `num_operands` are uniform."""
    num = num_operands[rng.randint(len(num_operands))]
    start = int(rng.randint(10))
    operations = tuple(("+-"[rng.randint(2)], int(rng.randint(10))) for _ in range(num - 1))
    return start, operations


def generate(
    num: int,
    seed: int,
    exclude: Collection[str] = (),
    num_operands: Sequence[int] = NUM_OPERANDS,
) -> list[Problem]:
    """Generate problems whose expressions differ from each other and from those in `exclude`.

    Pure: the same arguments give the same problems, to the pixel.
    """
    rng = np.random.RandomState(seed)
    seen = set(exclude)
    problems: list[Problem] = []
    while len(problems) < num:
        start, operations = draw_chain(rng, num_operands)
        expression = expression_of(start, operations)
        if expression in seen:
            continue
        seen.add(expression)
        cells = [draw_cell(text, rng) for text in cells_of(start, operations)]
        problems.append(Problem(start, operations, Image.fromarray(np.concatenate(cells, axis=1))))
    return problems


def draw_cell(text: str, rng: np.random.RandomState) -> np.ndarray:
    """Draw one cell, [28, 28] uint8: a digit or a signed digit, with jittered place, size, slant, stroke and greys."""
    background = rng.randint(150, 256)
    ink = rng.randint(0, 81)
    stroke = rng.randint(15, 25) / 10
    slant = rng.randint(-20, 21) / 100
    scale = rng.randint(85, 111) / 100
    shift_x, shift_y = rng.randint(-20, 21, size=2) / 10

    centres = [14.0] if len(text) == 1 else [6.5, 18.0]
    coverage = np.zeros((CELL_SIZE, CELL_SIZE))
    for symbol, centre in zip(text, centres, strict=True):
        width = _CELL_WIDTH_OF_SYMBOL["digit" if symbol.isdigit() else "sign"] * scale
        height = _GLYPH_HEIGHT * scale
        for skeleton in _SKELETONS[symbol]:
            points = np.array(skeleton) - 0.5
            y = points[:, 1] * height
            x = points[:, 0] * width - slant * y
            points = np.stack([x + centre + shift_x, y + 14.0 + shift_y], axis=1)
            coverage = np.maximum(coverage, _stroke_coverage(points, stroke))

    pixels = background + (ink - background) * coverage
    # A few specks instead of noise everywhere: as hard to read, but PNG still compresses the flat background.
    num_specks = rng.randint(4, 17)
    rows, columns = rng.randint(CELL_SIZE, size=(2, num_specks))
    pixels[rows, columns] = rng.randint(0, 256, size=num_specks)
    # Steps of 8 grey levels halve the size of the PNG and cannot be seen.
    return (np.floor(pixels / 8) * 8).astype(np.uint8)


def _stroke_coverage(points: np.ndarray, stroke: float) -> np.ndarray:
    """How much of each pixel a polyline covers, [28, 28] in 0..1, from the distance of the pixel centre to it."""
    centres = np.arange(CELL_SIZE) + 0.5
    x, y = centres[None, :], centres[:, None]
    nearest = np.full((CELL_SIZE, CELL_SIZE), np.inf)
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        off_x, off_y = x - (x0 + along * dx), y - (y0 + along * dy)
        nearest = np.minimum(nearest, off_x * off_x + off_y * off_y)
    return np.clip(0.5 + stroke / 2 - np.sqrt(nearest), 0, 1)
