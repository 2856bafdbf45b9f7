"""The values of a recipe: are they of the type, among the choices and in the range that their arguments want?

In: the keys as written. Out: findings. LLaMA-Factory checks none of it in a YAML file: `cutoff_len: ten` and
`stage: foo` come through its parser and fail later, or train something else.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import parser

from lcot_plugin.command_checks import near_names
from lcot_plugin.integration.recipe_doctor.lines import WRONG, Line

AT_LEAST_ONE = (
    *("cutoff_len", "max_new_tokens", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "pack_max_tokens", "image_max_pixels", "lora_rank"),
)
NUMBERS = (int, float, bool)


def value_lines(written: Mapping[str, Any]) -> list[Line]:
    """Values that cannot be what was meant, and a template that there is not."""
    hints: dict[str, Any] = {}
    for arguments in parser._TRAIN_ARGS:
        hints |= get_type_hints(arguments)
    lines = []
    for key, value in written.items():
        problem = None if value is None or key not in hints else fault(value, hints[key])
        if problem is None and key in AT_LEAST_ONE and isinstance(value, int | float) and value < 1:
            problem = "must be at least 1"
        if problem is not None:
            lines.append(Line(WRONG, "values", f"{key}: {value!r} {problem}."))
    template = written.get("template")
    if isinstance(template, str) and template not in TEMPLATES:
        advice = near_names([template], TEMPLATES) or "docs/families.md names that of each family."
        lines.append(Line(WRONG, "values", f"template: there is no {template}: {advice}"))
    return lines


def fault(value: Any, annotation: Any) -> str | None:
    """What a value should be and is not; None where it may be right. Only plain annotations are judged."""
    kinds = set(_alternatives(annotation))
    literals = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    if (literals or enums) and kinds <= {type(None), *(k for k in kinds if get_origin(k) is Literal), *enums}:
        choices = [*literals, *(member.value for kind in enums for member in kind)]
        near = near_names([str(value)], map(str, choices))
        return None if value in choices else f"must be one of {', '.join(map(str, choices))}{f': {near}' * bool(near)}"
    wanted = kinds - {type(None)}
    if not wanted or not wanted <= set(NUMBERS):
        return None
    if wanted == {bool}:
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(value, bool):
        return None if bool in wanted else "must be a number"
    if not isinstance(value, int | float):
        return "must be a number"
    return "must be a whole number" if float not in wanted and value != int(value) else None


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]
