"""The tab of LLaMA Board in which the completions of a run are browsed.

In:  completions.jsonl of a run's folder, by report.completions_table. Out: components; pages of groups as HTML.
Consumer: board.page.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def create_viewer_tab(engine: Any) -> dict[str, Any]:
    """Creates the contents of the tab in the current Blocks; every component's name begins with `viewer_`."""
    viewer_run = gr.Dropdown(allow_custom_value=True, value=None, choices=[])
    viewer_page = gr.HTML()
    return dict(viewer_run=viewer_run, viewer_page=viewer_page)
