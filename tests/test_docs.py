"""The documents agree with the code, and their links lead somewhere."""

from __future__ import annotations

import re
import runpy
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
