"""Groups, filters, orders and what got worse, against a plain reading of the same lines."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rollout_lines import append, completion_line, group_lines, write

from lcot_plugin.errors import LcotError
from lcot_plugin.report import completions_index
from lcot_plugin.report.completions_table import NOT_JUDGED, CompletionsTable, Group, GroupRef, RolloutQuery, Steps


def opened(path: Path, lines: list[dict[str, Any]]) -> CompletionsTable:
    file = write(path / "completions.jsonl", lines)
    return CompletionsTable.open(file, path)


@pytest.fixture
def groups() -> list[list[dict[str, Any]]]:
    """60 groups of 4 in 15 steps, of two data sets and 12 prompts each."""
    generator = random.Random(0)
    return [
        group_lines(
            number // 4,
            generator.randrange(12),
            [generator.choice([0.0, 1.0, 0.5, None]) if number % 20 else None for _ in range(4)],
            source=generator.choice(["shapes", "charts"]),
            group=number % 4,
            question=f"Question {number}",
            completion=generator.choice(["apple", "PEAR and plum", "nothing"]),
            ending=generator.choice(["stopped", "truncated"]),
        )
        for number in range(60)
    ]


@pytest.fixture
def table(tmp_path: Path, groups: list[list[dict[str, Any]]]) -> CompletionsTable:
    return opened(tmp_path, [line for group in groups for line in group])


def mean(group: list[dict[str, Any]]) -> float:
    rewards = [line["reward"] for line in group if line["reward"] is not None]
    return statistics.fmean(rewards) if rewards else math.nan


def questions(refs: list[GroupRef]) -> list[str]:
    return [ref.question for ref in refs]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_come_back_whole(table: CompletionsTable, groups: list[list[dict[str, Any]]]) -> None:
    selection = table.select(RolloutQuery(order="oldest", limit=100))
    assert (selection.num_groups, selection.num_completions, selection.indexed) == (60, 240, 1.0)
    assert [table.group(ref).lines for ref in selection.groups] == groups
    first = selection.groups[0]
    assert (first.step, first.source, first.record) == (0, groups[0][0]["source"], groups[0][0]["record"])
    assert first.outcomes == tuple(line["outcome"] or NOT_JUDGED for line in groups[0])
    assert first.found == (0, 1, 2, 3)


def test_older_runs_have_no_group(tmp_path: Path) -> None:
    """The same prompt twice in a row: the numbers of the completions start anew."""
    table = opened(
        tmp_path, [*group_lines(0, 1, [1.0, 1.0]), *group_lines(0, 1, [0.0, 0.0]), *group_lines(1, 1, [1.0])]
    )
    assert [ref.num_completions for ref in table.select(RolloutQuery(order="oldest")).groups] == [2, 2, 1]


def test_greedy_and_sampled_completions_of_an_evaluation(tmp_path: Path) -> None:
    lines = [completion_line(0, sample, record=record) for record in (1, 2) for sample in ("greedy", 1, 2)]
    lines += [completion_line(5, "greedy", record=record) for record in (1, 1, 2)]
    table = opened(tmp_path, lines)
    assert [ref.num_completions for ref in table.select(RolloutQuery(order="oldest")).groups] == [3, 3, 1, 1, 1]


def test_facets(table: CompletionsTable) -> None:
    facets = table.facets()
    assert facets.steps == Steps(0, 14)
    assert facets.sources == ["charts", "shapes"]
    assert sorted(facets.outcomes) == ["matched", "mismatched", NOT_JUDGED]
    assert facets.endings == ["stopped", "truncated"]
    assert facets.rewards == ["accuracy"]
    assert (facets.num_completions, facets.num_groups) == (240, 60)


def test_nothing_yet(tmp_path: Path) -> None:
    table = opened(tmp_path, [])
    assert table.facets().steps is None
    assert table.select(RolloutQuery()).groups == table.select(RolloutQuery(order="got_worse")).groups == []
    append(table.path, group_lines(0, 1, [1.0]))
    assert table.refresh() and not table.refresh()
    assert table.select(RolloutQuery()).num_groups == 1


# --- filters ----------------------------------------------------------------------------------------------------------

FILTERS = [
    (RolloutQuery(first_step=5), lambda line: line["step"] >= 5),
    (RolloutQuery(first_step=5, last_step=7), lambda line: 5 <= line["step"] <= 7),
    (RolloutQuery(source="charts"), lambda line: line["source"] == "charts"),
    (RolloutQuery(source="maps"), lambda line: False),
    (RolloutQuery(outcome="matched"), lambda line: line["outcome"] == "matched"),
    (RolloutQuery(outcome=NOT_JUDGED), lambda line: line["outcome"] is None),
    (RolloutQuery(outcome="timed_out"), lambda line: False),
    (RolloutQuery(ending="truncated"), lambda line: line["ending"] == "truncated"),
    (RolloutQuery(min_reward=0.5), lambda line: line["reward"] is not None and line["reward"] >= 0.5),
    (RolloutQuery(max_reward=0.0), lambda line: line["reward"] == 0.0),
    (RolloutQuery(reward_name="accuracy", min_reward=0.5, max_reward=0.5), lambda line: line["reward"] == 0.5),
    (RolloutQuery(text="pear"), lambda line: "PEAR" in line["completion"]),
    (RolloutQuery(text="question 7"), lambda line: line["question"] == "Question 7"),
    (RolloutQuery(source="charts", text="apple", min_reward=1.0, last_step=9),
     lambda line: (line["source"], line["completion"]) == ("charts", "apple") and line["reward"] == 1
     and line["step"] <= 9),
]  # fmt: skip


@pytest.mark.parametrize("query, fits", FILTERS)
def test_filters(table: CompletionsTable, groups: list[list[dict[str, Any]]], query: RolloutQuery, fits: Any) -> None:
    selection = table.select(RolloutQuery(**{**vars(query), "order": "oldest", "limit": 100}))
    found = [[number for number, line in enumerate(group) if fits(line)] for group in groups]
    assert [list(ref.found) for ref in selection.groups] == [numbers for numbers in found if numbers]
    assert [table.group(ref).lines for ref in selection.groups] == [
        group for group, numbers in zip(groups, found, strict=True) if numbers
    ]
    assert selection.num_groups == len(selection.groups)
    assert selection.num_completions == sum(map(len, found))


def test_a_reward_on_the_limit_is_within(tmp_path: Path) -> None:
    table = opened(tmp_path, group_lines(0, 1, [0.1 + 0.2, 0.4]))
    assert table.select(RolloutQuery(max_reward=0.3)).num_completions == 1


def test_unknown_wishes(table: CompletionsTable) -> None:
    with pytest.raises(LcotError, match="newest, oldest"):
        table.select(RolloutQuery(order="best"))
    with pytest.raises(LcotError, match="no reward 'format'; it has: accuracy"):
        table.select(RolloutQuery(reward_name="format"))


# --- orders and pages -------------------------------------------------------------------------------------------------


def test_orders(table: CompletionsTable, groups: list[list[dict[str, Any]]]) -> None:
    def ordered(order: str) -> list[float]:
        refs = table.select(RolloutQuery(order=order, limit=100)).groups
        assert sorted(questions(refs)) == sorted(group[0]["question"] for group in groups)
        return [ref.std_reward if order == "most_varied" else ref.mean_reward for ref in refs]

    means = sorted(mean(group) for group in groups if not math.isnan(mean(group)))
    num_without = len(groups) - len(means)
    assert num_without  # they come last, whatever the order
    for order, expected in (("lowest", means), ("highest", means[::-1])):
        values = ordered(order)
        assert values[: len(means)] == pytest.approx(expected)
        assert all(map(math.isnan, values[len(means) :]))
    spreads = sorted(
        (statistics.pstdev(line["reward"] for line in group if line["reward"] is not None)
         for group in groups if not math.isnan(mean(group))), reverse=True
    )  # fmt: skip
    assert ordered("most_varied")[: len(spreads)] == pytest.approx(spreads)


def test_the_newest_step_first_and_its_groups_as_they_were(table: CompletionsTable) -> None:
    numbers = [int(question.split()[1]) for question in questions(table.select(RolloutQuery(limit=9)).groups)]
    assert numbers == [56, 57, 58, 59, 52, 53, 54, 55, 48]


def test_pages_are_the_whole(table: CompletionsTable) -> None:
    whole = table.select(RolloutQuery(order="lowest", limit=100)).groups
    pages = [table.select(RolloutQuery(order="lowest", offset=start, limit=7)) for start in range(0, 63, 7)]
    assert questions([ref for page in pages for ref in page.groups]) == questions(whole)
    assert len(set(questions(whole))) == 60
    assert {page.num_groups for page in pages} == {60}
    assert table.select(RolloutQuery(offset=1000)).groups == []


# --- what got worse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, "charts"])
def test_what_got_worse(table: CompletionsTable, groups: list[list[dict[str, Any]]], source: str | None) -> None:
    sides: dict[tuple[str, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for group in groups:
        line = group[0]
        if not math.isnan(mean(group)) and source in (None, line["source"]):
            sides[line["source"], line["record"]][line["step"] >= 8].append(mean(group))
    fell = {
        prompt: statistics.fmean(after) - statistics.fmean(before)
        for prompt, (before, after) in sides.items()
        if before and after and statistics.fmean(after) < statistics.fmean(before) - 1e-9
    }
    selection = table.select(RolloutQuery(order="got_worse", since_step=8, source=source, limit=100))
    assert selection.num_groups == len(selection.groups) == len(fell) > 1
    changes = []
    for ref in selection.groups:
        before, after = sides[ref.source, ref.record]
        assert ref.since is not None and ref.since.before.step < 8 <= ref.step
        assert (ref.since.before.source, ref.since.before.record) == (ref.source, ref.record)
        assert (ref.since.num_before, ref.since.num_after) == (len(before), len(after))
        assert ref.mean_reward == pytest.approx(min(after)) and ref.since.before.mean_reward == pytest.approx(
            max(before)
        )
        assert table.group(ref.since.before).lines[0]["record"] == ref.record
        changes.append(ref.since.mean_after - ref.since.mean_before)
    assert changes == pytest.approx(sorted(fell.values()))
    pages = [
        table.select(RolloutQuery(order="got_worse", since_step=8, source=source, offset=start, limit=1)).groups
        for start in range(len(fell))
    ]
    assert [ref for page in pages for ref in page] == selection.groups


def test_other_wishes_choose_among_what_got_worse(tmp_path: Path) -> None:
    lines = [line for record in (1, 2) for line in group_lines(0, record, [1.0, 1.0])]
    lines += [*group_lines(6, 1, [0.0, 1.0], completion="pear"), *group_lines(6, 2, [0.0, 0.0], completion="plum")]
    table = opened(tmp_path, lines)
    everything = table.select(RolloutQuery(order="got_worse"))
    assert [(ref.record, ref.since and ref.since.step) for ref in everything.groups] == [(2, 3), (1, 3)]
    assert [ref.record for ref in table.select(RolloutQuery(order="got_worse", text="pear")).groups] == [1]
    right = table.select(RolloutQuery(order="got_worse", outcome="matched"))
    assert [(ref.record, ref.found) for ref in right.groups] == [(1, (1,))]
    assert right.num_completions == 1
    assert table.select(RolloutQuery(order="got_worse", first_step=1)).groups == []


def test_equal_means_are_no_fall(tmp_path: Path) -> None:
    """0.1 three times has another sum than 0.3."""
    lines = [*group_lines(0, 1, [0.1, 0.1, 0.1]), *group_lines(6, 1, [0.3 - 0.2] * 3)]
    assert opened(tmp_path, lines).select(RolloutQuery(order="got_worse")).groups == []


# --- files that change ------------------------------------------------------------------------------------------------


def test_a_table_that_is_not_complete_has_whole_groups_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions_index, "BLOCK", 1500)
    path = write(
        tmp_path / "completions.jsonl", [line for step in range(30) for line in group_lines(step, 1, [0.0] * 4)]
    )
    table = CompletionsTable.open(path, tmp_path, seconds=0)
    seen = set()
    while not table.complete:
        selection = table.select(RolloutQuery(limit=100))
        assert selection.indexed < 1
        assert {ref.num_completions for ref in selection.groups} <= {4}
        assert [ref.step for ref in selection.groups] == list(range(29, 29 - len(selection.groups), -1))
        assert selection.num_completions == 4 * len(selection.groups) == table.num_completions
        seen.add(len(selection.groups))
        table.refresh(0)
    assert len(seen) > 5 and table.select(RolloutQuery()).num_groups == 30


def test_a_file_that_was_written_anew_is_not_mixed_up(table: CompletionsTable) -> None:
    ref = table.select(RolloutQuery()).groups[0]
    write(table.path, group_lines(0, 1, [1.0] * 4, completion="z" * 9))
    with pytest.raises(LcotError, match="has changed since it was read"):
        table.group(ref)
    table.refresh()
    group = table.group(table.select(RolloutQuery()).groups[0])
    assert isinstance(group, Group) and group.lines[0]["completion"] == "z" * 9
    table.path.unlink()
    with pytest.raises(LcotError, match="has changed since it was read"):
        table.group(ref)


def test_a_file_that_has_gone_is_not_searched(table: CompletionsTable) -> None:
    table.path.unlink()
    with pytest.raises(LcotError, match="cannot be searched"):
        table.select(RolloutQuery(text="area"))


def test_a_line_that_is_no_completion_leaves_an_empty_table(table: CompletionsTable) -> None:
    with table.path.open("ab") as file:
        file.write(b"{}\n")
    for _ in range(2):
        with pytest.raises(LcotError, match="line 241"):
            table.refresh()
        assert table.select(RolloutQuery()).groups == [] and table.facets().steps is None


def test_rewards_that_are_no_numbers(tmp_path: Path) -> None:
    """json.dumps writes them so, and Python reads them."""
    table = opened(tmp_path, group_lines(0, 1, [math.nan, math.inf, 1.0]))
    (ref,) = table.select(RolloutQuery(order="lowest")).groups
    assert (ref.mean_reward, ref.std_reward) == (1.0, 0.0)
