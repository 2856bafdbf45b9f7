"""The `lcot` command, in process."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lcot_plugin import __version__, activation, cli, doctor, recipes
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration import contract


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lcot-plugin {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom lcot_plugin import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'transformers', 'llamafactory', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("train", "doctor", "init"))
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "There is no file missing.yaml"),
        (["run.txt"], "is not a .yaml"),
        (["here.yaml", "seed"], "'seed' is not of the form key=value"),
    ],
)
def test_train_says_what_is_wrong_with_its_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here.yaml").write_text("stage: grpo\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_train_refuses_to_run_switched_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LCOT_PLUGIN", "0")
    assert cli.main(["train", "x.yaml"]) == 1
    assert "LCOT_PLUGIN=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("under_torchrun", "expected"),
    [(False, ["lcot", "train", "x.yaml", "seed=1"]), (True, ["lcot", "x.yaml", "seed=1"])],
)
def test_train_hands_over_to_llamafactory(
    under_torchrun: bool, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory import launcher
    from llamafactory.train import tuner

    calls: list[list[str]] = []
    monkeypatch.setattr(launcher, "launch", lambda: calls.append(list(sys.argv)))
    monkeypatch.setattr(launcher, "__file__", launcher.__file__)
    monkeypatch.setattr(tuner, "run_exp", lambda: calls.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["lcot"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    (tmp_path / "x.yaml").write_text("stage: grpo\n")

    assert cli.main(["train", "x.yaml", "seed=1"]) == 0
    assert calls == [expected]
    assert under_torchrun or Path(launcher.__file__).name == "worker.py"
    assert activation.installed()


@pytest.fixture
def recipe_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site" / "lcot_plugin"
    for folder, name, text in [
        (
            "yaml_recipes/paper",
            "sft.yaml",
            "model_name_or_path: lcot_plugin/demo/model  # bundled\ndataset_dir: dataset_info\n",
        ),
        ("dataset_info", "dataset_info.json", '{"d": {"file_name": "../lcot_plugin/demo/data/d.json"}}'),
    ]:
        (package / "_recipes" / folder).mkdir(parents=True)
        (package / "_recipes" / folder / name).write_text(text)
    monkeypatch.setattr(recipes, "PACKAGE", package)
    return package


def test_init_copies_the_recipes_with_absolute_paths(recipe_tree: Path, tmp_path: Path) -> None:
    assert cli.main(["init", str(tmp_path / "work")]) == 0
    demo = (recipe_tree / "demo").as_posix()
    recipe = (tmp_path / "work/yaml_recipes/paper/sft.yaml").read_text()
    assert recipe == f"model_name_or_path: {demo}/model  # bundled\ndataset_dir: dataset_info\n"
    listing = json.loads((tmp_path / "work/dataset_info/dataset_info.json").read_text())
    assert listing == {"d": {"file_name": f"{demo}/data/d.json"}}


def test_init_overwrites_only_when_told(recipe_tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "work"
    recipes.copy_recipes(destination)
    mine = destination / "yaml_recipes/paper/sft.yaml"
    mine.write_text("mine")
    with pytest.raises(ArgumentError, match="--force"):
        recipes.copy_recipes(destination)
    assert mine.read_text() == "mine"
    assert cli.main(["init", str(destination), "--force"]) == 0
    assert mine.read_text() != "mine"


def test_the_source_tree_has_recipes_to_copy() -> None:
    assert (recipes.source_root() / "yaml_recipes").is_dir()


def test_doctor_prints_a_line_each_and_fails_on_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = doctor.Finding("torch", "2.14.1")
    bad = doctor.Finding("transformers", "5.3.0", contract.requirement_problem("transformers", "5.3.0"))
    for name in ("torch_findings", "contract_findings"):
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setattr(doctor, "activation_finding", lambda: good)

    monkeypatch.setattr(doctor, "version_findings", lambda: [good])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "everything is in order"

    monkeypatch.setattr(doctor, "version_findings", lambda: [good, bad])
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("WRONG  transformers")
    assert "pip install transformers==5.5.4" in lines[1]
    assert lines[-1] == "1 problem(s) found"


def test_doctor_finds_this_environment_good_or_says_why() -> None:
    problems = [finding.problem for finding in doctor.version_findings() if finding.problem]
    assert problems == []


def test_doctor_names_a_missing_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.REQUIREMENTS, "no-such-distribution", ">=1")
    monkeypatch.setitem(contract.RECOMMENDED, "no-such-distribution", "1.0")
    (finding,) = [f for f in doctor.version_findings() if f.subject == "no-such-distribution"]
    assert finding.problem == "no-such-distribution is not installed. Run `pip install no-such-distribution==1.0`."


@pytest.mark.parametrize("arguments", [["data", "--help"], ["data", "check", "--help"]])
def test_help_of_data_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom lcot_plugin import cli\ntry:\n    cli.main({arguments})\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'transformers', 'llamafactory', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("action", "options", "expected"),
    [
        ("stats", ["--out", "here"], {"out": Path("here")}),
        ("check", ["--json", "found.json"], {"json_file": Path("found.json")}),
        ("show", ["--record", "3", "--html", "a=b.html"], {"record": 3, "html": Path("a=b.html")}),
    ],
)
def test_data_hands_its_arguments_over(
    action: str, options: list[str], expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcot_plugin.integration import data_check, data_command

    calls: list[dict[str, object]] = []
    quiet(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    module = data_check if action == "check" else data_command
    monkeypatch.setattr(module, action, lambda **arguments: calls.append(arguments) or 7)
    # `key=value` before and behind options, as people write it.
    line = ["data", action, "x.yaml", "seed=1", "--dataset", "geo", *options, "cutoff_len=9"]
    assert cli.main(line) == 7
    common = {"config": "x.yaml", "overrides": ["seed=1", "cutoff_len=9"], "datasets": "geo", "dataset_dir": None}
    assert calls == [common | expected]


@pytest.mark.parametrize("line", [["data", "stats", "x.yaml", "--outt", "y"], ["doctor", "--colour"], ["data"]])
def test_unknown_arguments_are_refused(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(line)
    assert stop.value.code == 2


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `lcot data` sets for its process must not outlive the test."""
    for name, value in {"LLAMAFACTORY_VERBOSITY": "ERROR", "TQDM_DISABLE": "0"}.items():
        monkeypatch.setenv(name, value)


def write_recipe(folder: Path) -> None:
    (folder / "x.yaml").write_text("dataset: geo\ndataset_dir: .\n")
    (folder / "broken.yaml").write_text("dataset: [geo\n")
    (folder / "dataset_info.json").write_text('{"geo": {}, "geometry3k": {}}')


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["stats", "gone.yaml"], "There is no file gone.yaml"),
        (["stats", "broken.yaml"], "broken.yaml cannot be read"),
        (["show", "x.yaml", "--record", "-1"], "--record -1: records are numbered from 0"),
        (["show", "x.yaml", "--html", "gone/page.html"], "there is no folder"),
        (["difficulty", "x.yaml", "--rollouts", "0"], "--rollouts 0: at least 1"),
        (["check", "x.yaml", "--dataset-dir", "gone"], "--dataset-dir gone: there is no such folder"),
        (["check", "x.yaml", "dataset=geometry3"], "has no entry geometry3: did you mean geometry3k?"),
        (["check", "x.yaml", "--dataset", "geo,other"], "has no entry other: check the spelling"),
    ],
)
def test_data_says_what_is_wrong_before_anything_heavy_is_loaded(line: list[str], message: str, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    code = (
        f"import os, sys\nfrom lcot_plugin import cli\nos.chdir({str(tmp_path)!r})\n"
        f"print(cli.main({['data', *line]}))\n"
        "print({'torch', 'transformers', 'llamafactory', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["1", "set()"]
    assert message in result.stderr


@pytest.mark.parametrize(("action", "goes_on"), [("stats", False), ("difficulty", True)])
def test_an_interrupted_data_command_says_so_in_one_line(
    action: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "data", interrupted)
    assert cli.main(["data", action, "x.yaml"]) == 130
    (line,) = capsys.readouterr().err.split("\n")[1:-1]
    assert line.startswith(f"lcot data {action}: interrupted")
    assert ("the same command goes on from there" in line) is goes_on


def test_a_remark_that_is_of_no_use_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    cli.quieten(progress=True)
    logger = logging.getLogger("transformers.models.auto.image_processing_auto")
    remark, other = (
        logging.LogRecord(logger.name, logging.WARNING, "", 0, text, (), None)
        for text in ("The `use_fast` parameter is deprecated and will be removed", "The file is missing")
    )
    assert not logger.filter(remark)
    assert logger.filter(other)
