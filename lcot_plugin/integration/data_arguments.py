"""Seam: `llamafactory.hparams.data_args`. Adds the keys of `lcot_plugin.data_arguments` and `.packing_arguments`.

`hparams/parser.py` binds `DataArguments` when it is imported, so the class is replaced right after its own module has
run. Can go when LLaMA-Factory has an extension point for arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from lcot_plugin.data_arguments import LcotDataArguments, check_choices
from lcot_plugin.integration.arguments import check_not_bound
from lcot_plugin.packing_arguments import PackingArguments


def apply(module: ModuleType) -> None:
    """Replaces `DataArguments` by a subclass with our keys."""
    original = module.DataArguments
    if issubclass(original, LcotDataArguments):
        return
    check_not_bound(module)

    @dataclass
    class DataArguments(LcotDataArguments, PackingArguments, original):  # type: ignore[misc, valid-type]
        __doc__ = original.__doc__

        def __post_init__(self) -> None:
            super().__post_init__()
            check_choices(self, LcotDataArguments)
            check_choices(self, PackingArguments)
            self.check_packing()

    DataArguments.__module__ = original.__module__
    DataArguments.__qualname__ = "DataArguments"
    module.DataArguments = DataArguments
