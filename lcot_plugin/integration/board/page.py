"""Seam: `llamafactory.webui.interface`. Composes LLaMA Board's page of its own parts and of ours.

In:  the Board's functions that build its train tab and its footer; what `panels`, `live`, `viewer` and `data_preview`
     create.
Out: the same page with our accordions before its own ones, the live view directly below the buttons, the records below
     the row of data sets, and a tab of rollouts. All components are known to the Board's manager under `train.` and
     `rollouts.`, so they change language, are saved and loaded, and reach Preview and Start like its own.

The Board has no extension point: its train tab makes a set of the components that are inputs, and binds its buttons to
them, within one function. That set begins as what the manager calls base elements, which is how ours get into it; where
they stand on the page is decided afterwards, by the order of the tab's children. Can go when the page has such points.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import gradio as gr

from lcot_plugin.demo.model import MODEL_DIR
from lcot_plugin.integration.board import data_preview, live, panels, texts, view_texts, viewer
from lcot_plugin.integration.board.loading import Kept

DEMO_MODEL = "lcot-demo-Qwen2.5-VL-1M"
"""The embedded model in the Board's list."""
ROLLOUTS_TAB = "Rollouts"


def apply(module: ModuleType) -> None:
    """Wraps the functions that `create_ui` looks up in `module`, and adds our texts and the demo model."""
    add_texts()
    add_demo_model()
    pages: list[Kept] = []  # of a page that is being built, whose functions are called in this order
    create_top, create_train_tab, create_footer = module.create_top, module.create_train_tab, module.create_footer

    def top_of_page() -> dict[str, Any]:
        from llamafactory.webui.components import top

        pages.append(kept := Kept())
        with mock.patch.object(top, "get_model_info", kept.get_model_info(top.get_model_info)):
            return create_top()

    def train_tab(engine: Any) -> dict[str, Any]:
        pages[-1].belong_to(engine)
        return compose_train_tab(engine, create_train_tab, pages[-1])

    def footer() -> dict[str, Any]:
        # The footer is built behind the last tab: what is a tab here stands beside the others.
        engine = pages.pop().engine
        for tab in ("train", "eval"):
            folder = engine.manager.get_elem_by_id(f"{tab}.dataset_dir")
            folder.value = panels.default_dataset_dir(folder.value)
        if not engine.demo_mode:
            with gr.Tab(ROLLOUTS_TAB):
                engine.manager.add_elems("rollouts", viewer.create_viewer_tab(engine))
        return create_footer()

    module.create_top = top_of_page
    module.create_train_tab, module.create_footer = train_tab, footer


def add_texts() -> None:
    """Our components' texts into the dictionary by which the Board changes its language."""
    from llamafactory.webui import locales

    for name, entry in {**texts.LOCALES, **view_texts.LOCALES}.items():
        if locales.LOCALES.setdefault(name, entry) is not entry:
            raise RuntimeError(f"LLaMA Board has a component named {name} already: ours needs another name")


def add_demo_model() -> None:
    """The embedded model into the Board's list, with its path and template."""
    from llamafactory.extras import constants

    constants.SUPPORTED_MODELS[DEMO_MODEL] = {constants.DownloadSource.DEFAULT: str(MODEL_DIR)}
    constants.DEFAULT_TEMPLATE[DEMO_MODEL] = "qwen2_vl"
    constants.MULTIMODAL_SUPPORTED_MODELS.add(DEMO_MODEL)


def compose_train_tab(engine: Any, create_train_tab: Callable[[Any], dict[str, Any]], kept: Kept) -> dict[str, Any]:
    """Builds the tab in the current Blocks; the Board's own components and ours, by name."""
    from llamafactory.webui.components import train

    tab = gr.context.Context.block
    made = panels.create_panels()
    manager = engine.manager
    inputs = manager.get_base_elems() | made.inputs
    with (
        mock.patch.object(manager, "get_base_elems", lambda: inputs),  # which create_train_tab completes
        mock.patch.object(train, "change_stage", kept.change_stage(train.change_stage)),
    ):
        board = create_train_tab(engine)
    manager.add_elems("train", {**board, **made.components})  # what follows may ask the manager for them
    board["output_box"].elem_classes = [live.LOG_CLASS]
    panels.connect(engine, made)
    records = data_preview.create_data_preview(engine, inputs)
    place(tab, records["records_box"], after=board["dataset"])
    for box in made.boxes:
        place(tab, box, before=board["extra_tab"])
    view: dict[str, Any] = {}
    if not engine.demo_mode:
        view = live.create_live_view(engine, manager.get_elem_by_id("top.lang"))
        place(tab, view["live_box"], after=board["start_btn"])
    return {**board, **made.components, **records, **view}


def place(tab: Any, box: Any, *, before: Any = None, after: Any = None) -> None:
    """Moves `box`, a child of `tab`, next to that child of `tab` which is or holds the component."""
    tab.children.remove(box)
    mark = before if before is not None else after
    while mark.parent is not tab:
        mark = mark.parent
    tab.children.insert(tab.children.index(mark) + (before is None), box)
