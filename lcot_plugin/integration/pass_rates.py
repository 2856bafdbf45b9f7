"""Pass rates of prompts: read from a record's column, and a training set cut to those that GRPO learns from.

`lcot data difficulty` writes the column `pass_rate`, or `lcot_pass_rate` into a set that has a column `pass_rate`,
`num_rollouts` or `difficulty` of its own; null where a record was not measured. The converters carry it into
PromptRecord.pass_rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import DataError

PASS_RATE_COLUMNS = ("lcot_pass_rate", "pass_rate")
"""Ours first: beside it, a `pass_rate` is the data set's own, of another model."""


def pass_rate_column(columns: Collection[str], named: str | None) -> str | None:
    """The column that holds the pass rate: the one that dataset_info.json names, else the first of
    PASS_RATE_COLUMNS."""
    return named or next((name for name in PASS_RATE_COLUMNS if name in columns), None)


def as_pass_rate(value: Any) -> float | None:
    """A column's value as a pass rate; None for anything but a number from 0 to 1, NaN included."""
    return float(value) if isinstance(value, int | float) and 0.0 <= value <= 1.0 else None


def filter_by_pass_rate(dataset: Any, arguments: GrpoArguments, say: Callable[[str], None]) -> Any:
    """The prompts within `grpo_min_pass_rate` and `grpo_max_pass_rate`, both included.

    A prompt that was not measured is left out where a bound is set, since nothing says that it lies within; with
    `grpo_curriculum` alone it stays. What is left out is counted and told.

    Args:
        dataset: a `datasets.Dataset` of PromptRecords, the training set.
        say: takes a sentence for the log.

    Raises:
        DataError: no prompt has a pass rate though a key needs it, or none lies within the bounds.
    """
    low, high = arguments.grpo_min_pass_rate, arguments.grpo_max_pass_rate
    keys = {"grpo_min_pass_rate": low is not None, "grpo_max_pass_rate": high is not None}
    keys["grpo_curriculum"] = arguments.grpo_curriculum != "none"
    if not any(keys.values()):
        return dataset
    rates: Sequence[float | None] = dataset["pass_rate"][:]
    known = [rate for rate in rates if rate is not None]
    if not known:
        raise DataError(
            f"{', '.join(key for key, is_set in keys.items() if is_set)}: no prompt of the training data has a pass "
            "rate. Measure them with `lcot data difficulty` and train on the data sets that it writes; a column of "
            'another name is named in dataset_info.json, "columns": {"pass_rate": "solved"}, and holds numbers from 0 '
            "to 1."
        )
    unmeasured = Counter(source for source, rate in zip(dataset["source"][:], rates, strict=True) if rate is None)
    where = f" ({', '.join(f'{source}: {num:,}' for source, num in unmeasured.items())})"
    if low is None and high is None:
        if unmeasured:
            say(
                f"Curriculum: {unmeasured.total():,} of {len(rates):,} prompts have no pass rate{where}; they stand "
                "among those of the median."
            )
        return dataset

    too_low = sum(low is not None and rate < low for rate in known)
    too_high = sum(high is not None and rate > high for rate in known)
    kept = [
        row
        for row, rate in enumerate(rates)
        if rate is not None and (low is None or rate >= low) and (high is None or rate <= high)
    ]
    parts = [f"{too_low:,} below grpo_min_pass_rate {low:g}"] if low is not None else []
    parts += [f"{too_high:,} above grpo_max_pass_rate {high:g}"] if high is not None else []
    parts += [f"{unmeasured.total():,} not measured{where}"] if unmeasured else []
    if not kept:
        raise DataError(
            f"No prompt of the training data is left: of {len(rates):,} are {', '.join(parts)}. The measured pass "
            f"rates go from {min(known):g} to {max(known):g}: set bounds between which some of them lie."
        )
    say(
        f"Pass rates: {len(rates) - len(kept):,} of {len(rates):,} prompts are left out ({', '.join(parts)}); "
        f"{len(kept):,} are trained on."
    )
    return dataset if len(kept) == len(rates) else dataset.select(kept)
