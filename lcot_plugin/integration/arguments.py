"""Seam: `llamafactory.hparams.finetuning_args`. Adds `stage: grpo` and the grpo_* keys.

`hparams/parser.py` binds `FinetuningArguments` when it is imported, so the class is replaced right after its own
module has run. Can go when LLaMA-Factory has an extension point for arguments.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Literal, get_args, get_type_hints

from lcot_plugin.arguments import GrpoArguments


def apply(module: ModuleType) -> None:
    """Replaces `FinetuningArguments` by a subclass that knows the GRPO stage."""
    original = module.FinetuningArguments
    if issubclass(original, GrpoArguments):
        return
    check_not_bound(module)
    stages = (*get_args(get_type_hints(original)["stage"]), "grpo")
    help_text = next(item.metadata["help"] for item in fields(original) if item.name == "stage")

    @dataclass
    class FinetuningArguments(GrpoArguments, original):  # type: ignore[misc, valid-type]
        __doc__ = original.__doc__

        stage: Literal[stages] = field(default="sft", metadata={"help": help_text})  # type: ignore[valid-type]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.stage == "grpo":
                self.check_grpo(training=False)

    # HfArgumentParser resolves the annotations by name in the class's module, where `stages` is unknown.
    FinetuningArguments.__annotations__["stage"] = Literal[stages]
    FinetuningArguments.__module__ = original.__module__
    FinetuningArguments.__qualname__ = "FinetuningArguments"
    module.FinetuningArguments = FinetuningArguments


def check_not_bound(module: ModuleType) -> None:
    """Raises RuntimeError where LLaMA-Factory's argument parser has bound the classes of `module` already."""
    if f"{module.__package__}.parser" in sys.modules:
        raise RuntimeError(
            "LLaMA-Factory's argument parser is imported already and would go on rejecting the keys of lcot_plugin: "
            "call lcot_plugin.activation.activate() before the first import of llamafactory"
        )
