"""LLaMA Board as a user meets it: a real server, a real Chromium, real runs of the embedded model.

`LCOT_SCREENSHOTS=DIR` keeps a picture of every page that is looked at here. Without a Chromium all of this is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import (
    PATIENCE,
    BoardPage,
    BoardServer,
    Visit,
    board_server,
    find_chromium,
    horizontal_overflow,
    layout_faults,
    open_chromium,
    picture,
    visit,
    wait_until,
)
from hostile_run import HOSTILE, write_hostile_run
from recipe_runs import run

from lcot_plugin.integration.board.texts import LOCALES
from lcot_plugin.report.run_report import write_report

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = find_chromium()

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=PATIENCE * 1000)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH: apt install chromium, or name one in LCOT_CHROMIUM"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    assert CHROMIUM is not None
    with open_chromium(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardServer]:
    folder = tmp_path_factory.mktemp("board")
    write_hostile_run(folder / "saves/hostile")
    with board_server(folder) as board:
        yield board
    assert not board.processes()


def test_the_layout_check_sees_what_overlaps_and_what_is_cut(chromium: Any) -> None:
    line = "position: absolute; top: {}px; white-space: nowrap; line-height: 20px"
    page = f"""
      <p style="{line.format(100)}">below</p><p style="{line.format(108)}">above</p>
      <p style="{line.format(160)}">fine</p>
      <div style="position: absolute; top: 200px; width: 50px; overflow: hidden; white-space: nowrap">a long line</div>
      <div style="position: absolute; top: 240px; width: 50px; overflow: auto; white-space: nowrap">one to scroll</div>
      <div style="position: absolute; top: 300px; width: 2000px">wide</div>"""
    with visit(chromium, width=400) as seen:
        seen.page.set_content(page)
        faults = layout_faults(seen.page)
        assert faults[0].startswith('cut: "a long line" ends')
        assert faults[1:] == ['"below" lies over "above"']
        assert horizontal_overflow(seen.page) == 1608


SETTINGS = {"optim": "adamw_torch", "preprocessing_num_workers": 1, "max_steps": 2000, "warmup_steps": 1}
"""What the Board has no field for; a run that is to be aborted must be too long to end by itself."""
OWN_RUN = "saves/lcot-demo-Qwen2.5-VL-1M/full/browser"


@pytest.mark.slow
def test_a_run_from_its_start_to_a_rollout(server: BoardServer, chromium: Any) -> None:
    """Choose, preview, start, watch, abort, resume, browse: the whole way of a user, without a shell."""
    with visit(chromium) as seen:
        board = BoardPage(seen, server.url)
        choose_grpo(board)
        look_at_the_data(board)
        preview(board)
        start_and_watch(board)
        step = abort(board, server)
        resume(board, server, step)
        browse(board, OWN_RUN)
        assert not seen.errors and not seen.dialogs


def choose_grpo(board: BoardPage) -> None:
    board.choose("Model name", "lcot-demo-Qwen2.5-VL-1M")
    expect(board.input("Model path")).to_have_value(str(ROOT / "lcot_plugin/demo/model"))
    expect(board.input("Chat template")).to_have_value("qwen2_vl")
    board.choose("Finetuning method", "full")
    board.choose("Stage", "GRPO")
    board.fill("Data dir", ROOT / "dataset_info")
    board.choose("Dataset", "demo_rl")
    board.choose("Compute type", "fp32")
    board.fill("Cutoff length", 512)
    board.fill("Batch size", 8)
    board.fill("Gradient accumulation", 1)
    board.fill("Output dir", "browser")
    board.open_accordion("Extra configurations")
    board.fill("Logging steps", 1)
    board.fill("Extra arguments", json.dumps(SETTINGS))
    board.open_accordion("GRPO configurations")
    board.fill("Completions per prompt", 4)
    board.fill("Max new tokens", 24)
    board.open_accordion("Evaluation and logs")
    board.tick("Log token probabilities")
    picture(board.page, "train_grpo")
    assert not layout_faults(board.page) and not horizontal_overflow(board.page)


def look_at_the_data(board: BoardPage) -> None:
    board.open_accordion("Records as the model sees them")
    board.button("Show the first records").click()
    page = board.page.frame_locator("#lcot_records iframe")
    expect(page.locator("body")).to_contain_text("What is the result modulo 10?")
    expect(page.locator("img").first).to_be_visible()
    picture(board.page, "train_records", element=board.page.locator("#lcot_records"))
    board.page.locator("#lcot_records > button").click()


def preview(board: BoardPage) -> None:
    board.button("Preview command").click()
    command = board.page.locator("code").filter(has_text="llamafactory-cli train").first
    for option in ("stage grpo", "grpo_num_generations 4", "max_new_tokens 24", "dataset demo_rl"):
        expect(command).to_contain_text(f"--{option}")


def start_and_watch(board: BoardPage) -> None:
    board.button("Start").click()
    status = board.page.locator("#lcot_live_status [data-state]")
    expect(status).to_have_attribute("data-state", "running")
    expect(status).to_contain_text("of 2000")
    early = num_points(board)
    wait_until(lambda: num_points(board) > early, "the reward's curve to grow")
    picture(board.page, "train_running")
    assert not layout_faults(board.page, "#lcot_live")


def num_points(board: BoardPage) -> int:
    """Of the first curve in the panel of the reward; waits for it to be there."""
    panel = board.page.locator("#lcot_live_panels figure").filter(has_text=re.compile("^ *Reward", re.IGNORECASE)).first
    return len((panel.locator("polyline").first.get_attribute("points") or "").split())


def abort(board: BoardPage, server: BoardServer) -> int:
    """Returns the step of the checkpoint that the page names."""
    board.button("Abort").click()
    expect(board.page.locator("#lcot_live_status [data-state]")).to_have_attribute("data-state", "stopped")
    found = (server.folder / OWN_RUN).glob("checkpoint-*")
    step = max(int(checkpoint.name.removeprefix("checkpoint-")) for checkpoint in found)
    expect(board.page.locator("body")).to_contain_text(f"Its last whole checkpoint is of step {step}")
    wait_until(lambda: not server.training_processes(), "the aborted run's processes to end")
    picture(board.page, "train_aborted")
    assert (server.folder / OWN_RUN / f"checkpoint-{step}/model.safetensors").is_file()
    return step


def resume(board: BoardPage, server: BoardServer, step: int) -> None:
    """Start with the same output dir goes on from the checkpoint, and this time to the end."""
    board.fill("Extra arguments", json.dumps({**SETTINGS, "max_steps": step + 3}))
    board.button("Start").click()
    expect(board.page.locator("#lcot_live_status [data-state]")).to_have_attribute("data-state", "finished")
    picture(board.page, "train_finished")
    lines = (server.folder / OWN_RUN / "metrics.jsonl").read_text().splitlines()
    rewards = [line["step"] for line in map(json.loads, lines) if "reward" in line]
    assert rewards == list(range(1, step + 4))  # nothing lost, nothing twice


def browse(board: BoardPage, run: str) -> None:
    board.open_tab("Rollouts")
    board.choose("Run folder", run)
    count = board.page.locator("#lcot_viewer_count")
    expect(count).to_contain_text("Groups 1 to")
    page = board.page.locator("#lcot_viewer_page")
    every = page.locator(".lcot-group")
    num_groups = re.compile(r"of ([\d,]+) \(")
    everything = num_groups.search(count.inner_text())
    board.choose("Verdict", "right")
    wait_until(lambda: num_groups.search(count.inner_text()) != everything, "the filter")
    group = every.first
    expect(group.locator("img").first).to_be_visible()
    expect(group).to_contain_text("right")
    board.tick("Colour tokens by log-probability")
    expect(group.locator(".lcot-legend").first).to_be_visible()
    picture(board.page, "rollouts", whole=False)
    assert not layout_faults(board.page) and not horizontal_overflow(board.page)


KINDS = tuple(HOSTILE)


def test_what_a_model_wrote_is_text_in_the_viewer_and_the_live_view(server: BoardServer, chromium: Any) -> None:
    with visit(chromium) as seen:
        board = BoardPage(seen, server.url)
        board.choose("Live view of", "saves/hostile")
        expect(board.page.locator("#lcot_live_status [data-state]")).to_have_attribute("data-state", "failed")
        expect(board.page.locator("#lcot_live_alarms")).to_contain_text("onerror=")
        picture(board.page, "hostile_live", element=board.page.locator("#lcot_live"))
        assert_nothing_ran(seen)
        board.open_tab("Rollouts")
        board.choose("Run folder", "saves/hostile")
        groups = board.page.locator("#lcot_viewer_page .lcot-group")
        expect(groups).to_have_count(len(KINDS))
        for summary in groups.locator("> summary").all()[1:]:
            summary.click()
        board.page.locator("#lcot_viewer_page details").evaluate_all("all => all.forEach((one) => one.open = true)")
        shown = board.page.locator("#lcot_viewer_page").inner_text()
        for kind in ("script", "event", "breakout", "network", "markdown", "template", "chinese"):
            assert shown.count(HOSTILE[kind]) >= 2, kind  # of two completions at least
        assert_harmless(shown)
        picture(board.page, "hostile_rollouts", whole=False)
        assert not layout_faults(board.page, "#lcot_viewer_page") and not horizontal_overflow(board.page)
        assert_nothing_ran(seen)


def test_lists_of_runs_offer_all_of_them_at_a_click(server: BoardServer, chromium: Any) -> None:
    """Whatever stands in the box: gradio filters by it what comes while the list is open."""
    with visit(chromium) as seen:
        board = BoardPage(seen, server.url)

        def offered(label: str, run: str) -> None:
            board.input(label).click()
            expect(board.page.get_by_role("option", name=run, exact=True).locator("visible=true")).to_have_count(1)
            board.input(label).press("Escape")
            board.input(label).blur()

        offered("Live view of", "saves/hostile")
        board.choose("Live view of", "saves/hostile")
        offered("Live view of", "the run of this Board")
        board.open_tab("Rollouts")
        offered("Run folder", "saves/hostile")
        board.choose("Run folder", "saves/hostile")
        offered("Run folder", "saves/hostile")


def assert_nothing_ran(seen: Visit) -> None:
    """Neither script nor markup of a hostile text has had an effect."""
    assert seen.page.evaluate("window.injected") is None
    assert not seen.dialogs
    assert not [url for url in seen.requests if "elsewhere.invalid" in url]
    assert not seen.page.locator('img[src="x"], a[href^="javascript:"], b[onmouseover]').count()


def assert_harmless(shown: str) -> None:
    """No control character reaches the reader, and a text of a megabyte says how much of it is left out."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert len(shown) < 1_500_000
    assert re.search(r"\d[\d,]{5,} characters", shown)


def test_a_phone_in_the_dark(server: BoardServer, chromium: Any) -> None:
    """Nothing is wider than the page, nothing lies over anything else, on every part of it that is ours."""
    with visit(chromium, width=400, dark=True) as seen:
        board = BoardPage(seen, server.url)
        board.choose("Stage", "GRPO")
        board.open_accordion("GRPO configurations")
        for name in ("grpo_sampling_tab", "grpo_objective_tab", "grpo_engine_tab", "grpo_log_tab"):
            board.page.locator(f"#lcot_{name} > button").click()
        picture(board.page, "phone_train")
        assert not layout_faults(board.page) and not horizontal_overflow(board.page)
        board.choose("Live view of", "saves/hostile")
        expect(board.page.locator("#lcot_live_panels figure").first).to_be_visible()
        picture(board.page, "phone_live", element=board.page.locator("#lcot_live"))
        assert not layout_faults(board.page, "#lcot_live") and not horizontal_overflow(board.page)
        board.open_tab("Rollouts")
        board.choose("Run folder", "saves/hostile")
        expect(board.page.locator("#lcot_viewer_page .lcot-group")).to_have_count(len(KINDS))
        picture(board.page, "phone_rollouts")
        assert not layout_faults(board.page) and not horizontal_overflow(board.page)


INTERNATIONAL = {"Top-p", "Top-k", "Min-p"}
"""Named so in every language, by LLaMA-Factory too."""
LABELS = """
() => [...document.querySelectorAll('[id^=lcot_]')].map((box) => [box.id, ...[
  ...box.querySelectorAll(':scope [data-testid=block-info], :scope > label > span, :scope > button'),
  ...(box.tagName === 'BUTTON' ? [box] : []),
].slice(0, 1).map((label) => label.textContent.trim())]).filter((pair) => pair[1])
"""
"""[id, label] of every component of ours that has one, shown or not."""


def test_every_label_of_ours_is_translated(server: BoardServer, chromium: Any) -> None:
    with visit(chromium) as seen:
        board = BoardPage(seen, server.url)
        board.choose("Stage", "GRPO")
        board.open_accordion("GRPO configurations")
        found = {}
        for lang in ("en", "ru", "zh", "ko", "ja"):
            board.page.get_by_role("listbox").first.click()
            board.page.get_by_role("option", name=lang, exact=True).click()
            expect(board.page.locator("#lcot_grpo_tab > button")).to_contain_text(LOCALES["grpo_tab"][lang]["label"])
            board.wait_for_events()
            found[lang] = dict(board.page.evaluate(LABELS))
            picture(board.page, f"language_{lang}")
            assert not layout_faults(board.page)
        assert len(found["en"]) > 40
        for lang, labels in found.items():
            assert labels.keys() == found["en"].keys()
            same = {label for name, label in labels.items() if label == found["en"][name]}
            assert lang == "en" or same <= INTERNATIONAL


NUM_PICTURES = """
async () => {
  for (const one of document.images) { one.loading = 'eager'; await one.decode(); }
  return document.images.length;
}
"""
"""Fails where one cannot be decoded."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `real.html`, of a run of a few steps with pictures and an evaluation, and `hostile.html`."""
    folder = tmp_path_factory.mktemp("reports")
    recipe = {
        "model_name_or_path": str(ROOT / "lcot_plugin/demo/model"),
        "template": "qwen2_vl",
        "stage": "grpo",
        "do_train": True,
        "do_eval": True,
        "finetuning_type": "full",
        "dataset": "demo_rl",
        "eval_dataset": "demo_test",
        "dataset_dir": str(ROOT / "dataset_info"),
        "preprocessing_num_workers": 1,
        "max_samples": 12,
        "cutoff_len": 512,
        "max_new_tokens": 16,
        "grpo_num_generations": 4,
        "grpo_eval_generations": 0,
        "grpo_log_token_log_probs": True,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    trained = run(recipe, folder / "real")
    assert trained.returncode == 0, trained.stderr[-3000:]
    write_report([folder / "real/out"], folder / "real.html")
    write_report([write_hostile_run(folder / "hostile")], folder / "hostile.html")
    return folder


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["real", "hostile"])
def test_the_report_is_a_file_that_reads_well(reports: Path, chromium: Any, name: str, width: int, dark: bool) -> None:
    """Opened from the disk: nothing is fetched, nothing overlaps, every picture is in it."""
    with visit(chromium, width=width, dark=dark) as seen:
        seen.page.goto((reports / f"{name}.html").as_uri(), wait_until="load")
        seen.page.locator("details").evaluate_all("all => all.forEach((one) => one.open = true)")
        assert seen.page.evaluate(NUM_PICTURES)
        picture(seen.page, f"report_{name}_{width}_{'dark' if dark else 'light'}")
        assert not layout_faults(seen.page)
        assert not horizontal_overflow(seen.page)
        shade = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", shade)[:3])) < 3 * 128) == dark
        assert_nothing_ran(seen)
        assert not seen.requests and not seen.errors
        if name == "hostile":
            assert_harmless(seen.page.locator("body").inner_text())
