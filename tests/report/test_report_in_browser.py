"""The report in a real Chromium: narrow and wide, light and dark, by keys and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import find_chromium, open_chromium, visit
from report_folders import write_evaluation, write_grpo_run

from lcot_plugin.report.run_report import write_report

pytest.importorskip("playwright", reason="playwright is not installed")

STICKING_OUT = """() => [...document.querySelectorAll("main *")]
  .filter(node => !node.closest(".scroll") && !node.closest("svg") && node.getBoundingClientRect().width > 0)
  .filter(node => node.getBoundingClientRect().right > innerWidth + 1)
  .map(node => node.tagName + "." + node.className)"""
INVISIBLE = """() => [...document.querySelectorAll(".range b, .range i, .key")]
  .filter(node => getComputedStyle(node).backgroundColor === "rgba(0, 0, 0, 0)").length"""
CONTRAST = """node => {
  const light = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
    const [r, g, b] = parts.map(p => p <= 0.03928 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let below = node;
  while (getComputedStyle(below).backgroundColor === "rgba(0, 0, 0, 0)") below = below.parentElement;
  const both = [light(getComputedStyle(node).color), light(getComputedStyle(below).backgroundColor)].sort();
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    with open_chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(folder / "base_eval", 0.2)
    for name, seed in (("grpo", 0), ("a_run_whose_name_is_so_long_that_it_cannot_stand_on_one_line_of_a_phone", 1)):
        write_grpo_run(folder / name, num_steps=12, seed=seed, learning_rate=10.0**-seed)
    return write_report([folder]).path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_sticks_out_fails_or_is_invisible(chromium: Any, address: str, width: int, dark: bool) -> None:
    with visit(chromium, width=width, dark=dark) as seen:
        seen.page.goto(address)
        seen.page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true })")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.page.evaluate(STICKING_OUT) == []
        assert seen.page.evaluate(INVISIBLE) == 0
        for what in (".answer", ".answer .after", ".soft", ".note", "th", "td", "a[href]", ".alarm p", "footer"):
            assert seen.page.locator(what).first.evaluate(CONTRAST) >= 4.5, what
        assert (seen.requests, seen.errors, seen.dialogs) == ([], [], [])


def test_no_script_but_its_own_runs(chromium: Any, tmp_path: Path) -> None:
    """Were a text ever to get onto the page unescaped."""
    report = write_report([write_evaluation(tmp_path / "eval", 0.5)]).path
    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    report.write_text(report.read_text().replace('<main id="main">', f'<main id="main">{evil}'))
    with visit(chromium) as seen:
        seen.page.goto(report.as_uri())
        seen.page.wait_for_load_state("load")
        assert seen.page.locator("img[src=x]").count() == 1
        assert seen.page.title() == "Training report: eval"


def test_a_chart_is_read_by_keys(chromium: Any, address: str) -> None:
    with visit(chromium, width=400) as seen:
        seen.page.goto(address)
        seen.page.locator("figure.chart svg").first.focus()
        reading = seen.page.locator(".chart-reading").first
        seen.page.keyboard.press("ArrowRight")
        first = reading.inner_text()
        seen.page.keyboard.press("End")
        assert first.startswith("step 1") and reading.inner_text().startswith("step 12")
        assert "grpo: " in first


def test_paper_shows_what_is_folded(chromium: Any, address: str) -> None:
    with visit(chromium) as seen:
        seen.page.goto(address)
        folded = "document.querySelectorAll('details:not([open])').length"
        before = seen.page.evaluate(folded)
        assert before > 0
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.evaluate(folded) == 0
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert seen.page.evaluate(folded) == before
