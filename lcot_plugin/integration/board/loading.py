"""Keeps what a loaded configuration says from being overwritten by LLaMA Board's own events.

In:  what `Runner.load_args` and `Runner.check_output_dir` have set; the settings of a training that is going on.
Out: `Kept`, whose functions stand in for the Board's `change_stage` and `get_model_info`. Consumer: `page`.

gradio reports a change of a component whoever made it. The Board empties the choice of data sets when the stage
changes, and puts the model's usual template in when the model changes: a configuration of another stage or model comes
back without its data sets, and with another template than the one that was saved (`qwen2_vl` for `qwen2_vl_lcot`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import gradio as gr

STAGE, MODEL, PATH, TEMPLATE = "train.training_stage", "top.model_name", "top.model_path", "top.template"
_ATTRIBUTE = "lcot_loaded"


def apply(module: ModuleType) -> None:
    """Has the Board's runner remember what it loads; `module` is `llamafactory.webui.runner`."""
    for name in ("load_args", "check_output_dir"):
        setattr(module.Runner, name, _remembering(getattr(module.Runner, name)))


def _remembering(load: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    @functools.wraps(load)
    def loading(self: Any, *inputs: Any) -> dict[Any, Any]:
        values = load(self, *inputs)
        elements = {name: self.manager.get_elem_by_id(name) for name in (STAGE, MODEL, TEMPLATE)}
        setattr(self, _ATTRIBUTE, {name: values[elem] for name, elem in elements.items() if elem in values})
        return values

    return loading


class Kept:
    """Of one page. A change to what was loaded last is the loading itself; any other one is the user's."""

    def __init__(self) -> None:
        self.engine: Any = None
        """Known before any event."""

    def forget_on_opening(self, engine: Any) -> None:
        """Takes the page's engine, and has a page that is opened anew begin without what an earlier one has loaded."""
        self.engine, resume = engine, engine.resume

        def resume_without_loaded() -> Iterator[Any]:
            setattr(engine.runner, _ATTRIBUTE, {})
            yield from resume()

        engine.resume = resume_without_loaded

    def _set(self, name: str, value: Any) -> dict[str, Any] | None:
        """The settings of which `value` is part; None where the user has chosen it."""
        runner = self.engine.runner
        loaded: dict[str, Any] = getattr(runner, _ATTRIBUTE, {})
        if name in loaded:
            if loaded[name] == value:
                return loaded
            # The next time that this value comes, it will be the user's.
            del loaded[name]
        if runner.running and runner.running_data:
            ids = (name, PATH, TEMPLATE)
            running = {key: runner.running_data.get(self.engine.manager.get_elem_by_id(key)) for key in ids}
            if running[name] == value:
                return running
        return None

    def change_stage(self, original: Callable[[str], Any]) -> Callable[[str], Any]:
        def keep_data_sets(training_stage: str) -> Any:
            return (gr.skip(), gr.skip()) if self._set(STAGE, training_stage) else original(training_stage)

        return keep_data_sets

    def get_model_info(self, original: Callable[[str], Any]) -> Callable[[str], Any]:
        def keep_template(model_name: str) -> Any:
            path, template = original(model_name)
            kept = self._set(MODEL, model_name) or {}
            return kept.get(PATH) or path, kept.get(TEMPLATE) or template

        return keep_template
