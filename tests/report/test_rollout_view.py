"""A group's page says everything once, in words, and nothing that a model wrote acts in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rollout_lines import completion_line, group_lines, write

from lcot_plugin.report.completions_table import CompletionsTable, RolloutQuery, Selection
from lcot_plugin.report.pictures import PicturePool
from lcot_plugin.report.rollout_texts import TEXTS
from lcot_plugin.report.rollout_view import css, group_html, list_html
from lcot_plugin.report.token_trace import encode

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)></details></article></section><style>*{display:none}</style>"
    "\x1b[31m\u202e\"'><a href=javascript:alert(1)>&amp;"
)
VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Elements, texts by the classes that they stand in, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag not in VOID:
            self.stack.append((tag, values.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((" ".join(names for _, names in self.stack), data))

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.elements if name == tag]

    def text(self, kind: str = "") -> str:
        return "".join(text for kinds, text in self.texts if kind in kinds)


def table_of(folder: Path, lines: list[dict[str, Any]]) -> CompletionsTable:
    return CompletionsTable.open(write(folder / "completions.jsonl", lines), folder)


def first_page(folder: Path, lines: list[dict[str, Any]], query: RolloutQuery | None = None, **settings: Any) -> Page:
    table = table_of(folder, lines)
    (ref, *_) = table.select(query or RolloutQuery()).groups
    return Page(group_html(table.group(ref), pictures=PicturePool(folder), **settings))


def test_everything_about_a_group(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    lines = group_lines(1200, 17, [1.0, 0.0], images=["a.png"])
    for line in lines:
        line["rewards"] = {"accuracy": 1.0, "format": None}
    lines[0]["advantage"] = 0.7071
    lines[1] |= {"ending": "truncated", "extracted": None, "advantage": None, "outcome": "unparsable"}
    page = first_page(tmp_path, lines, weights={"accuracy": 0.8})
    text = page.text()
    for once in (
        "Step 1,200 \u00b7 problems",
        "record 17",
        "How many?",
        "1 of 2 right",
        "mean reward 0.5 \u00b1 0.5",
        "Gold answer",
    ):
        assert text.count(once) == 1, once
    assert len(page.tags("img")) == 1 and "a.png, 30 \u00d7 20" in text
    assert page.text("lcot-chip") == "\u2713 right? no answer found"
    assert "+0.707" in text and "not trained on" in text and "cut off at the limit" in page.text("lcot-truncated")
    assert page.text("lcot-thought").count("One and two.</think>") == 2
    assert page.text("lcot-answer") == "\\boxed{3}" * 2
    assert page.text("lcot-rewards").count("accuracy\u00d7 0.81formatnonetotal") == 2
    assert len(page.tags("details")) == 2 and all("open" not in values for values in page.tags("details"))
    assert "lcot-legend" not in str(page.elements)


@pytest.mark.parametrize(
    "outcome, word",
    [
        ("matched", "right"),
        ("mismatched", "wrong"),
        ("unparsable", "no answer found"),
        ("gold_unparsable", "gold unreadable"),
        ("timed_out", "judge timed out"),
        (None, "not judged"),
        ("of a later version", "not judged"),
    ],
)
def test_a_verdict_has_a_colour_a_sign_and_a_word(tmp_path: Path, outcome: str | None, word: str) -> None:
    page = first_page(tmp_path, [completion_line(outcome=outcome)])
    (kind,) = {values["class"] for values in page.tags("span") if "lcot-chip" in (values.get("class") or "")}
    assert page.text("lcot-chip").endswith(word) and kind is not None
    assert f".lcot-chip.{kind.split()[1]}" in css() or kind.split()[1] in re.findall(r"lcot-chip:is\((.*)\)", css())[0]


@pytest.mark.parametrize("tokens", [False, True])
def test_nothing_that_a_model_wrote_acts(tmp_path: Path, tokens: bool) -> None:
    values: dict[str, Any] = dict.fromkeys(("source", "question", "opening", "completion", "ending"), HOSTILE)
    values |= dict.fromkeys(("extracted", "gold", "answer_type"), HOSTILE)
    values |= {"images": [HOSTILE, "<" + HOSTILE], "rewards": {HOSTILE: 1.0, "b": HOSTILE}}
    values |= {"outcome": HOSTILE, "advantage": HOSTILE, "num_tokens": HOSTILE, "policy_step": HOSTILE}
    values["completion"] = f"{HOSTILE}</think>{HOSTILE}"
    if tokens:
        length = len(values["completion"])
        values["trace"] = encode([1] * length, [-2.0] * length)
    table = table_of(tmp_path, [completion_line(0, sample, **values) | {"reward": HOSTILE} for sample in range(2)])
    selection = table.select(RolloutQuery())
    shown = group_html(table.group(selection.groups[0]), pictures=PicturePool(tmp_path), anchor='"><script>')
    shown += list_html(selection, href=lambda number, ref: f"#{ref.source}")
    page = Page(shown)
    allowed = {"section", "h3", "h4", "span", "div", "p", "i", "b", "bdi", "figure", "figcaption", "article", "header"}
    allowed |= {"dl", "dt", "dd", "details", "summary", "code", "table", "tr", "th", "td", "ol", "li", "a"}
    assert {tag for tag, _ in page.elements} == allowed
    assert {name for _, values in page.elements for name in values} <= {
        "class", "id", "dir", "title", "role", "aria-label", "href", "start"
    }  # fmt: skip
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", shown)
    assert page.text("lcot-answer").count("<script>alert(1)</script>") == 2


def test_halves_of_surrogate_pairs_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_bytes(b'{"step": 0, "completion": "\\ud800 and", "question": "\\udfff", "gold": "\\ud83d"}\n')
    table = CompletionsTable.open(path, tmp_path)
    selection = table.select(RolloutQuery())
    page = group_html(table.group(selection.groups[0]), pictures=PicturePool(tmp_path)) + list_html(selection)
    assert "\\ud800 and" in page and page.encode()


def test_a_megabyte_is_shown_with_its_ends(tmp_path: Path) -> None:
    text = f"start {'long ' * 200_000}end</think>\\boxed{{3}}"
    table = table_of(tmp_path, [completion_line(completion=text)])
    (ref,) = table.select(RolloutQuery()).groups
    html = group_html(table.group(ref), pictures=PicturePool(tmp_path), max_chars=2000)
    page = Page(html)
    assert f"{len(text) - 2000:,} characters left out" in page.text("lcot-thought")
    assert page.text("lcot-thought").count("start") == 1 and "end</think>" in page.text("lcot-thought")
    assert page.text("lcot-answer") == "\\boxed{3}"
    assert len(html) < 10_000


def test_tokens_with_a_legend(tmp_path: Path) -> None:
    line = completion_line(completion="abc</think>de", trace=encode([3, 8, 1, 1, 0], [0.0, -0.3, -1.0, -9.0, 0.0]))
    page = first_page(tmp_path, [line])
    assert [values["title"] for values in page.tags("i") if "title" in values] == [
        "0.00 (100 %)", "-0.31 (73.2 %)", "-1.00 (36.8 %)", "-9.00 (< 0.1 %)"
    ]  # fmt: skip
    assert "\u2265 90 %" in page.text("lcot-legend") and "< 1 %" in page.text("lcot-legend")
    without = first_page(tmp_path, [line], tokens=False)
    assert not [values for values in without.tags("i") if "title" in values] and not without.text("lcot-legend")


def test_a_trace_of_another_text_is_said(tmp_path: Path) -> None:
    page = first_page(tmp_path, [completion_line(completion="ab", opening="", trace=encode([9], [-1.0]))])
    assert "do not fit this text" in page.text("lcot-note") and page.text("lcot-answer") == "ab"


def test_a_thought_without_end_or_answer(tmp_path: Path) -> None:
    page = first_page(
        tmp_path, [completion_line(completion="on and on"), completion_line(0, 1, completion="a</think>\n")]
    )
    assert page.text("lcot-note") == "The thought was never closed: nothing comes after it.Nothing was written here."


def test_lines_that_say_little(tmp_path: Path) -> None:
    page = first_page(tmp_path, [{"step": 0, "completion": ""}])
    assert "0 of 1 right" in page.text() and "\u00b7 not judged" in page.text("lcot-chip")


def test_numbers_pictures_and_rewards_without_measure(tmp_path: Path) -> None:
    line = completion_line(
        reward=10**400, advantage=float("nan"), num_tokens=10**30, images=["gone.png"] * 100,
        rewards={f"reward {number}": float("inf") for number in range(99)},
    )  # fmt: skip
    page = first_page(tmp_path, [line])
    assert len(page.tags("figure")) == 32 and "68 more pictures are left out." in page.text("lcot-note")
    assert len(page.tags("tr")) == 52 and "\u2026 (+49)" in page.text("lcot-rewards")
    assert "inf" in page.text("lcot-rewards") and "nan" in page.text() and "1" + "0" * 30 in page.text()
    assert "\u2026 (+321)" in page.text("lcot-rewards")


def test_missing_pictures_are_said(tmp_path: Path) -> None:
    page = first_page(tmp_path, [completion_line(images=["gone/b.png", "<bytes in the data set>"])])
    assert "picture 1: The picture is not where the run found it." in page.text("lcot-missing")
    assert "picture 2: The picture is embedded in the data set" in page.text("lcot-missing")


def test_completions_that_fit_are_marked_where_others_do_not(tmp_path: Path) -> None:
    lines = group_lines(0, 1, [1.0, 0.0, 1.0])
    marked = first_page(tmp_path, lines, RolloutQuery(outcome="matched"))
    assert ["lcot-found" in (values["class"] or "") for values in marked.tags("article")] == [True, False, True]
    assert "lcot-found" not in str(first_page(tmp_path, lines).elements)


def test_what_got_worse_shows_both_groups(tmp_path: Path) -> None:
    lines = [*group_lines(0, 7, [1.0, 1.0]), *group_lines(10, 7, [0.0, 1.0, 0.0, 0.0])]
    table = table_of(tmp_path, lines)
    selection = table.select(RolloutQuery(order="got_worse", since_step=5))
    (ref,) = selection.groups
    assert ref.since is not None
    shown = group_html(table.group(ref), pictures=PicturePool(tmp_path), before=table.group(ref.since.before))
    page = Page(shown)
    assert len(page.tags("article")) == 6 and len(page.tags("section")) == 1
    assert "Before step 5" in page.text() and page.text().count("How many?") == 1
    said = "Mean reward since step 5: 0.25 (of 1), before: 1 (of 1)"
    assert page.text("lcot-worse") == said and said in Page(list_html(selection)).text()


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list(tmp_path: Path) -> None:
    lines = [
        line for step in range(5) for line in group_lines(step, step, [1.0, None], question=f"<image>Number  {step}")
    ]
    selection = table_of(tmp_path, lines).select(RolloutQuery(offset=1, limit=2))
    page = Page(list_html(selection, href=lambda number, ref: f"#group-{number}-{ref.step}"))
    assert page.text("lcot-summary") == "Rollouts that fit: 5, completions: 10; shown: 2 to 3"
    assert [values["href"] for values in page.tags("a")] == ["#group-0-3", "#group-1-2"]
    assert page.text("lcot-row-question") == "Number 3Number 2"
    assert [values["title"] for values in page.tags("span") if values.get("role") == "img"] == [
        "1 right, 1 not judged"
    ] * 2
    assert not Page(list_html(selection)).tags("a")


def test_an_empty_list_and_one_that_is_not_complete(tmp_path: Path) -> None:
    selection = Selection([], 0, 0, RolloutQuery(), 0.996)
    assert Page(list_html(selection)).text() == "No rollouts fit.; so far 99 % of the file is read, from its end"


@pytest.mark.parametrize("language", list(TEXTS))
def test_every_language(tmp_path: Path, language: str) -> None:
    lines = [*group_lines(0, 7, [1.0] * 2), *group_lines(9, 7, [0.0, None], images=["gone.png"])]
    table = table_of(tmp_path, lines)
    selection = table.select(RolloutQuery(order="got_worse"))
    (ref,) = selection.groups
    words = TEXTS[language]
    page = Page(
        list_html(selection, texts=language)
        + group_html(table.group(ref), pictures=PicturePool(tmp_path), texts=language)
    )
    for key in ("question", "gold", "mismatched", "not_judged", "thought", "not_found", "advantage", "total"):
        assert words[key] in page.text(), key
    assert "{" not in page.text().replace("\\boxed{", "")


def test_the_style_sheet_touches_nothing_else() -> None:
    """Every rule begins at the views' class; no colour of the page around is taken or given."""
    sheet = re.sub(r"/\*.*?\*/|@media[^{]*", "", css(), flags=re.DOTALL)
    selectors = [one.strip() for rule in re.findall(r"([^{}]+)\{", sheet) for one in re.split(r",(?![^(]*\))", rule)]
    assert len(selectors) > 50
    assert [one for one in selectors if one and ".lcot-rollouts" not in one] == []
    assert "http" not in css() and "url(" not in css() and "@import" not in css()


def luminance(colour: str) -> float:
    """Of `#rrggbb`, as WCAG defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_readable_and_tokens_differ_in_lightness(dark: bool) -> None:
    """4.5 is what WCAG AA asks of text."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css())
    light = {name: luminance(values[dark]) for name, *values in pairs}
    light |= {"black": 0.0, "white": 1.0}

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light[one], light[other]))
        return (high + 0.05) / (low + 0.05)

    texts = [(ink, paper) for ink in ("ink", "soft", "wrong") for paper in ("card", "sunk")]
    texts += [(name, f"{name}-bg") for name in ("right", "wrong", "unsure", "other", "late")]
    texts += [("ink", f"t{level}") for level in (1, 2, 3)] + [("white" if dark else "black", "t4")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    steps = [
        contrast(one, other) for one, other in zip(["card", "t1", "t2", "t3"], ["t1", "t2", "t3", "t4"], strict=True)
    ]
    assert min(steps) > 1.08
    levels = [light[f"t{level}"] for level in (1, 2, 3, 4)]
    assert levels == sorted(levels, reverse=not dark)
