"""What lcot_plugin relies on in LLaMA-Factory and its requirements, one test per pin.

The pins are checked in a child process with LCOT_PLUGIN=0: this process has the modules patched already.
"""

import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lcot_plugin.errors import UnsupportedVersionError
from lcot_plugin.integration import contract, stage
from lcot_plugin.integration.contract import PINS
from lcot_plugin.integration.pins import Pin, appended_callbacks

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import json
from lcot_plugin.integration import contract
from llamafactory.hparams import parser
from llamafactory.hparams.finetuning_args import FinetuningArguments
print(json.dumps({
    "violations": contract.all_violations(),
    "bound": [group for group in ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS")
              if FinetuningArguments in getattr(parser, group)],
}))
"""


@pytest.fixture(scope="module")
def upstream() -> dict[str, list[str | None]]:
    """What the unpatched LLaMA-Factory looks like."""
    environment = {**os.environ, "LCOT_PLUGIN": "0", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("index", range(len(PINS)), ids=[f"{pin.module}.{pin.name}" for pin in PINS])
def test_llamafactory_is_what_the_seams_expect(index: int, upstream: dict[str, list[str | None]]) -> None:
    violation = upstream["violations"][index]
    assert violation is None, violation


def test_the_parser_binds_the_argument_classes_at_import(upstream: dict[str, list[str]]) -> None:
    assert upstream["bound"] == ["_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS"], (
        "integration/arguments.py replaces FinetuningArguments before hparams/parser.py lists it"
    )


FAKE = """
from dataclasses import dataclass
from typing import Literal

@dataclass
class Arguments:
    stage: Literal["sft"] = "sft"

    def join(self, attr):
        return helper(attr)

def function(config, extra=None):
    return helper(config)

def tune(callbacks):
    callbacks.append(Log())
    callbacks.append(library.Report(1))
"""


@pytest.fixture
def fake(tmp_path: Path) -> types.ModuleType:
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    module = types.ModuleType("llamafactory.fake")
    module.__file__ = str(path)
    sys.modules["llamafactory.fake"] = module
    exec(compile(FAKE, str(path), "exec"), module.__dict__)
    yield module
    del sys.modules["llamafactory.fake"]


@pytest.mark.parametrize(
    ("name", "expectation", "difference"),
    [
        ("missing", {}, "no longer exists"),
        ("Arguments.missing", {}, "no longer exists"),
        ("function", {"parameters": "config"}, "takes (config extra) instead of (config)"),
        ("Arguments", {"fields": "stage other"}, "has lost the fields ['other']"),
        ("Arguments", {"choices": ("stage", "grpo")}, "not as a Literal with 'grpo'"),
        ("function", {"calls": "other(config)"}, "no longer contains `other(config)`"),
        ("function", {"calls": ("helper(config)", "other(config)")}, "no longer contains `other(config)`"),
        ("tune", {"appends": "Log"}, "appends the callbacks (Log Report) instead of (Log)"),
    ],
)
def test_a_broken_pin_names_the_seam_file(
    fake: types.ModuleType, name: str, expectation: dict[str, object], difference: str
) -> None:
    pin = Pin("fake", name, "integration/x.py", "needs it", **expectation)
    sentence = pin.violation(fake)
    assert sentence is not None
    assert sentence.startswith(f"llamafactory.fake.{name} ")
    assert difference in sentence
    assert sentence.endswith("; lcot_plugin/integration/x.py needs it.")


def test_a_pin_that_holds_is_silent(fake: types.ModuleType) -> None:
    assert Pin("fake", "Arguments", "x", "y", fields="stage", choices=("stage", "sft")).violation(fake) is None
    assert Pin("fake", "function", "x", "y", parameters="config extra", calls="helper(config)").violation(fake) is None
    assert Pin("fake", "tune", "x", "y", appends="Log Report").violation(fake) is None


def test_the_grpo_stage_has_the_callbacks_of_the_tuner() -> None:
    (pin,) = [pin for pin in PINS if pin.appends is not None]
    assert " ".join(appended_callbacks(inspect.getsource(stage._train_grpo))) == pin.appends


def test_a_changed_module_is_not_patched(fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "PINS", (Pin("fake", "missing", "integration/x.py", "needs it"),))
    with pytest.raises(UnsupportedVersionError, match=r"integration/x\.py needs it.*LCOT_PLUGIN=0"):
        contract.check_module(fake)


def test_every_seam_file_of_a_pin_is_described() -> None:
    assert all(pin.why and pin.seam.endswith(".py") for pin in PINS)
    assert len({(pin.module, pin.name) for pin in PINS}) == len(PINS)


@pytest.mark.parametrize("version", ["0.9.4", "0.10.0", "1.0"])
def test_an_unsupported_llamafactory_is_named_with_the_remedy(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "llamafactory_version", lambda: version)
    with pytest.raises(UnsupportedVersionError, match=rf"{version}.*pip install llamafactory==0\.9\.5.*LCOT_PLUGIN=0"):
        contract.check_version()


@pytest.mark.parametrize("version", ["0.9.5", "0.9.6.dev0"])
def test_a_supported_llamafactory_passes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "llamafactory_version", lambda: version)
    contract.check_version()


@pytest.mark.parametrize("version", ["5.2.0", "5.3.1", "5.4.0", "5.5.0", "5.5.3", "5.6.0"])
def test_excluded_transformers_are_reported_with_the_reason(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = contract.requirement_problem("transformers", version)
    assert problem is not None
    assert version in problem and "pip install transformers==5.5.4" in problem
    monkeypatch.setattr(contract.metadata, "version", lambda name: version)
    assert contract.faults_of_run("llamafactory.train.tuner") == [problem]
    assert contract.faults_of_run("llamafactory.data.loader") == []


@pytest.mark.parametrize("version", ["4.57.1", "4.57.6", "5.0.0", "5.1.0", "5.5.4"])
def test_good_transformers_pass(version: str) -> None:
    assert contract.requirement_problem("transformers", version) is None


def test_recommended_versions_are_supported() -> None:
    assert contract.RECOMMENDED.keys() == contract.REQUIREMENTS.keys()
    assert [contract.requirement_problem(name, version) for name, version in contract.RECOMMENDED.items()] == [
        None
    ] * len(contract.RECOMMENDED)
