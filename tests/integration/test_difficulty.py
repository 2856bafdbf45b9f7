"""`lcot data difficulty`: every record keeps what it had and gets its pass rate; a killed run goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from data.public_sets import PUBLIC_SETS
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.cli import build_parser
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.difficulty import difficulty, locked
from lcot_plugin.rewards import Scorer
from lcot_plugin.types import Outcome, Score, ScoringRequest, Verdict

UNREADABLE = "a gold answer that the verifier cannot read"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[ScoringRequest]:
    """Every second completion is right, by its length: a random model would always be wrong. Lists what was judged."""
    seen: list[ScoringRequest] = []

    def score(self: Scorer, requests: Sequence[ScoringRequest]) -> list[Score]:
        seen.extend(requests)
        outcomes = [
            Outcome.GOLD_UNPARSABLE
            if request.gold == UNREADABLE
            else Outcome.MATCHED
            if sum(request.completion_ids) % 2
            else Outcome.MISMATCHED
            for request in requests
        ]
        return [Score({}, None, Verdict(outcome)) for outcome in outcomes]

    monkeypatch.setattr(Scorer, "score", score)
    return seen


@pytest.fixture
def recipe(tmp_path: Path, twin: Callable[[str], Path]) -> Path:
    """Five problems, two without and one with two pictures, for a tiny Qwen2.5-VL."""
    write_problems(tmp_path, 5, num_text_only=2, num_two_images=1)
    path = tmp_path / "eval.yaml"
    keys = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_eval": True,
        "eval_dataset": "problems",
        "dataset_dir": str(tmp_path),
        "cutoff_len": 512,
        "max_new_tokens": 4,
        "per_device_eval_batch_size": 2,
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
        "use_cpu": True,
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spoil(folder: Path, record: int, **fields: Any) -> None:
    path = folder / "problems.json"
    records = json.loads(path.read_text())
    records[record] |= fields
    path.write_text(json.dumps(records))


def test_records_are_as_they_were_and_have_their_pass_rate(
    recipe: Path, tmp_path: Path, judged: list[ScoringRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, 1, answer=UNREADABLE)
    spoil(tmp_path, 3, answer=" ")
    spoil(tmp_path, 4, difficulty=3)
    assert difficulty(str(recipe), rollouts=3, thresholds=(0.4, 0.8)) == 0
    out = tmp_path / "run" / "difficulty"
    written = records_of(out / "problems.jsonl")
    names = ("lcot_pass_rate", "lcot_num_rollouts", "lcot_difficulty")  # the set has a column `difficulty`
    assert [{k: v for k, v in record.items() if k not in names} for record in written] == json.loads(
        (tmp_path / "problems.json").read_text()
    )
    assert [record["lcot_num_rollouts"] for record in written] == [3, 0, 3, 0, 3]
    for number in (0, 2, 4):
        own = [request for request in judged if request.record == number]
        rate = sum(sum(request.completion_ids) % 2 for request in own) / 3
        assert len(own) == 3
        assert written[number]["lcot_pass_rate"] == pytest.approx(rate)
        assert written[number]["lcot_difficulty"] == ("hard" if rate <= 0.4 else "medium" if rate <= 0.8 else "easy")
    assert [written[number]["lcot_pass_rate"] for number in (1, 3)] == [None, None]

    info = json.loads((out / "dataset_info.json").read_text())
    columns = json.loads((tmp_path / "dataset_info.json").read_text())["problems"]["columns"]
    assert {entry["file_name"]: entry["columns"] for entry in info.values()} == {
        path.name: columns for path in out.glob("problems*.jsonl")
    }
    parts = {name: records_of(out / info[name]["file_name"]) for name in info}
    by_kind = [record for name, part in parts.items() if name.endswith(("easy", "medium", "hard")) for record in part]
    assert sorted(map(json.dumps, by_kind)) == sorted(json.dumps(written[number]) for number in (0, 2, 4))
    learnable = [written[number] for number in (0, 2, 4) if 0 < written[number]["lcot_pass_rate"] < 1]
    assert parts.get("problems_learnable", []) == learnable
    assert (out / "difficulty.png").exists()
    assert json.loads((out / "difficulty.json").read_text())["problems"]["no_usable_gold"] == 2
    printed = capsys.readouterr().out
    assert re.search(r"no gold answer: dropped +2  record ", printed)
    assert max(map(len, printed.splitlines())) < 300

    judged.clear()
    again = ["dataset=problems", f"dataset_dir={out}", f"media_dir={tmp_path}", f"output_dir={tmp_path / 'again'}"]
    difficulty(str(recipe), again, rollouts=1)
    assert {request.record for request in judged} == {0, 1, 2, 4}, "the written sets load again"


def judge_by_record(monkeypatch: pytest.MonkeyPatch, num_right: dict[int, int]) -> None:
    """Record -> how many of its completions are right; the others state no answer."""

    def score(self: Scorer, requests: Sequence[ScoringRequest]) -> list[Score]:
        left = dict(num_right)
        scores = []
        for request in requests:
            outcome = Outcome.MATCHED if left[request.record] > 0 else Outcome.UNPARSABLE
            left[request.record] -= 1
            scores.append(Score({}, None, Verdict(outcome)))
        return scores

    monkeypatch.setattr(Scorer, "score", score)


def test_records_that_grpo_learns_from_are_recommended(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_by_record(monkeypatch, {0: 0, 1: 1, 2: 1, 3: 2, 4: 0})
    difficulty(str(recipe), rollouts=2, thresholds=(0.5, 0.75))
    out = tmp_path / "run" / "difficulty"
    assert [record["pass_rate"] for record in records_of(out / "problems_learnable.jsonl")] == [0.5, 0.5]
    assert [record["pass_rate"] for record in records_of(out / "problems_hard.jsonl")] == [0.0, 0.5, 0.5, 0.0]
    printed = capsys.readouterr().out.splitlines()
    assert "dataset: problems_learnable" in printed
    assert any(line.startswith("problems: 60% of the rollouts state no answer that can be read") for line in printed)


def test_nothing_is_recommended_where_nothing_is_learnable(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_by_record(monkeypatch, dict.fromkeys(range(5), 0))
    difficulty(str(recipe), rollouts=1)
    assert not (tmp_path / "run" / "difficulty" / "problems_learnable.jsonl").exists()
    printed = capsys.readouterr().out
    assert "No record has a pass rate above 0 and below 1" in printed
    assert "dataset:" not in printed


def test_sets_measured_one_after_another_stand_side_by_side(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "dataset_info.json"
    entry = json.loads(known.read_text())["problems"]
    known.write_text(json.dumps({"problems": entry, "again": entry}))
    out = tmp_path / "out"

    def measured(name: str, num_right: int) -> set[str]:
        judge_by_record(monkeypatch, dict.fromkeys(range(5), num_right))
        (out / "rollouts.jsonl").unlink(missing_ok=True)
        difficulty(str(recipe), datasets=name, out=out, rollouts=2)
        return set(json.loads((out / "dataset_info.json").read_text()))

    first = measured("problems", num_right=1)
    assert first == {"problems", "problems_medium", "problems_learnable"}
    assert measured("again", num_right=0) == first | {"again", "again_hard"}
    assert json.loads((out / "difficulty.json").read_text()).keys() == {"problems", "again"}
    assert measured("problems", num_right=2) == {"problems", "problems_easy", "again", "again_hard"}


def test_the_data_sets_own_folder_is_not_written_to(recipe: Path, tmp_path: Path) -> None:
    before = (tmp_path / "dataset_info.json").read_bytes()
    with pytest.raises(ArgumentError, match="write to another folder with --out"):
        difficulty(str(recipe), out=tmp_path)
    assert (tmp_path / "dataset_info.json").read_bytes() == before


def test_a_killed_run_goes_on(
    recipe: Path, tmp_path: Path, judged: list[ScoringRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    difficulty(str(recipe), rollouts=2)
    log, result = (tmp_path / "run" / "difficulty" / name for name in ("rollouts.jsonl", "problems.jsonl"))
    lines, rates = log.read_bytes().splitlines(keepends=True), result.read_text()
    assert len(lines) == 5
    log.write_bytes(b"".join(lines[:2]) + lines[2][:30])
    judged.clear()
    capsys.readouterr()
    difficulty(str(recipe), rollouts=2)
    assert f"4 rollouts, those of 2 of 5 records, are reused from {log}" in capsys.readouterr().out
    assert [request.record for request in judged] == [2, 2, 3, 3, 4, 4]
    assert log.read_bytes().splitlines(keepends=True) == lines
    assert result.read_text() == rates


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"spoil": {"answer": "17"}}, [3]),
        ({"overrides": ["temperature=0.5"]}, [0, 1, 2, 3, 4]),
        ({"overrides": ["seed=7"]}, [0, 1, 2, 3, 4]),
    ],
)
def test_what_changed_is_measured_again(
    recipe: Path, tmp_path: Path, judged: list[ScoringRequest], change: dict[str, Any], expected: list[int]
) -> None:
    difficulty(str(recipe), rollouts=1)
    judged.clear()
    spoil(tmp_path, 3, **change.get("spoil", {}))
    difficulty(str(recipe), change.get("overrides", []), rollouts=1)
    assert [request.record for request in judged] == expected


def test_a_picture_that_does_not_decode_is_left_out(
    recipe: Path, tmp_path: Path, judged: list[ScoringRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "problems_3_0.png"
    picture.write_bytes(picture.read_bytes()[:200])  # its header is whole
    difficulty(str(recipe), rollouts=1)
    assert [request.record for request in judged] == [0, 1, 2, 4]
    assert re.search(r"broken image: dropped +1  record 3: ", capsys.readouterr().out)
    summary = json.loads((tmp_path / "run" / "difficulty" / "difficulty.json").read_text())
    assert summary["problems"]["left_out"] == 1


def test_a_line_that_is_no_json_keeps_its_number(recipe: Path, tmp_path: Path, judged: list[ScoringRequest]) -> None:
    lines = [json.dumps({"problem": f"{n} + 1?", "answer": n + 1}) for n in range(3)]
    (tmp_path / "lines.jsonl").write_text("\n".join([lines[0], '{"problem": "2 +', *lines[1:]]))
    info = {"lines": {"file_name": "lines.jsonl", "formatting": "lcot_problem"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    out = tmp_path / "out"
    difficulty(str(recipe), ["eval_dataset=lines"], rollouts=2, out=out)
    written = records_of(out / "lines.jsonl")
    assert [record["answer"] for record in written] == [1, 2, 3]
    measured = {(request.record, request.gold) for request in judged}
    assert measured == {(0, "1"), (2, "2"), (3, "3")}
    assert all(record["num_rollouts"] == 2 for record in written)


def test_parquet_keeps_its_pictures(recipe: Path, tmp_path: Path, judged: list[ScoringRequest]) -> None:
    from pyarrow import parquet

    public = PUBLIC_SETS["geometry3k"]
    entry = public.write(tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"geometry": {**entry, "num_samples": 1}}))
    out = tmp_path / "out"
    difficulty(str(recipe), ["max_samples=1"], datasets="geometry", out=out, rollouts=1)
    assert [request.record for request in judged] == [0], "`num_samples` would have drawn one at random"

    before, after = parquet.read_table(tmp_path / public.file), parquet.read_table(out / "geometry.parquet")
    assert after.select(before.column_names).equals(before)
    assert [value is None for value in after["pass_rate"].to_pylist()] == [False, True]
    features = {
        key: json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        for key, table in (("before", before), ("after", after))
    }
    assert features["before"].items() <= features["after"].items()
    assert json.loads((out / "dataset_info.json").read_text())["geometry"] == {**entry, "file_name": "geometry.parquet"}


def test_one_process_writes_to_a_folder(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(ArgumentError, match="Another process is measuring into"):
        difficulty(str(recipe), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=sft"], "knows no verifiable answers"),
        (["eval_dataset=null"], "names neither `dataset` nor `eval_dataset`"),
    ],
)
def test_recipes_that_cannot_be_measured(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        difficulty(str(recipe), overrides)


def test_command_line() -> None:
    line = ["data", "difficulty", "eval.yaml", "max_samples=4", "--rollouts", "4", "--thresholds", "0.1", "0.9"]
    arguments = build_parser().parse_args(line)
    assert (arguments.rollouts, arguments.thresholds, arguments.overrides) == (4, [0.1, 0.9], ["max_samples=4"])
