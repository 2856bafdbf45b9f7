"""Records of the chosen data sets as the model will see them, in LLaMA Board.

In:  the Board's components, whose values are those of a run. Out: an accordion with a record's pictures, its tokens and
     the loss mask. Consumer: board.page.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gradio as gr


def create_data_preview(engine: Any, inputs: Collection[Any]) -> dict[str, Any]:
    """Creates the accordion in the current Blocks; every component's name begins with `records_`.

    inputs: the components that the Board's Start button reads (`engine.runner.run_train` gets them as a dictionary).
    `records_box` is the accordion, to be placed.
    """
    with gr.Accordion(open=False, elem_id="lcot_records") as records_box:
        records_page = gr.HTML()
    return dict(records_box=records_box, records_page=records_page)
