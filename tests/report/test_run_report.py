"""One file of any run there may be: whole, running, killed, SFT, evaluation, old, several, none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_folders import (
    completion,
    evaluation,
    metrics,
    record,
    training,
    write_evaluation,
    write_grpo_run,
    write_lines,
    write_picture,
)

from lcot_plugin.errors import ArgumentError, DataError, LcotError
from lcot_plugin.report import run_report
from lcot_plugin.report.run_report import MAX_BYTES, write_report
from lcot_plugin.report.sections import rollouts

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Checker(HTMLParser):
    """Collects what a page loads and links to, and sees that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(dict(attrs))

    def _note(self, found: dict[str, str | None]) -> None:
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.loads += [found["src"] or ""] if "src" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def check(path: Path) -> Checker:
    """Reads a report; its tags close, ids are unique, links lead somewhere, and nothing is loaded from elsewhere."""
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert all(link.startswith("#") and link[1:] in checker.ids for link in checker.links), checker.links
    assert all(source.startswith("data:image/") for source in checker.loads)
    return checker


def report(*folders: Path, out: Path | None = None, **keys: object) -> tuple[Checker, str]:
    """The checked page and its words."""
    written = write_report(folders, out, **keys)  # type: ignore[arg-type]
    checker = check(written.path)
    assert written.num_bytes == written.path.stat().st_size < MAX_BYTES
    return checker, re.sub(r"\s+", " ", " ".join(checker.text))


def test_a_whole_run(tmp_path: Path) -> None:
    checker, words = report(write_grpo_run(tmp_path / "grpo"))
    assert "Accuracy rose from" in words and "McNemar's exact test" in words
    assert {"result", "curves", "alarms", "data", "lengths", "rollouts", "configuration"} <= set(checker.ids)
    assert "entropy is 0.01 nats & falls." in words and "Try grpo_beta: 0.01." in words
    assert "longer than cutoff_len" in words and "record 7: 600 tokens, cutoff_len 512" in words
    assert "Also logged, not drawn: my_own_number." in words
    assert "learning_rate" in words and "hub_token" in words and "transformers" in words
    assert checker.loads, "pictures are embedded"
    for kind in ("Best", "Worst", "Most varied", "Newest"):
        assert f"{kind} " in words


def test_every_colour_has_a_value_on_light_and_on_dark_ground(tmp_path: Path) -> None:
    write_grpo_run(tmp_path / "run", num_steps=8)
    write_report([tmp_path / "run"])
    text = (tmp_path / "run" / "report.html").read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark = re.findall(r":root \{([^}]*)\}", style)[:2]
    used = set(re.findall(r"var\((--(?:chart-\d|before|after|good|bad|ink|soft|paper|card|line|warn)[\w-]*)\)", text))
    assert used and used <= set(re.findall(r"(--[\w-]+):", light)) & set(re.findall(r"(--[\w-]+):", dark))


def test_the_figures_are_those_of_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "grpo"
    folder.mkdir()
    lines = [
        completion(step=step, sample="greedy", record=n, right=n < right, length=10)
        for step, right in ((0, 81), (9, 173))
        for n in range(263)
    ]
    write_lines(folder / "eval_completions.jsonl", lines)
    _, words = report(folder)
    assert "Accuracy rose from 30.8% to 65.8%" in words
    assert "[25.5, 36.6] of 263 problems" in words  # Newcombe's published limits of 81 of 263
    assert "of the 263 problems asked both times, 92 became right and 0 became wrong" in words


def test_secrets_in_a_record_are_not_shown(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=4, hub_token="hf_abcdefghijklmnopqrst", api_key="open sesame")
    _, words = report(folder)
    assert "hf_abc" not in words and "sesame" not in words
    assert "hub_token ***" in words


def test_no_difference_beyond_chance_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "eval_completions.jsonl", [*evaluation(step=0, rate=0.5), *evaluation(step=5, rate=0.5)])
    _, words = report(folder)
    assert "no difference beyond chance" in words or "is the same" in words


def test_an_evaluation_that_goes_on_is_compared_over_what_it_has(tmp_path: Path) -> None:
    """The shares are those of the problems that both were asked, and differ by the difference that is told."""
    folder = tmp_path / "run"
    folder.mkdir()
    before = [completion(step=0, sample="greedy", record=n, right=n >= 60, length=9) for n in range(100)]
    after = [completion(step=5, sample="greedy", record=n, right=n >= 30, length=9) for n in range(60)]
    just_begun = [completion(step=9, sample="greedy", record=0, right=True, length=9)]
    write_lines(folder / "eval_completions.jsonl", [*before, *after, *just_begun])
    _, words = report(folder)
    assert "Accuracy rose from 0.0% to 50.0%" in words and "+50.0 points" in words
    assert "40 problems that only one was asked left out" in words
    assert re.search(r"run 9 1 100\.0%", words), "the table has every evaluation"


def test_another_run_may_have_been_asked_fewer_problems(tmp_path: Path) -> None:
    """Evaluations of a training on all problems, and of what it made on the first of them (`max_samples`)."""
    whole, few = tmp_path / "a", tmp_path / "b"
    lines = [completion(step=0, sample="greedy", record=n, right=n < 6, length=9) for n in range(100)]
    asked = [completion(step=0, sample="greedy", record=n, right=n < 18, length=9) for n in range(20)]
    for folder, written in ((whole, lines), (few, asked)):
        folder.mkdir()
        write_lines(folder / "eval_completions.jsonl", written)
    _, words = report(whole, few)
    assert "Accuracy rose from 30.0% (a) to 90.0% (b)" in words
    assert "80 problems that only one was asked left out" in words
    assert "One evaluation" not in words


def test_grpo_without_completions_is_told_by_its_reward(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record()))
    write_lines(folder / "metrics.jsonl", [{"step": s, "loss": 0.0, "reward": s / 10} for s in range(1, 9)])
    _, words = report(folder)
    assert "Mean reward of the rollouts went from 0.1 to 0.8" in words and "Training loss" not in words


def test_training_alone_is_told_by_its_rollouts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "completions.jsonl", training(40))
    _, words = report(folder)
    assert "Accuracy of the rollouts rose from" in words
    assert "Nothing was evaluated on held-out problems" in words
    other = tmp_path / "other"
    other.mkdir()
    write_lines(other / "completions.jsonl", training(1))
    _, words = report(folder, other, out=tmp_path / "r.html")
    assert "run: Accuracy of the rollouts rose from" in words
    assert re.search(r"other: [\d.]+% of the completions are right so far", words)


def test_an_evaluation_folder(tmp_path: Path) -> None:
    checker, words = report(write_evaluation(tmp_path / "eval", 0.5, num_samples=2))
    assert "Accuracy is" in words and "One evaluation: that says nothing of before and after." in words
    assert "curves" not in checker.ids
    assert "The picture is not where the run found it." in words


def test_an_sft_run(tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(stage="sft")))
    write_lines(folder / "metrics.jsonl", [{"step": s, "epoch": s / 10, "loss": 2.0 / s} for s in range(1, 20)])
    _, words = report(folder)
    assert "Training loss went from 2 to 0.105" in words
    assert "rollouts" not in words.lower()


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    logs = [{"current_steps": s, "total_steps": 9, "loss": 1.0 / s, "lr": 1e-4, "epoch": 0.1} for s in range(1, 9)]
    write_lines(folder / "trainer_log.jsonl", logs)
    _, words = report(folder)
    assert "Learning rate" in words
    assert "This run kept no run.json" in words


@pytest.mark.parametrize("cut", ["metrics.jsonl", "completions.jsonl", "eval_completions.jsonl", "alarms.jsonl"])
def test_a_killed_run(tmp_path: Path, cut: str) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=12)
    with (folder / cut).open("rb+") as file:
        file.truncate((folder / cut).stat().st_size - 9)
    progress = {"state": "running", "step": 7, "max_steps": 12, "pid": 2**22 + 1}
    (folder / "progress.json").write_text(json.dumps(progress))
    _, words = report(folder)
    assert "killed" in words


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=4)
    said = {"state": "failed", "step": 4, "message": "ValueError: <b>no</b> answer of http://me:hunter2@host"}
    (folder / "progress.json").write_text(json.dumps(said))
    _, words = report(folder)
    assert "failed. ValueError: <b>no</b> answer of http://***@host" in words and "hunter2" not in words
    _, words = report(folder, write_evaluation(tmp_path / "eval", 0.5), out=tmp_path / "r.html")
    assert "run: failed. ValueError" in words


def test_a_running_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record()))
    state = {"state": "running", "step": 0, "max_steps": 500, "pid": os.getpid()}
    (folder / "progress.json").write_text(json.dumps(state))
    _, words = report(folder)
    assert "This run has not logged any result yet" in words and "running" in words
    write_lines(folder / "metrics.jsonl", metrics(3))
    write_lines(folder / "completions.jsonl", training(1))
    _, words = report(folder)
    assert "of the completions are right so far" in words and "3 of 500" in words


def test_several_runs_are_compared(tmp_path: Path) -> None:
    first = write_grpo_run(tmp_path / "a" / "grpo", num_steps=12)
    second = write_grpo_run(tmp_path / "b" / "grpo", num_steps=12, seed=3, learning_rate=1e-5, grpo_beta=0.01)
    checker, words = report(first, second, out=tmp_path / "both.html", title="Two <runs>")
    assert "comparison" in checker.ids and words.strip().startswith("Two <runs>")
    assert "a/grpo" in words and "b/grpo" in words
    assert "paired, 60" in words
    assert re.search(r"learning_rate 0.0002 1e-05", words) and re.search(r"grpo_beta - 0.01", words)
    assert "further arguments, versions and hardware among them, equal in all" in words


def test_stages_in_a_row_are_before_and_after(tmp_path: Path) -> None:
    for name, rate in (("base_eval", 0.2), ("sft_eval", 0.5), ("grpo_eval", 0.95)):
        write_evaluation(tmp_path / name, rate)
    _, words = report(tmp_path / "base_eval", tmp_path / "sft_eval", tmp_path / "grpo_eval", out=tmp_path / "r.html")
    assert re.search(r"Accuracy rose from [\d.]+% \(base_eval\) to [\d.]+% \(grpo_eval\)", words)
    assert "data set base_eval grpo_eval difference" in words
    assert "all, sft_eval" in words, "what lies between is in the figure"
    assert "Curves of" not in words


def test_trainings_are_compared_with_trainings_of_their_stage(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "base_eval", 0.2)
    (tmp_path / "base_eval" / "run.json").write_text(json.dumps(record(arguments={"do_train": False})))
    for number, rate in ((1, 1e-4), (2, 1e-5)):
        write_grpo_run(tmp_path / f"grpo{number}", num_steps=8, learning_rate=rate)
    sft = tmp_path / "sft"
    sft.mkdir()
    (sft / "run.json").write_text(json.dumps(record(stage="sft", arguments={"cutoff_len": 99})))
    write_lines(sft / "metrics.jsonl", [{"step": s, "loss": 2.0 / s} for s in range(1, 9)])
    _, words = report(*sorted(tmp_path.iterdir()), out=tmp_path / "r.html")
    assert "Arguments that differ: grpo training key grpo1 grpo2 learning_rate 0.0001 1e-05" in words
    assert words.count("Arguments that differ") == 1
    assert "Curves over each other: grpo" in words and "Curves over each other: sft" not in words


def test_a_folder_of_runs_is_searched(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "saves" / "one", 0.3)
    write_grpo_run(tmp_path / "saves" / "deep" / "two", num_steps=6)
    (tmp_path / "saves" / "broken").mkdir()
    (tmp_path / "saves" / "broken" / "run.json").write_text("{")
    written = write_report([tmp_path / "saves"])
    assert written.path == tmp_path / "saves" / "report.html" and written.num_runs == 2
    (note,) = written.notes
    assert "broken" in note and "is left out" in note
    assert "is left out" in " ".join(check(written.path).text)


def test_more_runs_than_fit_are_said(tmp_path: Path) -> None:
    for number in range(14):
        write_evaluation(tmp_path / f"run{number:02}", 0.5, num_problems=3)
    written = write_report([tmp_path])
    assert written.num_runs == 12
    assert "holds 14 runs: the 12 that last wrote are shown, the other 2 are left out" in written.notes[0]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None, lambda path: path.write_text("a file")])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(DataError, match="nothing"):
        write_report([tmp_path / "nothing"])


def test_a_broken_run_that_was_named_is_an_error(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=4)
    (folder / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(LcotError, match=r"metrics\.jsonl, line 2"):
        write_report([folder])


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="max-rollouts"):
        write_report([write_evaluation(tmp_path / "e", 0.5)], max_rollouts=-1)
    with pytest.raises(ArgumentError, match="output_dir"):
        write_report([])
    (tmp_path / "file").write_text("")
    with pytest.raises(LcotError, match="cannot be written"):
        write_report([tmp_path / "e"], tmp_path / "file" / "report.html")


def test_what_a_model_wrote_is_text(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>\x1b[31m\x00\u202e\ud800"
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        completion(step=s, sample=n, record=0, right=bool(n), length=9) | {"completion": evil, "question": evil}
        for s in range(3)
        for n in range(4)
    ]
    for line in lines:
        line |= {"source": evil[:-1], "extracted": evil, "gold": evil, "images": [evil], "rewards": {evil[:-1]: 1.0}}
    with (folder / "completions.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    write_lines(folder / "metrics.jsonl", [{"step": 1, "loss": 1.0, f"rewards/{evil[:-1]}": 1.0}])
    write_lines(folder / "alarms.jsonl", [{"step": 1, "name": evil[:-1], "message": evil[:-1], "advice": evil[:-1]}])
    written = record(arguments={evil[:-1]: evil[:-1]}, model=evil[:-1])
    (folder / "run.json").write_text(json.dumps(written))
    checker, _ = report(folder, title=evil)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text and "\x1b" not in text and "\x00" not in text and "\u202e" not in text
    assert "onerror=alert(1)" in " ".join(checker.text)


def test_the_number_of_rollouts_is_the_users(tmp_path: Path) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=30)
    for wanted in (0, 3, 11):
        checker, _ = report(folder, max_rollouts=wanted)
        assert (folder / "report.html").read_text().count('class="rollout"') == wanted
        assert ("rollouts" in checker.ids) is (wanted > 0)


def test_pictures_and_texts_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=20)
    for number in range(8):
        write_picture(folder / "pictures" / f"{number}.png", "x" * 30, (1600, 900))
    monkeypatch.setattr(run_report, "PICTURE_BYTES", 500)
    monkeypatch.setattr(run_report, "ROLLOUT_BYTES", 60_000)
    checker, words = report(folder)
    assert sum(map(len, checker.loads)) <= 500
    assert re.search(r"\d+ groups had no room on this page", words)
    assert re.search(r"\d+ pictures had no room", words)


@pytest.mark.parametrize("num_bytes", [60_000, 150_000, 400_000, 1_200_000])
def test_the_page_has_a_bound_whatever_is_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Runs with a hundred data sets each, in metrics, in evaluations and in what the data says of itself."""
    frame = 40_000
    monkeypatch.setattr(run_report, "MAX_BYTES", num_bytes)
    monkeypatch.setattr(run_report, "FRAME_BYTES", frame)
    for name in ("one", "two"):
        folder = write_grpo_run(tmp_path / name, num_steps=6, num_generations=2)
        sets = [f"set{n}" for n in range(100)]
        many = {f"{metric}/{one}": 0.5 for metric in ("reward", "eval_accuracy", "verdicts") for one in sets}
        write_lines(folder / "metrics.jsonl", [{**entry, **many} for entry in metrics(6)])
        entry = json.loads((folder / "data_report.json").read_text())["demo_rl"]
        (folder / "data_report.json").write_text(json.dumps(dict.fromkeys(sets, entry)))
    written = write_report([tmp_path])
    words = re.sub(r"\s+", " ", " ".join(check(written.path).text))
    assert written.num_bytes <= num_bytes
    if num_bytes == 60_000:
        assert "This part would take" in words and "These curves would take" in words
    if num_bytes == 1_200_000:
        assert "no room" not in words.partition("Rollouts")[0], "there is room enough"


def test_no_more_groups_are_read_than_have_a_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_grpo_run(tmp_path / "run", num_steps=40)
    monkeypatch.setattr(run_report, "ROLLOUT_BYTES", 10)
    read: list[int] = []
    group = rollouts.CompletionsTable.group
    monkeypatch.setattr(rollouts.CompletionsTable, "group", lambda table, ref: read.append(1) or group(table, ref))
    _, words = report(folder, max_rollouts=150)
    assert "150 groups had no room on this page" in words
    assert len(read) <= 2 * rollouts.MAX_MISSES


def test_a_completion_of_a_megabyte_is_shortened(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = training(2)
    lines[0]["completion"] = "word " * 250_000
    write_lines(folder / "completions.jsonl", lines)
    report(folder)
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_groups_are_shown_once(tmp_path: Path) -> None:
    from lcot_plugin.report.completions_table import CompletionsTable

    folder = write_grpo_run(tmp_path / "run", num_steps=10)
    table = CompletionsTable.open(folder / "completions.jsonl", folder)
    found = [ref.offset for _, refs in rollouts.chosen(table, 25) for ref in refs]
    assert len(set(found)) == len(found) == 25
