"""Copies the shipped recipes and data set listings to where a user works.

In:  `yaml_recipes/` and `dataset_info/`, of the source tree or from inside the wheel.
Out: the same files in the user's folder; `lcot init` prints them.
"""

from __future__ import annotations

import re
from pathlib import Path

from lcot_plugin.errors import ArgumentError

PACKAGE = Path(__file__).resolve().parent
FOLDERS = ("yaml_recipes", "dataset_info")

_BUNDLED = re.compile(r"(?<![\w./-])(?:\.\./)*lcot_plugin/demo(?![\w-])")
"""How recipes (from the repository root) and dataset_info.json (from its folder) name the bundled model and data."""


def source_root() -> Path:
    """The folder that holds `yaml_recipes` and `dataset_info`.

    Raises:
        ArgumentError: where the installation has neither.
    """
    for root in (PACKAGE.parent, PACKAGE / "_recipes"):
        if all((root / folder).is_dir() for folder in FOLDERS):
            return root
    raise ArgumentError("This installation has no recipes: reinstall with `pip install --force-reinstall lcot-plugin`.")


def copy_recipes(destination: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy the recipes into `destination` and return the files written.

    Raises:
        ArgumentError: where a file exists already and `overwrite` is False; nothing is written then.
    """
    root = source_root()
    sources = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    targets = [destination / path.relative_to(root) for path in sources]
    existing = [str(target) for target in targets if target.exists()]
    if existing and not overwrite:
        raise ArgumentError(f"{', '.join(existing)} exist(s) already: choose another folder, or pass --force.")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if source.suffix in (".yaml", ".yml", ".json"):
            content = _with_absolute_paths(content.decode()).encode()
        target.write_bytes(content)
    return targets


def _with_absolute_paths(text: str) -> str:
    return _BUNDLED.sub((PACKAGE / "demo").as_posix().replace("\\", r"\\"), text)
