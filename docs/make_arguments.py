"""Writes docs/arguments.md, every key of the plugin, from the classes that parse them.

    python docs/make_arguments.py

A test holds the file against what this makes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.data_arguments import LcotDataArguments
from lcot_plugin.packing_arguments import PackingArguments

FILE = Path(__file__).parent / "arguments.md"
HEAD = """\
# Every key

Made from the code by `python docs/make_arguments.py`; `llamafactory-cli train --help` prints the same texts. All keys
go into the YAML file beside LLaMA-Factory's own, or behind it on the command line as `key=value`.
"""
GROUPS = (
    (
        "GRPO (`stage: grpo`)",
        GrpoArguments,
        "How to choose among them: [grpo.md](grpo.md), [rewards.md](rewards.md), [vllm.md](vllm.md).",
    ),
    ("Data, both stages", LcotDataArguments, "More: [data.md](data.md)."),
    ("Packed SFT (`stage: sft`)", PackingArguments, "More: [packing.md](packing.md)."),
)


def text() -> str:
    """The page."""
    parts = [HEAD]
    for title, group, more in GROUPS:
        hints = get_type_hints(group)
        rows = [_row(item, hints[item.name]) for item in dataclasses.fields(group)]
        parts.append(
            "\n".join([f"## {title}\n", more + "\n", "| key | values | default | |", "|---|---|---|---|", *rows])
        )
    return "\n".join(parts)


def _row(item: dataclasses.Field[Any], kind: Any) -> str:
    help_text = " ".join(str(item.metadata["help"]).split()).replace("|", "\\|")
    return f"| `{item.name}` | {_values(kind)} | {_default(item.default)} | {help_text} |"


def _values(kind: Any) -> str:
    """`grpo`, `dapo`... of a choice; else the type."""
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Literal:
            return ", ".join(f"`{value}`" for value in get_args(part))
    plain = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    names = {bool: "true, false", int: "integer", float: "number", str: "text"}
    return " or ".join(dict.fromkeys(names.get(part, str(getattr(part, "__name__", part))) for part in plain))


def _default(value: Any) -> str:
    if value is None:
        return "-"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(FILE)
