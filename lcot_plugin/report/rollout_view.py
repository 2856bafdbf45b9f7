"""A group of completions in, HTML that a person reads out; for the Board's viewer and `lcot report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lcot_plugin.report.completions_table import Group, GroupRef, Selection
from lcot_plugin.report.pictures import PicturePool


def css() -> str:
    """The style sheet that every page with these views needs once."""
    return Path(__file__).with_name("rollouts.css").read_text(encoding="utf-8")


def group_html(
    group: Group,
    *,
    pictures: PicturePool,
    texts: str | Mapping[str, str] = "en",
    tokens: bool = True,
    weights: Mapping[str, float] | None = None,
    before: Group | None = None,
    max_chars: int = 60_000,
) -> str:
    """One group: a `<section class="lcot-rollouts">` that needs `css()` on its page and no script.

    texts: a language of the Board, or rollout_texts' texts. tokens: whether they are coloured by log-probability where
    the run kept them. weights: of rewards by name, where they are known. before: an earlier group of the same prompt,
    shown beneath. max_chars: of one completion; what is left out in its middle is counted.
    """
    raise NotImplementedError


def list_html(
    selection: Selection,
    *,
    texts: str | Mapping[str, str] = "en",
    href: Callable[[int, GroupRef], str] | None = None,
) -> str:
    """A page of groups, one row each. href: number on the page and group -> where a click leads (`#group-3`)."""
    raise NotImplementedError
