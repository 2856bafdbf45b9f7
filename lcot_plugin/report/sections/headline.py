"""The answer first: accuracy before and after with its interval, by data set; or the nearest thing that the runs have.

In: subjects. Out: the first section. What it says comes from, in this order: evaluations of the same problems, a single
evaluation, the completions of training, the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lcot_plugin.report.charts import number
from lcot_plugin.report.evaluations import Evaluation, by_set, common_problems, compare, nearly_whole, same_set
from lcot_plugin.report.figures import RangeRow, ranges
from lcot_plugin.report.intervals import Difference, Share, p_text, percent, percents, unpaired
from lcot_plugin.report.page import Html, Section, count, folded, join, listed, paragraph, table, tag
from lcot_plugin.report.panels import is_finite
from lcot_plugin.report.sections.facts import ends, runs_table
from lcot_plugin.report.subjects import Answers, Subject

BEFORE, BETWEEN, AFTER = "var(--before)", "var(--chart-2)", "var(--after)"
ENDS = 10
"""The first and the last 1/10 of a run's steps are compared where nothing was evaluated."""
LOGGED = (("eval_loss", "Evaluation loss"), ("loss", "Training loss"))
LOGGED_OF_GRPO = (("reward", "Mean reward of the rollouts"), *LOGGED)
"""Metric, what it is: the first one that was logged twice stands for a run that kept no answers."""
MANY = 12
"""Evaluations, above which their table is folded."""


class Pair(NamedTuple):
    """Two evaluations of the same problems."""

    before: Evaluation
    after: Evaluation
    one_run: bool
    alternatives: bool
    """Both runs trained: neither is what the other began as."""
    between: tuple[Evaluation, ...] = ()
    """Of further runs, between the two."""
    num_asked_once: int = 0
    """Problems that only one of the two was asked, which are in neither: other sets, or an evaluation that goes on."""

    def name(self, evaluation: Evaluation) -> str:
        """How the evaluation is told from the other one."""
        return f"step {evaluation.step:,}" if self.one_run else evaluation.run


def section(subjects: Sequence[Subject]) -> Section:
    """The first section."""
    parts = _evaluated(subjects) or _rolled_out(subjects) or _losses(subjects) or _nothing_yet(subjects)
    return Section(
        "result", "Result", join([*parts, *ends(subjects), runs_table(subjects), _evaluation_table(subjects)])
    )


def pairs(subjects: Sequence[Subject]) -> list[Pair]:
    """The first and the last evaluation of each set of problems, the largest set first; of one run where that evaluated
    more than once and is alone, else of the runs in their order, each by its last one."""
    found = []
    trained = {subject.name for subject in subjects if subject.trained}
    for same in by_set([evaluation for subject in subjects for evaluation in subject.evaluations]):
        whole = nearly_whole(same)
        last = list({evaluation.run: evaluation for evaluation in whole}.values())
        ends = last if len(last) > 1 else whole
        if len(ends) > 1:
            one_run = len(last) == 1
            alternatives = not one_run and {ends[0].run, ends[-1].run} <= trained
            found.append(_paired(Pair(ends[0], ends[-1], one_run, alternatives, () if one_run else tuple(last[1:-1]))))
    return sorted(found, key=lambda pair: -len(pair.after.problems))


def _paired(pair: Pair) -> Pair:
    """The pair over the problems that both were asked, so that its shares differ by the difference that is told."""
    if not same_set(pair.before, pair.after):
        return pair
    common = common_problems(pair.before, pair.after)
    every = pair.before.problems.keys() | pair.after.problems.keys()
    return pair._replace(
        before=pair.before.only(common),
        after=pair.after.only(common),
        between=tuple(evaluation.only(common) for evaluation in pair.between),
        num_asked_once=len(every) - len(common),
    )


def _evaluated(subjects: Sequence[Subject]) -> list[Html]:
    found = pairs(subjects)
    if found:
        return [part for pair in found for part in _pair(pair, titled=len(found) > 1)]
    evaluations = [evaluation for subject in subjects for evaluation in subject.evaluations if evaluation.problems]
    if not evaluations:
        return []
    largest = max(evaluations, key=lambda evaluation: len(evaluation.problems))
    share = largest.accuracy()
    assert share is not None
    answer = tag("p", "Accuracy is ", tag("span", percent(share.value), class_="after"), class_="answer")
    number = len(evaluations)
    others = f"No two of {number} evaluations are of the same problems" if number > 1 else "One evaluation"
    advice = "eval_strategy: steps in a training, or lcot report BEFORE AFTER with an evaluation of each, gives two."
    what = paragraph(f"{_what(largest, share)} {others}: that says nothing of before and after. {advice}")
    rows = [_row(largest, source, AFTER) for source in _sources(largest)]
    return [answer, what, ranges([row for row in rows if row], "Accuracy by data set")]


def _pair(pair: Pair, *, titled: bool) -> list[Html]:
    before, after = pair.before.accuracy(), pair.after.accuracy()
    difference = compare(pair.before, pair.after)
    assert before is not None and after is not None and difference is not None
    title = tag("h3", pair.after.set_name or listed(pair.after.sources)) if titled else Html("")
    rest = pair.num_asked_once
    asked_once = f" {count(rest, 'problem')} that only one was asked left out." if rest else ""
    sources = [source for source in _sources(pair.after) if source is None or source in pair.before.sources]
    rows: list[RangeRow | None] = []
    for source in sources:
        others = pair.between if source is None else ()
        shown = [_row(pair.before, source, BEFORE, pair), *(_row(e, source, BETWEEN, pair) for e in others)]
        rows += [*([None] if rows else []), *shown, _row(pair.after, source, AFTER, pair)]
    lines = [
        (
            source or "all",
            *(_cell(evaluation.accuracy(source)) for evaluation in (pair.before, pair.after)),
            *difference_cells(compare(pair.before, pair.after, source)),
        )
        for source in sources
    ]
    headings = ("data set", pair.name(pair.before), pair.name(pair.after), "difference, points", "gained / lost", "p")
    return [
        title,
        tag("p", *_answer(pair, before, after, difference), class_="answer"),
        paragraph(difference_text(difference), " ", _what(pair.after, after), asked_once),
        ranges(rows, "Accuracy before and after, by data set, with 95% intervals"),
        table(headings, lines, label="Accuracy before and after") if len(sources) > 1 else Html(""),
    ]


def _answer(pair: Pair, before: Share, after: Share, difference: Difference) -> list[object]:
    if pair.alternatives:
        told: list[object] = [f"Accuracy is {percent(before.value)} with {pair.before.run} and "]
        told += [tag("span", percent(after.value), class_="after"), f" with {pair.after.run}"]
        return told if difference.beyond_chance else [*told, ": no difference beyond chance"]
    names = ("", "") if pair.one_run else (f" ({pair.before.run})", f" ({pair.after.run})")
    return _verdict(before, after, difference, names)


def _verdict(before: Share, after: Share, difference: Difference, names: tuple[str, str] = ("", "")) -> list[object]:
    """names: of what the shares are, behind them."""
    start = tag("span", percent(before.value), class_="before")
    values = [start, f"{names[0]} to ", tag("span", percent(after.value), class_="after"), names[1]]
    if not difference.beyond_chance:
        return ["Accuracy went from ", *values, ": no difference beyond chance"]
    return [f"Accuracy {'rose' if difference.value > 0 else 'fell'} from ", *values]


def difference_text(difference: Difference) -> Html:
    """`+12.5 points, 95% interval [8.1, 16.9], p < 0.001: of the 400 problems...`"""
    told: list[object] = [tag("b", f"{100 * difference.value:+.1f} points"), f", 95% interval {_points(difference)}"]
    if difference.p_value is not None:
        told.append(
            f", {p_text(difference.p_value)}: of the {count(difference.num_problems, 'problem')} asked both times, "
            f"{difference.gained:,} became right and {difference.lost:,} became wrong"
        )
    return join([*told, f" ({difference.method})."])


def difference_cells(difference: Difference | None) -> tuple[str, str, str]:
    """Of a table: the difference in points with its interval, problems gained and lost, p."""
    if difference is None:
        return ("-", "-", "-")
    changed = f"{difference.gained:,} / {difference.lost:,}" if difference.p_value is not None else "-"
    p_value = (
        p_text(difference.p_value).removeprefix("p ").removeprefix("= ") if difference.p_value is not None else "-"
    )
    return (f"{100 * difference.value:+.1f} {_points(difference)}", changed, p_value)


def _points(difference: Difference) -> str:
    return f"[{100 * difference.interval.low:+.1f}, {100 * difference.interval.high:+.1f}]"


def _what(evaluation: Evaluation, share: Share) -> str:
    """What the shares are of."""
    if evaluation.is_greedy:
        kind = (
            f"Greedy answers to {count(share.num_problems, 'problem')} of the evaluation set; intervals are Wilson's."
        )
    else:
        kind = (
            f"{share.num_samples:,} sampled answers to {count(share.num_problems, 'problem')}; intervals are Wilson's, "
            "clustered by problem."
        )
    if evaluation.num_unjudged:
        left_out = count(evaluation.num_unjudged, "further problem")
        kind += f" {left_out} without a verdict, or with a gold answer that cannot be read, left out."
    return kind


def _sources(evaluation: Evaluation) -> list[str | None]:
    """All together, then one by one where there are several."""
    return [None, *(evaluation.sources if len(evaluation.sources) > 1 else [])]


def _row(evaluation: Evaluation, source: str | None, colour: str, pair: Pair | None = None) -> RangeRow | None:
    share = evaluation.accuracy(source)
    if share is None:
        return None
    name = source or ("all" if len(evaluation.sources) > 1 else listed(evaluation.sources))
    if pair is not None:
        name = f"{name}, {pair.name(evaluation)}" if len(evaluation.sources) > 1 else pair.name(evaluation)
    return RangeRow(name, share, colour, count(share.num_problems, "problem"))


def _cell(share: Share | None) -> Html:
    if share is None:
        return Html("-")
    return join([tag("b", percent(share.value)), f" {percents(share.interval)}"])


# Where nothing was evaluated


def _rolled_out(subjects: Sequence[Subject]) -> list[Html]:
    """Training's own completions, of every run that has any: its first and its last tenth."""
    parts = []
    for subject in subjects:
        if subject.answers is not None and len(subject.answers):
            parts += _of_rollouts(subject.answers, f"{subject.name}: " if len(subjects) > 1 else "")
    return parts


def _of_rollouts(answers: Answers, name: str) -> list[Html]:
    """name: of the run, with what parts it from the words behind it."""
    steps = np.unique(answers.steps)
    tenth = max(1, math.ceil(len(steps) / ENDS))
    if len(steps) < 2:
        share = answers.accuracy()
        assert share is not None
        return [
            tag("p", f"{name}{percent(share.value)} of the completions are right so far", class_="answer"),
            paragraph(_of_training(share.num_samples, share.num_problems)),
        ]
    first, last = answers.where(answers.steps <= steps[tenth - 1]), answers.where(answers.steps >= steps[-tenth])
    before, after = first.accuracy(), last.accuracy()
    assert before is not None and after is not None
    difference = unpaired(before, after)
    verdict = _verdict(before, after, difference)
    verdict[0] = str(verdict[0]).replace("Accuracy", f"{name}Accuracy of the rollouts")
    ends = [
        (f"steps {steps[0]:,} to {steps[tenth - 1]:,}", before, BEFORE),
        (f"steps {steps[-tenth]:,} to {steps[-1]:,}", after, AFTER),
    ]
    rows = [RangeRow(label, s, ink, count(s.num_samples, "completion")) for label, s, ink in ends]
    return [
        tag("p", *verdict, class_="answer"),
        paragraph(
            difference_text(difference),
            f" Completions sampled in training, on training prompts, of the first and the last {tenth:,} of "
            f"{len(steps):,} rollouts, whose prompts may be others; intervals are Wilson's, clustered by prompt. "
            "Nothing was evaluated on held-out problems: eval_dataset, or an evaluation of the saved model, would tell "
            "more.",
        ),
        ranges(rows, "Accuracy of the rollouts at the beginning and at the end"),
    ]


def _of_training(num_completions: int, num_prompts: int) -> str:
    return (
        f"{count(num_completions, 'completion')} of {count(num_prompts, 'training prompt')}; nothing was evaluated on "
        "held-out problems."
    )


def _losses(subjects: Sequence[Subject]) -> list[Html]:
    parts = []
    for subject in subjects:
        for key, what in LOGGED_OF_GRPO if subject.stage == "grpo" else LOGGED:
            found = [
                (entry["step"], float(entry[key]))
                for entry in subject.run.metrics
                if is_finite(entry.get("step")) and is_finite(entry.get(key))
            ]
            if len(found) > 1:
                (first_step, first), (last_step, last) = found[0], found[-1]
                name = f"{subject.name}: " if len(subjects) > 1 else ""
                words = f"{name}{what} went from {number(first)} to {number(last)}"
                parts.append(tag("p", words, class_="answer"))
                parts.append(
                    paragraph(
                        f"Logged at step {first_step:,} and step {last_step:,}, {len(found):,} logs in all; two single "
                        "logs, which vary by chance. They say little of whether answers are right: an evaluation of "
                        "the saved model (yaml_recipes/eval.yaml) does."
                    )
                )
                break
    return parts


def _nothing_yet(subjects: Sequence[Subject]) -> list[Html]:
    what = "These runs have" if len(subjects) > 1 else "This run has"
    return [tag("p", f"{what} not logged any result yet", class_="answer")]


# Every evaluation


def _evaluation_table(subjects: Sequence[Subject]) -> Html:
    evaluations = [evaluation for subject in subjects for evaluation in subject.evaluations]
    if not evaluations:
        return Html("")
    several = {evaluation.set_name for evaluation in evaluations} != {evaluations[0].set_name}
    with_samples = any(evaluation.num_samples for evaluation in evaluations)
    rows: list[list[Any]] = []
    for e in evaluations:
        rows.append(
            [
                e.run,
                *([e.set_name or "eval"] if several else []),
                f"{e.step:,}",
                f"{len(e.problems):,}",
                _cell(e.accuracy() if e.is_greedy else None),
                *([_sampled_cell(e), _cell(e.any_right())] if with_samples else []),
                _of(e.num_truncated, e.num_completions),
                _of(e.num_unparsable, e.num_completions),
                f"{e.num_tokens / e.num_completions:,.0f}" if e.num_completions else "-",
            ]
        )
    headings = ["run", *(["set"] if several else []), "step", "problems", "accuracy, greedy"]
    headings += ["avg@n", "pass@n"] if with_samples else []
    headings += ["truncated", "no answer", "tokens, mean"]
    note = "95% intervals in brackets, in percent: Wilson's."
    if with_samples:
        note += (
            " Those of avg@n are clustered by problem, since samples of one problem are alike. pass@n: one of n "
            "samples is right at least."
        )
    note += " Truncated, no answer and tokens are of all completions."
    shown = table(headings, rows, label="Every evaluation", words=(0, 1) if several else (0,))
    if len(rows) > MANY:
        return folded(f"Every evaluation: {len(rows):,}", shown, paragraph(note, class_="note"))
    return join([tag("h3", "Every evaluation"), shown, paragraph(note, class_="note")])


def _sampled_cell(evaluation: Evaluation) -> Html:
    sampled = evaluation.sampled()
    return join([_cell(sampled), f" n = {evaluation.num_samples:,}"]) if sampled else Html("-")


def _of(number_of: int, num: int) -> str:
    return f"{percent(number_of / num)} of {num:,}" if num else "-"
