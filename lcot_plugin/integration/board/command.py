"""What LLaMA Board writes: the previewed command, the YAML file that Start trains from, and its saved configurations.

In:  the run's arguments; the values of the Board's components by their ids.
Out: a command that a shell reads as the same arguments as the YAML file; configuration files that LLaMA-Factory alone
     can load too. `apply` puts these into `llamafactory.webui.runner`. Consumer: integration.webui.

The Board's own preview puts values with blanks, quotes or line breaks into the command as they are, and what it writes
leaves out whatever is False, also where that is what the user has switched off. A component that a Board does not have
stops its loading, so ours stand in comments:

    train.training_stage: GRPO
    #lcot grpo_beta: '0.01'
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import yaml

from lcot_plugin.integration.board.arguments import switched_off
from lcot_plugin.integration.board.controls import CONTROLS, Control
from lcot_plugin.integration.board.failure import fenced

MARK = "#lcot "
"""What begins a line of ours in a saved configuration."""


def apply(module: ModuleType) -> None:
    """Replaces the functions by which the Board's runner writes and reads."""
    module.gen_cmd, module.save_cmd = _previewing(module.gen_cmd), save_cmd
    module.save_args, module.load_args = save_args, _loading(module.load_args)


def cleaned(args: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the Board's choice, and in stage grpo what is False and would not be by itself."""
    from llamafactory.webui.common import _clean_cmd

    kept = {*_clean_cmd(dict(args)), *(switched_off(args) if args["stage"] == "grpo" else ())}
    return {key: value for key, value in args.items() if key in kept}


def _previewing(original: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    def gen_cmd(args: dict[str, Any]) -> str:
        return original(args) if os.name == "nt" else command_text(cleaned(args))

    return gen_cmd


def command_text(args: Mapping[str, Any]) -> str:
    """The command as a Markdown block; values are quoted where a shell would change them."""
    lines = ["llamafactory-cli train ", *(f"    {_option(key, value)} " for key, value in args.items())]
    return fenced("\\\n".join(lines), "bash")


def _option(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"--{key} {' '.join(shlex.quote(str(item)) for item in value)}"
    word = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    # argparse takes a word that begins with a hyphen for the next option.
    joint = "=" if word.startswith("-") else " "
    return f"--{key}{joint}{shlex.quote(word)}"


def save_cmd(args: dict[str, Any]) -> str:
    """Writes the run's arguments into its folder, and returns the file's path."""
    from llamafactory.extras.constants import TRAINING_ARGS

    folder = Path(args["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TRAINING_ARGS
    path.write_text(yaml.safe_dump(cleaned(args)), encoding="utf-8")
    return str(path)


def save_args(path: str, config: Mapping[str, Any]) -> None:
    """Writes the components' values by id; ours as comments, and only those that are not as they began."""
    ours = {name: config[f"train.{name}"] for name in CONTROLS if f"train.{name}" in config}
    changed = {name: value for name, value in ours.items() if value != CONTROLS[name].start}
    text = yaml.safe_dump({key: value for key, value in config.items() if key.removeprefix("train.") not in ours})
    if changed:
        dumped = yaml.safe_dump(changed, allow_unicode=True, sort_keys=False)
        text += "".join(f"{MARK}{line}\n" for line in dumped.splitlines())
    Path(path).write_text(text, encoding="utf-8")


def _loading(original: Callable[[str], dict[str, Any] | None]) -> Callable[[str], dict[str, Any] | None]:
    from llamafactory.extras.constants import LLAMABOARD_CONFIG

    def load_args(path: str) -> dict[str, Any] | None:
        config = original(path)
        if config is None and Path(path).name == LLAMABOARD_CONFIG:
            return {}  # a run that was started in a shell has none, for which the Board does not look out
        if config is None:
            return None
        if not isinstance(config, dict):
            raise gr.Error(f"{path} holds no configuration of the Board: {type(config).__name__} instead of keys.")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        ours = controls_of([line.removeprefix(MARK) for line in lines if line.startswith(MARK)], path)
        return {**config, **{f"train.{name}": value for name, value in ours.items()}}

    return load_args


def controls_of(lines: list[str], path: str) -> dict[str, Any]:
    """Every control's value: that of the file, or the one that it starts with.

    Raises gr.Error, which the page shows, where the lines cannot be read.
    """
    try:
        written = yaml.safe_load("\n".join(lines)) or {}
        if not isinstance(written, dict):
            raise ValueError("they name no controls")
        found = {name: _checked(CONTROLS[name], value) for name, value in written.items() if name in CONTROLS}
    except (yaml.YAMLError, ValueError) as error:
        raise gr.Error(f"{path}: the lines that begin with {MARK.strip()} cannot be read: {error}") from None
    if unknown := sorted(map(str, written.keys() - CONTROLS.keys())):
        gr.Warning(f"{path}: this version of lcot_plugin has no control {', '.join(unknown)}: left out.")
    return {name: control.start for name, control in CONTROLS.items()} | found


def _checked(control: Control, value: Any) -> Any:
    if control.kind == "flag":
        fits = isinstance(value, bool)
    elif control.kind == "choices":
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        value = "" if value is None else str(value)
        fits = control.custom or not control.choices or value in control.choices
    if not fits:
        raise ValueError(f"{control.name} cannot be {value!r}")
    return value
