"""The task: what is asked follows from what is drawn."""

import numpy as np
import pytest

from lcot_plugin.demo.task import CELL_SIZE, NUM_OPERANDS, Problem, draw_cell, generate


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return generate(300, seed=11)


def test_the_same_seed_gives_the_same_pixels() -> None:
    first, second, other = generate(20, seed=3), generate(20, seed=3), generate(20, seed=4)
    assert [p.expression for p in first] == [p.expression for p in second]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(first, second, strict=True))
    assert [p.expression for p in first] != [p.expression for p in other]


def test_pixels_do_not_depend_on_the_machine() -> None:
    """The numbers were written down once; another numpy or another processor must reproduce them."""
    cell = draw_cell("-5", np.random.RandomState(7)).astype(int)
    assert cell.shape == (CELL_SIZE, CELL_SIZE)
    assert (cell.sum(), cell[14].sum(), cell[:, 18].sum()) == (134240, 3944, 4456)


def test_the_answer_is_the_expression_modulo_10(problems: list[Problem]) -> None:
    for problem in problems:
        assert problem.answer == str(eval(problem.expression) % 10)


def test_every_step_of_the_thought_holds_and_uses_the_result_before(problems: list[Problem]) -> None:
    for problem in problems:
        start, *steps = problem.thought.split("\n")
        assert start == problem.expression[0]
        running, read = start, start
        for step in steps:
            left, right = step.split("=")
            assert left[0] == running
            assert eval(left) % 10 == int(right)
            running, read = right, read + left[1:]
        assert (running, read) == (problem.answer, problem.expression)


def test_responses_have_the_boxed_form(problems: list[Problem]) -> None:
    for problem in problems:
        assert problem.short_response == f"\\boxed{{{problem.answer}}}"
        assert problem.long_response == f"<think>\n{problem.thought}\n</think>\n\n{problem.short_response}"


def test_pictures_are_one_cell_per_operand(problems: list[Problem]) -> None:
    for problem in problems:
        num_operands = len(problem.operations) + 1
        assert num_operands in NUM_OPERANDS
        assert problem.image.size == (CELL_SIZE * num_operands, CELL_SIZE)


def test_guessing_or_dropping_a_cell_is_right_one_time_in_ten() -> None:
    problems = generate(4000, seed=5, num_operands=(4, 5, 6))
    answers = np.array([int(p.answer) for p in problems])
    without_last = np.array([eval(p.expression[:-2]) % 10 for p in problems])
    most_frequent = np.bincount(answers).max() / len(answers)
    assert most_frequent < 0.12
    assert abs((without_last == answers).mean() - 0.1) < 0.02


def test_excluded_expressions_do_not_come_back() -> None:
    first = {p.expression for p in generate(200, seed=1, num_operands=(2, 3))}
    second = {p.expression for p in generate(200, seed=1, exclude=first, num_operands=(2, 3))}
    assert len(first) == len(second) == 200
    assert not first & second


def test_symbols_are_drawn_apart() -> None:
    """Averaged over the jitter, any two symbols differ: the picture can be read."""
    rng = np.random.RandomState(0)
    texts = [f"{sign}{digit}" for sign in ("", "+", "-") for digit in range(10)]
    means = np.stack([np.mean([draw_cell(text, rng) for _ in range(60)], axis=0).ravel() for text in texts])
    distances = np.abs(means[:, None] - means[None]).mean(axis=-1) + np.eye(len(texts)) * 1e9
    assert distances.min() > 3
