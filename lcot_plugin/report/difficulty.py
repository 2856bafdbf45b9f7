"""Pass rates of the records of data sets in, easy / medium / hard out, with a table, JSON figures and a histogram.

A record's pass rate is the share of a model's sampled answers that are right: how difficult it is for that model. Where
it is 0 or 1 all completions of a GRPO group earn the same reward, so that nothing is learned from the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any

from lcot_plugin.errors import ArgumentError

MAX_NAMED = 10
"""Records named in the summary."""


class Difficulty(StrEnum):
    """How difficult a record is for the model that was measured."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"


COLOURS = {Difficulty.EASY: "#2f8f5b", Difficulty.MEDIUM: "#d8a03c", Difficulty.HARD: "#b4503c"}


@dataclass(frozen=True)
class Thresholds:
    """hard <= `hard` < medium <= `medium` < easy, in pass rates."""

    hard: float = 0.25
    medium: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.hard < self.medium <= 1:
            raise ArgumentError(
                f"thresholds {self.hard} and {self.medium}: write two pass rates between 0 and 1, the lower one first."
            )

    def difficulty(self, pass_rate: float) -> Difficulty:
        """The bucket of a pass rate."""
        if pass_rate <= self.hard:
            return Difficulty.HARD
        return Difficulty.MEDIUM if pass_rate <= self.medium else Difficulty.EASY


@dataclass
class SetDifficulty:
    """What was measured of one data set."""

    name: str
    num_records: int
    """Of the data set as it is on disk, measured or not."""
    thresholds: Thresholds
    pass_rates: dict[int, float] = field(default_factory=dict)
    """Record -> share of right answers; only records that were measured."""
    num_rollouts: int = 0
    """Per record."""
    num_truncated: int = 0
    """Completions that reached max_new_tokens."""
    num_unparsable: int = 0
    """Completions without an answer that can be read."""
    no_gold: list[int] = field(default_factory=list)
    """The first records without a gold answer, or with one that the verifier cannot read."""
    num_no_gold: int = 0
    left_out: list[tuple[int, str]] = field(default_factory=list)
    """(record, why) of the first records that cannot be used for another reason."""
    num_left_out: int = 0

    def counts(self) -> Counter[str]:
        """Records per bucket, and how many of them are all wrong and all right."""
        counts = Counter({kind.value: 0 for kind in Difficulty})
        counts.update(self.thresholds.difficulty(rate).value for rate in self.pass_rates.values())
        rates = self.pass_rates.values()
        return counts + Counter(all_wrong=sum(rate == 0 for rate in rates), all_right=sum(rate == 1 for rate in rates))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; shares in percent of the completions."""
        counts = self.counts()
        num_completions = len(self.pass_rates) * self.num_rollouts or 1
        return {
            "records": self.num_records,
            "measured": len(self.pass_rates),
            "mean_pass_rate": fmean(self.pass_rates.values()) if self.pass_rates else None,
            **{key: counts[key] for key in ("all_wrong", "hard", "medium", "easy", "all_right")},
            "truncated": 100 * self.num_truncated / num_completions,
            "unparsable": 100 * self.num_unparsable / num_completions,
            "no_usable_gold": self.num_no_gold,
            "left_out": self.num_left_out,
        }


def difficulty_table(sets: Sequence[SetDifficulty]) -> str:
    """One line per data set, then what the user should know of them; for a terminal."""
    rows = [["data set", "records", "measured", "pass rate", "hard", "medium", "easy", "0.0", "1.0", "truncated"]]
    notes = []
    for entry in sets:
        figures, num_measured = entry.as_dict(), len(entry.pass_rates)
        mean = figures["mean_pass_rate"]
        rows.append(
            [
                entry.name,
                f"{entry.num_records:,}",
                f"{num_measured:,}",
                "-" if mean is None else f"{mean:.3f}",
                *(f"{figures[key]:,}" for key in ("hard", "medium", "easy", "all_wrong", "all_right")),
                f"{figures['truncated']:.1f}%",
            ]
        )
        flat = figures["all_wrong"] + figures["all_right"]
        if flat:
            notes.append(
                f"{entry.name}: {flat:,} of {num_measured:,} records are always wrong (0.0) or always right (1.0) in "
                f"{entry.num_rollouts} rollouts: GRPO learns nothing from such groups."
            )
        if entry.num_no_gold:
            records = [str(record) for record in sorted(entry.no_gold)]
            notes.append(
                f"{entry.name}: {entry.num_no_gold:,} records without a gold answer that can be verified, not "
                f"measured: {_named(records, entry.num_no_gold)}"
            )
        if entry.num_left_out:
            reasons = [f"record {record} ({_short(reason)})" for record, reason in sorted(entry.left_out)]
            notes.append(
                f"{entry.name}: {entry.num_left_out:,} records cannot be used: {_named(reasons, entry.num_left_out)}"
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *notes])


def _named(names: list[str], total: int) -> str:
    more = total - len(names[:MAX_NAMED])
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more else "")


def _short(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plot_difficulty(sets: Sequence[SetDifficulty], path: Path) -> None:
    """A histogram of pass rates per data set, one bar per possible rate, coloured by bucket."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, entry in zip(figure.subplots(len(sets), squeeze=False)[:, 0], sets, strict=True):
        num = max(entry.num_rollouts, 1)
        correct = Counter(round(rate * num) for rate in entry.pass_rates.values())
        for kind in reversed(Difficulty):
            own = [i for i in range(num + 1) if entry.thresholds.difficulty(i / num) is kind]
            heights = [correct[i] for i in own]
            label = f"{kind} ({sum(heights):,})"
            panel.bar([i / num for i in own], heights, width=0.9 / num, color=COLOURS[kind], label=label)
        panel.set(xlabel=f"pass rate over {num} rollouts", ylabel="records", xlim=(-0.5 / num, 1 + 0.5 / num))
        panel.set_title(f"{entry.name}: {len(entry.pass_rates):,} records")
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
