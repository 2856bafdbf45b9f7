"""LLaMA Board as a user meets it: a real server, a real Chromium, real runs of the embedded model.

`LCOT_SCREENSHOTS=DIR` keeps a picture of every page that is looked at here. Without a Chromium all of this is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import (
    BoardPage,
    BoardServer,
    Visit,
    board_server,
    find_chromium,
    horizontal_overflow,
    layout_faults,
    open_chromium,
    picture,
    visit,
    wait_until,
)
from hostile_run import HOSTILE, write_hostile_run

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = find_chromium()

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH: apt install chromium, or name one in LCOT_CHROMIUM"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    assert CHROMIUM is not None
    with open_chromium(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardServer]:
    folder = tmp_path_factory.mktemp("board")
    write_hostile_run(folder / "saves/hostile")
    with board_server(folder) as board:
        yield board


def test_the_layout_check_sees_what_overlaps_and_what_is_cut(chromium: Any) -> None:
    line = "position: absolute; top: {}px; left: 0; white-space: nowrap; line-height: 20px"
    page = f"""
      <p style="{line.format(100)}">below</p><p style="{line.format(108)}">above</p><p style="{line.format(160)}">fine</p>
      <div style="position: absolute; top: 200px; width: 50px; overflow: hidden; white-space: nowrap">a long line</div>
      <div style="position: absolute; top: 240px; width: 50px; overflow: auto; white-space: nowrap">one to scroll</div>
      <div style="position: absolute; top: 300px; width: 2000px">wide</div>"""
    with visit(chromium, width=400) as seen:
        seen.page.set_content(page)
        faults = layout_faults(seen.page)
        assert faults[0].startswith('cut: "a long line" ends')
        assert faults[1:] == ['"below" lies over "above"']
        assert horizontal_overflow(seen.page) == 1608
