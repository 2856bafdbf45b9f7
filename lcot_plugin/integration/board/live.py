"""Live view of a run in LLaMA Board, from the files that the run keeps in its folder.

In:  run.json, progress.json, metrics.jsonl, alarms.jsonl of the followed run; the Board's engine, which knows what it
     has started.
Out: components: the run's state in words, its alarms, its charts. Consumer: board.page, which puts `live_box` directly
     below the buttons.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def create_live_view(engine: Any, lang: Any) -> dict[str, Any]:
    """Creates the live view in the current Blocks. lang: the Board's language component.

    The components: `live_box` (the column that holds all others, to be placed), `live_run`, `live_status`,
    `live_alarms`, `live_panels`.
    """
    with gr.Column(elem_id="lcot_live") as live_box:
        live_run = gr.Dropdown(allow_custom_value=True, value="", choices=[""])
        live_status = gr.HTML()
        live_alarms = gr.HTML()
        live_panels = gr.HTML()
    return dict(
        live_box=live_box,
        live_run=live_run,
        live_status=live_status,
        live_alarms=live_alarms,
        live_panels=live_panels,
    )
