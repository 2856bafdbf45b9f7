"""Which metrics of a run share a chart, and what each chart tells: the lines of metrics.jsonl in, panels out.

In: one entry per training log or evaluation, each with its `step`. Out: `Panel`s, the most telling first; what was not
logged has none. The report and LLaMA Board's live view show them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from lcot_plugin.report.charts import LARGEST, Mark, Series, line_chart

NOT_CURVES = frozenset(
    {"step", "epoch", "time", "total_flos", "train_runtime", "train_loss", "train_samples_per_second"}
)
"""Of an entry: what says when it was written, and the summary of a whole run."""
LOSS_FIRST = ("sft", "pt", "dpo", "rm", "kto")
"""Stages whose loss tells how they go; that of GRPO tells little."""


class Panel(NamedTuple):
    """One chart."""

    title: str
    svg: str
    """A whole `<figure>`: the drawing with its caption and legend."""
    explanation: str
    """What the numbers are, and how to read them; plain text."""


class Group(NamedTuple):
    """Metrics that share an axis."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    """(name, label); a name that ends with * stands for all that begin so, labelled with the rest."""
    explanation: str
    limits: tuple[float | None, float | None] = (None, None)
    logarithmic: bool = False
    percent: bool = False
    """Whether shares of 1 are drawn in percent; metrics of evaluations are logged in percent as they are."""


GROUPS = (
    Group(
        "Reward",
        "mean",
        (("reward", "reward"), ("reward/*", ""), ("reward_std", "spread within groups")),
        "Mean reward of a completion, of all and by data set, and the mean standard deviation within a group: where "
        "that is 0 there is nothing to learn from.",
    ),
    Group(
        "Reward functions",
        "mean, unweighted",
        (("rewards/*", ""),),
        "Mean of each reward function by itself, over the completions for which it did not abstain.",
    ),
    Group(
        "Accuracy",
        "%",
        (
            ("accuracy", "rollouts"),
            ("eval_accuracy", "evaluation, greedy"),
            ("eval_*accuracy", ""),
            ("eval_*accuracy/*", ""),
        ),
        "Share of the judged completions whose answer matches the gold answer. Rollouts are sampled on training "
        "prompts, evaluations are greedy on the evaluation set.",
        percent=True,
    ),
    Group(
        "Evaluation, sampled",
        "%",
        (("eval_*avg@*", ""), ("eval_*pass@*", "")),
        "avg@n: share of n sampled completions that are right. pass@k: the chance that one of k is.",
    ),
    Group(
        "Length of completions",
        "tokens",
        (
            ("completions/length", "mean"),
            ("completions/length/right", "of the right"),
            ("completions/length/wrong", "of the wrong"),
            ("completions/length/max", "longest"),
            ("completions/length/min", "shortest"),
        ),
        "Wrong completions that grow longer than right ones are often repetition.",
        (0, None),
    ),
    Group(
        "Truncated completions",
        "%",
        (
            ("completions/truncated", "of all"),
            ("completions/truncated/right", "of the right"),
            ("completions/truncated/wrong", "of the wrong"),
        ),
        "Share that reached max_new_tokens, mostly before an answer was stated.",
        (0, None),
        percent=True,
    ),
    Group(
        "Groups that teach nothing",
        "%",
        (
            ("groups_without_variance", "without variance"),
            ("groups_all_right", "all right"),
            ("groups_all_wrong", "all wrong"),
        ),
        "Share of the groups whose rewards do not differ, so that no completion is better than another.",
        (0, None),
        percent=True,
    ),
    Group(
        "Verdicts that are no answer",
        "%",
        (("verdicts/*", ""), ("reward_errors/*", "errors of ")),
        "Share of the completions from which no answer could be read, whose gold answer cannot be read, or whose "
        "comparison ran out of time.",
        (0, None),
        percent=True,
    ),
    Group(
        "Entropy of a token",
        "nats",
        (("entropy", "entropy"),),
        "How undecided the policy is. Near 0 its completions are copies of each other; a rise without end is noise.",
        (0, None),
    ),
    Group(
        "KL to the reference",
        "nats a token",
        (("kl", "KL"),),
        "How far the policy has moved from where it began; 0.01 to 0.2 is usual for one that has learned a lot.",
    ),
    Group(
        "Clipped ratios",
        "%",
        (("clip_region", "both"), ("clip_low", "below"), ("clip_high", "above")),
        "Share of the tokens (or sequences) that clipping keeps from the gradient.",
        (0, None),
        percent=True,
    ),
    Group(
        "Importance ratios",
        "ratio",
        (("ratio", "mean"), ("ratio/max", "largest"), ("ratio/min", "smallest"), ("inverse_ratio/max", "1 / smallest")),
        "Policy against the one that wrote the completions; exactly 1 with one update per rollout.",
        logarithmic=True,
    ),
    Group(
        "Gap between sampler and trainer",
        "nats",
        (("sampler_gap", "mean"), ("sampler_gap/max", "largest")),
        "Difference of the log-probabilities that sampler and trainer give the same token; rounding is below 0.001 in "
        "float32 and below 0.05 in bf16.",
        logarithmic=True,
    ),
    Group(
        "Which groups train",
        "",
        (("update/computed", "share computed"), ("sampling/*", "")),
        "Share of the completions that the update computed, and what dynamic sampling and replay did: prompts rolled "
        "out for one group, share of groups replayed, share left without variance.",
        (0, None),
    ),
    Group(
        "Loss",
        "",
        (("loss", "loss"), ("eval_loss", "evaluation")),
        "The loss that is minimised. In GRPO it tells little.",
    ),
    Group("Learning rate", "", (("learning_rate", "learning rate"),), "Of the first parameter group.", (0, None)),
    Group(
        "Gradient norm",
        "before clipping",
        (("grad_norm", "norm"),),
        "Spikes of many times the usual size can undo what was learned.",
        logarithmic=True,
    ),
    Group(
        "Packing",
        "%",
        (("pack/fill", "filled"), ("pack/predicted_bubble", "waiting, predicted")),
        "Share of a pack's room that tokens fill, and share of the time that processes are predicted to wait.",
        (0, None),
        percent=True,
    ),
    Group(
        "Examples of a step",
        "examples",
        (("pack/examples_per_step", "mean"),),
        "Records per optimizer step.",
        (0, None),
    ),
    Group(
        "Phase times",
        "seconds",
        (("time/*", ""),),
        "rollout: writing completions; score: rewards; prepare: old and reference log-probabilities; update: one "
        "optimizer step.",
        (0, None),
    ),
    Group(
        "Throughput",
        "tokens per second",
        (("tokens_per_second", "all"), ("tokens_per_second/*", ""), ("pack/tokens_per_second", "packs")),
        "Of all processes together.",
        (0, None),
    ),
    Group("Peak memory", "GiB", (("memory/peak_gib/max", "peak"),), "Of the process that needs most.", (0, None)),
)


Columns = dict[str, tuple[list[float], list[float | None]]]
"""Metric -> steps, values."""


class Curve(NamedTuple):
    """One metric of one run."""

    label: str
    metric: str
    steps: list[float]
    values: list[float | None]


def run_panels(
    metrics: Sequence[Mapping[str, Any]], stage: str = "grpo", *, marks: Sequence[Mark] = (), smooth: bool = True
) -> list[Panel]:
    """The charts of one run.

    metrics: as in metrics.jsonl, each entry with its `step`. stage: `grpo`, `sft`...: the loss comes first where it is
    what tells how the run goes. marks: alarms, drawn as dotted lines.
    """
    panels = []
    columns = columns_of(metrics)
    for group in groups_for(stage):
        found = curves(group, columns)
        if found:
            series = [Series(c.label, c.steps, c.values, dots=c.metric.startswith("eval_")) for c in found]
            panels.append(Panel(group.title, chart(group, series, marks=marks, smooth=smooth), group.explanation))
    return panels


def compared_panels(runs: Mapping[str, Sequence[Mapping[str, Any]]], stage: str = "grpo") -> list[Panel]:
    """The charts of several runs over each other: of each group the first metric that two of them or more have."""
    panels = []
    columns = {name: columns_of(metrics) for name, metrics in runs.items()}
    for group in groups_for(stage):
        of_runs = {name: {c.metric: c for c in curves(group, own)} for name, own in columns.items()}
        counts: dict[str, int] = {}
        for found in of_runs.values():
            for metric in found:
                counts[metric] = counts.get(metric, 0) + 1
        common = [metric for metric, count in counts.items() if count > 1]
        if not common:
            continue
        metric = common[0]
        shared = {name: found[metric] for name, found in of_runs.items() if metric in found}
        series = [Series(name, c.steps, c.values, dots=metric.startswith("eval_")) for name, c in shared.items()]
        label = next(iter(shared.values())).label
        title = group.title if label.lower() == group.title.lower() else f"{group.title}: {label}"
        panels.append(Panel(title, chart(group, series, title=title), group.explanation))
    return panels


def chart(
    group: Group, series: Sequence[Series], *, title: str = "", marks: Sequence[Mark] = (), smooth: bool = True
) -> str:
    """The drawing of a group's series."""
    return line_chart(
        series,
        title=title or group.title,
        unit=group.unit,
        smooth=smooth,
        logarithmic=group.logarithmic,
        limits=group.limits,
        marks=marks,
    )


def groups_for(stage: str) -> list[Group]:
    """All groups, in the order of what tells most of a stage."""
    first = ("Loss", "Learning rate", "Gradient norm", "Packing") if stage in LOSS_FIRST else ()
    return sorted(GROUPS, key=lambda group: first.index(group.title) if group.title in first else len(first))


def columns_of(metrics: Sequence[Mapping[str, Any]]) -> Columns:
    """Metric -> steps and values, of the entries that have it; what is no number is None."""
    columns: Columns = {}
    for entry in metrics:
        step = entry.get("step")
        if not is_finite(step):
            continue
        for name, value in entry.items():
            steps, values = columns.setdefault(name, ([], []))
            steps.append(float(step))
            values.append(float(value) if is_number(value) else None)
    return columns


def curves(group: Group, columns: Columns) -> list[Curve]:
    """What there is of a group's metrics, in its order; nothing where all that there is is 0."""
    found: dict[str, Curve] = {}
    for pattern, label in group.metrics:
        for name, (steps, values) in columns.items():
            if name not in found and matches(pattern, name):
                factor = 100 if group.percent and not name.startswith("eval_") else 1
                shown = [None if value is None else value * factor for value in values]
                found[name] = Curve(label if "*" not in pattern else label + _rest(pattern, name), name, steps, shown)
    return list(found.values()) if any(value for curve in found.values() for value in curve.values) else []


def not_drawn(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers that were logged and that no chart shows."""
    patterns = [pattern for group in GROUPS for pattern, _ in group.metrics]
    names = dict.fromkeys(name for entry in metrics for name, value in entry.items() if is_number(value))
    return [n for n in names if n not in NOT_CURVES and not any(matches(pattern, n) for pattern in patterns)]


def matches(pattern: str, name: str) -> bool:
    """Whether a metric's name fits; each * stands for any text that is not empty at the end, any at all within."""
    if "*" not in pattern:
        return name == pattern
    parts = pattern.split("*")
    if not name.startswith(parts[0]) or (parts[-1] and not name.endswith(parts[-1])):
        return False
    place = len(parts[0])
    for part in parts[1:]:
        found = name.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return bool(parts[-1]) or len(name) > place


def is_number(value: Any) -> TypeGuard[int | float]:
    """NaN and infinities too; no whole number that is none as a float."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= LARGEST)


def is_finite(value: Any) -> TypeGuard[int | float]:
    return is_number(value) and math.isfinite(value)


def _rest(pattern: str, name: str) -> str:
    prefix = "eval_" if pattern.startswith("eval_") else pattern.partition("*")[0]
    return name.removeprefix(prefix).replace("_", " ")
