"""HTML of the report: escaped text, tables, sections, one page that needs no other file.

In: plain values and `Html` that this package made. Out: text. Whatever a model, a data set or a user wrote becomes HTML
here and nowhere else: `escape` is the only way in.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from lcot_plugin.report.shown_text import visible

MAX_CELL = 600
"""Characters of a table's cell; what is longer is cut, and says so."""


class Html(str):
    """Text that is HTML already; everything else is escaped."""


@dataclass(frozen=True)
class Section:
    """A part of the page that its contents name."""

    anchor: str
    """Its id: lower case letters, digits and dashes."""
    title: str
    body: Html


def escape(value: object) -> Html:
    """A value as HTML text, control characters written out; Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(visible(str(value))))


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts behind each other."""
    return Html(between.join(escape(part) for part in parts))


def tag(name: str, *parts: object, **attributes: str | None) -> Html:
    """`<name attribute="...">parts</name>`; class_ is class, an attribute of None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(visible(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(parts)}</{name}>")


def paragraph(*parts: object, class_: str | None = None) -> Html:
    return tag("p", *parts, class_=class_)


def shortened(text: str, limit: int = MAX_CELL) -> str:
    """At most `limit` characters, and how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} ... [{len(text) - limit:,} more characters]"


def table(
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    label: str,
    words: Collection[int] = (0,),
    class_: str = "",
) -> Html:
    """A table that scrolls by itself where the page is narrower.

    label: what it shows, for those who do not see it. words: columns that are read as text, to the left; the others are
    numbers, to the right. The first cell of a row is its heading.
    """

    def cell(name: str, column: int, value: object, **attributes: str) -> Html:
        shown = value if isinstance(value, Html) else shortened(str(value))
        return tag(name, shown, class_=None if column in words else "n", **attributes)

    head = tag("tr", *(cell("th", i, value, scope="col") for i, value in enumerate(headings)))
    body = [
        tag("tr", *(cell("td" if i else "th", i, v, **({} if i else {"scope": "row"})) for i, v in enumerate(row)))
        for row in rows
    ]
    inner = tag("table", tag("thead", head), tag("tbody", *body), class_=class_ or None)
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex="0")


def folded(title: object, *parts: object, open_: bool = False, class_: str | None = None) -> Html:
    """A title that opens what is below it."""
    opening = '<details open class="' if open_ else '<details class="'
    return Html(f'{opening}{html.escape(class_ or "")}">{tag("summary", title)}{join(parts)}</details>')


def chips(facts: Iterable[tuple[str, object]]) -> Html:
    """Short facts beside each other: name above, value below."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="chips")


def page(title: str, subtitle: str, sections: Sequence[Section], foot: Html, *, styles: str = "") -> str:
    """The whole file. styles: CSS of the parts that have their own, behind the page's."""
    links = tag("ul", *(tag("li", tag("a", s.title, href=f"#{s.anchor}")) for s in sections))
    contents = tag("nav", links, aria_label="Contents") if len(sections) > 1 else Html("")
    body = join(
        tag(
            "section",
            tag("h2", s.title, id=f"{s.anchor}-title"),
            s.body,
            id=s.anchor,
            aria_labelledby=f"{s.anchor}-title",
        )
        for s in sections
    )
    script = f"\n{_file('page.js')}"
    # A hash allows this one script: nothing else runs, were it ever to slip in among what a model wrote.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        f"'unsafe-inline'; script-src 'sha256-{digest}'\">\n"
        f"{tag('title', title)}\n<style>\n{_file('page.css')}{styles}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the results</a>\n'
        f"<header>{tag('h1', title)}{paragraph(subtitle, class_='soft')}</header>\n{contents}\n"
        f'<main id="main">{body}</main>\n<footer>{foot}</footer>\n<script>{script}</script>\n'
        "</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def count(number: int, one: str, many: str = "") -> str:
    """`1 problem`, `1,200 problems`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """`3.2 s`, `12 min`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listed(names: Sequence[str], most: int = 6, shown: Callable[[str], str] = str) -> str:
    """`a, b, c and 4 more`."""
    rest = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {rest:,} more" if rest > 0 else "")
