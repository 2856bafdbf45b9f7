"""The tab of LLaMA Board in which the completions of a run are browsed.

In:  completions.jsonl, or eval_..._completions.jsonl, of a run's folder, by report.completions_table. Out: components;
     pages of groups as HTML, each group folded but the first. Consumer: board.page.

A file is read once for all pages that show it, and followed while its run writes. What it does not fit on a page, as
what cannot be read, is said in words there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lcot_plugin.errors import DataError, LcotError
from lcot_plugin.integration.board.failure import printable
from lcot_plugin.integration.board.live import keep_choices, save_root, written_path
from lcot_plugin.integration.board.process import run_of
from lcot_plugin.integration.board.view_texts import LOCALES, text
from lcot_plugin.report.completions import COMPLETIONS_FILE
from lcot_plugin.report.completions_table import ORDERS, CompletionsTable, Facets, GroupRef, RolloutQuery, Selection
from lcot_plugin.report.pictures import PicturePool
from lcot_plugin.report.rollout_texts import texts_of
from lcot_plugin.report.rollout_view import css, group_html
from lcot_plugin.report.run_log import RUN_FILE, read_json
from lcot_plugin.report.runs import eval_completion_files, find_runs, media_folders, reward_weights

PAGE = 20
"""Groups of a page; of coloured ones, whose every token is an element of its own, COLOURED_PAGE."""
COLOURED_PAGE = 5
OPEN_SECONDS = 0.3
"""Of reading a file for a page; what is left is read on beside it."""
PART_SECONDS, PAUSE = 0.1, 0.05
"""Of a part of that, for which a page may have to wait, and between two of them."""
PAGE_PICTURE_BYTES = 8_000_000
PAGE_CHARS = 12_000
"""Of one completion on a page of many."""
MAX_OPEN = 4
"""Files that are kept in memory."""
MAX_TEXT = 300
FILTERS = (
    *("viewer_first_step", "viewer_last_step", "viewer_source", "viewer_outcome", "viewer_reward"),
    *("viewer_min_reward", "viewer_max_reward", "viewer_text", "viewer_order", "viewer_since_step"),
)
"""Components that say what is to be seen, in the order in which `show` gets them."""


@dataclass
class OpenFile:
    """A file of completions and the pictures of its run, for any number of pages."""

    table: CompletionsTable
    pictures: PicturePool
    weights: dict[str, float]
    """Of the rewards, by name; {} where the run does not say."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: threading.Thread | None = None

    def read_on(self) -> None:
        """Reads the rest in the background. To be called with the lock held."""
        if not self.table.complete and (self.reader is None or not self.reader.is_alive()):
            self.reader = threading.Thread(target=self._read_on, name="lcot-viewer", daemon=True)
            self.reader.start()

    def _read_on(self) -> None:
        complete = False
        while not complete:
            time.sleep(PAUSE)  # whoever waits for a page comes first
            with self.lock:
                try:
                    self.table.refresh(PART_SECONDS)
                except (LcotError, OSError):
                    return  # the next page meets it too, and says so
                complete = self.table.complete


_open: OrderedDict[Path, OpenFile] = OrderedDict()
_lock = threading.Lock()


def open_file(path: Path) -> OpenFile:
    """The file, its newest part at least, and what it has grown by. Raises LcotError."""
    path = path.absolute()
    with _lock:
        found = _open.pop(path, None)
        if found is None:
            found = _opened(path)
        _open[path] = found
        while len(_open) > MAX_OPEN:
            _open.popitem(last=False)
    with found.lock:
        found.table.refresh(OPEN_SECONDS)
        found.read_on()
    return found


def _opened(path: Path) -> OpenFile:
    folder = path.parent
    try:
        record = read_json(folder / RUN_FILE) or {}
    except (LcotError, OSError):  # the viewer needs no more than the completions
        record = {}
    pictures = PicturePool(folder, media_dirs=media_folders(record), page_bytes=PAGE_PICTURE_BYTES)
    return OpenFile(CompletionsTable(path, folder), pictures, reward_weights(record))


# Components


def create_viewer_tab(engine: Any) -> dict[str, Any]:
    """Creates the contents of the tab in the current Blocks; every component's name begins with `viewer_`."""
    lang = engine.manager.get_elem_by_id("top.lang")
    made: dict[str, Any] = {}
    with gr.Row():
        made["viewer_run"] = gr.Dropdown(
            allow_custom_value=True, value=None, choices=[], scale=3, **_start("viewer_run")
        )
        made["viewer_file"] = gr.Dropdown(choices=[], value=None, scale=1, **_start("viewer_file"))
    with gr.Row():
        for name in ("viewer_first_step", "viewer_last_step"):
            made[name] = gr.Textbox(value="", min_width=90, **_start(name))
        for name in ("viewer_source", "viewer_outcome", "viewer_reward"):
            made[name] = gr.Dropdown(choices=[("-", "")], value="", min_width=140, **_start(name))
        for name in ("viewer_min_reward", "viewer_max_reward"):
            made[name] = gr.Textbox(value="", min_width=90, **_start(name))
    with gr.Row():
        made["viewer_text"] = gr.Textbox(value="", scale=2, **_start("viewer_text"))
        made["viewer_order"] = gr.Dropdown(value=ORDERS[0], scale=1, **_start("viewer_order"))
        made["viewer_since_step"] = gr.Textbox(value="", min_width=90, **_start("viewer_since_step"))
        made["viewer_tokens"] = gr.Checkbox(value=False, min_width=220, **_start("viewer_tokens"))
    with gr.Row():
        made["viewer_show_btn"] = gr.Button(variant="primary", **_start("viewer_show_btn"))
        made["viewer_prev_btn"] = gr.Button(interactive=False, **_start("viewer_prev_btn"))
        made["viewer_next_btn"] = gr.Button(interactive=False, **_start("viewer_next_btn"))
    made["viewer_count"] = gr.HTML(elem_id="lcot_viewer_count")
    made["viewer_page"] = gr.HTML(elem_id="lcot_viewer_page")
    offset = gr.State(0)
    _connect(engine, made, offset, lang)
    return made


def _start(name: str) -> dict[str, Any]:
    return {"elem_id": f"lcot_{name}", **LOCALES[name]["en"]}


def _connect(engine: Any, made: dict[str, Any], offset: Any, lang: Any) -> None:
    quiet: dict[str, Any] = dict(queue=False, show_api=False)
    run, file = made["viewer_run"], made["viewer_file"]
    keep_choices(run, partial(run_choices, engine))
    facets = [made[name] for name in ("viewer_source", "viewer_outcome", "viewer_reward")]
    shown = [offset, made["viewer_count"], made["viewer_page"], made["viewer_prev_btn"], made["viewer_next_btn"]]
    asked = [run, file, lang, made["viewer_tokens"], offset, *(made[name] for name in FILTERS)]
    first = dict(inputs=asked, outputs=[*shown, *facets], **quiet)

    def turned(pages: int | None) -> Any:
        """So many pages on; None: to the first."""

        def turn(run: str, file: str, lang: str, tokens: bool, offset: int, *filters: Any) -> list[Any]:
            place = 0 if pages is None else max(0, offset + pages * page_size(tokens))
            return show(run, file, lang, tokens, place, filters)

        return turn

    from_start = turned(None)
    run.change(file_choices, [run], [file], **quiet).then(from_start, **first)
    file.input(from_start, **first)
    for name in ("viewer_source", "viewer_outcome", "viewer_reward", "viewer_order", "viewer_tokens"):
        made[name].input(from_start, **first)
    for name in ("viewer_text", "viewer_first_step", "viewer_last_step", "viewer_min_reward", "viewer_max_reward"):
        made[name].submit(from_start, **first)
    made["viewer_since_step"].submit(from_start, **first)
    made["viewer_show_btn"].click(from_start, **first)
    made["viewer_prev_btn"].click(turned(-1), **first)
    made["viewer_next_btn"].click(turned(1), **first)


def page_size(tokens: bool) -> int:
    return COLOURED_PAGE if tokens else PAGE


def run_choices(engine: Any) -> list[str]:
    """The folders that hold completions, the Board's own run first."""
    own = run_of(engine.runner)
    folders = [own.folder] if own is not None else []
    folders += find_runs(save_root())
    return list(dict.fromkeys(str(folder) for folder in folders if files_of(folder)))


def files_of(folder: Path) -> list[str]:
    """Names of its files of completions, that of training first."""
    training = [COMPLETIONS_FILE] if (folder / COMPLETIONS_FILE).is_file() else []
    return [*training, *(path.name for path in eval_completion_files(folder))]


def file_choices(run: str | None) -> Any:
    try:
        names = files_of(folder_of(run)) if run and run.strip() else []
    except (LcotError, OSError):  # the page, which is asked for next, says so
        names = []
    return gr.Dropdown(choices=names, value=names[0] if names else None)


def folder_of(run: str) -> Path:
    """What was written, which may name the file as well as its folder. Raises DataError where it can be no path."""
    path = written_path(run)
    return path.parent if path.is_file() else path


# A page


def show(run: str | None, file: str | None, lang: str, tokens: bool, offset: int, filters: Any) -> list[Any]:
    """A page from the group number `offset` on.

    Returns the values of: the offset, the line that counts, the page, the buttons for the page before and after, and
    the lists of data sets, verdicts and rewards.
    """
    try:
        if not run or not run.strip():
            raise DataError(text("viewer_choose", lang))
        folder = folder_of(run)
        names = files_of(folder)
        if not names:
            raise DataError(text("viewer_no_file", lang, folder=folder))
        opened = open_file(folder / (file if file in names else names[0]))
        with opened.lock:
            facets = opened.table.facets()
            query = query_of(filters, facets, lang, offset=offset, limit=page_size(tokens))
            selection = opened.table.select(query)
            opened.pictures.spent = 0
            page = page_html(opened, selection, lang, tokens)
    except (LcotError, OSError) as error:
        said = f'<p role="alert">{escape(printable(str(error), 2000))}</p>'
        return [0, said, "", _button(False), _button(False), gr.skip(), gr.skip(), gr.skip()]
    end = offset + len(selection.groups)
    more = end < selection.num_groups
    return [
        offset,
        count_html(selection, offset, end, lang),
        page,
        _button(offset > 0),
        _button(more),
        *facet_choices(facets, lang),
    ]


def _button(interactive: bool) -> Any:
    return gr.Button(interactive=interactive)


def count_html(selection: Selection, offset: int, end: int, lang: str) -> str:
    """`Groups 1 to 20 of 340 (2,720 completions)`, and how much of the file is known."""
    if not selection.groups:
        said = text("viewer_nothing", lang)
    else:
        said = text(
            "viewer_count",
            lang,
            first=f"{offset + 1:,}",
            last=f"{end:,}",
            groups=f"{selection.num_groups:,}",
            completions=f"{selection.num_completions:,}",
        )
    if selection.indexed < 1:
        said += " " + text("viewer_reading", lang, percent=f"{100 * selection.indexed:.0f}")
    return f'<p role="status">{escape(said)}</p>'


def facet_choices(facets: Facets, lang: str) -> list[Any]:
    """Lists of what the file holds; what is chosen stays chosen."""
    every = (text("any", lang), "")
    words = texts_of(lang)
    outcomes = [(words.get(name, name), name) for name in facets.outcomes]
    return [
        gr.Dropdown(choices=[every, *facets.sources]),
        gr.Dropdown(choices=[every, *outcomes]),
        gr.Dropdown(choices=[(text("total_reward", lang), ""), *facets.rewards]),
    ]


def query_of(filters: Any, facets: Facets, lang: str, *, offset: int, limit: int) -> RolloutQuery:
    """The values of FILTERS as a query. Raises DataError for what is no number."""
    value = dict(zip(FILTERS, filters, strict=True))
    numbers = {
        name: number_of(value[f"viewer_{name}"], f"viewer_{name}", lang)
        for name in ("first_step", "last_step", "min_reward", "max_reward", "since_step")
    }
    steps: dict[str, Any] = {
        name: None if numbers[name] is None else int(numbers[name] or 0) for name in numbers if "step" in name
    }

    def chosen(name: str, known: list[str]) -> str | None:
        return value[name] if value[name] in known else None  # another file may not have it

    return RolloutQuery(
        **steps,
        min_reward=numbers["min_reward"],
        max_reward=numbers["max_reward"],
        source=chosen("viewer_source", facets.sources),
        outcome=chosen("viewer_outcome", facets.outcomes),
        reward_name=chosen("viewer_reward", facets.rewards),
        text=(value["viewer_text"] or "").strip(),
        order=value["viewer_order"] or ORDERS[0],
        offset=offset,
        limit=limit,
    )


def number_of(written: str | None, name: str, lang: str) -> float | None:
    """None where nothing was written. Decimal commas are numbers too."""
    if written is None or not str(written).strip():
        return None
    try:
        number = float(str(written).strip().replace(",", "."))
    except ValueError:
        number = float("nan")
    if number != number or abs(number) == float("inf"):
        label = LOCALES[name].get(lang, LOCALES[name]["en"])["label"]
        raise DataError(text("viewer_bad_number", lang, field=label, value=printable(str(written), 60)))
    return number


def page_html(opened: OpenFile, selection: Selection, lang: str, tokens: bool) -> str:
    """Every group behind a line that tells what it is; the first is open."""
    parts = [f"<style>{css()}{STYLE}</style>"]
    for place, ref in enumerate(selection.groups):
        before = opened.table.group(ref.since.before) if ref.since else None
        body = group_html(
            opened.table.group(ref),
            pictures=opened.pictures,
            texts=lang,
            tokens=tokens,
            weights=opened.weights or None,
            before=before,
            max_chars=PAGE_CHARS,
        )
        unfolded = " open" if place == 0 else ""
        parts.append(f'<details class="lcot-group"{unfolded}><summary>{line_html(ref, lang)}</summary>{body}</details>')
    return "".join(parts)


STYLE = """
.lcot-group { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: .35rem 0; }
.lcot-group > summary { cursor: pointer; overflow-wrap: anywhere; }
.lcot-group > summary span { opacity: .7; }
.lcot-group .lcot-rollouts .lcot-rewards :is(th, td) { border-inline: 0; }
"""


def line_html(ref: GroupRef, lang: str) -> str:
    """`step 12 · demo_rl, 5 · 0.50 ± 0.53 · 4/8 · In the picture...`"""
    right = sum(outcome == "matched" for outcome in ref.outcomes)
    reward = "" if ref.mean_reward != ref.mean_reward else f"{ref.mean_reward:.3g} ± {ref.std_reward:.2g}"
    record = f", {ref.record}" if ref.record >= 0 else ""
    facts = [
        text("step", lang, step=f"{ref.step:,}"),
        f"{printable(ref.source, 80)}{record}",
        reward,
        f"{right}/{ref.num_completions} ✓",
    ]
    if ref.since is not None:
        facts.append(f"{ref.since.mean_before:.3g} → {ref.since.mean_after:.3g}")
    question = " ".join(printable(ref.question, MAX_TEXT).split())
    return f"<b>{escape(' · '.join(filter(None, facts)))}</b> <span>{escape(question)}</span>"
