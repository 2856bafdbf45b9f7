"""Records of the chosen data sets as the model will see them, in LLaMA Board.

In:  the Board's components, whose values are those of a run. Out: an accordion with a record's pictures, its tokens and
     the loss mask, one record at a time; what `lcot data show --html` writes. Consumer: board.page.

Only the first records are read and tokenised, with the run's own template, processor and arguments; no weights are
loaded. Records that training leaves out are among them, with the reason.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from lcot_plugin.errors import LcotError
from lcot_plugin.integration.board.failure import printable
from lcot_plugin.integration.board.preview_texts import words_of
from lcot_plugin.integration.board.view_texts import LOCALES, text
from lcot_plugin.report.token_view import RecordView, to_html

FIRST = 50
"""Records of each data set that can be looked at."""
STAGES = ("grpo", "sft")
MAX_KEPT = 2
"""Previews in memory; each holds a tokenizer and a processor."""
NAME = "the Board's settings"
"""What errors call the file that the settings were written to."""
FRAME = (
    '<iframe sandbox="allow-scripts" title="{title}" srcdoc="{page}" style="width:100%;height:72vh;'
    'border:1px solid color-mix(in srgb, currentColor 25%, transparent);border-radius:6px"></iframe>'
)
"""The page has its own style, and a script of its own for the tokens' ids: neither may reach the Board's page."""


class PreviewError(LcotError):
    """What keeps records from being shown, in words."""


@dataclass(frozen=True)
class Entry:
    """A record, or a data set that cannot be read."""

    source: str
    record: int = -1
    error: str = ""


class Preview:
    """The first records of a run's data sets. Not for several threads at once."""

    def __init__(self, arguments: dict[str, Any]):
        """Raises LcotError for arguments that no run could be started with."""
        # They import LLaMA-Factory's data and hyper-parameters, which the page does not need until now.
        from lcot_plugin.integration import data_command, data_sets

        self._command = data_command
        self._process_state: dict[str, Any] = {}
        self.report = data_sets.Findings()
        self.loaded: dict[str, Any] = {}
        self.entries: list[Entry] = []
        with self._on_cpu():
            self.recipe = read_recipe(arguments)
            self._load(data_sets)

    def _load(self, data_sets: Any) -> None:
        for found in data_sets.load_sets(self.recipe, self.report):
            if isinstance(found, data_sets.LoadedSet):
                self.loaded[found.source] = found
                records = set(found.aligned["_record"][:])
                self.entries += [Entry(found.source, record) for record in self._records(found.source, records)]
            else:
                left_out = [Entry(found[0], record) for record in self._records(found[0], set())]
                error = data_sets.describe_error(self.report, *found)
                self.entries += left_out or [Entry(found[0], error=error)]

    @contextmanager
    def _on_cpu(self) -> Iterator[None]:
        """A run's arguments say to accelerate, for the whole process, on which device it runs: here the CPU, which the
        Board's chat must not hear of."""
        from accelerate import PartialState

        shared = PartialState._shared_state
        before = dict(shared)
        shared.clear()
        shared.update(self._process_state)
        try:
            yield
        finally:
            self._process_state = dict(shared)
            shared.clear()
            shared.update(before)

    def _records(self, source: str, usable: set[int]) -> list[int]:
        left_out = {record for name, record, _ in self.report.every if name == source}
        return sorted(usable | left_out)[:FIRST]

    def view(self, entry: Entry) -> RecordView:
        """Raises PreviewError for what cannot be shown."""
        if entry.error:
            raise PreviewError(entry.error)
        view, loaded = None, self.loaded.get(entry.source)
        try:
            with self._on_cpu():
                if loaded is not None:
                    example = self._command.find_record(loaded, entry.record, self.report)
                    if example is not None:
                        view = self._command.record_view(self.recipe, loaded, example, self.report)
                return view or self._command.left_out_view(self.recipe, entry.source, entry.record, self.report)
        except LcotError as error:
            raise PreviewError(str(error)) from error
        except Exception as error:  # the template of another family fails in ways of its own
            raise PreviewError(f"{type(error).__name__}: {error}") from error


def read_recipe(arguments: dict[str, Any]) -> Any:
    """What of a run's arguments decides about its data. Raises LcotError."""
    from lcot_plugin.integration import data_sets

    written = {key: value for key, value in arguments.items() if value is not None and value != ""}
    written |= {"max_samples": min(FIRST, int(written.get("max_samples") or FIRST)), "preprocessing_num_workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.yaml")
        path.write_text(yaml.safe_dump(written, allow_unicode=True), encoding="utf-8")
        try:
            return data_sets.read_recipe(str(path), datasets=str(written["dataset"]))
        except LcotError as error:
            raise PreviewError(str(error).replace(str(path), NAME)) from error


_kept: OrderedDict[str, Preview] = OrderedDict()
_lock = threading.Lock()
"""Reading data sets sets numpy's seed and replaces names of LLaMA-Factory for as long as it lasts."""


def preview_of(arguments: dict[str, Any], *, anew: bool = False) -> Preview:
    """The preview of these arguments, one that was made before where not `anew`. To be called with `_lock` held."""
    key = json.dumps(arguments, sort_keys=True, default=str)
    found = None if anew else _kept.pop(key, None)
    _kept.pop(key, None)
    _kept[key] = found or Preview(arguments)
    while len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return _kept[key]


def create_data_preview(engine: Any, inputs: Collection[Any]) -> dict[str, Any]:
    """Creates the accordion in the current Blocks; every component's name begins with `records_`.

    inputs: the components that the Board's Start button reads (`engine.runner.run_train` gets them as a dictionary).
    `records_box` is the accordion, to be placed.
    """
    lang = engine.manager.get_elem_by_id("top.lang")
    with gr.Accordion(open=False, elem_id="lcot_records", **LOCALES["records_box"]["en"]) as records_box:
        with gr.Row():
            buttons = {
                name: gr.Button(elem_id=f"lcot_{name}", **LOCALES[name]["en"])
                for name in ("records_show_btn", "records_prev_btn", "records_next_btn")
            }
        records_note = gr.HTML(elem_id="lcot_records_note")
        records_page = gr.HTML(elem_id="lcot_records_page")
        place = gr.State(0)
    asked = {*inputs, lang, place}

    def shown(step: int | None) -> Any:
        def show_record(data: dict[Any, Any]) -> tuple[int, str, str]:
            return show(engine, data, data[lang], 0 if step is None else data[place] + step, anew=step is None)

        return show_record

    for name, step in (("records_show_btn", None), ("records_prev_btn", -1), ("records_next_btn", 1)):
        buttons[name].click(shown(step), asked, [place, records_note, records_page], show_api=False)
    return dict(records_box=records_box, records_note=records_note, records_page=records_page, **buttons)


def show(engine: Any, data: dict[Any, Any], lang: str, place: int, *, anew: bool = False) -> tuple[int, str, str]:
    """(the place that is shown, a line about it, the record's page). data: component -> value."""
    try:
        arguments = arguments_of(engine, data, lang)
        with _lock:
            preview = preview_of(arguments, anew=anew)
            if not preview.entries:
                return 0, _note(text("records_empty", lang)), ""
            place = min(max(place, 0), len(preview.entries) - 1)
            entry = preview.entries[place]
            of_set = [other for other in preview.entries if other.source == entry.source]
            line = text("records_place", lang, place=of_set.index(entry) + 1, total=len(of_set), source=entry.source)
            try:
                page = to_html(preview.view(entry), words_of(lang), lang=lang)
            except PreviewError as error:
                failed = text("records_failed", lang, source=entry.source, error=printable(str(error), 2000))
                return place, _note(failed, alert=True), ""
    except LcotError as error:
        return 0, _note(printable(str(error), 2000), alert=True), ""
    except Exception as error:  # a model, a processor or a data set that cannot be loaded fails in ways of its own
        return 0, _note(printable(f"{type(error).__name__}: {error}", 2000), alert=True), ""
    return place, _note(line), FRAME.format(title=escape(line), page=escape(page))


def arguments_of(engine: Any, data: dict[Any, Any], lang: str) -> dict[str, Any]:
    """Those of the run that Start would start. Raises PreviewError where there is not enough to go by."""

    def get(name: str) -> Any:
        return data[engine.manager.get_elem_by_id(name)]

    if not get("top.model_path") or not get("train.dataset"):
        raise PreviewError(text("records_no_dataset", lang))
    try:
        arguments = engine.runner._parse_train_args(data)
    except (ValueError, TypeError) as error:  # a box for numbers that holds words, extra arguments that are no JSON
        raise PreviewError(str(error)) from error
    if arguments["stage"] not in STAGES:
        raise PreviewError(text("records_stage", lang))
    return arguments


def _note(line: str, *, alert: bool = False) -> str:
    return f'<p role="{"alert" if alert else "status"}" style="white-space:pre-wrap">{escape(line)}</p>'
