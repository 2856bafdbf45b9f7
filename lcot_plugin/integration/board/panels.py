"""The accordions with the plugin's controls, as gradio components.

In:  `controls.BOXES` and the texts. Out: `Panels`; `connect` has components appear where they apply. Consumer: `page`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from lcot_plugin.integration.board import texts
from lcot_plugin.integration.board.controls import ALL_BOXES, BOXES, CONTROLS, SWITCHES, Box, Control, always, shown
from lcot_plugin.recipes import source_root
from lcot_plugin.rewards.functions.registry import reward_names

NO_VALUE = ("-", "")
"""How a list shows that nothing is chosen."""
START = {"stage": "sft", "tracks": False, **{control.name: control.start for control in CONTROLS.values()}}
"""What the components hold when the page is built."""


@dataclass
class Panels:
    """What `create_panels` has made."""

    boxes: list[Any] = field(default_factory=list)
    """The outermost accordions, in their order."""
    components: dict[str, Any] = field(default_factory=dict)
    """By name: controls and accordions."""

    @property
    def inputs(self) -> set[Any]:
        """The components that hold a value."""
        return {self.components[name] for name in CONTROLS}


def create_panels() -> Panels:
    """Creates the accordions in the current Blocks."""
    made = Panels()
    for box in BOXES:
        made.boxes.append(_create_box(box, made.components))
    return made


def _create_box(box: Box, components: dict[str, Any]) -> Any:
    properties: dict[str, Any] = {**texts.start(box.name), "visible": box.applies(START), "elem_id": f"lcot_{box.name}"}
    with gr.Accordion(open=False, **properties) as made:
        for row in box.rows:
            with gr.Row():
                for control in row:
                    components[control.name] = _create(control)
        for inner in box.boxes:
            _create_box(inner, components)
    components[box.name] = made
    return made


def _create(control: Control) -> Any:
    properties = {
        **texts.start(control.name),
        "value": control.start,
        "visible": control.applies(START),
        "elem_id": f"lcot_{control.name}",
        "scale": 2 if control.wide else 1,
    }
    if control.kind == "flag":
        return gr.Checkbox(**properties)
    if control.kind == "choices":
        names = reward_names() if control.name == "grpo_reward_funcs" else []
        return gr.Dropdown(choices=names, multiselect=True, allow_custom_value=True, **properties)
    if control.kind == "choice":
        choices = [NO_VALUE if choice == "" else (choice, choice) for choice in control.choices]
        return gr.Dropdown(choices=choices, allow_custom_value=control.custom, **properties)
    return gr.Textbox(**properties)


def connect(engine: Any, made: Panels) -> None:
    """Has what is chosen show and hide what depends on it; the Board's own components are known to its manager."""
    from llamafactory.extras.constants import TRAINING_STAGES
    from llamafactory.webui.control import list_datasets

    get = engine.manager.get_elem_by_id
    stage, report_to, swanlab = (get(f"train.{name}") for name in ("training_stage", "report_to", "use_swanlab"))
    switches = [stage, report_to, swanlab, *(made.components[name] for name in SWITCHES)]
    names = sorted(dependent_names())
    outputs = [made.components[name] for name in names]

    def show_what_applies(label: str, report_to: Any, swanlab: bool, *held: Any) -> list[dict[str, Any]]:
        values = {**START, "stage": TRAINING_STAGES.get(label, ""), "tracks": tracks(report_to, swanlab)}
        visible = shown(values | dict(zip(SWITCHES, held, strict=True)))
        return [gr.update(visible=visible[name]) for name in names]

    for switch in switches:
        switch.change(show_what_applies, switches, outputs, queue=False, show_progress="hidden", show_api=False)
    dataset_dir = get("train.dataset_dir")
    sets = made.components["grpo_eval_dataset"]
    sets.focus(list_datasets, [dataset_dir, stage], [sets], queue=False, show_api=False)


def dependent_names() -> set[str]:
    """The controls and accordions that may be hidden while what holds them is shown."""
    rules = {box.name for box in ALL_BOXES.values() if box.applies is not always}
    return rules | {control.name for control in CONTROLS.values() if control.applies is not always}


def tracks(report_to: Any, use_swanlab: Any) -> bool:
    """Whether a run with these settings of the Board's has a tracker."""
    chosen = report_to if isinstance(report_to, list) else [report_to]
    return bool(use_swanlab) or any(name not in (None, "", "none") for name in chosen)


def default_dataset_dir(default: str) -> str:
    """The folder that the Board starts with: its own default where that has a listing of data sets, else ours.

    Ours is what `lcot init` or a clone puts into the current folder, or else what was installed.
    """
    listing = "dataset_info.json"
    for folder in (default, "dataset_info"):
        if (Path(folder) / listing).is_file():
            return folder
    return str(source_root() / "dataset_info")
