"""A group of completions in, HTML that a person reads out; for the Board's viewer and `lcot report`.

    Selection --list_html--> a row per group        Group --group_html--> prompt and pictures once, completions beside
                                                                          each other; both need `css()` on their page

Everything that a model or a data set wrote is escaped text. No script is needed: thoughts fold by `<details>`.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcot_plugin.errors import DataError
from lcot_plugin.report.completions_table import NOT_JUDGED, Change, Group, GroupRef, Selection
from lcot_plugin.report.pictures import PicturePool
from lcot_plugin.report.rollout_texts import texts_of
from lcot_plugin.report.shown_text import PROBABILITIES, ShownText, escaped, percent, split_thought, trace_of
from lcot_plugin.report.token_trace import TokenTrace
from lcot_plugin.types import Ending, Outcome

MAX_CHARS = 60_000
"""Of one completion; 16,000 tokens of English are about as much."""
MAX_QUESTION = 20_000
MAX_PICTURES = 32
"""Of one prompt."""
MAX_REWARDS = 50
MAX_ANSWER = 2_000
"""Characters of a gold answer, and of an extracted one."""
MARKS = {
    Outcome.MATCHED.value: "\u2713",
    Outcome.MISMATCHED.value: "\u2717",
    Outcome.UNPARSABLE.value: "?",
    Outcome.GOLD_UNPARSABLE.value: "!",
    Outcome.TIMED_OUT.value: "\u2026",
    NOT_JUDGED: "\u00b7",
}


def css() -> str:
    """The style sheet that every page with these views needs once."""
    return Path(__file__).with_name("rollouts.css").read_text(encoding="utf-8")


# One group


def group_html(
    group: Group,
    *,
    pictures: PicturePool,
    texts: str | Mapping[str, str] = "en",
    tokens: bool = True,
    weights: Mapping[str, float] | None = None,
    before: Group | None = None,
    max_chars: int = MAX_CHARS,
    anchor: str = "",
) -> str:
    """One group: a `<section class="lcot-rollouts">` that needs `css()` on its page and no script.

    texts: a language of the Board, or rollout_texts' texts. tokens: whether they are coloured by log-probability where
    the run kept them. weights: of rewards by name, where they are known. before: the earlier group of the same prompt
    (`ref.since.before`), shown beneath. max_chars: of one completion; what is left out in its middle is counted.
    anchor: the section's id.
    """
    words = texts_of(texts)
    parts = [_head(group, words), _prompt(group.lines[0], pictures, words)]
    parts.append(_completions(group, words, tokens, weights, max_chars))
    if before is not None:
        step = group.ref.since.step if group.ref.since else group.ref.step
        parts.append(f'<h4 class="lcot-before">{_say(words, "before", step=f"{step:,}")}</h4>')
        parts.append(f'<div class="lcot-facts">{_facts(before, words)}</div>')
        parts.append(_completions(before, words, tokens, weights, max_chars))
    identity = f' id="{html.escape(anchor)}"' if anchor else ""
    return f'<section class="lcot-rollouts"{identity}>{"".join(parts)}</section>'


def _head(group: Group, words: Mapping[str, str]) -> str:
    ref = group.ref
    title = _say(words, "title", step=f"{ref.step:,}", source=_short(ref.source))
    record = (
        f' <span class="lcot-soft">{_say(words, "record", record=str(ref.record))}</span>' if ref.record >= 0 else ""
    )
    change = f'<p class="lcot-worse">{_change(ref.since, words)}</p>' if ref.since else ""
    return f'<h3>{title}{record}</h3><div class="lcot-facts">{_facts(group, words)}</div>{change}'


def _facts(group: Group, words: Mapping[str, str]) -> str:
    ref, line = group.ref, group.lines[0]
    facts = [f"<span>{_say(words, 'num_right', right=_num_right(ref), total=str(ref.num_completions))}</span>"]
    if not math.isnan(ref.mean_reward):
        mean, std = _number(ref.mean_reward), _number(ref.std_reward)
        facts.append(f"<span>{_say(words, 'mean_reward', mean=mean, std=std)}</span>")
    if isinstance(line.get("policy_step"), int) and line["policy_step"] != ref.step:
        facts.append(f'<span class="lcot-soft">{_say(words, "policy_step", step=str(line["policy_step"]))}</span>')
    return _marks(ref, words) + "".join(facts)


def _num_right(ref: GroupRef) -> str:
    return str(sum(outcome == Outcome.MATCHED for outcome in ref.outcomes))


def _change(change: Change, words: Mapping[str, str]) -> str:
    return _say(
        words,
        "worse",
        step=f"{change.step:,}",
        after=_number(change.mean_after),
        num_after=f"{change.num_after:,}",
        before=_number(change.mean_before),
        num_before=f"{change.num_before:,}",
    )


def _prompt(line: Mapping[str, Any], pictures: PicturePool, words: Mapping[str, str]) -> str:
    names = line.get("images") or []
    names = names if isinstance(names, list) else [names]
    shown = names[:MAX_PICTURES]
    figures = "".join(_figure(number, str(name), pictures, words) for number, name in enumerate(shown, 1))
    if len(names) > len(shown):
        figures += f'<p class="lcot-note">{_say(words, "more_pictures", number=f"{len(names) - len(shown):,}")}</p>'
    question = ShownText(str(line.get("question") or ""), words, MAX_QUESTION)
    gold = line.get("gold")
    gold_text = f"<b>{escaped(gold, MAX_ANSWER)}</b>" if gold not in (None, "") else escaped(words["no_gold"])
    kind = line.get("answer_type")
    kind_text = f' <span class="lcot-soft">{escaped(kind, 40)}</span>' if kind not in (None, "", "auto") else ""
    return (
        f'<div class="lcot-prompt">{f"<div class=lcot-pictures>{figures}</div>" if figures else ""}<div>'
        f'<h4>{escaped(words["question"])}</h4><div class="lcot-text" dir="auto">'
        f"{question.html(0, len(question.text))}</div>"
        f'<p class="lcot-gold"><span class="lcot-label">{escaped(words["gold"])}</span> '
        f"<bdi>{gold_text}</bdi>{kind_text}</p></div></div>"
    )


def _figure(number: int, name: str, pictures: PicturePool, words: Mapping[str, str]) -> str:
    found = pictures.picture(name)
    title = _say(words, "picture", number=str(number))
    if found.missing:
        detail = f" {escaped(found.detail, 300)}" if found.detail else ""
        return (
            f'<figure class="lcot-missing"><p>{title}: {escaped(words[found.missing])}{detail}</p>'
            f"<figcaption>{escaped(found.name, 120)}</figcaption></figure>"
        )
    caption = f"{escaped(found.name, 120)}, {found.width:,} \u00d7 {found.height:,}"
    return (
        f'<figure><img src="{html.escape(found.url)}" alt="{title}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _completions(
    group: Group, words: Mapping[str, str], tokens: bool, weights: Mapping[str, float] | None, max_chars: int
) -> str:
    found = set(group.ref.found)
    some = 0 < len(found) < len(group.lines)
    articles, any_trace = [], False
    for number, line in enumerate(group.lines):
        trace, note = None, ""
        if tokens:
            try:
                trace = trace_of(line)
            except DataError:
                note = escaped(words["trace_unfit"])
        any_trace |= trace is not None
        articles.append(_completion(number, line, words, trace, note, weights, max_chars, some and number in found))
    return f'{_legend(words) if any_trace else ""}<div class="lcot-columns">{"".join(articles)}</div>'


def _completion(
    number: int,
    line: Mapping[str, Any],
    words: Mapping[str, str],
    trace: TokenTrace | None,
    note: str,
    weights: Mapping[str, float] | None,
    max_chars: int,
    found: bool,
) -> str:
    outcome = _known(line.get("outcome"), MARKS, NOT_JUDGED)
    ending = line.get("ending")
    ending_class = _known(ending, list(Ending), "other")
    ending_text = escaped(ending if ending_class == "other" else words[ending_class], 40)
    extracted = line.get("extracted")
    facts = [
        (
            words["extracted"],
            f"<bdi>{escaped(extracted, MAX_ANSWER)}</bdi>" if extracted is not None else None,
            "nothing",
        ),
        (words["reward"], _value(line.get("reward")), "none"),
        (words["advantage"], _value(line.get("advantage"), signed=True), "not_trained"),
        (words["tokens"], _value(line.get("num_tokens"), whole=True), "none"),
        (words["ending"], f'<span class="lcot-{ending_class}">{ending_text}</span>' if ending else None, "none"),
    ]
    rows = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>"
        + (value if value is not None else f'<span class="lcot-soft">{escaped(words[absent])}</span>')
        + "</dd></div>"
        for name, value, absent in facts
    )
    return (
        f'<article class="lcot-completion lcot-o-{outcome}{" lcot-found" if found else ""}">'
        f'<header><span class="lcot-number">{number + 1}</span>{_chip(outcome, words)}</header>'
        f"<dl>{rows}</dl>{_texts(line, words, trace, note, max_chars)}{_rewards(line, words, weights)}</article>"
    )


def _chip(outcome: str, words: Mapping[str, str]) -> str:
    return f'<span class="lcot-chip lcot-o-{outcome}"><i>{MARKS[outcome]}</i> {escaped(words[outcome])}</span>'


def _texts(
    line: Mapping[str, Any], words: Mapping[str, str], trace: TokenTrace | None, note: str, max_chars: int
) -> str:
    text, opening = str(line.get("completion") or ""), str(line.get("opening") or "")
    shown = ShownText(text, words, max_chars, trace)
    end, closed = split_thought(text, opening)
    parts = []
    if end:
        size = _say(words, "characters", number=f"{end:,}")
        begins = (
            f'<p class="lcot-soft">{escaped(words["opening"])} <code>{escaped(opening.strip(), 200)}</code></p>'
            if opening.strip()
            else ""
        )
        parts.append(
            f'<details class="lcot-thought"><summary>{escaped(words["thought"])} <span class="lcot-soft">{size}</span>'
            f'</summary>{begins}<div class="lcot-text" dir="auto">{shown.html(0, end)}</div></details>'
        )
    if not closed:
        parts.append(f'<p class="lcot-note">{escaped(words["unclosed"])}</p>')
    elif text[end:].strip():
        begin = end + len(text[end:]) - len(text[end:].lstrip("\n"))
        parts.append(f'<div class="lcot-text lcot-answer" dir="auto">{shown.html(begin, len(text))}</div>')
    else:
        parts.append(f'<p class="lcot-note">{escaped(words["empty"])}</p>')
    if note:
        parts.append(f'<p class="lcot-note">{note}</p>')
    if shown.num_uncoloured:
        parts.append(f'<p class="lcot-note">{_say(words, "uncoloured", number=f"{shown.num_uncoloured:,}")}</p>')
    return "".join(parts)


def _rewards(line: Mapping[str, Any], words: Mapping[str, str], weights: Mapping[str, float] | None) -> str:
    rewards = line.get("rewards")
    if not isinstance(rewards, dict) or not rewards:
        return ""
    weights = weights or {}
    rows = []
    for name, value in list(rewards.items())[:MAX_REWARDS]:
        weight = f"\u00d7 {_number(weights[name])}" if name in weights else ""
        rows.append(_reward_row(escaped(name, 80), value, weight, words))
    if len(rewards) > MAX_REWARDS:
        rows.append(_reward_row(f"\u2026 (+{len(rewards) - MAX_REWARDS:,})", "", "", words))
    total = _reward_row(escaped(words["total"]), line.get("reward"), "", words, "lcot-total")
    return f'<table class="lcot-rewards" aria-label="{escaped(words["rewards"])}">{"".join(rows)}{total}</table>'


def _reward_row(name: str, value: Any, weight: str, words: Mapping[str, str], kind: str = "") -> str:
    number = _value(value)
    shown = number if number is not None else f'<span class="lcot-soft">{escaped(words["none"])}</span>'
    begin = f'<tr class="{kind}">' if kind else "<tr>"
    return f'{begin}<th>{name}</th><td class="lcot-soft">{weight}</td><td>{shown}</td></tr>'


def _legend(words: Mapping[str, str]) -> str:
    limits = [percent(probability) for probability in PROBABILITIES]
    steps = [f"\u2265 {limits[0]}", *(f"\u2265 {limit}" for limit in limits[1:]), f"< {limits[-1]}"]
    keys = " ".join(f'<i class="lcot-t{level}">{html.escape(step)}</i>' for level, step in enumerate(steps))
    return (
        f'<div class="lcot-legend"><span>{escaped(words["legend"])}</span> {keys} '
        f'<span class="lcot-soft">{escaped(words["legend_note"])}</span></div>'
    )


# A list of groups


def list_html(
    selection: Selection,
    *,
    texts: str | Mapping[str, str] = "en",
    href: Callable[[int, GroupRef], str] | None = None,
) -> str:
    """A page of groups, one row each. href: number on the page and group -> where a click leads (`#group-3`)."""
    words = texts_of(texts)
    said = []
    if selection.indexed < 1:
        # never 100 % while something is missing
        share = f"{min(99, int(100 * selection.indexed))} %"
        said.append(_say(words, "partly", percent=share))
    if not selection.groups:
        said.insert(0, escaped(words["no_groups"]))
        return f'<div class="lcot-rollouts"><p class="lcot-summary">{"; ".join(said)}</p></div>'
    first = selection.query.offset + 1
    last = selection.query.offset + len(selection.groups)
    said[:0] = [
        _say(words, "found", groups=f"{selection.num_groups:,}", completions=f"{selection.num_completions:,}"),
        _say(words, "shown", first=f"{first:,}", last=f"{last:,}"),
    ]
    rows = "".join(_list_row(number, ref, words, href) for number, ref in enumerate(selection.groups))
    return (
        f'<div class="lcot-rollouts"><p class="lcot-summary">{"; ".join(said)}</p>'
        f'<ol class="lcot-list" start="{first}">{rows}</ol></div>'
    )


def _list_row(number: int, ref: GroupRef, words: Mapping[str, str], href: Callable[[int, GroupRef], str] | None) -> str:
    title = _say(words, "title", step=f"{ref.step:,}", source=_short(ref.source))
    record = (
        f' <span class="lcot-soft">{_say(words, "record", record=str(ref.record))}</span>' if ref.record >= 0 else ""
    )
    question = " ".join(ref.question.replace("<image>", " ").split())
    change = f'<span class="lcot-worse">{_change(ref.since, words)}</span>' if ref.since else ""
    mean = "" if math.isnan(ref.mean_reward) else _number(ref.mean_reward)
    body = (
        f'<span class="lcot-row-title">{title}{record}</span><span class="lcot-row-marks">{_marks(ref, words)}</span>'
        f'<span class="lcot-row-reward" title="{escaped(words["reward"])}">{mean}</span>'
        f'<span class="lcot-row-question"><bdi>{escaped(question)}</bdi></span>{change}'
    )
    if href is None:
        return f'<li><div class="lcot-row">{body}</div></li>'
    return f'<li><a class="lcot-row" href="{escaped(href(number, ref))}">{body}</a></li>'


def _marks(ref: GroupRef, words: Mapping[str, str]) -> str:
    """A sign for each completion, in their order."""
    outcomes = [_known(outcome, MARKS, NOT_JUDGED) for outcome in ref.outcomes]
    counts = Counter(outcomes)
    label = html.escape(", ".join(f"{counts[outcome]} {words[outcome]}" for outcome in MARKS if counts[outcome]))
    signs = "".join(f'<i class="lcot-o-{outcome}">{MARKS[outcome]}</i>' for outcome in outcomes)
    return f'<span class="lcot-marks" role="img" aria-label="{label}" title="{label}">{signs}</span>'


# Words and numbers


def _say(words: Mapping[str, str], key: str, **values: str) -> str:
    """A text with values that are not HTML yet."""
    return html.escape(words[key]).format(**{name: escaped(value) for name, value in values.items()})


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}\u2026"


def _known(value: Any, known: Mapping[str, Any] | Sequence[str], otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _value(value: Any, *, signed: bool = False, whole: bool = False) -> str | None:
    """A number of a line as HTML; None where there is none; anything else as it is written."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 1e15):
        return escaped(value, 80)
    if whole and isinstance(value, int):
        return f"{value:,}"
    return _number(value, signed=signed)


def _number(value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return str(value)
    text = f"{value:+.3g}" if signed else f"{value:.3g}"
    return text.replace("-", "\u2212")
