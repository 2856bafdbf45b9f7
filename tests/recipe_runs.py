"""Recipes of tiny runs, and how they are run in processes of their own, with a probe or with faults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from twins import TWIN_TEMPLATES

PROBE = Path(__file__).parent / "integration" / "run_with_probe.py"


def grpo_recipe(folder: Path, twin: Callable[[str], Path], **further: Any) -> dict[str, Any]:
    """GRPO on a tiny Qwen2.5-VL, of all its weights, with the set `problems` of a folder. twin: the fixture; further:
    keys that it has besides, or in the place of these."""
    return {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "problems",
        "dataset_dir": str(folder),
        "media_dir": str(folder),
        "cutoff_len": 512,
        "max_new_tokens": 12,
        "grpo_num_generations": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        **further,
    }


def run(
    recipe: dict[str, Any],
    folder: Path,
    *probe: str,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
    program: Path = PROBE,
) -> subprocess.CompletedProcess[str]:
    """Trains into `folder`/out; `probe`: what `program` takes; `processes` > 1: under torchrun; `environment`: further
    variables."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder / "out")}))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own, **(environment or {})}
    return subprocess.run(
        [*launcher, str(program), str(path), *probe], env=environment, capture_output=True, text=True, timeout=300
    )
