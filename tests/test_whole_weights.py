"""Whole weights of sharded models, in two processes each: see whole_weights_ranks.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engines_on_cpu import import_path, needs_deepspeed

from lcot_plugin.whole_weights import shards_weights, whole_weights

SCRIPT = Path(__file__).parent / "whole_weights_ranks.py"


@pytest.mark.parametrize(
    "way",
    [
        "ddp",
        pytest.param("zero3", marks=needs_deepspeed),
        pytest.param("zero3_persistent", marks=needs_deepspeed),
        "fsdp1",
        "fsdp2",
    ],
)
def test_processes_call_the_model_as_often_as_they_like(way: str) -> None:
    """Between training steps, which then go on as in one process; the reference comes back shard by shard."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": import_path(way), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launcher, str(SCRIPT), way], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-5000:]


def test_a_model_of_one_process_is_whole() -> None:
    model = torch.nn.Linear(2, 2)
    assert not shards_weights(model)
    with whole_weights(model, SimpleNamespace(unwrap_model=lambda model: model)) as inner:
        assert inner is model
