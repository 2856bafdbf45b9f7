"""The rollout viewer's tab: pages, filters, and what is said when there is nothing to show."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcot_plugin.integration.board import viewer
from lcot_plugin.integration.board.process import BoardRun
from lcot_plugin.integration.board.viewer import FILTERS, PAGE, show
from lcot_plugin.report.completions_table import ORDERS
from lcot_plugin.report.run_log import RUN_FILE, write_json

OFFSET, COUNT, PAGE_HTML, PREVIOUS, NEXT, SOURCES, OUTCOMES, REWARDS = range(8)


def lines_of(step: int, record: int, rewards: list[float], **changed: Any) -> str:
    common = {
        **{"step": step, "source": "demo_rl", "record": record, "question": f"<img src=x> question {record}"},
        **{"images": [], "opening": "", "gold": "7", "answer_type": "number", "match": None},
        **{"ending": "stopped", "num_tokens": 5, "policy_step": step, "group": record, **changed},
    }
    written = []
    for sample, reward in enumerate(rewards):
        outcome = "matched" if reward > 0.5 else "mismatched"
        own = {
            **{"sample": sample, "completion": f"<think>because {record}</think> it is {sample}", "extracted": "7"},
            **{"outcome": outcome, "rewards": {"accuracy": reward}, "reward": reward, "advantage": 0.0},
        }
        written.append(json.dumps({**common, **own}))
    return "".join(f"{line}\n" for line in written)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "saves/m/full/a"
    folder.mkdir(parents=True)
    plan = {"rewards": ["accuracy"], "reward_weights": [2.0]}
    write_json(folder / RUN_FILE, {"format": 1, "stage": "grpo", "arguments": {}, "plan": plan})
    with (folder / "completions.jsonl").open("w") as file:
        for step in range(1, 6):
            for record in range(10):
                file.write(lines_of(step, record, [1.0, 0.0] if step < 4 or record else [0.0, 0.0]))
    return folder


def page(
    run: Path | str, *, lang: str = "en", tokens: bool = False, offset: int = 0, file: str = "", **filters: Any
) -> Any:
    values = {name: filters.get(name.removeprefix("viewer_"), "") for name in FILTERS}
    return show(str(run), file, lang, tokens, offset, list(values.values()))


def test_the_first_page_and_the_next_ones(run: Path) -> None:
    found = page(run)
    assert "Groups 1 to 20 of 50 (100 completions)" in found[COUNT]
    assert found[PAGE_HTML].count('<details class="lcot-group"') == PAGE
    assert found[PAGE_HTML].count('<details class="lcot-group" open>') == 1
    assert (found[PREVIOUS].interactive, found[NEXT].interactive) == (False, True)
    last = page(run, offset=40)
    assert "Groups 41 to 50 of 50" in last[COUNT]
    assert (last[PREVIOUS].interactive, last[NEXT].interactive) == (True, False)


def test_what_a_model_and_a_data_set_wrote_is_text(run: Path) -> None:
    found = page(run)[PAGE_HTML]
    assert "<img src=x>" not in found and "&lt;img src=x&gt;" in found
    assert "<think>" not in found


def test_filters(run: Path) -> None:
    assert "Groups 1 to 10 of 10" in page(run, first_step="2", last_step="2")[COUNT]
    assert "of 48 " in page(run, outcome="matched")[COUNT]
    assert "Nothing fits" in page(run, text="no such words")[COUNT]
    assert "of 5 " in page(run, text="because 7")[COUNT]
    assert "of 48 " in page(run, min_reward="0,5", order="highest")[COUNT]
    worse = page(run, order="got_worse", since_step="4")
    assert "Groups 1 to 1 of 1" in worse[COUNT] and "→" in worse[PAGE_HTML]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lang", ["en", "ru", "zh", "ko", "ja"])
def test_every_order_in_every_language(run: Path, order: str, lang: str) -> None:
    found = page(run, order=order, lang=lang)
    assert "alert" not in found[COUNT]
    assert "lcot-completion" in found[PAGE_HTML]


def test_lists_hold_what_the_file_holds(run: Path) -> None:
    found = page(run, lang="en")
    assert [value for _, value in found[SOURCES].choices] == ["", "demo_rl"]
    assert {value for _, value in found[OUTCOMES].choices} == {"", "matched", "mismatched"}
    assert [value for _, value in found[REWARDS].choices] == ["", "accuracy"]


def test_a_filter_that_another_file_does_not_know_is_left_out(run: Path) -> None:
    assert "of 50 " in page(run, source="other_set", reward="other_reward", outcome="timed_out")[COUNT]


def test_what_is_no_number_is_told(run: Path) -> None:
    found = page(run, lang="en", first_step="two <b>")
    assert "From step: two &lt;b&gt; is no number" in found[COUNT] and found[PAGE_HTML] == ""
    assert "不低于" in page(run, lang="zh", min_reward="nan")[COUNT]


def test_a_run_that_writes_on_is_read_on(run: Path) -> None:
    page(run)
    with (run / "completions.jsonl").open("a") as file:
        file.write(lines_of(6, 0, [1.0, 1.0]) + '{"step": 6, "sour')
    found = page(run)
    assert "of 51 " in found[COUNT]
    assert "step 6" in found[PAGE_HTML]


def test_a_long_file_is_read_on_in_the_background(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (run / "completions.jsonl").open("a") as file:
        for step in range(6, 600):
            file.write("".join(lines_of(step, record, [1.0, 0.0], padding="x" * 2000) for record in range(4)))
    monkeypatch.setattr(viewer, "OPEN_SECONDS", 0.0)
    first = page(run)
    assert "step 599" in first[PAGE_HTML]
    assert "% of the file is read so far" in first[COUNT]
    opened = viewer._open[run / "completions.jsonl"]
    assert opened.reader is not None
    opened.reader.join()
    found = page(run, order="oldest")
    assert f"of {50 + 594 * 4:,} " in found[COUNT] and "so far" not in found[COUNT]


def test_a_folder_without_completions_and_none(run: Path, tmp_path: Path) -> None:
    assert "holds no completions" in page(tmp_path)[COUNT]
    assert "Choose the folder" in page("")[COUNT]
    assert "holds no completions" in page(tmp_path / "nowhere")[COUNT]


def test_a_broken_line_is_named(run: Path) -> None:
    with (run / "completions.jsonl").open("a") as file:
        file.write("not json\n" + lines_of(7, 0, [1.0, 1.0]))
    assert "completions.jsonl" in page(run)[COUNT]


def test_evaluations_are_files_of_their_own(run: Path) -> None:
    (run / "eval_completions.jsonl").write_text(lines_of(5, 3, [1.0, 0.0]))
    assert [value for _, value in viewer.file_choices(str(run)).choices] == [
        "completions.jsonl",
        "eval_completions.jsonl",
    ]
    assert "of 1 " in page(run, file="eval_completions.jsonl")[COUNT]
    assert "of 50 " in page(run, file="gone.jsonl")[COUNT]
    assert viewer.folder_of(str(run / "completions.jsonl")) == run


def test_runs_are_found_and_the_board_s_own_comes_first(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "elsewhere"
    own.mkdir()
    (own / "completions.jsonl").write_text(lines_of(1, 1, [1.0]))
    (tmp_path / "saves/m/full/empty").mkdir()
    board_run = BoardRun(process=None, folder=own, lang="en", trains=True, arguments={})
    engine = SimpleNamespace(runner=SimpleNamespace(_lcot_run=board_run))
    assert viewer.run_choices(engine) == [str(own), "saves/m/full/a"]


def test_weights_and_coloured_tokens(run: Path) -> None:
    path = run / "completions.jsonl"
    assert viewer.open_file(path).weights == {"accuracy": 2.0}
    assert page(run, tokens=True)[PAGE_HTML].count('<details class="lcot-group"') == viewer.COLOURED_PAGE
    (run / RUN_FILE).write_text("{")
    viewer._open.clear()
    assert viewer.open_file(path).weights == {}


@pytest.mark.parametrize("written", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "\ud800"])
def test_what_cannot_be_a_folder_is_told(run: Path, written: str) -> None:
    assert viewer.file_choices(written).choices == []
    found = page(written)
    assert 'role="alert"' in found[COUNT] and found[PAGE_HTML] == ""


@pytest.mark.parametrize("record", [{"arguments": [1], "plan": 3}, [], {"arguments": None, "plan": {"rewards": 1}}])
def test_a_record_that_is_none_hides_no_completions(run: Path, record: Any) -> None:
    (run / RUN_FILE).write_text(json.dumps(record))
    assert "Groups 1 to 20" in page(run)[COUNT]
    (run / RUN_FILE).unlink()
    (run / RUN_FILE).mkdir()
    viewer._open.clear()
    assert "Groups 1 to 20" in page(run)[COUNT]
