"""Pass rates of records in, easy / medium / hard and `learnable` out, with a table, JSON figures and a histogram.

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

LEARNABLE = "learnable"
"""The part of a data set with pass rates between 0 and 1, neither included."""
HIGH_UNPARSABLE = 20.0
"""Percent of rollouts without an answer from which the table says what to do; one that knows the form has a few."""
HEADINGS = (
    "data set",
    "records",
    "measured",
    "pass rate",
    "hard",
    "medium",
    "easy",
    "never right",
    "always right",
    "truncated",
    "unparsable",
)
"""Of the table; a heading's last word stands below the others, which keeps the lines short."""


class Difficulty(StrEnum):
    """How difficult a record is for the model that was measured."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"


PARTS = (*(kind.value for kind in Difficulty), LEARNABLE)
"""What a data set is divided into; every learnable record has a difficulty too."""

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
    num_no_gold: int = 0
    """Records without a gold answer, or with one that the verifier cannot read."""
    num_left_out: int = 0
    """Records that cannot be used for another reason."""

    def parts(self, record: int) -> tuple[str, ...]:
        """Those of PARTS that the record belongs to; none where it was not measured."""
        rate = self.pass_rates.get(record)
        if rate is None:
            return ()
        kind = self.thresholds.difficulty(rate).value
        return (kind, LEARNABLE) if 0 < rate < 1 else (kind,)

    def counts(self) -> Counter[str]:
        """Records per part, and how many of them are all wrong and all right."""
        counts = Counter(part for record in self.pass_rates for part in self.parts(record))
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
            "thresholds": {"hard": self.thresholds.hard, "medium": self.thresholds.medium},
            **{key: counts[key] for key in ("all_wrong", "hard", "medium", "easy", "all_right", LEARNABLE)},
            "truncated": 100 * self.num_truncated / num_completions,
            "unparsable": 100 * self.num_unparsable / num_completions,
            "no_usable_gold": self.num_no_gold,
            "left_out": self.num_left_out,
        }


def difficulty_table(sets: Sequence[SetDifficulty]) -> str:
    """One line per data set, then what the columns mean and what the user should know; for a terminal."""
    rows = [[heading.rpartition(" ")[line] for heading in HEADINGS] for line in (0, 2)]
    limits = sets[0].thresholds
    notes = [
        f"hard: pass rate up to {limits.hard:g}; medium: above that, up to {limits.medium:g}; easy: above "
        f"{limits.medium:g}; {LEARNABLE}: above 0 and below 1."
    ]
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
                *(f"{figures[key]:.1f}%" for key in ("truncated", "unparsable")),
            ]
        )
        if flat := figures["all_wrong"] + figures["all_right"]:
            notes.append(
                f"{entry.name}: {flat:,} of {num_measured:,} records are never right or always right in "
                f"{entry.num_rollouts} rollouts: GRPO learns nothing from such groups. The other "
                f"{figures[LEARNABLE]:,} are {LEARNABLE}."
            )
        if figures["unparsable"] >= HIGH_UNPARSABLE:
            notes.append(
                f"{entry.name}: {figures['unparsable']:.0f}% of the rollouts state no answer that can be read: the "
                "model does not write cot_format's form; train SFT first, or raise max_new_tokens "
                f"({figures['truncated']:.0f}% were truncated)."
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


def plot_difficulty(sets: Sequence[SetDifficulty], path: Path) -> None:
    """A histogram of pass rates per data set, one bar per possible rate, coloured by bucket."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

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
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
