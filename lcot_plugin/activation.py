"""Puts lcot_plugin into LLaMA-Factory: patches a module of it right after that module has executed.

In:  `SEAMS`, which names for each LLaMA-Factory module the seam module whose `apply(module)` patches it.
Out: a finder on `sys.meta_path`. The `lcot_plugin.pth` of an installation has `install()` called when llamafactory is
     first imported, so torchrun, Ray and data-loader workers are covered too; `activate()` is the explicit form behind
     `lcot train`.

LLaMA-Factory has no plugin discovery, and its argument parser binds the argument classes while it is imported: a patch
must land between the two imports, which only an import hook can do.

The `.pth` line runs at every Python start of the environment. It reads no file and imports nothing but os and sys,
which are loaded by then: it puts a finder in place that waits for the name `llamafactory` and then imports this module.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "LCOT_PLUGIN"
"""Environment variable: `0` keeps the plugin out of this process and of its children."""

SEAMS: dict[str, str] = {
    "llamafactory.hparams.finetuning_args": "lcot_plugin.integration.arguments",
    "llamafactory.hparams.data_args": "lcot_plugin.integration.data_arguments",
    "llamafactory.hparams.parser": "lcot_plugin.integration.survival",
    "llamafactory.data.parser": "lcot_plugin.integration.dataset_columns",
    "llamafactory.data.mm_plugin": "lcot_plugin.integration.plugins",
    "llamafactory.data.collator": "lcot_plugin.integration.pictures",
    "llamafactory.data.template": "lcot_plugin.integration.templates",
    "llamafactory.data.loader": "lcot_plugin.integration.data",
    "llamafactory.model.model_utils.quantization": "lcot_plugin.integration.quantization",
    "llamafactory.model.model_utils.visual": "lcot_plugin.integration.composite_models",
    "llamafactory.train.sft.trainer": "lcot_plugin.integration.resume",
    "llamafactory.train.sft.workflow": "lcot_plugin.integration.packing",
    "llamafactory.train.tuner": "lcot_plugin.integration.stage",
    "llamafactory.launcher": "lcot_plugin.integration.launcher",
    "llamafactory.webui.runner": "lcot_plugin.integration.webui",
    "llamafactory.webui.interface": "lcot_plugin.integration.board.page",
}
"""LLaMA-Factory module -> seam module with `apply(module) -> None`, called once per execution of the former."""

_MARK = "__lcot_seam__"
_state = {"strict": False, "warned": False}


class SeamFinder:
    """Finds only the modules in `SEAMS`, by asking the other finders, and has their loader apply the seam."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in SEAMS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, SeamFinder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _SeamLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _SeamLoader:
    """The real loader, until the module executes; from then on the module carries the real loader again."""

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        # inspect, pickle and importlib.resources look at these two and must see what they would see without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__dict__.pop(_MARK, None)  # importlib.reload executes into the same namespace
        self._loader.exec_module(module)
        _apply(module)


def disabled() -> bool:
    """Whether the user switched the plugin off with `LCOT_PLUGIN=0`."""
    return os.environ.get(SWITCH) == "0"


def installed() -> bool:
    """Whether this process will patch LLaMA-Factory."""
    return any(isinstance(finder, SeamFinder) for finder in sys.meta_path)


def install() -> bool:
    """Install the finder; the `.pth` calls it on the first import of llamafactory. Returns whether the plugin is on."""
    if disabled():
        return False
    if not installed():
        sys.meta_path.insert(0, SeamFinder())
    return True


def activate() -> bool:
    """Turn the plugin on explicitly, also where modules of LLaMA-Factory are imported already.

    Returns whether the plugin is on: False under `LCOT_PLUGIN=0`.

    Raises:
        UnsupportedVersionError: for a LLaMA-Factory that the plugin cannot patch, where the implicit start only warns.
    """
    if not install():
        return False
    _state["strict"] = True
    for target in SEAMS:
        module = sys.modules.get(target)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            _apply(module)
    return True


def _apply(module: "ModuleType") -> None:
    """Apply the seam of `module` once."""
    token = object()
    # setdefault is atomic: of two threads, one applies.
    if module.__dict__.setdefault(_MARK, token) is not token:
        return
    try:
        _apply_seam(module)
    except BaseException:
        module.__dict__.pop(_MARK, None)
        raise


def _apply_seam(module: "ModuleType") -> None:
    from importlib import import_module

    from lcot_plugin.errors import UnsupportedVersionError
    from lcot_plugin.integration import contract

    target = module.__name__
    seam = SEAMS[target]
    try:
        contract.check_version()
    except UnsupportedVersionError as error:
        if _state["strict"]:
            raise
        _warn_once(f"{error} Until then lcot_plugin is off: `stage: grpo` and its keys are not available.")
        return
    contract.check_module(module)
    for fault in contract.faults_of_run(target):
        _warn(fault)
    try:
        import_module(seam).apply(module)
    except Exception as error:
        # An ImportError from here could be taken for a missing optional dependency of LLaMA-Factory and be swallowed.
        raise RuntimeError(
            f"lcot_plugin could not patch {target} with {seam}: {type(error).__name__}: {error}. "
            f"Set {SWITCH}=0 to run LLaMA-Factory without the plugin."
        ) from error


def _warn_once(message: str) -> None:
    if not _state["warned"]:
        _state["warned"] = True
        _warn(message)


def _warn(message: str) -> None:
    """One line on stderr, from the first process of a node; the warnings module would add a source line of ours."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"[lcot_plugin] {message}", file=sys.stderr)
