"""`lcot reward`, in process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lcot_plugin import cli
from lcot_plugin.errors import ArgumentError
from lcot_plugin.rewards.command import timing
from lcot_plugin.rewards.command.reward_command import BATCH_SIZE, MAX_BAD_LINES_SHOWN
from lcot_plugin.rewards.command.score_lines import BadLine, LineKeys, ScoredLine, read_lines, request_of
from lcot_plugin.rewards.command.text_table import text_table
from lcot_plugin.rewards.command.timing import Timing
from lcot_plugin.types import ScoringRequest

GOOD = [
    {"completion": "<think>a</think>\\boxed{5}", "gold": 5, "id": 7},
    {"completion": "<answer>6</answer>", "gold": "5", "answer_type": "number"},
    {"completion": "I do not know", "gold": "5"},
    {"completion": [{"role": "assistant", "content": "\\boxed{B}"}], "gold": "B", "answer_type": "choice"},
    {"completion": "\\boxed{5}", "gold": None},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "completions.jsonl", GOOD)


def write(path: Path, lines: list[Any]) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def cells(text: str) -> Iterator[list[str]]:
    return (line.split() for line in text.splitlines())


def test_score_counts_outcomes_by_type_and_rewards(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["reward", "score", str(file), "--rewards", "accuracy,format_think_boxed", "--weights", "2", "1"]) == 0
    )
    rows = list(cells(capsys.readouterr().out))
    assert ["number", "3", "1", "1", "1", "0", "0", "0", "33.3"] in rows
    assert ["choice", "1", "1", "0", "0", "0", "0", "0", "100.0"] in rows
    assert ["all", "5", "2", "1", "1", "0", "0", "1", "40.0"] in rows
    assert ["accuracy", "0.5000", "0.0000", "1.0000", "4", "1"] in rows
    assert ["format_think_boxed", "0.2000", "0.0000", "1.0000", "5", "0"] in rows
    assert ["weighted", "sum", "1.0000", "0.0000", "3.0000", "5", "0"] in rows


def test_score_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*GOOD[:1], "nonsense", "", "[1]", {"gold": "5"}, *GOOD[1:2] * (BATCH_SIZE + 3), "[" * 100_000]
    path, out = write(tmp_path / "mixed.jsonl", lines), tmp_path / "out.jsonl"
    assert cli.main(["reward", "score", str(path), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    for number, fault in ((2, "it is not JSON"), (4, "it holds list"), (5, "it has no key 'completion'")):
        assert f"{path}:{number}: {fault}" in captured.err
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(written) == len(lines) - 1  # the blank one
    assert written[0] == {
        **GOOD[0],
        "extracted": "5",
        "outcome": "matched",
        "judged_as": "number",
        "rewards": {"accuracy": 1.0},
        "reward": 1.0,
    }
    assert written[1]["line"] == 2 and written[1]["text"] == "nonsense"
    assert [line["outcome"] for line in written[4:-1]] == ["mismatched"] * (BATCH_SIZE + 3)
    assert written[-1]["line"] == len(lines)


def test_score_names_so_many_bad_lines_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bad.jsonl", ["nonsense"] * (MAX_BAD_LINES_SHOWN + 5))
    assert cli.main(["reward", "score", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("it is not JSON") == MAX_BAD_LINES_SHOWN
    assert "5 more such lines" in captured.err
    assert "no line could be judged" in captured.out


def test_score_may_write_over_its_file(file: Path) -> None:
    assert cli.main(["reward", "score", str(file), "--out", str(file)]) == 0
    assert [json.loads(line)["outcome"] for line in file.read_text(encoding="utf-8").splitlines()][:2] == [
        "matched",
        "mismatched",
    ]
    assert not list(file.parent.glob("*.partial"))


def test_score_reports_a_reward_that_raises(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text("def broken(completion, **kwargs):\n    return 1 / (len(completion) - 13)\n")
    command = ["reward", "score", str(file), "--rewards", f"{tmp_path / 'own.py'}:broken"]
    assert cli.main(command) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert cli.main([*command, "--skip-errors"]) == 0
    assert "reward_errors/broken: 1" in capsys.readouterr().out


def test_other_keys_and_settings_of_a_line() -> None:
    keys = LineKeys(prediction="out.text", gold="reward_model.ground_truth", match="settings")
    values = {
        "out": {"text": "5"},
        "reward_model": {"ground_truth": [1, 2]},
        "settings": '{"relative_tolerance": 0.1, "aliases": ["6"]}',
        "options": ["a", "b"],
        "num_tokens": 3,
        "ending": "truncated",
        "source": "geo",
        "record": 4,
    }
    request = request_of(values, keys, source="file", record=1)
    assert (request.completion, request.gold, request.ending) == ("5", "[1, 2]", "truncated")
    assert (request.source, request.record, len(request.completion_ids)) == ("geo", 4, 3)
    assert (request.settings.relative_tolerance, request.settings.aliases) == (0.1, ("6",))
    assert request.settings.options == ("a", "b")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"gold": "5"}, "has no key 'completion'"),
        ({"completion": "5"}, "has no key 'gold'"),
        ({"completion": 5, "gold": "5"}, "its completion is 5"),
        ({"completion": "5", "gold": "5", "answer_type": "colour"}, "'colour' is unknown"),
        ({"completion": "5", "gold": "5", "match": [1]}, "write an object"),
        ({"completion": "5", "gold": "5", "match": {"tolerance": 1}}, "no setting of a comparison is called tolerance"),
        ({"completion": "5", "gold": "5", "match": {"min_iou": 7}}, "min_iou is 7"),
    ],
)
def test_a_line_that_cannot_be_judged_says_why(values: dict[str, Any], fault: str, tmp_path: Path) -> None:
    (line,) = read_lines(write(tmp_path / "one.jsonl", [values]), LineKeys())
    assert isinstance(line, BadLine) and fault in line.fault


def test_a_line_that_is_no_utf8_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"completion": "5", "gold": "5"}\n\xff\xfe\n{"completion": "5", "gold": "5"}\r\n')
    assert [type(line) for line in read_lines(path, LineKeys())] == [ScoredLine, BadLine, ScoredLine]


def test_explain_tells_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reward", "explain", "<think>Maybe 5 cm.</think>So \\boxed{5 m}", "5 cm", "--aliases", "5 km"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    for step in (
        "of which 26 are the thought, which is not searched",
        "answer found in: boxed (looked for before, and not found: answer tag)",
        "answer as written: '5 m'",
        "gold answer: '5 cm', read as number (inferred from it)",
        "answer: '5 m', read as number",
        "compared in this process: mismatched",
        "alias: '5 km', read as number",
        "settings: aliases=('5 km',)",
        "outcome: mismatched",
        " ms",
    ):
        assert step in text
    assert "worker" not in text


def test_explain_says_when_a_worker_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "explain", r"\boxed{2\sin x\cos x}", r"\sin(2x)"]) == 0
    text = capsys.readouterr().out
    assert "solver in a worker process" in text
    assert "outcome: matched" in text


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["B", "B"], ["written alike", "outcome: matched"]),
        (["<think>5", "5"], ["nothing stands outside the thought", "no answer found", "outcome: unparsable"]),
        (["<think>5", "5", "--include-thought"], ["searched too", "outcome: matched"]),
        (["12", "no number", "--type", "number"], ["cannot be read as an answer of type number", "gold_unparsable"]),
        (["102", "100", "--relative-tolerance", "0.05"], ["relative_tolerance=0.05", "outcome: matched"]),
        (["--", "-5", "5"], ["answer as written: '-5'", "outcome: mismatched"]),
    ],
)
def test_explain_in_other_cases(arguments: list[str], steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "explain", *arguments]) == 0
    text = capsys.readouterr().out
    assert all(step in text for step in steps), text


def test_explain_a_line_of_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "explain", str(file), "--line", "4"]) == 0
    assert "read as choice (as told)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "5"], "Give a gold answer too"),
        (["explain", "FILE", "--line", "9"], "has no line 9"),
        (["explain", "FILE", "5", "--line", "1"], "everything comes from the file"),
        (["explain", "5", "5", "--type", "colour"], "'colour' is unknown"),
        (["explain", "5", "5", "--min-iou", "7"], "min_iou is 7"),
        (["score", "missing.jsonl"], "There is no file missing.jsonl"),
        (["score", "FILE", "--rewards", "acuracy"], "did you mean 'accuracy'?"),
        (["score", "FILE", "--weights", "1", "2"], "2 reward weights for 1"),
        (["score", "FILE", "--out", "missing/out.jsonl"], "there is no folder"),
        (["time", "missing.jsonl"], "There is no file missing.jsonl"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reward", *(str(file) if part == "FILE" else part for part in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("lcot reward: error: ") and message in captured.err


def test_time_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(
        timing, "_latencies", lambda verifier, requests: [0.001 * (i + 1) for i in range(len(requests))]
    )
    path = write(tmp_path / "pairs.jsonl", [{"completion": f"\\boxed{{{i}}}", "gold": "5"} for i in range(10)])
    monkeypatch.setattr(timing, "needs_worker", lambda request: request.completion == "\\boxed{3}")
    assert cli.main(["reward", "time", str(path), "--limit", "7"]) == 0
    rows = {row[0] + row[1]: row for row in cells(capsys.readouterr().out) if row}
    assert rows["inworkers"][2] == "1"


def test_percentiles() -> None:
    entry = Timing("in process", 4, 2.0, (0.1, 0.2, 0.3, 0.4))
    assert entry.per_second == 2.0
    assert [entry.percentile(percent) for percent in (0, 50, 99, 100)] == [0.1, 0.3, 0.4, 0.4]


def test_the_built_in_examples_are_of_both_kinds() -> None:
    needs = [timing.needs_worker(request) for request in timing.examples()]
    assert sum(needs) >= 50 and not all(needs)
    assert not timing.needs_worker(ScoringRequest("I do not know", "5"))


def test_list_names_every_reward(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "list"]) == 0
    text = capsys.readouterr().out
    assert "\naccuracy" in f"\n{text}" and "soft_overlong(max_length" in text


def test_a_table_aligns_its_columns() -> None:
    assert text_table([["a", "b"], ["long", "1"], ["x", "22"]]) == "a      b\nlong   1\nx     22"
    assert text_table([]) == ""


def test_reading_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="There is no file"):
        list(read_lines(tmp_path / "none.jsonl", LineKeys()))


def test_a_group_is_not_cut_where_a_batch_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups of three do not fill a batch; `length` gives the shortest of each 0.5."""
    lines = [
        {"completion": "\\boxed{5}", "gold": "5", "source": "s", "record": record, "num_tokens": 10 * sample}
        for record in range(BATCH_SIZE // 3 + 2)
        for sample in (1, 2, 3)
    ]
    out = tmp_path / "scored.jsonl"
    file = write(tmp_path / "groups.jsonl", lines)
    assert cli.main(["reward", "score", str(file), "--rewards", "length", "--out", str(out)]) == 0
    rewards = [json.loads(line)["rewards"]["length"] for line in out.read_text().splitlines()]
    assert rewards == [0.5, 0.0, -0.5] * (len(lines) // 3)


@pytest.mark.parametrize("values", [{"ending": ["x"]}, {"num_tokens": 10**13}, {"num_tokens": -1}])
def test_an_odd_value_is_that_lines_fault(tmp_path: Path, values: dict[str, Any]) -> None:
    file = write(tmp_path / "odd.jsonl", [GOOD[0] | values, GOOD[0]])
    read = list(read_lines(file, LineKeys()))
    assert isinstance(read[0], ScoredLine if "ending" in values else BadLine) and isinstance(read[1], ScoredLine)
