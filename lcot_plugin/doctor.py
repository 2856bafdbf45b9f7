"""`lcot doctor`: is this installation able to train?

In:  the installed distributions, torch in a child process, the `llamafactory-cli` on the path.
Out: one printed line per finding, `ok` or `WRONG` with what to do; exit code 1 where one is wrong.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lcot_plugin import __version__, activation
from lcot_plugin.integration import contract

OPTIONAL = ("deepspeed", "liger-kernel", "bitsandbytes", "flash-attn", "vllm", "ray")

_TORCH_PROBE = """
import json, warnings
warnings.simplefilter("ignore")
found = {"errors": []}
for name in ("torch", "torchvision", "torchaudio"):
    try:
        __import__(name)
    except Exception as error:
        found["errors"].append(f"{name} does not load: " + " ".join(str(error).split()))
try:
    import torch
    found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
except ImportError:
    found["devices"] = []
print(json.dumps(found))
"""

_ACTIVATION_PROBE = """
import importlib.util, sys
importlib.util.find_spec("llamafactory")
print(any(type(finder).__module__ == "lcot_plugin.activation" for finder in sys.meta_path))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    detail: str
    problem: str | None = None
    """What is wrong and what to do, in one line; None where all is well."""

    def __str__(self) -> str:
        mark = "ok   " if self.problem is None else "WRONG"
        return f"{mark}  {self.subject:<16} {self.detail if self.problem is None else self.problem}"


def report() -> int:
    """Print every finding; returns the exit code."""
    findings = [*version_findings(), *torch_findings(), activation_finding(), *contract_findings()]
    for finding in findings:
        print(finding)
    num_problems = sum(finding.problem is not None for finding in findings)
    print(f"{num_problems} problem(s) found" if num_problems else "everything is in order")
    return 1 if num_problems else 0


def version_findings() -> list[Finding]:
    """Python, this package, the distributions with a supported range, and the optional ones that are there."""
    too_old = sys.version_info < (3, 11)
    findings = [
        Finding("python", platform.python_version(), "Python 3.11 or newer is needed." if too_old else None),
        Finding("lcot-plugin", __version__),
    ]
    for name in contract.REQUIREMENTS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            remedy = f"{name} is not installed. Run `pip install {name}=={contract.RECOMMENDED[name]}`."
            findings.append(Finding(name, "", remedy))
            continue
        findings.append(Finding(name, version, contract.requirement_problem(name, version)))
    for name in OPTIONAL:
        try:
            findings.append(Finding(name, f"{metadata.version(name)} (optional)"))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed (optional)"))
    return findings


def torch_findings() -> list[Finding]:
    """Whether torch and its companions load, and on what they would compute."""
    probe = subprocess.run([sys.executable, "-P", "-c", _TORCH_PROBE], capture_output=True, text=True)
    if probe.returncode != 0:
        return [Finding("device", "", f"importing torch ends Python: {_last_line(probe.stderr)}")]
    found = json.loads(probe.stdout.splitlines()[-1])
    findings = [Finding(error.split()[0], "", f"{error} Install one set: {_torch_set()}") for error in found["errors"]]
    devices = found["devices"]
    findings.append(Finding("device", f"{len(devices)} GPU(s): {', '.join(devices)}" if devices else "CPU (no GPU)"))
    return findings


def activation_finding() -> Finding:
    """Whether `llamafactory-cli` starts with the plugin, asked of the Python that it runs in."""
    subject = "llamafactory-cli"
    script = _console_script()
    if script is None:
        return Finding(subject, "", "llamafactory-cli is not on the PATH: activate the environment it is installed in.")
    interpreter = _interpreter_of(script)
    # Without the current folder on the path, so that a source tree at hand does not count as installed.
    probe = subprocess.run([interpreter, "-P", "-c", _ACTIVATION_PROBE], capture_output=True, text=True)
    if probe.stdout.strip() == "True":
        return Finding(subject, f"the plugin is active ({script})")
    if activation.disabled():
        return Finding(subject, "", f"{activation.SWITCH}=0 switches the plugin off: unset it.")
    return Finding(
        subject,
        "",
        f"the plugin is not active in {script}: run `{interpreter} -m pip install lcot-plugin`, or use `lcot train`.",
    )


def contract_findings() -> list[Finding]:
    """Whether the installed LLaMA-Factory is as the seams expect it."""
    probe = subprocess.run(
        [
            sys.executable,
            "-P",  # a folder here named like a package must not be taken for it
            "-c",
            "import json\nfrom lcot_plugin.integration import contract\n"
            "print(json.dumps([v for v in contract.all_violations() if v]))",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, activation.SWITCH: "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if probe.returncode != 0:
        return [Finding("contract", "", f"llamafactory does not import: {_last_line(probe.stderr)}")]
    broken = json.loads(probe.stdout.splitlines()[-1])
    if not broken:
        return [Finding("contract", f"{len(contract.PINS)} internals of LLaMA-Factory are as expected")]
    remedy = f"Install llamafactory=={contract.RECOMMENDED['llamafactory']}."
    return [Finding("contract", "", f"{sentence} {remedy}") for sentence in broken]


def _console_script() -> Path | None:
    """The `llamafactory-cli` beside this Python, else the one on the PATH."""
    beside = shutil.which("llamafactory-cli", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("llamafactory-cli")
    return Path(found) if found else None


def _interpreter_of(script: Path) -> str:
    first_line = script.open("rb").readline().decode(errors="replace").strip()
    interpreter = first_line.removeprefix("#!").strip('" ')
    return interpreter if first_line.startswith("#!") and Path(interpreter).is_file() else sys.executable


def _torch_set() -> str:
    pins = " ".join(f"{name}=={contract.RECOMMENDED[name]}" for name in ("torch", "torchvision", "torchaudio"))
    return f"`pip install {pins}`."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
