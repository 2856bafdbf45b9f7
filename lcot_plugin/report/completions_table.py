"""A run's completions, of any number, in; those groups that a person asks for out, a page at a time.

    CompletionsTable.open --select(RolloutQuery)--> Selection of GroupRefs --group--> Group (lines) --> rollout_view

A group is the G completions of one prompt in one rollout: lines that stand together. The columns are
completions_index's; texts are read from the file when they are shown or searched. For the Board's viewer and
`lcot report`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lcot_plugin.errors import LcotError
from lcot_plugin.report.completions_index import REWARD, CompletionsIndex, parse_line
from lcot_plugin.report.text_search import rows_with_text

ORDERS = ("newest", "oldest", "highest", "lowest", "most_varied", "got_worse")
NOT_JUDGED = "not_judged"
"""Stands for the outcome of completions without a verdict."""
MAX_KEPT = 8
"""Queries whose rows are kept."""
MAX_QUESTION = 200
"""Characters of a GroupRef's question."""


@dataclass(frozen=True)
class RolloutQuery:
    """What a person wants to see; None: everything. A group is found where one of its completions fits."""

    first_step: int | None = None
    last_step: int | None = None
    source: str | None = None
    outcome: str | None = None
    """One of the Outcomes, or NOT_JUDGED."""
    ending: str | None = None
    reward_name: str | None = None
    """The reward that the limits and orders speak of; None: the weighted sum."""
    min_reward: float | None = None
    max_reward: float | None = None
    text: str = ""
    """Somewhere in question or completion, whatever the case of its letters."""
    order: str = "newest"
    """One of ORDERS. highest, lowest: the mean reward of the group; most_varied: its standard deviation; got_worse: the
    prompts whose mean reward since `since_step` is lower than before, the most first."""
    since_step: int | None = None
    """None: the middle of the steps that are shown."""
    offset: int = 0
    limit: int = 20


@dataclass(frozen=True)
class GroupRef:
    """A group as a list shows it."""

    first_row: int
    """Its first completion among those of the table; changes while the table is not complete."""
    num_completions: int
    offset: int
    """Byte of the file where its lines begin."""
    size: int
    """Bytes of its lines."""
    step: int
    source: str
    record: int
    """-1 where the lines do not say."""
    mean_reward: float
    """Of the query's reward; NaN where it has none."""
    std_reward: float
    outcomes: tuple[str, ...]
    """Of every completion; NOT_JUDGED where it has no verdict."""
    found: tuple[int, ...] = ()
    """Which of its completions fit the query."""
    question: str = ""
    """Its beginning."""
    since: Change | None = None
    """Only for `got_worse`."""


@dataclass(frozen=True)
class Change:
    """How the rewards of a prompt have changed, over all its groups."""

    step: int
    mean_before: float
    mean_after: float
    num_before: int
    """Groups."""
    num_after: int
    before: GroupRef
    """Its best group before, the newest of equals; the GroupRef that holds this is the worst one since."""


@dataclass(frozen=True)
class Selection:
    """A page of the groups that fit a query."""

    groups: list[GroupRef]
    num_groups: int
    """All of them, on other pages too."""
    num_completions: int
    """That fit, in all of these groups."""
    query: RolloutQuery
    indexed: float = 1.0
    """Share of the file that was searched; less than 1 while the table is not complete."""


class Steps(NamedTuple):
    first: int
    last: int


@dataclass(frozen=True)
class Facets:
    """What can be chosen."""

    steps: Steps | None
    """None where there are no completions."""
    sources: list[str]
    outcomes: list[str]
    endings: list[str]
    rewards: list[str]
    num_completions: int
    num_groups: int


@dataclass(frozen=True)
class Group:
    """The lines of a group, whole."""

    ref: GroupRef
    lines: list[dict[str, Any]]
    folder: Path
    """Pictures' relative paths begin here."""


class CompletionsTable:
    """The completions of one file. Not for several threads at once."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self._index = CompletionsIndex(path)
        self._bounds = np.zeros(1, np.int64)
        self._found: dict[RolloutQuery, np.ndarray] = {}

    @classmethod
    def open(cls, path: Path, folder: Path, *, seconds: float | None = None) -> CompletionsTable:
        """Of a run that may still write. `folder`: where relative paths of pictures begin.

        seconds: None reads the whole file; else the newest part at least, and more within about this time:
        `complete` tells, `refresh` goes on. A saved index makes that a matter of milliseconds. Raises LcotError.
        """
        table = cls(Path(path), Path(folder))
        table.refresh(seconds)
        return table

    def refresh(self, seconds: float | None = None) -> bool:
        """Takes in what the run has written since, and what `open` had no time for; returns whether there was any."""
        changed = False
        try:
            while self._index.grow(seconds):
                changed = True
                self._bounds = self._group_bounds()
                self._found.clear()
                if self.num_groups or self.complete:  # else: one group that is larger than what was read
                    break
        except LcotError:
            self._bounds = np.zeros(1, np.int64)  # as the index is: empty
            self._found.clear()
            raise
        return changed

    @property
    def complete(self) -> bool:
        return self._index.complete

    @property
    def indexed(self) -> float:
        """Share of the file that is known; 1 where all of it is."""
        return self._index.share

    @property
    def num_completions(self) -> int:
        return int(self._bounds[-1] - self._bounds[0])

    @property
    def num_groups(self) -> int:
        return len(self._bounds) - 1

    def _group_bounds(self) -> np.ndarray:
        """[num_groups + 1] rows where groups begin, and the end. The first group of an incomplete table may lack its
        beginning and is left out."""
        columns, num_rows = self._index.columns, len(self._index)
        if not num_rows:
            return np.zeros(1, np.int64)
        new = np.zeros(num_rows, bool)
        new[0] = True
        for name in ("step", "source", "record", "group"):
            new[1:] |= columns[name][1:] != columns[name][:-1]
        sample = columns["sample"]
        new[1:] |= (sample[1:] >= 0) & (sample[1:] <= sample[:-1])
        bounds = np.append(np.flatnonzero(new), num_rows)
        return bounds if self._index.complete else bounds[1:]

    # What there is

    def facets(self) -> Facets:
        columns, index = self._index.columns, self._index
        steps = columns["step"]
        return Facets(
            steps=Steps(int(steps.min()), int(steps.max())) if len(steps) else None,
            sources=sorted(name for name in self._used("source") if name),
            outcomes=[name or NOT_JUDGED for name in self._used("outcome")],
            endings=sorted(name for name in self._used("ending") if name),
            rewards=sorted(name.removeprefix(f"{REWARD}/") for name in index.columns if name.startswith(f"{REWARD}/")),
            num_completions=self.num_completions,
            num_groups=self.num_groups,
        )

    def _used(self, name: str) -> list[str]:
        counts = np.bincount(self._index.columns[name], minlength=len(self._index.names[name]))
        return [text for text, count in zip(self._index.names[name], counts, strict=True) if count]

    # What fits

    def select(self, query: RolloutQuery) -> Selection:
        """A page of groups. Raises LcotError for an unknown order or reward."""
        if query.order not in ORDERS:
            raise LcotError(f"Unknown order {query.order!r}: one of {', '.join(ORDERS)}.")
        fits = self._fitting_rows(query)
        starts, counts = self._bounds[:-1], np.diff(self._bounds)
        if not len(starts):
            return Selection([], 0, 0, query, self.indexed)
        num_found = np.add.reduceat(fits[: self._bounds[-1]], starts, dtype=np.int64)
        stats = _GroupStats.of(self._reward(query), starts, counts)
        if query.order == "got_worse":
            return self._got_worse(query, fits, num_found, stats)
        chosen = np.flatnonzero(num_found)
        step = self._index.columns["step"][starts[chosen]]
        keys = {
            "newest": -step,
            "oldest": step,
            "highest": -stats.mean[chosen],
            "lowest": stats.mean[chosen],
            "most_varied": -stats.std[chosen],
        }
        newest_first = -step if query.order != "oldest" else step
        ordered = chosen[np.lexsort((chosen, newest_first, _nan_last(keys[query.order])))]
        page = ordered[query.offset : query.offset + query.limit]
        refs = [self._with_question(self._ref(group, stats, fits)) for group in page.tolist()]
        return Selection(refs, len(chosen), int(num_found.sum()), query, self.indexed)

    def _reward(self, query: RolloutQuery) -> np.ndarray:
        name = REWARD if query.reward_name is None else f"{REWARD}/{query.reward_name}"
        if name not in self._index.columns:
            known = ", ".join(self.facets().rewards) or "none"
            raise LcotError(f"{self.path} has no reward {query.reward_name!r}; it has: {known}.")
        return self._index.columns[name]

    def _fitting_rows(self, query: RolloutQuery) -> np.ndarray:
        """[rows] bool. The last few are kept, for the next page and for another order."""
        key = replace(query, order="newest", since_step=None, offset=0, limit=0)
        if key in self._found:
            return self._found[key]
        columns = self._index.columns
        fits = np.ones(len(self._index), bool)
        fits[: self._bounds[0]] = False
        if query.first_step is not None:
            fits &= columns["step"] >= query.first_step
        if query.last_step is not None:
            fits &= columns["step"] <= query.last_step
        for name, wanted in (("source", query.source), ("outcome", query.outcome), ("ending", query.ending)):
            if wanted is not None:
                names = self._index.names[name]
                text = "" if wanted == NOT_JUDGED and name == "outcome" else wanted
                fits &= columns[name] == (names.index(text) if text in names else -1)
        if query.min_reward is not None or query.max_reward is not None:
            low = -math.inf if query.min_reward is None else query.min_reward
            high = math.inf if query.max_reward is None else query.max_reward
            reward = self._reward(query)
            # Means of rewards are sums of rounded numbers: 0.1 + 0.2 is not below 0.3.
            fits &= (reward >= low - 1e-9) & (reward <= high + 1e-9)
        if query.text:
            rows = np.flatnonzero(fits)
            try:
                fits[rows] = rows_with_text(self.path, columns, rows, query.text)
            except OSError as error:
                raise LcotError(f"{self.path} cannot be searched: {error.strerror}. Load it again.") from error
        if len(self._found) == MAX_KEPT:
            del self._found[next(iter(self._found))]
        self._found[key] = fits
        return fits

    def _got_worse(self, query: RolloutQuery, fits: np.ndarray, num_found: np.ndarray, stats: _GroupStats) -> Selection:
        """Of the steps and the source that the query names; its other wishes choose among the prompts by their groups
        since the step."""
        columns, starts = self._index.columns, self._bounds[:-1]
        steps, sources, records = (columns[name][starts] for name in ("step", "source", "record"))
        known = ~np.isnan(stats.mean) & (records >= 0)
        known &= self._fitting_rows(RolloutQuery(query.first_step, query.last_step, query.source))[starts]
        groups = np.flatnonzero(known)
        if not len(groups):
            return Selection([], 0, 0, query, self.indexed)
        since = query.since_step
        if since is None:
            since = (int(steps[groups].min()) + int(steps[groups].max()) + 1) // 2
        _, prompt = np.unique(np.stack([sources[groups], records[groups]]), axis=1, return_inverse=True)
        prompt = prompt.reshape(-1)
        after = steps[groups] >= since
        means, numbers = [], []
        for side in (~after, after):
            numbers.append(np.bincount(prompt, side, minlength=prompt.max() + 1))
            sums = np.bincount(prompt, np.where(side, stats.mean[groups], 0.0), minlength=prompt.max() + 1)
            means.append(sums / np.maximum(numbers[-1], 1))
        wanted = np.bincount(prompt, after & (num_found[groups] > 0)) > 0
        fell = np.flatnonzero((numbers[0] > 0) & (numbers[1] > 0) & (means[1] < means[0] - 1e-9) & wanted)
        order = fell[np.lexsort((fell, (means[1] - means[0])[fell]))]
        refs = []
        for one in order[query.offset : query.offset + query.limit].tolist():
            own = groups[prompt == one]
            old, new = own[steps[own] < since], own[(steps[own] >= since)]
            new = new[num_found[new] > 0]
            best = old[np.lexsort((-steps[old], -stats.mean[old]))[0]]
            worst = new[np.lexsort((-steps[new], stats.mean[new]))[0]]
            change = Change(
                step=since,
                mean_before=float(means[0][one]),
                mean_after=float(means[1][one]),
                num_before=int(numbers[0][one]),
                num_after=int(numbers[1][one]),
                before=self._ref(int(best), stats, fits),
            )
            refs.append(self._with_question(replace(self._ref(int(worst), stats, fits), since=change)))
        in_fallen = np.isin(prompt, fell) & after
        return Selection(refs, len(order), int(num_found[groups][in_fallen].sum()), query, self.indexed)

    # One group

    def _ref(self, group: int, stats: _GroupStats, fits: np.ndarray) -> GroupRef:
        columns, names = self._index.columns, self._index.names
        first, end = int(self._bounds[group]), int(self._bounds[group + 1])
        offset = int(columns["offset"][first])
        return GroupRef(
            first_row=first,
            num_completions=end - first,
            offset=offset,
            size=int(columns["offset"][end - 1] + columns["size"][end - 1]) - offset,
            step=int(columns["step"][first]),
            source=names["source"][columns["source"][first]],
            record=int(columns["record"][first]),
            mean_reward=float(stats.mean[group]),
            std_reward=float(stats.std[group]),
            outcomes=tuple(names["outcome"][code] or NOT_JUDGED for code in columns["outcome"][first:end].tolist()),
            found=tuple(np.flatnonzero(fits[first:end]).tolist()),
        )

    def _with_question(self, ref: GroupRef) -> GroupRef:
        row = ref.first_row
        size = int(self._index.columns["size"][row])
        (line,) = self._lines(replace(ref, size=size, num_completions=1))
        return replace(ref, question=str(line.get("question") or "")[:MAX_QUESTION])

    def group(self, ref: GroupRef) -> Group:
        """The whole lines. Raises LcotError where the file is no longer the one that `ref` was read from."""
        return Group(ref, self._lines(ref), self.folder)

    def _lines(self, ref: GroupRef) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(ref.offset)
                contents = file.read(ref.size)
            lines = [parse_line(line) for line in contents.split(b"\n") if line.strip()]
            fits = len(lines) == ref.num_completions and all(
                (line["step"], line.get("source") or "") == (ref.step, ref.source) for line in lines
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            fits = False
        if not fits:
            raise LcotError(
                f"{self.path} has changed since it was read (a resumed run writes steps anew): load it again."
            )
        return lines


class _GroupStats(NamedTuple):
    mean: np.ndarray
    """[num_groups], NaN where no completion has the reward."""
    std: np.ndarray
    """[num_groups] population standard deviation, NaN likewise."""

    @classmethod
    def of(cls, reward: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> _GroupStats:
        reward = reward[: starts[-1] + counts[-1]]
        known = np.isfinite(reward)
        numbers = np.add.reduceat(known, starts, dtype=np.int64)
        values = np.where(known, reward, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.add.reduceat(values, starts) / np.where(numbers, numbers, np.nan)
            spread = np.zeros_like(values)
            spread[starts[0] :] = (values[starts[0] :] - np.repeat(mean, counts)) ** 2
            spread[~known] = 0.0
            return cls(mean, np.sqrt(np.add.reduceat(spread, starts) / np.where(numbers, numbers, np.nan)))


def _nan_last(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), math.inf, values.astype(np.float64))
