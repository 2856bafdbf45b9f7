"""Folders become runs with names of their own, in an order that a reader expects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_folders import completion, metrics, record, write_evaluation, write_grpo_run, write_lines

from lcot_plugin.errors import LcotError
from lcot_plugin.report.intervals import wilson
from lcot_plugin.report.subjects import load_subjects, read_answers, started_at, unlike_names


def test_names_are_as_long_as_they_must_be() -> None:
    folders = [Path("/r/a/grpo"), Path("/r/b/grpo"), Path("/r/b/sft")]
    assert unlike_names(folders) == ["a/grpo", "b/grpo", "sft"]
    assert unlike_names([Path("/x/a/grpo"), Path("/y/a/grpo")]) == ["x/a/grpo", "y/a/grpo"]


def test_found_runs_go_by_when_they_were_started(tmp_path: Path) -> None:
    for name, day in (("late", 20), ("early", 10), ("middle", 15)):
        folder = write_evaluation(tmp_path / name, 0.5, num_problems=3)
        (folder / "run.json").write_text(json.dumps(record(started=f"2027-01-{day}T00:00:00+00:00")))
    subjects, notes = load_subjects([tmp_path])
    assert [subject.name for subject in subjects] == ["early", "middle", "late"]
    assert notes == []


def test_named_runs_keep_the_order_of_the_command_and_stand_once(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, 0.5, num_problems=3) for name in ("b", "a")]
    subjects, _ = load_subjects([*folders, folders[0]])
    assert [subject.name for subject in subjects] == ["b", "a"]


def test_several_evaluation_sets_have_their_names(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "run", 0.5, num_problems=3)
    (folder / "eval_completions.jsonl").rename(folder / "eval_geo_completions.jsonl")
    write_evaluation(folder, 0.9, num_problems=4)
    (folder / "eval_completions.jsonl").rename(folder / "eval_demo_test_completions.jsonl")
    (subject,), _ = load_subjects([folder])
    assert {(e.set_name, len(e.problems)) for e in subject.evaluations} == {("geo", 3), ("demo_test", 4)}


def test_what_a_run_is(tmp_path: Path) -> None:
    (run,), _ = load_subjects([write_grpo_run(tmp_path / "run", num_steps=8)])
    assert (run.stage, run.trained, run.last_step, run.max_steps) == ("grpo", True, 8, 8)
    assert run.seconds == pytest.approx(1.8e9 + 32 - started_at(run.run))  # type: ignore[operator]
    (only,), _ = load_subjects([write_evaluation(tmp_path / "eval", 0.5)])
    assert (only.stage, only.trained, only.last_step) == ("grpo", False, None)
    sft = tmp_path / "sft"
    sft.mkdir()
    write_lines(sft / "metrics.jsonl", [{"step": 3, "loss": 1.0}])
    (plain,), _ = load_subjects([sft])
    assert (plain.stage, plain.trained, plain.last_step) == ("sft", True, 3)


def test_answers_leave_out_what_was_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    outcomes = ["matched", "mismatched", "unparsable", "timed_out", "gold_unparsable", None]
    write_lines(
        path,
        [
            completion(step=0, sample=n, record=0, right=False, length=10) | {"outcome": outcome}
            for n, outcome in enumerate(outcomes)
        ],
    )
    answers = read_answers(path)
    assert answers.right.tolist() == [True, False, False, False]
    assert answers.num_unjudged == 2


def test_records_of_two_data_sets_are_not_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    write_lines(
        path,
        [
            completion(step=0, sample=n, record=5, right=source == "a", length=10, source=source)
            for source in "ab"
            for n in range(4)
        ],
    )
    share = read_answers(path).accuracy()
    assert share is not None
    assert (share.num_samples, share.num_problems) == (8, 2)
    assert share.interval == wilson(0.5, share.effective) and share.effective < 2


@pytest.mark.parametrize("broken", ["eval_completions.jsonl", "completions.jsonl", "data_report.json", "run.json"])
def test_of_runs_that_were_found_a_broken_one_is_left_out(tmp_path: Path, broken: str) -> None:
    write_grpo_run(tmp_path / "good", num_steps=3)
    bad = write_grpo_run(tmp_path / "bad", num_steps=3)
    wrong = {"run.json": '{"plan": "none"}', "data_report.json": '{"demo_rl": {"kept": "x"}}'}
    (bad / broken).write_text(wrong.get(broken, '{"step": "x"}\n'))
    subjects, notes = load_subjects([tmp_path])
    assert [subject.name for subject in subjects] == ["good"]
    assert len(notes) == 1 and broken in notes[0] and "is left out" in notes[0]
    with pytest.raises(LcotError, match=broken):
        load_subjects([bad])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=3)
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()
    with pytest.raises(LcotError, match=r"run\.json cannot be read"):
        load_subjects([folder])


def test_a_file_that_goes_while_runs_are_put_in_order(tmp_path: Path) -> None:
    """progress.json.tmp is there for a moment."""
    write_evaluation(tmp_path / "runs" / "a", 0.5)
    write_evaluation(tmp_path / "runs" / "b", 0.5)
    (tmp_path / "runs" / "a" / "progress.json.tmp").symlink_to(tmp_path / "gone")
    subjects, notes = load_subjects([tmp_path / "runs"])
    assert len(subjects) == 2 and notes == []


def test_secrets_in_what_the_data_and_the_alarms_say_are_masked(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=3)
    error = "no answer of https://me:hunter2@host/set"
    (folder / "data_report.json").write_text(json.dumps({"demo_rl": {"error": error}}))
    write_lines(folder / "alarms.jsonl", [{"step": 1, "name": "x", "message": error}])
    ((subject,), _) = load_subjects([folder])
    assert "hunter2" not in f"{subject.run.data_report} {subject.run.alarms}"


def test_a_run_without_a_start_is_timed_by_its_logs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", metrics(11))
    (subject,), _ = load_subjects([folder])
    assert subject.seconds == pytest.approx(40.0)
