"""Completions to read: the best, the worst, the most varied, the newest and those that got worse, with their pictures.

In: subjects, a budget of bytes. Out: a section whose groups are folded, and in words what had no room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcot_plugin.report.completions_table import CompletionsTable, GroupRef, RolloutQuery
from lcot_plugin.report.page import Html, Section, count, folded, join, listed, paragraph, shortened, tag
from lcot_plugin.report.pictures import PicturePool
from lcot_plugin.report.rollout_view import group_html
from lcot_plugin.report.runs import media_folders, reward_weights
from lcot_plugin.report.subjects import Subject, set_name

KINDS = (
    ("highest", "Best", "highest mean reward, the newest of equals first"),
    ("lowest", "Worst", "lowest mean reward"),
    ("most_varied", "Most varied", "rewards that differ most: what the policy learns from"),
    ("got_worse", "Got worse", "prompts whose mean reward fell most between the first and the second half of training"),
    ("newest", "Newest", "the last that were written"),
)
"""Order, title, what it means."""
OPEN = ("highest", "lowest")
"""Orders whose first group is shown open: a page that is all folded tells a reader nothing."""
PICTURE_SIDE = 480
"""Pixels of a picture's longer side."""
MAX_CHARS = 24_000
"""Of one completion; what is left out in its middle is counted by the view."""
MAX_QUESTION = 110
MAX_MISSES = 20
"""Groups without room behind each other, after which no further one is tried."""


@dataclass
class Budget:
    """Bytes that the groups and their pictures may take."""

    text_bytes: int
    """Of everything but the pictures."""
    picture_bytes: int
    num_left_out: int = 0
    """Groups without room."""
    num_pictures_left_out: int = 0
    num_plain: int = 0
    """Groups shown without coloured tokens, which take ten times the room."""


def section(
    subjects: Sequence[Subject], max_rollouts: int, budget: Budget, progress: Callable[[str], None] = lambda _: None
) -> Section | None:
    """At most `max_rollouts` groups of each run; None where no run kept completions."""
    parts: list[object] = []
    readable = [subject for subject in subjects if _file(subject) is not None]
    for place, subject in enumerate(readable):
        progress(f"Reading the completions of {subject.name}")
        # What one run leaves is the others'.
        share = len(readable) - place
        own = _of_subject(
            subject, max_rollouts, Budget(budget.text_bytes // share, budget.picture_bytes // share), budget
        )
        if own:
            last = place == len(readable) - 1
            parts += own if len(readable) == 1 else [folded(f"Rollouts of {subject.name}", *own, open_=last)]
    if not parts:
        return None
    return Section("rollouts", "Rollouts", join([*parts, _left_out(budget)]))


def _file(subject: Subject) -> Path | None:
    return subject.run.completions or subject.run.eval_completions


def _of_subject(subject: Subject, max_rollouts: int, own: Budget, budget: Budget) -> list[Html]:
    path = _file(subject)
    assert path is not None
    table = CompletionsTable.open(path, subject.run.folder)
    if not table.num_groups:
        return []
    pool = PicturePool(
        subject.run.folder,
        media_dirs=media_folders(subject.run.record),
        max_side=PICTURE_SIDE,
        page_bytes=own.picture_bytes,
    )
    kinds = chosen(table, max_rollouts)
    weights = reward_weights(subject.run.record)
    spent = num_shown = num_left_out = misses = 0
    parts: list[Html] = []
    for (order, title, meaning), refs in kinds:
        groups: list[Html] = []
        for ref in refs:
            shown, in_pictures = None, pool.spent
            if misses < MAX_MISSES:
                shown = _group(table, ref, pool, weights, own.text_bytes - spent, budget)
            if shown is None:
                num_left_out += 1
                misses += 1
                continue
            misses = 0
            groups.append(folded(_title(ref), shown, open_=order in OPEN and not groups, class_="rollout"))
            spent += len(groups[-1].encode()) - (pool.spent - in_pictures)
            num_shown += 1
        if groups:
            parts.append(tag("h3", f"{title} ", tag("span", f"- {meaning}", class_="soft note")))
            parts += groups
    budget.text_bytes -= spent
    budget.picture_bytes -= pool.spent
    budget.num_left_out += num_left_out
    budget.num_pictures_left_out += pool.num_left_out
    of = "training" if subject.run.completions is not None else "evaluation"
    if len(subject.run.all_eval_completions) > 1 and subject.run.completions is None:
        of += f" on {set_name(path)}, the first of {len(subject.run.all_eval_completions):,} sets"
    words = (
        f"{count(num_shown, 'group')} of the {table.num_groups:,} of {of} ({table.num_completions:,} completions). "
        "A group is one prompt with all of its completions; open one to read it."
    )
    return [paragraph(words, class_="note"), *parts]


def chosen(table: CompletionsTable, max_rollouts: int) -> list[tuple[tuple[str, str, str], list[GroupRef]]]:
    """The groups of each kind, none twice, as many of each as there is room for."""
    taken: set[int] = set()
    found = []
    for place, kind in enumerate(KINDS):
        wanted = (max_rollouts - len(taken)) // (len(KINDS) - place)
        if wanted < 1:
            continue
        selection = table.select(RolloutQuery(order=kind[0], limit=max_rollouts))
        refs = [ref for ref in selection.groups if ref.offset not in taken][:wanted]
        taken.update(ref.offset for ref in refs)
        found.append((kind, refs))
    return found


def _group(
    table: CompletionsTable, ref: GroupRef, pool: PicturePool, weights: dict[str, float], room: int, budget: Budget
) -> Html | None:
    """A group as HTML of at most `room` bytes without its pictures; None where even the plain text is longer."""
    group = table.group(ref)
    before = table.group(ref.since.before) if ref.since is not None else None
    for tokens, max_chars in ((True, MAX_CHARS), (False, MAX_CHARS), (False, 2000)):
        spent, left_out = pool.spent, pool.num_left_out
        shown = group_html(
            group, pictures=pool, tokens=tokens, weights=weights or None, before=before, max_chars=max_chars
        )
        if len(shown.encode()) - (pool.spent - spent) <= room:
            budget.num_plain += not tokens
            return Html(shown)
        pool.spent, pool.num_left_out = spent, left_out
    return None


def _title(ref: GroupRef) -> Html:
    right = sum(outcome == "matched" for outcome in ref.outcomes)
    reward = f", mean reward {ref.mean_reward:.3g}" if ref.mean_reward == ref.mean_reward else ""
    change = ""
    if ref.since is not None:
        change = f", {ref.since.mean_before:.2g} before step {ref.since.step:,}, {ref.since.mean_after:.2g} since"
    facts = tag("b", f"Step {ref.step:,}: {right} of {ref.num_completions} right{reward}{change}.")
    return join([facts, " ", tag("span", shortened(ref.question, MAX_QUESTION), class_="soft")])


def _left_out(budget: Budget) -> Html:
    told = []
    if budget.num_left_out:
        told.append(f"{count(budget.num_left_out, 'group')} had no room on this page")
    if budget.num_pictures_left_out:
        told.append(f"{count(budget.num_pictures_left_out, 'picture')} had no room")
    if budget.num_plain:
        told.append(f"{count(budget.num_plain, 'group')} shown without coloured tokens or shortened, for room")
    return paragraph(f"Left out: {listed(told)}. LLaMA Board's viewer shows all.", class_="note") if told else Html("")
