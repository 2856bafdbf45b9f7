"""The blocks of a page of docs/, and a shell that runs its commands.

In:  the name of a page. Out: `Block`s in order; one that follows "`NAME`:" is the content of that file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
_BLOCK = re.compile(r"(?:`([\w./]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block that names its language."""

    file: str
    """What it is the content of; empty where no name stands before it."""
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Those of a page of docs/, in order."""
    text = (TESTS.parent / "docs" / page).read_text(encoding="utf-8")
    return [Block(file, language, body) for file, language, body in _BLOCK.findall(text)]


def commands_of(block: Block) -> list[str]:
    """The lines of a bash block that are not comments."""
    return [line for line in block.text.splitlines() if line and not line.startswith("#")]


def write_files(blocks: Sequence[Block], folder: Path) -> dict[str, str]:
    """Writes the blocks that are files into `folder`; returns their contents by name."""
    files = {block.file: block.text for block in blocks if block.file}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return files


def run_commands(commands: Sequence[str], folder: Path) -> dict[str, str]:
    """The output of every command by the command, run in `folder` one after the other; all must succeed."""
    script = folder / "commands.json"
    script.write_text(json.dumps(list(commands)))
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "PATH": tools, "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, str(TESTS / "forked_commands.py"), str(script)],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    done = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"command"')]
    failed = [line for line in done if line["code"]]
    assert not failed, f"$ {failed[0]['command']}\n{failed[0]['output'][-4000:]}"
    assert [line["command"] for line in done] == list(commands), result.stderr[-4000:]
    return {line["command"]: line["output"] for line in done}
