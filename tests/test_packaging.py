"""Real installations: wheel, editable and --target, in throw-away environments that borrow this one's packages."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lcot_plugin.integration import contract

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

ACTIVE = "import sys, llamafactory; print('lcot_plugin.activation' in sys.modules)"
"""Prints whether importing llamafactory turned the plugin on."""

WORKERS = '''
"""Run by torchrun: every process, and every data-loader worker of it, reports whether the plugin is on."""
import os
import sys
from torch.utils.data import DataLoader

class Probe:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        import llamafactory
        return "lcot_plugin.activation" in sys.modules

if __name__ == "__main__":
    contexts = ("fork", "spawn")
    loaders = [DataLoader(Probe(), batch_size=None, num_workers=1, multiprocessing_context=c) for c in contexts]
    on = [bool(next(iter(loader))) for loader in loaders]
    os.write(1, f"rank {os.environ['RANK']}: {on} {Probe()[0]}\\n".encode())
'''


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would put the source tree on the path."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LCOT_PLUGIN")} | extra


def run(command: list[str | Path], *, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=clean_environment(**extra))


def pip(python: Path, *arguments: str | Path) -> None:
    """This environment's pip and build backend, installing into `python`."""
    # Build isolation would download the backend; --no-deps because the dependencies are borrowed.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments]
    result = run(command, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def make_environment(folder: Path) -> Path:
    """A bare virtual environment that sees the packages of this one; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # addsitedir would process the .pth files there too, and this environment may have the plugin installed.
    (site_packages / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    result = run(command, cwd=folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel."""
    python = make_environment(tmp_path_factory.mktemp("installed") / "env")
    pip(python, "install", "--no-deps", wheel)
    return python


def test_the_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "lcot_plugin.pth" in names
    assert "lcot_plugin/activation.py" in names
    assert any(name.startswith("lcot_plugin/_recipes/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lcot_plugin").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert on_disk <= names


def test_the_sdist_holds_the_repository_with_its_tests_and_documents(tmp_path: Path) -> None:
    result = run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("lcot_plugin", "tests", "docs", "yaml_recipes", "dataset_info", "benchmarks")
    for folder in folders:  # the documents' links lead to benchmarks/
        files = {path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".json", ".png")}
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {"README.md", "CHANGELOG.md", "LICENSE", "Makefile", "lcot_plugin.pth"} <= names


def test_a_wheel_activates_in_every_python_of_its_environment(installed: Path, tmp_path: Path) -> None:
    assert run([installed, "-c", ACTIVE], cwd=tmp_path).stdout == "True\n"
    assert run([installed, "-c", ACTIVE], cwd=tmp_path, LCOT_PLUGIN="0").stdout == "False\n"


def test_torchrun_and_data_loader_workers_are_active(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    torchrun = [installed, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run([*torchrun, script], cwd=tmp_path)
    lines = sorted(result.stdout.splitlines())
    assert lines == ["rank 0: [True, True] True", "rank 1: [True, True] True"], result.stderr


def test_llamafactory_accepts_the_stage_and_its_keys(installed: Path, tmp_path: Path) -> None:
    code = (
        "from llamafactory.hparams import parser\n"
        "arguments = next(c for c in parser._TRAIN_ARGS if c.__name__ == 'FinetuningArguments')\n"
        "print('grpo_num_generations' in arguments.__dataclass_fields__)"
    )
    result = run([installed, "-c", code], cwd=tmp_path)
    assert result.stdout.splitlines()[-1:] == ["True"], result.stderr


def test_the_console_script_works(installed: Path, tmp_path: Path) -> None:
    lcot = installed.parent / "lcot"
    assert run([lcot, "--version"], cwd=tmp_path).stdout.startswith("lcot-plugin ")
    assert run([lcot, "init", tmp_path / "work"], cwd=tmp_path).returncode == 0
    assert (tmp_path / "work/yaml_recipes").is_dir()
    assert (tmp_path / "work/dataset_info").is_dir()


def test_uninstalling_leaves_nothing_behind(wheel: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env")
    before = {path for path in (tmp_path / "env").rglob("*") if "__pycache__" not in path.parts}
    pip(python, "install", "--no-deps", wheel)
    assert run([python, "-c", ACTIVE], cwd=tmp_path).stdout == "True\n"
    pip(python, "uninstall", "--yes", "lcot-plugin")
    after = {path for path in (tmp_path / "env").rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    result = run([python, "-c", "import sys, llamafactory; print(sys.meta_path)"], cwd=tmp_path)
    assert "Trigger" not in result.stdout
    assert result.stderr == ""


def test_an_editable_install_activates_and_uninstalls(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env")
    pip(python, "install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    code = f"{ACTIVE}; import lcot_plugin; print(lcot_plugin.__file__)"
    assert run([python, "-c", code], cwd=tmp_path).stdout.splitlines() == [
        "True",
        str(ROOT / "lcot_plugin/__init__.py"),
    ]
    pip(python, "uninstall", "--yes", "lcot-plugin")
    (site_packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    assert [path.name for path in site_packages.iterdir()] == ["zz_borrowed.pth"]


@pytest.mark.slow
def test_a_target_folder_starts_explicitly_under_torchrun(wheel: Path, tmp_path: Path) -> None:
    # No .pth is processed here. The unknown key stops the run where the keys are checked, in torchrun's process.
    python = make_environment(tmp_path / "env")
    target = tmp_path / "target"
    pip(python, "install", "--no-deps", "--target", target, wheel)
    torchrun = python.parent / "torchrun"
    torchrun.write_text(f"#!{python}\nfrom torch.distributed.run import main\nmain()\n")
    torchrun.chmod(0o755)
    (tmp_path / "run.yaml").write_text("stage: grpo\nmodel_name_or_path: none\noutput_dir: none\ngrpo_no_such_key: 1\n")
    environment = {
        "PYTHONPATH": str(target),
        "FORCE_TORCHRUN": "1",
        "NPROC_PER_NODE": "1",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    assert run([python, "-c", ACTIVE], cwd=tmp_path, **environment).stdout == "False\n"

    result = run([python, "-m", "lcot_plugin", "train", "run.yaml"], cwd=tmp_path, **environment)
    assert result.returncode == 1
    assert "worker.py" in result.stderr
    assert "['grpo_no_such_key']" in result.stderr


def test_pyproject_and_the_contract_name_the_same_ranges() -> None:
    declared = {r.name: r.specifier for r in map(Requirement, PYPROJECT["project"]["dependencies"])}
    for name, specifier in contract.REQUIREMENTS.items():
        assert declared[name] == Requirement(f"{name}{specifier}").specifier, name


def test_the_extras_are_there() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"dev", "deepspeed", "liger"} <= extras.keys()
