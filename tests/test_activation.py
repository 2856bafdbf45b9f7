"""The import hook, on targets and seams of the tests' own."""

import importlib
import importlib.resources
import inspect
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcot_plugin import activation
from lcot_plugin.errors import UnsupportedVersionError
from lcot_plugin.integration import contract

ROOT = Path(__file__).resolve().parents[1]

TARGET = """
import time
time.sleep(0.01)
VALUE = "original"

def read():
    return VALUE
"""

SEAM = """
NUM_CALLS = 0

def apply(module):
    global NUM_CALLS
    NUM_CALLS += 1
    assert module.VALUE == "original", "applied twice"
    module.VALUE = "patched"
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `hooked_target` with a module `part` to patch, and its seam `hooked_seam`."""
    (tmp_path / "hooked_target").mkdir()
    (tmp_path / "hooked_target/__init__.py").write_text("from .part import VALUE as BOUND\n")
    (tmp_path / "hooked_target/part.py").write_text(TARGET)
    (tmp_path / "hooked_target/other.py").write_text(TARGET)
    (tmp_path / "hooked_target/data.txt").write_text("a resource")
    (tmp_path / "hooked_seam.py").write_text(SEAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(activation, "SEAMS", {"hooked_target.part": "hooked_seam"})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(activation, "_state", {"strict": False, "warned": False})
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("hooked_target", "hooked_seam")]:
        del sys.modules[name]


def test_the_seam_is_applied_before_anybody_binds_the_names(packages: Path) -> None:
    target = importlib.import_module("hooked_target")
    assert target.BOUND == "patched"
    assert importlib.import_module("hooked_target.part").read() == "patched"


def test_other_modules_are_left_alone(packages: Path) -> None:
    assert importlib.import_module("hooked_target.other").VALUE == "original"
    (finder,) = [finder for finder in sys.meta_path if isinstance(finder, activation.SeamFinder)]
    assert finder.find_spec("hooked_target.other") is None
    assert finder.find_spec("json") is None


def test_the_module_looks_as_if_it_had_not_been_hooked(packages: Path) -> None:
    module = importlib.import_module("hooked_target.part")
    plain = importlib.import_module("hooked_target.other")
    assert type(module.__loader__) is type(plain.__loader__)
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module.read) == inspect.getsource(plain.read)


def test_a_package_can_be_a_target(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packages / "hooked_seam.py").write_text("def apply(module):\n    module.BOUND = 'patched package'\n")
    monkeypatch.setattr(activation, "SEAMS", {"hooked_target": "hooked_seam"})
    target = importlib.import_module("hooked_target")
    assert target.BOUND == "patched package"
    assert importlib.import_module("hooked_target.part").VALUE == "original"
    assert importlib.resources.files("hooked_target").joinpath("data.txt").read_text() == "a resource"


def test_the_unloaded_spec_answers_like_the_real_one(packages: Path) -> None:
    spec = importlib.util.find_spec("hooked_target.part")
    assert spec is not None and spec.loader is not None
    assert spec.loader.get_source("hooked_target.part") == TARGET
    assert not spec.loader.is_package("hooked_target.part")


def test_a_module_is_patched_once(packages: Path) -> None:
    importlib.import_module("hooked_target.part")
    assert activation.activate()
    assert activation.activate()
    assert importlib.import_module("hooked_seam").NUM_CALLS == 1
    assert sum(isinstance(finder, activation.SeamFinder) for finder in sys.meta_path) == 1


def test_a_reloaded_module_is_patched_again(packages: Path) -> None:
    module = importlib.import_module("hooked_target.part")
    importlib.reload(module)
    assert module.VALUE == "patched"
    assert importlib.import_module("hooked_seam").NUM_CALLS == 2


def test_activate_reaches_modules_that_are_imported_already(packages: Path) -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, activation.SeamFinder)]
    module = importlib.import_module("hooked_target.part")
    assert module.VALUE == "original"
    assert activation.activate()
    assert module.VALUE == "patched"


def test_the_switch_keeps_the_plugin_out(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, activation.SeamFinder)]
    monkeypatch.setenv("LCOT_PLUGIN", "0")
    assert not activation.install()
    assert not activation.activate()
    assert not activation.installed()
    assert importlib.import_module("hooked_target.part").VALUE == "original"


def test_threads_that_import_at_once_all_see_the_patched_module(packages: Path) -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(importlib.import_module("hooked_target").BOUND)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["patched"] * 8
    assert importlib.import_module("hooked_seam").NUM_CALLS == 1


@pytest.mark.parametrize(
    "source", ["def apply(module):\n    raise KeyError('gone')\n", "import no_such_module_at_all\n"]
)
def test_an_error_in_a_seam_is_raised_and_names_target_and_seam(packages: Path, source: str) -> None:
    (packages / "hooked_seam.py").write_text(source)
    # RuntimeError even for a failed import: LLaMA-Factory guards optional imports with `except ImportError`.
    with pytest.raises(RuntimeError, match=r"could not patch hooked_target\.part with hooked_seam: .*LCOT_PLUGIN=0"):
        importlib.import_module("hooked_target")
    assert "hooked_target.part" not in sys.modules


@pytest.fixture
def unsupported(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(contract, "llamafactory_version", lambda: "0.11.0")
    return packages


def test_an_unsupported_version_switches_every_seam_off_with_one_line(
    unsupported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        activation, "SEAMS", dict.fromkeys(["hooked_target.part", "hooked_target.other"], "hooked_seam")
    )
    assert importlib.import_module("hooked_target.part").VALUE == "original"
    assert importlib.import_module("hooked_target.other").VALUE == "original"
    (line,) = capsys.readouterr().err.splitlines()
    assert "LLaMA-Factory 0.11.0 is not supported" in line
    assert "pip install llamafactory==0.9.5" in line
    assert "`stage: grpo` and its keys are not available" in line


def test_an_explicit_start_refuses_an_unsupported_version(unsupported: Path) -> None:
    activation.activate()
    with pytest.raises(UnsupportedVersionError, match=r"0\.11\.0 is not supported"):
        importlib.import_module("hooked_target.part")


def test_faults_of_a_run_go_to_stderr_once_per_node(
    packages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contract, "faults_of_run", lambda target: [f"fault of {target}"])
    module = importlib.import_module("hooked_target.part")
    assert capsys.readouterr().err == "[lcot_plugin] fault of hooked_target.part\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    importlib.reload(module)
    assert capsys.readouterr().err == ""


def run_pth_line(code: str, *, path: Path | None, switch: str = "1") -> subprocess.CompletedProcess[str]:
    """Run `code` in a bare Python after the line of lcot_plugin.pth, with `path` importable."""
    line = (ROOT / "lcot_plugin.pth").read_text()
    preamble = f"import sys\nsys.path[:0] = {[str(path)] if path else []!r}\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", preamble + line + "\n" + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"LCOT_PLUGIN": switch},
    )


@pytest.fixture
def bare_llamafactory(tmp_path: Path) -> Path:
    (tmp_path / "llamafactory").mkdir()
    (tmp_path / "llamafactory/__init__.py").write_text("__version__ = '0.9.5'\n")
    (tmp_path / "lcot_plugin").symlink_to(ROOT / "lcot_plugin")
    return tmp_path


def test_the_pth_file_is_one_import_line() -> None:
    # site executes only lines that begin with `import`, and each by itself.
    (line,) = (ROOT / "lcot_plugin.pth").read_text().splitlines()
    assert line.startswith("import ")


def test_a_python_start_imports_nothing(bare_llamafactory: Path) -> None:
    result = run_pth_line("import json\nprint('lcot_plugin' in sys.modules)", path=bare_llamafactory)
    assert result.stdout == "False\n", result.stderr
    loaded = {}
    for switch in "01":
        loaded[switch] = run_pth_line("print(sorted(sys.modules))", path=bare_llamafactory, switch=switch).stdout
    assert loaded["0"] == loaded["1"] != ""


@pytest.mark.parametrize(("switch", "expected"), [("1", "True\n"), ("0", "False\n")])
def test_importing_llamafactory_turns_the_plugin_on(bare_llamafactory: Path, switch: str, expected: str) -> None:
    code = "import llamafactory\nprint('lcot_plugin.activation' in sys.modules)"
    result = run_pth_line(code, path=bare_llamafactory, switch=switch)
    assert (result.stdout, result.stderr) == (expected, "")


def test_a_leftover_pth_file_does_no_harm(bare_llamafactory: Path) -> None:
    (bare_llamafactory / "lcot_plugin").unlink()
    result = run_pth_line("import llamafactory\nprint('imported')", path=bare_llamafactory)
    assert (result.stdout, result.stderr) == ("imported\n", "")
