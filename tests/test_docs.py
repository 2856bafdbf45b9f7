"""The documents agree with the code, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_the_page_of_arguments_is_that_of_the_code() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_arguments.py"))
    assert (ROOT / "docs/arguments.md").read_text(encoding="utf-8") == made["text"](), "run docs/make_arguments.py"
    assert made["text"]().count("| `grpo_") > 50


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, heading = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_recipes_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for named in set(re.findall(r"yaml_recipes/[\w./-]+\.(?:yaml|json)", text)):
        assert (ROOT / named).is_file(), named


def strings_of(file: Path) -> Iterator[str]:
    """Every text in a module; what an f-string fills in is a line break, which no message has within."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
            yield "".join(map(str, parts))


@cache
def messages() -> str:
    """Every text of the package, and of the files of others whose messages users meet."""
    others = [
        ("llamafactory", "hparams/parser.py"),
        ("transformers", "training_args.py"),
        ("transformers", "hf_argparser.py"),
        ("transformers", "models/qwen2_5_vl/modeling_qwen2_5_vl.py"),
    ]
    files = sorted((ROOT / "lcot_plugin").rglob("*.py"))
    for package, file in others:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        files.append(Path(spec.origin).parent / file)
    return "\0".join(text for file in files for text in strings_of(file))


def quoted_messages() -> list[str]:
    rows = re.findall(r"^\| (.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [message for row in rows for message in re.findall(r'"([^"]+)"', row)]


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_that_is_quoted_is_one_of_the_code(message: str) -> None:
    pieces = [re.escape(piece) for piece in message.split("...") if piece]
    assert re.search(r"[^\0]*?".join(pieces), messages())


def test_messages_are_quoted() -> None:
    assert len(quoted_messages()) >= 10
    assert not re.search("a message that there is not", messages())
