"""Seam: `llamafactory.webui.runner`. Adds the GRPO stage to LLaMA Board, and gives it the arguments that it runs with.

In:  the values of the Board's components and of the plugin's (`board.controls`).
Out: the arguments of `stage: grpo` and of long-CoT SFT, for the previewed command and for the YAML file that Start
     writes and trains from; what is wrong with them, in words, before either. Other stages are left as they are.

The Board's other modules take the stages from the one dictionary `TRAINING_STAGES`, when its page is built, and list
for GRPO the data sets without preference pairs. Can go when stages can be registered there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from types import ModuleType
from typing import Any

from lcot_plugin.integration.refusals import REFUSED, WARNED

STAGE_LABEL = "GRPO"
"""The stage in the Board's list; its saved configurations hold this name."""

# Prompts are never concatenated, and have no labels: LLaMA-Factory refuses these three outside SFT.
SFT_KEYS = frozenset({"neat_packing", "train_on_prompt", "mask_history"}) | {
    setting.key for setting in (*REFUSED, *WARNED) if setting.of_sft
}
"""Keys that the Board writes for every stage, and that are refused or without effect in stage grpo."""

NUMBERS = {"learning_rate": "number", "num_train_epochs": "number", "max_samples": "whole", "max_grad_norm": "number"}
"""Text boxes of the Board's own that LLaMA-Factory makes numbers of, with a bare ValueError where it cannot."""


def apply(module: ModuleType) -> None:
    """Adds the stage, and wraps what checks and what collects the arguments in `Runner`."""
    import gradio as gr

    from lcot_plugin.integration.board import command, loading, process, texts
    from lcot_plugin.integration.board.arguments import (
        as_kind,
        contradictions,
        faults,
        folder_faults,
        merged,
        written_keys,
    )
    from lcot_plugin.integration.board.controls import CONTROLS, DECLARED
    from lcot_plugin.integration.board.panels import tracks

    module.TRAINING_STAGES[STAGE_LABEL] = "grpo"
    process.apply(module)
    command.apply(module)
    loading.apply(module)
    original, original_check = module.Runner._parse_train_args, module.Runner._initialize

    def held(self: Any, data: dict[Any, Any], name: str) -> Any:
        return data[self.manager.get_elem_by_id(f"train.{name}")]

    def controls(self: Any, data: dict[Any, Any]) -> dict[str, Any]:
        """What `board.controls` calls values."""
        stage = module.TRAINING_STAGES[held(self, data, "training_stage")]
        tracked = tracks(held(self, data, "report_to"), held(self, data, "use_swanlab"))
        return {"stage": stage, "tracks": tracked, **{name: held(self, data, name) for name in CONTROLS}}

    def _parse_train_args(self: Any, data: dict[Any, Any]) -> dict[str, Any]:
        args = original(self, data)
        extra = json.loads(held(self, data, "extra_args"))
        keys = written_keys(controls(self, data))
        if args["stage"] == "grpo":
            args = without_sft(args, extra)
        elif args["stage"] != "sft" or not (keys or DECLARED.keys() & extra.keys()):
            return args
        return merged(args, keys, extra)

    def _initialize(self: Any, data: dict[Any, Any], do_train: bool, from_preview: bool) -> str:
        error = original_check(self, data, do_train, from_preview)
        if error or not do_train or controls(self, data)["stage"] not in ("grpo", "sft"):
            return error
        lang = data[self.manager.get_elem_by_id("top.lang")]
        extra = json.loads(held(self, data, "extra_args"))
        if not isinstance(extra, dict):
            return texts.alert("extra_no_dictionary", lang)
        try:
            for name, kind in NUMBERS.items():
                if as_kind(kind, str(held(self, data, name)).strip(), name) <= 0 and name != "max_grad_norm":
                    return texts.alert("cannot_run", lang) + f"\n\n- {name}: write a number above 0."
            keys = written_keys(controls(self, data))
            if held(self, data, "training_stage") != STAGE_LABEL and not keys and not DECLARED.keys() & extra.keys():
                return ""
            args = _parse_train_args(self, data)
            # A configuration can be previewed and saved in front of a folder that it cannot be started in.
            found = faults(args) if from_preview else [*faults(args), *folder_faults(args)]
        except ValueError as fault:
            found = [str(fault)]
        if found:
            return texts.alert("cannot_run", lang) + "\n\n" + "\n".join(f"- {sentence}" for sentence in found)
        for key, wins, loses in contradictions(keys, extra):
            gr.Warning(texts.alert("extra_wins", lang, key=key, wins=wins, loses=loses))
        return ""

    module.Runner._parse_train_args, module.Runner._initialize = _parse_train_args, _initialize


def without_sft(args: dict[str, Any], written: Collection[str]) -> dict[str, Any]:
    """The Board's arguments without those of SFT; `written`: keys that the user wrote, which stay as they are."""
    return {key: value for key, value in args.items() if key not in SFT_KEYS or key in written}
