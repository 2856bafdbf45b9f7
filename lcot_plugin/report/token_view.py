"""One tokenised record in, a page that shows what the model sees and learns out; for `lcot data show`.

    token ids, loss mask --token_pieces--> Pieces --to_terminal, to_html--> text with ANSI colours, one HTML file

Tokens that the loss counts are green, the others grey, images are folded to `[image: 752 tokens]`. A record that was
left out has no tokens: it is shown as it stands in the file.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from PIL import Image

from lcot_plugin.report.shown_text import escaped, visible

MAX_PIECE = 8
"""Tokens that may share a character: four bytes at most, some tokenizers add an empty one."""
MAX_SIDE = 900
"""Pixels of an embedded image's longer side."""
WORDS = (
    "{source}, record {record}",
    "{total} tokens: {parts}",
    "{count} in the loss",
    "{count} of images",
    "left out: no tokens",
    "data set",
    "template",
    "gold",
    "verifier",
    "finding",
    "Question",
    "Thought",
    "Answer",
    "The record in its file",
    "image {number}",
    "{width} x {height} pixels",
    "embedded in the data set",
    "Tokens",
    "in the loss",
    "not in the loss",
    "placeholders",
    "point at a token, or tap it, for its id",
)
"""What a page says in its own words, which LLaMA Board puts into its languages; `{...}` are filled in."""
_ENGLISH = {words: words for words in WORDS}
TRAINED, MASKED, FOLDED, RESET = "\x1b[32m", "\x1b[2m", "\x1b[36m", "\x1b[0m"


@dataclass(frozen=True)
class Piece:
    """Tokens that are shown together: one, several that share a character, or the placeholders of an image."""

    text: str
    token_ids: list[int]
    trained: bool
    """Whether the loss counts them."""
    placeholder: str | None = None
    """`image`, `video`..., for a run of placeholders."""


@dataclass(frozen=True)
class RecordView:
    """Everything that is shown of one record."""

    source: str
    record: int
    pieces: list[Piece]
    question: str = ""
    images: list[str | bytes] = field(default_factory=list)
    """Paths, or contents of files."""
    thought: str | None = None
    answer: str | None = None
    """What follows the thought."""
    gold: str | None = None
    answer_type: str = "auto"
    gold_origin: str = ""
    """Where the gold answer is from, if not from a column of its own."""
    verdict: str = ""
    """What the verifier says of the gold answer and of the answer that the response states."""
    findings: list[str] = field(default_factory=list)
    """What is wrong with the record and what becomes of it."""
    template: str = ""
    cutoff_len: int | None = None
    notes: list[str] = field(default_factory=list)
    """What was decided for the whole data set."""
    raw: str = ""
    """The record as it stands in the file, for one that was left out."""

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.token_ids) for piece in self.pieces)

    @property
    def num_trained(self) -> int:
        return sum(len(piece.token_ids) for piece in self.pieces if piece.trained)

    @property
    def summary(self) -> str:
        """`1,240 tokens: 488 in the loss, 752 of images`."""
        return _summary(self, _ENGLISH)


def token_pieces(
    token_ids: Sequence[int],
    trained: Sequence[bool],
    decode: Callable[[list[int]], str],
    placeholders: Mapping[int, str],
) -> list[Piece]:
    """The tokens as pieces of whole characters.

    token_ids, trained: [L]. decode: ids to text, special tokens kept, nothing cleaned up. placeholders: token id ->
    `image`, `video`...
    """
    pieces: list[Piece] = []
    pending: list[int] = []
    before: list[int] = []
    previous = ""
    for position, (token_id, counted) in enumerate(zip(token_ids, trained, strict=True)):
        if name := placeholders.get(token_id):
            if pieces and pieces[-1].placeholder == name and pieces[-1].trained == counted:
                pieces[-1].token_ids.append(token_id)
            else:
                pieces.append(Piece("", [token_id], counted, name))
            before, previous = [], ""
            continue
        pending.append(token_id)
        # Behind the piece before it: some tokenizers strip the space at the start of a text.
        text = decode([*before, *pending])[len(previous) :]
        ends = position + 1 == len(token_ids) or trained[position + 1] != counted
        ends = ends or placeholders.get(token_ids[position + 1]) is not None
        if text.endswith("\ufffd") and len(pending) < MAX_PIECE and not ends:
            continue
        pieces.append(Piece(text, pending, counted))
        # Half a character would join with what follows.
        before = [] if text.endswith("\ufffd") else pending
        previous, pending = decode(before), []
    return pieces


def to_terminal(view: RecordView, *, colour: bool) -> str:
    """The record as text. Without `colour`, lines in brackets say where the loss begins and ends."""
    lines = [f"{view.source}, record {view.record}", view.summary]
    for name, value in _facts(view):
        lines.append(f"{name}: {visible(value)}")
    body = []
    for trained, run in itertools.groupby(view.pieces, key=lambda piece: piece.trained):
        pieces = list(run)
        if not colour:
            number = sum(len(piece.token_ids) for piece in pieces)
            body.append(f"\n[{number:,} tokens {'in the loss' if trained else 'not in the loss'}]\n")
        for folded, group in itertools.groupby(pieces, key=lambda piece: piece.placeholder is not None):
            if folded:
                body += [_painted(_folded(piece), FOLDED, colour) for piece in group]
            else:
                text = visible("".join(piece.text for piece in group))
                body.append(_painted(text, TRAINED if trained else MASKED, colour))
    legend = f"{_painted('in the loss', TRAINED, True)}, {_painted('not in the loss', MASKED, True)}" if colour else ""
    if view.raw:
        body, legend = [visible(view.raw)], ""
    return "\n".join(filter(None, [*lines, legend])) + "\n\n" + "".join(body).lstrip("\n") + "\n"


def _painted(text: str, code: str, colour: bool) -> str:
    return f"{code}{text}{RESET}" if colour and text else text


def _folded(piece: Piece) -> str:
    return f"[{piece.placeholder}: {len(piece.token_ids):,} tokens]"


def _summary(view: RecordView, words: Mapping[str, str]) -> str:
    if not view.pieces:
        return words["left out: no tokens"]
    parts = [words["{count} in the loss"].format(count=f"{view.num_trained:,}")]
    for name, run in _by_placeholder(view.pieces).items():
        of_kind = f"{{count}} of {name}s"
        parts.append(words.get(of_kind, of_kind).format(count=f"{run:,}"))
    limit = f"; cutoff_len {view.cutoff_len:,}" if view.cutoff_len is not None else ""
    return words["{total} tokens: {parts}"].format(total=f"{view.num_tokens:,}", parts=", ".join(parts)) + limit


def _facts(view: RecordView) -> list[tuple[str, str]]:
    """What is said of the record besides its tokens, where it is known."""
    facts = [
        *(("data set", note) for note in view.notes),
        ("template", view.template),
        ("gold", f"{view.gold} ({view.gold_origin or view.answer_type})" if view.gold else ""),
        ("verifier", view.verdict),
        *(("finding", finding) for finding in view.findings),
    ]
    return [(name, value) for name, value in facts if value]


def _by_placeholder(pieces: Sequence[Piece]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for piece in pieces:
        if piece.placeholder:
            counts[piece.placeholder] = counts.get(piece.placeholder, 0) + len(piece.token_ids)
    return counts


# The page.


def to_html(view: RecordView, words: Mapping[str, str] = _ENGLISH, *, lang: str = "en") -> str:
    """One file without references to others: images are embedded, scaled down to 900 pixels.

    words: each of WORDS -> what the page says in its place. lang: the language they are in.
    """
    sections = [
        _section(words["Question"], view.question),
        _section(words["Thought"], view.thought),
        _section(words["Answer"], view.answer),
        _section(words["The record in its file"], view.raw),
    ]
    facts = "".join(f"<dt>{words[name]}</dt><dd>{escaped(value)}</dd>" for name, value in _facts(view))
    title = words["{source}, record {record}"].format(source=view.source, record=view.record)
    return _PAGE.substitute(
        lang=lang,
        title=escaped(title),
        summary=html.escape(_summary(view, words)),
        facts=facts,
        images="".join(_figure(number, image, words) for number, image in enumerate(view.images, 1)),
        sections="".join(sections),
        tokens=_tokens(view, words) if view.pieces else "",
    )


def _tokens(view: RecordView, words: Mapping[str, str]) -> str:
    return _TOKENS.substitute(
        title=words["Tokens"],
        trained=words["in the loss"],
        masked=words["not in the loss"],
        folded=words["placeholders"],
        how=words["point at a token, or tap it, for its id"],
        tokens="".join(map(_token, view.pieces)),
    )


def _section(title: str, text: str | None) -> str:
    return f"<section><h2>{title}</h2><pre>{escaped(text)}</pre></section>" if text else ""


def _figure(number: int, image: str | bytes, words: Mapping[str, str]) -> str:
    title = words["image {number}"].format(number=number)
    try:
        source, (width, height) = data_url(image)
    except Exception as error:  # a broken image is what the user came to see
        return f"<figure><p>{title}: {escaped(str(error))}</p></figure>"
    name = escaped(image.rpartition("/")[2]) if isinstance(image, str) else words["embedded in the data set"]
    size = words["{width} x {height} pixels"].format(width=width, height=height)
    caption = f"{title}: {name}, {size}"
    return f'<figure><img src="{source}" alt="{title}"><figcaption>{caption}</figcaption></figure>'


def data_url(image: str | bytes, max_side: int = MAX_SIDE) -> tuple[str, tuple[int, int]]:
    """An image as a data URL, scaled down to `max_side` pixels, and its true width and height.

    `image`: a path, or the contents of a file. Raises what Pillow raises for broken ones.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about metadata
        with Image.open(image if isinstance(image, str) else io.BytesIO(image)) as picture:
            size = picture.size
            shown = picture.convert("RGB")
    shown.thumbnail((max_side, max_side))
    encoded: dict[str, bytes] = {}
    for file_format, settings in (("PNG", {"optimize": True}), ("JPEG", {"quality": 85})):
        buffer = io.BytesIO()
        shown.save(buffer, file_format, **settings)
        encoded[file_format.lower()] = buffer.getvalue()
    # Diagrams are smaller as PNG, photographs as JPEG.
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}", size


def _token(piece: Piece) -> str:
    kind = "f" if piece.placeholder else "y" if piece.trained else "n"
    if piece.placeholder:
        text, ids = _folded(piece), f"{len(piece.token_ids)} x {piece.token_ids[0]}"
    else:
        text, ids = piece.text, " ".join(map(str, piece.token_ids))
    # A token that is only white space must be seen, and found with the mouse.
    shown = escaped(text).replace("\n", "<i>\u23ce</i>\n") or "<i>\u2205</i>"
    return f'<span class="{kind}" title="id {ids}">{shown}</span>'


_PAGE: Any = Template("""\
<!doctype html>
<html lang="$lang">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2126; --soft: #68727c; --paper: #fff; --card: #f4f6f8; --line: #d9dee3;
  --yes: #d5f0dd; --yes-ink: #114a26; --fold: #d8ecf5; --fold-ink: #124a63; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #97a3ae; --paper: #14181c; --card: #1d2329;
  --line: #323a42; --yes: #173d27; --yes-ink: #a9e6bf; --fold: #15394a; --fold-ink: #a6dcf3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.soft, figcaption, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .8rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.images { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: .4rem 0; max-width: 100%; }
img { display: block; max-width: 100%; max-height: 26rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { font-size: .82rem; }
pre, .tokens { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  font: 14px/1.65 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.y { background: var(--yes); color: var(--yes-ink); }
.n { color: var(--soft); }
.f { background: var(--fold); color: var(--fold-ink); padding: 0 .3em; }
.tokens span:hover, .tokens .on { outline: 1.5px solid var(--ink); }
.tokens i { font-style: normal; opacity: .4; }
.legend { font-size: .85rem; margin: .3rem 0 .5rem; }
.legend span { padding: 0 .3em; border-radius: 3px; }
#bar { position: fixed; inset: auto 0 0 0; padding: .5rem 1rem; background: var(--card);
  border-top: 1px solid var(--line); font: 14px ui-monospace, monospace; white-space: pre-wrap; }
#bar:empty { display: none; }
</style>
</head>
<body>
<h1>$title</h1>
<div class="soft">$summary</div>
<dl>$facts</dl>
<div class="images">$images</div>
$sections
$tokens
</body>
</html>
""")

_TOKENS: Any = Template("""\
<h2>$title</h2>
<div class="legend"><span class="y">$trained</span> <span class="n">$masked</span>
<span class="f">$folded</span> <span class="soft">$how</span></div>
<div class="tokens">$tokens</div>
<div id="bar" aria-live="polite"></div>
<script>
const bar = document.getElementById("bar"), box = document.querySelector(".tokens");
let last = null;
box.addEventListener("click", event => {
  const token = event.target.closest("span");
  if (last) last.className = last.className.replace(" on", "");
  last = token === last ? null : token;
  if (last) last.className += " on";
  bar.textContent = last ? last.title + "   " + JSON.stringify(last.textContent.replace(/\\u23ce/g, "")) : "";
});
</script>
""")
