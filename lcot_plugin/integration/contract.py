"""What lcot_plugin relies on outside itself: versions, and the internals of LLaMA-Factory that the seams touch.

In:  the imported llamafactory, and the metadata of the installed distributions.
Out: `check_version` and `check_module` stop a seam before it half-works; `faults_of_run` and `requirement_problems` are
     sentences for the log and for `lcot doctor`; `PINS` is walked by the contract test, one test per pin.

A pin is checked against the unpatched module. At run time the pins of a module are checked just before its seam is
applied, so they cost one `inspect.signature` each; the pins of other modules are checked by the tests.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module, metadata
from types import ModuleType

from lcot_plugin.errors import UnsupportedVersionError
from lcot_plugin.integration.board_pins import BOARD_PINS
from lcot_plugin.integration.pins import PINS as OTHER_PINS

REQUIREMENTS: dict[str, str] = {
    "llamafactory": ">=0.9.5,<0.10",
    "torch": ">=2.11,<2.15",
    "torchvision": ">=0.26,<0.30",
    "torchaudio": ">=2.11,<2.12",
    "transformers": ">=4.57.1,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0,!=5.5.1,!=5.5.2,!=5.5.3,!=5.6.0",
    "trl": ">=0.24,<0.25",
    "peft": ">=0.18.0,<0.19",
    "accelerate": ">=1.3.0,<=1.11.0",
    "datasets": ">=2.16.0,<=4.0.0",
}
"""Supported ranges, the same as in pyproject.toml (a test compares them)."""

RECOMMENDED: dict[str, str] = {
    "llamafactory": "0.9.5",
    "torch": "2.14.1",
    "torchvision": "0.29.2",
    "torchaudio": "2.11.0",
    "transformers": "5.5.4",
    "trl": "0.24.0",
    "peft": "0.18.1",
    "accelerate": "1.11.0",
    "datasets": "4.0.0",
}
"""The set that a fresh `pip install` resolves to and that the tests run with."""

TRANSFORMERS_FAULTS: tuple[tuple[str, str], ...] = (
    (">=5.2,<5.5.4", "it divides the loss by gradient_accumulation_steps twice, so gradients are too small"),
    ("==5.6.0", "its flash-attention 2 path is broken (LLaMA-Factory #10610)"),
)
"""Why some transformers releases inside the range are excluded."""


# ---------------------------------------------------------------------------------------------------------------
# Versions


def _contains(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def llamafactory_version() -> str:
    """Version of the imported llamafactory; of the installed distribution where none is imported yet.

    Raises:
        importlib.metadata.PackageNotFoundError: where there is neither.
    """
    imported = getattr(sys.modules.get("llamafactory"), "__version__", None)
    return imported or metadata.version("llamafactory")


@functools.cache
def _check_version(version: str) -> None:
    if not _contains(REQUIREMENTS["llamafactory"], version):
        raise UnsupportedVersionError(
            f"LLaMA-Factory {version} is not supported (supported: {REQUIREMENTS['llamafactory']}). "
            f"Install a supported one with `pip install llamafactory=={RECOMMENDED['llamafactory']}`, "
            "or set LCOT_PLUGIN=0 to run LLaMA-Factory without lcot_plugin."
        )


def check_version() -> None:
    """Raise UnsupportedVersionError where the LLaMA-Factory at hand is outside the supported range."""
    _check_version(llamafactory_version())


def transformers_fault(version: str) -> str | None:
    """Why this transformers release must not train, and what to install; None for a good one."""
    for specifier, reason in TRANSFORMERS_FAULTS:
        if _contains(specifier, version):
            return f"transformers {version} is excluded: {reason}. {_remedy('transformers')}"
    return None


def faults_of_run(target: str) -> list[str]:
    """What the log must say before a run: asked for each module that is patched, answered for the tuner only."""
    if target != "llamafactory.train.tuner":
        return []
    fault = transformers_fault(metadata.version("transformers"))
    return [fault] if fault else []


def requirement_problem(name: str, version: str) -> str | None:
    """What is wrong with version `version` of distribution `name`, and what to install; None where it is supported."""
    if name == "transformers" and (fault := transformers_fault(version)):
        return fault
    if _contains(REQUIREMENTS[name], version):
        return None
    return f"{name} {version} is outside {REQUIREMENTS[name]}. {_remedy(name)}"


def _remedy(name: str) -> str:
    return f"Run `pip install {name}=={RECOMMENDED[name]}`."


# ---------------------------------------------------------------------------------------------------------------
# Internals of LLaMA-Factory: pins.py, board_pins.py

PINS = (*OTHER_PINS, *BOARD_PINS)
"""Everything of LLaMA-Factory that the plugin touches without its being public."""


def violations(module: ModuleType) -> list[str]:
    """The broken pins of one imported, unpatched LLaMA-Factory module, as sentences."""
    found = (pin.violation(module) for pin in PINS if pin.target == module.__name__)
    return [sentence for sentence in found if sentence is not None]


def check_module(module: ModuleType) -> None:
    """Raise UnsupportedVersionError where a seam could not patch `module` as it is meant to."""
    broken = violations(module)
    if broken:
        raise UnsupportedVersionError(
            f"LLaMA-Factory {llamafactory_version()} differs from what lcot_plugin patches: {' '.join(broken)} "
            f"Install `llamafactory=={RECOMMENDED['llamafactory']}`, "
            "or set LCOT_PLUGIN=0 to run LLaMA-Factory without lcot_plugin."
        )


def all_violations() -> list[str | None]:
    """One entry per pin, None where it holds. Imports llamafactory: call it in a process with LCOT_PLUGIN=0."""
    return [pin.violation(import_module(pin.target)) for pin in PINS]
