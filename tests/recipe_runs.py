"""Runs a recipe in processes of its own, with the probe of tests/integration/run_with_probe.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROBE = Path(__file__).parent / "integration" / "run_with_probe.py"


def run(
    recipe: dict[str, Any],
    folder: Path,
    *probe: str,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Trains into `folder`/out; `probe`: as of run_with_probe.py; `processes` > 1: under torchrun; `environment`:
    further variables."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder / "out")}))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own, **(environment or {})}
    return subprocess.run(
        [*launcher, str(PROBE), str(path), *probe], env=environment, capture_output=True, text=True, timeout=300
    )
