"""Keeps what a loaded configuration says from being overwritten by LLaMA Board's own events.

In:  what `Runner.load_args` and `Runner.check_output_dir` have set; the settings of a training that is going on.
Out: `Kept`, whose functions stand in for the Board's `change_stage` and `get_model_info`. Consumer: `page`.

gradio reports a change of a component whoever made it. The Board empties the choice of data sets when the stage
changes, and puts the model's usual template in when the model changes: a configuration of another stage or model comes
back without its data sets, and with another template than the one that was saved (`qwen2_vl` for `qwen2_vl_lcot`).
What was loaded is known by session, which is one opened page: of two users each has his own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import gradio as gr

STAGE, MODEL, PATH, TEMPLATE = "train.training_stage", "top.model_name", "top.model_path", "top.template"
MAX_SESSIONS = 200
"""Pages that are remembered; a page matters for the second after it has loaded something."""
_ATTRIBUTE = "lcot_sessions"


@dataclass
class Session:
    """What one opened page has been given."""

    loaded: dict[str, Any] = field(default_factory=dict)
    """Component's id -> value, of the file that it has loaded last."""
    of_running: bool = False
    """Whether it began with the settings of a training that was going on."""


def session_of(runner: Any, request: gr.Request | None) -> Session:
    """The session that an event comes from; calls from outside a page share one."""
    sessions: OrderedDict[str | None, Session] = vars(runner).setdefault(_ATTRIBUTE, OrderedDict())
    key = request.session_hash if request is not None else None
    found = sessions.setdefault(key, Session())
    sessions.move_to_end(key)
    while len(sessions) > MAX_SESSIONS:
        sessions.popitem(last=False)
    return found


def apply(module: ModuleType) -> None:
    """Has the Board's runner remember what it loads; `module` is `llamafactory.webui.runner`."""
    load, check = module.Runner.load_args, module.Runner.check_output_dir

    def remember(runner: Any, values: dict[Any, Any], request: gr.Request | None) -> dict[Any, Any]:
        elements = {name: runner.manager.get_elem_by_id(name) for name in (STAGE, MODEL, TEMPLATE)}
        given = {name: values[elem] for name, elem in elements.items() if elem in values}
        session_of(runner, request).loaded = given
        return values

    # gradio fills in the parameter that is annotated as its Request.
    def load_args(self: Any, lang: str, config_path: str, request: gr.Request | None = None) -> dict[Any, Any]:
        return remember(self, load(self, lang, config_path), request)

    def check_output_dir(
        self: Any,
        lang: str,
        model_name: str,
        finetuning_type: str,
        output_dir: str,
        request: gr.Request | None = None,
    ) -> dict[Any, Any]:
        return remember(self, check(self, lang, model_name, finetuning_type, output_dir), request)

    module.Runner.load_args, module.Runner.check_output_dir = load_args, check_output_dir


class Kept:
    """Of one Board. A change to what was loaded last is the loading itself; any other one is the user's."""

    def __init__(self) -> None:
        self.engine: Any = None
        """Known before any event."""

    def belong_to(self, engine: Any) -> None:
        """Takes the Board's engine, and notes which pages begin with the settings of a running training."""
        self.engine, resume = engine, engine.resume

        def resume_noted(request: gr.Request | None = None) -> Iterator[Any]:
            session_of(engine.runner, request).of_running = engine.runner.running
            yield from resume()

        engine.resume = resume_noted

    def _set(self, name: str, value: Any, request: gr.Request | None) -> dict[str, Any] | None:
        """The settings of which `value` is part; None where the user has chosen it."""
        runner = self.engine.runner
        session = session_of(runner, request)
        if name in session.loaded:
            if session.loaded[name] == value:
                return session.loaded
            # The next time that this value comes, it will be the user's.
            del session.loaded[name]
        if session.of_running and runner.running and runner.running_data:
            ids = (name, PATH, TEMPLATE)
            running = {key: runner.running_data.get(self.engine.manager.get_elem_by_id(key)) for key in ids}
            if running[name] == value:
                return running
        return None

    def change_stage(self, original: Callable[[str], Any]) -> Callable[..., Any]:
        def keep_data_sets(training_stage: str, request: gr.Request | None = None) -> Any:
            return (gr.skip(), gr.skip()) if self._set(STAGE, training_stage, request) else original(training_stage)

        return keep_data_sets

    def get_model_info(self, original: Callable[[str], Any]) -> Callable[..., Any]:
        def keep_template(model_name: str, request: gr.Request | None = None) -> Any:
            path, template = original(model_name)
            kept = self._set(MODEL, model_name, request) or {}
            return kept.get(PATH) or path, kept.get(TEMPLATE) or template

        return keep_template
