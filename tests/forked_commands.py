"""Commands of `lcot` and `llamafactory-cli`, each in a child of one process that has imported what all of them import.

    python forked_commands.py COMMANDS.json

In:  a list of command lines, run one after the other in this folder. Out: per command a line on standard output, JSON
with `command`, `code` and `output`; it ends after the first code that is not 0. Other commands go to bash.

A page of ten commands would spend most of its time on importing torch ten times.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


def main(commands: list[str]) -> None:
    from lcot_plugin import activation

    activation.activate()
    import llamafactory.train.tuner  # noqa: F401  and with it torch and transformers

    for command in commands:
        with tempfile.TemporaryFile() as output:
            code = in_child(command, output.fileno()) if is_ours(command) else in_shell(command, output.fileno())
            output.seek(0)
            text = output.read().decode(errors="replace")
        print(json.dumps({"command": command, "code": code, "output": text}), flush=True)
        if code:
            return


def is_ours(command: str) -> bool:
    return command.split()[0] in ("lcot", "llamafactory-cli")


def in_shell(command: str, output: int) -> int:
    return subprocess.run(["bash", "-c", command], stdout=output, stderr=subprocess.STDOUT).returncode


def in_child(command: str, output: int) -> int:
    """The exit code of the command's entry point, called as its console script calls it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = entry_point(shlex.split(command, comments=True)) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def entry_point(words: list[str]) -> int | None:
    sys.argv = words
    if words[0] == "lcot":
        from lcot_plugin.cli import main as lcot

        return lcot(words[1:])
    from llamafactory.cli import main as llamafactory

    return llamafactory()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
