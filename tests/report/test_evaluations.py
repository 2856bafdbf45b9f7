"""Evaluations are read problem by problem, and compared over the same problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_folders import completion, evaluation, write_lines

from lcot_plugin.errors import LcotError
from lcot_plugin.report.evaluations import Evaluation, by_set, common_problems, compare, read_evaluations, same_set
from lcot_plugin.report.intervals import wilson


def read(folder: Path, *lines: dict, name: str = "eval_completions.jsonl") -> list[Evaluation]:
    folder.mkdir(exist_ok=True)
    write_lines(folder / name, lines)
    return read_evaluations(folder / name, folder.name)


def line(record: int, right: bool, sample: int | str = "greedy", **keys: object) -> dict:
    return completion(**({"step": 0, "length": 10} | keys), sample=sample, record=record, right=right)  # type: ignore


def test_greedy_and_sampled_answers_are_counted_apart(tmp_path: Path) -> None:
    lines = [line(0, True), line(0, False, 1), line(0, True, 2), line(1, False), line(1, False, 1), line(1, False, 2)]
    (found,) = read(tmp_path / "run", *lines)
    greedy, sampled, any_right = found.accuracy(), found.sampled(), found.any_right()
    assert greedy is not None and sampled is not None and any_right is not None
    assert (greedy.value, greedy.num_samples, greedy.clustered) == (0.5, 2, False)
    assert (sampled.value, sampled.num_samples, sampled.num_problems, sampled.clustered) == (0.25, 4, 2, True)
    assert any_right.value == 0.5
    assert found.num_samples == 2


def test_steps_are_evaluations_of_their_own(tmp_path: Path) -> None:
    lines = [*evaluation(step=0, rate=0.2), *evaluation(step=50, rate=0.9)]
    first, last = read(tmp_path / "run", *lines)
    assert (first.step, last.step) == (0, 50)
    assert len(first.problems) == len(last.problems) == 60
    assert first.sources == ["demo_rl", "geometry"]


def test_what_cannot_be_judged_is_left_out_and_what_ran_out_of_time_is_wrong(tmp_path: Path) -> None:
    lines = [
        line(0, True),
        line(1, False, outcome="gold_unparsable"),
        line(1, False, 1, outcome="gold_unparsable"),
        line(2, False, outcome="timed_out"),
        line(3, False, outcome="unparsable", ending="truncated"),
    ]
    (found,) = read(tmp_path / "run", *lines)
    share = found.accuracy()
    assert share is not None and (share.value, share.num_problems) == (1 / 3, 3)
    assert (found.num_unjudged, found.num_timed_out, found.num_unparsable, found.num_truncated) == (1, 1, 1, 1)
    assert found.num_completions == 3


def test_a_problem_that_stands_twice_is_two(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "run", line(0, True), line(1, False), line(0, False))
    assert len(found.problems) == 3


def test_samples_without_a_greedy_answer_are_one_problem(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "run", *(line(0, bool(n % 2), n) for n in (1, 2, 3)), line(1, True, 1))
    share = found.accuracy()
    assert not found.is_greedy and share is not None
    assert (share.value, share.num_problems) == (0.75, 2)


def test_the_same_problems_are_compared_in_pairs(tmp_path: Path) -> None:
    (before,) = read(tmp_path / "a", *(line(n, n < 4) for n in range(10)))
    (after,) = read(tmp_path / "b", *(line(n, 1 < n < 9) for n in reversed(range(10))))
    found = compare(before, after)
    assert found is not None and found.paired
    assert (found.gained, found.lost, found.num_problems) == (5, 2, 10)
    assert found.value == pytest.approx(0.3)


def test_other_questions_of_the_same_number_are_other_problems(tmp_path: Path) -> None:
    (before,) = read(tmp_path / "a", *(line(n, True) for n in range(10)))
    (after,) = read(tmp_path / "b", *(line(n, False, question="Another one?") for n in range(10)))
    assert not same_set(before, after) and common_problems(before, after) == []
    found = compare(before, after)
    assert found is not None and not found.paired and found.p_value is None
    assert found.value == -1.0
    low = wilson(1.0, 10).low
    assert found.interval == pytest.approx((-1.0, -1 + (2 * (1 - low) ** 2) ** 0.5))
    assert by_set([before, after, before]) == [[before, before], [after]]


def test_sampled_evaluations_are_paired_by_the_problems_means(tmp_path: Path) -> None:
    (before,) = read(tmp_path / "a", *(line(n, False, s) for n in range(5) for s in (1, 2)))
    (after,) = read(tmp_path / "b", *(line(n, s == 1, s) for n in range(5) for s in (1, 2)))
    found = compare(before, after)
    assert found is not None and found.paired and found.p_value is None
    assert found.value == 0.5


def test_a_problem_without_a_verdict_is_left_out(tmp_path: Path) -> None:
    (found,) = read(tmp_path, line(0, True), line(1, False, outcome=None), line(2, False, outcome="of a later version"))
    assert (len(found.problems), found.num_unjudged, found.num_completions) == (1, 2, 1)
    share = found.accuracy()
    assert share is not None and share.value == 1.0


def test_two_sets_of_a_run_are_two_though_they_overlap(tmp_path: Path) -> None:
    (small,) = read(tmp_path / "a", *(line(n, True) for n in range(6)))
    (large,) = read(tmp_path / "b", *(line(n, True) for n in range(9)))
    large.run, large.set_name = small.run, "large"
    assert same_set(small, large)
    assert by_set([small, large, small]) == [[small, small], [large]]
    large.run = "another run"
    assert by_set([small, large]) == [[small, large]]


def test_a_source_that_one_lacks_is_not_compared(tmp_path: Path) -> None:
    (before,) = read(tmp_path / "a", line(0, True))
    (after,) = read(tmp_path / "b", line(0, True), line(1, True, source="other"))
    assert compare(before, after, "other") is None
    assert compare(before, after, "demo_rl") is not None


def test_a_line_that_is_cut_is_left_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "eval_completions.jsonl"
    write_lines(path, [line(0, True), line(1, True)])
    with path.open("a") as file:
        file.write('{"step": 0, "samp')
    assert len(read_evaluations(path, "run")[0].problems) == 2
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(LcotError, match=r"eval_completions\.jsonl, line 3"):
        read_evaluations(path, "run")


def test_an_empty_file_has_no_evaluations(tmp_path: Path) -> None:
    assert read(tmp_path / "run") == []
