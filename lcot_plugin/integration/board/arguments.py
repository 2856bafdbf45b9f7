"""YAML keys from what the Board's controls hold, and what is wrong with them in words, before anything is started.

In:  the controls' values, the Board's own arguments, what the user wrote into the box for extra arguments.
Out: `written_keys`, `merged`, `faults`, `contradictions`. Consumer: integration.webui.

Without gradio: a control that is left at its default writes no key, so that Preview shows what the user has decided,
and a YAML file without the key means the same. What is written into the extra arguments wins over a control.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lcot_plugin.arguments import GRPO_KEYS, GrpoArguments, plan_batches
from lcot_plugin.errors import ArgumentError, LcotError
from lcot_plugin.integration.board.controls import (
    CONTROLS,
    DECLARED,
    LITERAL_CHOICES,
    MAX_NEW_TOKENS,
    Control,
    Values,
    shown,
    whole_of,
)
from lcot_plugin.rewards.functions.registry import get_reward
from lcot_plugin.rewards.functions.specs import parse_spec, split_items
from lcot_plugin.user_functions import split_file_spec

_WHOLE = re.compile(r"[+-]?\d+")


def written_keys(values: Values) -> dict[str, Any]:
    """Key -> value of every control that applies and is not at its default, in the page's order.

    Raises ArgumentError for a text that is no number, and where no reward is chosen.
    """
    found: dict[str, Any] = {}
    applies = shown(values)
    for name, control in CONTROLS.items():
        if not applies[name] or name == "grpo_custom_reward":
            continue
        value = _rewards(values) if name == "grpo_reward_funcs" else _value(control, values[name])
        if value != control.default:
            found[control.key] = value
    return found


def _value(control: Control, held: Any) -> Any:
    """The key's value of what a component holds; an empty field means the default."""
    if control.kind == "flag":
        return bool(held)
    if control.kind == "choices":
        return ",".join(whole_of(item) for item in held or ()) or control.default
    text = whole_of(held)
    if not text:
        return control.default
    return as_kind(control.kind, text, control.name)


def as_kind(kind: str, text: str, name: str) -> Any:
    """The number that a text stands for; the text itself where it is none of the kinds of numbers.

    Raises ArgumentError with the control's name.
    """
    if kind == "whole":
        if not _WHOLE.fullmatch(text):
            raise ArgumentError(f"{name}: {text!r} is not a whole number.")
        return int(text)
    if kind == "number":
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ArgumentError(f"{name}: {text!r} is not a number: write for example 0.2 or 1e-3.")
        return number
    return text


def _rewards(values: Values) -> str:
    chosen = [whole_of(name) for name in values["grpo_reward_funcs"] or ()]
    return ",".join([*chosen, *split_items(whole_of(values["grpo_custom_reward"]))]).strip(",")


def merged(board: Mapping[str, Any], keys: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The run's arguments: the Board's, then ours, each as its key declares it; `extra` wins.

    A YAML list becomes the comma-separated text of the same meaning and the text of a number that number, so that a
    command line and a YAML file give one run. Raises ArgumentError for a value that its key cannot hold.
    """
    result = {**board, **{key: value for key, value in keys.items() if key not in extra}}
    if "eval_dataset" in keys and "eval_strategy" not in result:
        # As the Board does for a share of the training data.
        result |= {"eval_strategy": "steps", "eval_steps": board["save_steps"]}
        result.setdefault("per_device_eval_batch_size", board["per_device_train_batch_size"])
    return {key: as_declared(key, value) for key, value in result.items()}


def as_declared(key: str, value: Any) -> Any:
    """`value` in the type that the key has; values of keys that are not ours as they are."""
    declared = DECLARED.get(key)
    if declared is None or value is None:
        return value
    if declared.kind in ("text", "choice"):
        if isinstance(value, dict):
            raise ArgumentError(f"{key}: {value!r} is not a text.")
        if not isinstance(value, list):
            return str(value)
        joined = ",".join(map(str, value))
        if split_items(joined) != split_items(value):
            raise ArgumentError(f"{key}: {value!r} has a comma within a text, which only a YAML file can hold.")
        return joined
    if declared.kind == "flag":
        if not isinstance(value, bool):
            words = {"true": True, "false": False}
            if str(value).lower() not in words:
                raise ArgumentError(f"{key}: {value!r} is neither true nor false.")
            return words[str(value).lower()]
        return value
    if isinstance(value, bool):
        raise ArgumentError(f"{key}: {value!r} is not a number.")
    return as_kind(declared.kind, str(value), key)


def contradictions(keys: Mapping[str, Any], extra: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, what the extra arguments say, what the control says) where both are written and differ."""
    for key, value in keys.items():
        if key in extra and as_declared(key, extra[key]) != value:
            yield key, extra[key], value


def faults(args: Mapping[str, Any]) -> list[str]:
    """What would stop the run before its first step, each as a sentence; `args` as `merged` makes them.

    Functions in files of the user's are not run: of those only that the file is there is checked.
    """
    found = []
    if args["stage"] == "grpo":
        found = [*_unknown(args), *_grpo_faults(args)]
    elif args.get("length_aware_packing") and (args.get("packing") or args.get("neat_packing")):
        found.append(
            "length_aware_packing: these are two ways to pack. Switch `packing` and `neat_packing` off, or this one."
        )
    for key in ("pack_max_tokens", "pack_max_patches"):
        if args.get(key) is not None and args[key] < (key == "pack_max_tokens"):
            found.append(f"{key}: {args[key]} is too small.")
    for key, choices in LITERAL_CHOICES.items():
        if key not in GRPO_KEYS and args.get(key) is not None and args[key] not in choices:
            found.append(f"{key}: {args[key]!r} must be one of {', '.join(choices)}.")
    return found


def folder_faults(args: Mapping[str, Any]) -> list[str]:
    """What LLaMA-Factory would say of a folder that holds a model and no checkpoint, before a run is started."""
    from llamafactory.extras.constants import CHECKPOINT_NAMES
    from transformers.trainer_utils import get_last_checkpoint

    folder = Path(str(args["output_dir"]))
    if args.get("overwrite_output_dir") or args.get("resume_from_checkpoint") is not None or not folder.is_dir():
        return []
    if get_last_checkpoint(str(folder)) or not any((folder / name).is_file() for name in CHECKPOINT_NAMES):
        return []
    return [
        f"output_dir: {folder} holds a finished model and no checkpoint to go on from. Choose another folder, or "
        'write over it with {"overwrite_output_dir": true} in the extra arguments.'
    ]


def _grpo_faults(args: Mapping[str, Any]) -> list[str]:
    from lcot_plugin.policy.objectives.checks import check_objective

    arguments = GrpoArguments(**{key: args[key] for key in GRPO_KEYS if args.get(key) is not None})
    found = []

    def ask(check: Any, *inputs: Any) -> None:
        try:
            check(*inputs)
        except LcotError as error:
            found.append(str(error))

    ask(arguments.check_grpo)
    for spec in arguments.reward_functions():
        ask(_check_reward, spec, args.get("max_new_tokens") or MAX_NEW_TOKENS)
    files = [_check_file(key, getattr(arguments, key)) for key in ("grpo_loss_type", "grpo_advantage")]
    if any(files):
        found += filter(None, files)
    elif not any(split_file_spec(spec) for spec in (arguments.grpo_loss_type, arguments.grpo_advantage)):
        ask(check_objective, arguments)
    if arguments.grpo_num_generations > 1 and not found:
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        ask(plan_batches, arguments, *(as_kind("whole", str(args[key]), key) for key in keys), 1)
    if args.get("eval_dataset") and args.get("val_size"):
        found.append(
            "eval_dataset: the Board's validation split is set too: set its share to 0, or leave the sets out."
        )
    return found + list(_range_faults(args))


def _range_faults(args: Mapping[str, Any]) -> Iterator[str]:
    """LLaMA-Factory's keys about sampling, which it does not check."""
    ranges = {
        "temperature": (lambda value: value > 0, "must be more than 0: GRPO compares different completions"),
        "top_p": (lambda value: 0 < value <= 1, "must lie in (0, 1]; 1 leaves nothing out"),
        "top_k": (lambda value: value >= 0, "must not be negative; 0 is the whole vocabulary"),
        "repetition_penalty": (lambda value: value > 0, "must be more than 0; 1 is none"),
        "max_new_tokens": (lambda value: value >= 1, "must be at least 1"),
    }
    for key, (fits, sentence) in ranges.items():
        value = args.get(key)
        if isinstance(value, int | float) and not fits(value):
            yield f"{key}: {value} {sentence}."


def _check_reward(spec: str, max_new_tokens: int) -> None:
    base = parse_spec(spec).base
    if split_file_spec(base) is not None:
        if missing := _check_file("grpo_reward_funcs", base):
            raise ArgumentError(missing)
    elif ":" not in base or base.startswith("trl:"):
        get_reward(spec, {"max_length": max_new_tokens})


def _check_file(key: str, spec: str) -> str | None:
    """A sentence where `path/to/file.py:function` names a file that is not there."""
    in_file = split_file_spec(spec)
    if in_file is None or Path(in_file[0]).is_file():
        return None
    return f"{key}: there is no file {in_file[0]} (seen from {Path.cwd()}, where the Board was started)."


def _unknown(args: Mapping[str, Any]) -> Iterator[str]:
    known = known_keys()
    for key in args:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            yield f"{key}: there is no such argument{f': did you mean {near[0]}?' if near else '.'}"


def known_keys() -> dict[str, Any]:
    """Every key of a training run -> its default."""
    from llamafactory.hparams import parser

    return {item.name: item.default for group in parser._TRAIN_ARGS for item in fields(group)}


def switched_off(args: Mapping[str, Any]) -> Collection[str]:
    """The keys that are False and would be something else if they were left out."""
    known = known_keys()
    return {key for key, value in args.items() if value is False and known.get(key, False) is not False}
