"""Seam: `llamafactory.data.parser`. Lets dataset_info.json name the columns of gold answers, pass rates, problems.

    "columns": {"prompt": "problem", "images": "images", "gold": "answer", "pass_rate": "solved"}

LLaMA-Factory reads a fixed list of column names; the others would be ignored without a word. Can go when
`DatasetAttr.join` keeps columns that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

GOLD_COLUMNS = ("gold", "answer_type", "options", "match", "pass_rate", "problem_id")


def apply(module: ModuleType) -> None:
    """Replaces `DatasetAttr` by a subclass with GOLD_COLUMNS."""
    original = module.DatasetAttr
    if hasattr(original, "gold"):
        return

    @dataclass
    class DatasetAttr(original):  # type: ignore[misc, valid-type]
        gold: str | None = None
        """Column of the verifiable answer."""
        answer_type: str | None = None
        """Column that says how to compare (number, choice, expression, text); without it the answer's form decides."""
        options: str | None = None
        """Column of a choice's options, a list of texts."""
        match: str | None = None
        """Column of how to compare, an object: aliases, relative_tolerance... (types.MatchSettings)."""
        pass_rate: str | None = None
        """Column of the share of a model's completions that were right; without it that of `lcot data difficulty`."""
        problem_id: str | None = None
        """Column that says which problem a record is a variant of: evaluation then tells the worst case of each."""
        lcot_columns: dict[str, str] = field(default_factory=dict)
        """`columns` for the `lcot_...` formats, which have roles of their own; any of them may have a pass rate."""

        def __repr__(self) -> str:  # a dataclass would print every field where LLaMA-Factory prints the name
            return self.dataset_name

        def join(self, attr: dict[str, Any]) -> None:
            super().join(attr)
            for name in GOLD_COLUMNS:
                self.set_attr(name, attr.get("columns", {}))
            columns = attr.get("columns", {}).items()
            self.lcot_columns = {role: name for role, name in columns if name and role != "pass_rate"}

    DatasetAttr.__module__ = original.__module__
    DatasetAttr.__qualname__ = "DatasetAttr"
    module.DatasetAttr = DatasetAttr
