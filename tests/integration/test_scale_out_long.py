"""Twenty steps over several processes have the losses of twenty steps in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scale_out_runs import LORA, WAYS, assert_same_curve, tiny_recipe, train, ways

NUM_STEPS = 20


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Callable[[str], Path]) -> dict[str, Any]:
    return tiny_recipe(tmp_path_factory.mktemp("scale_out"), twin)


@pytest.fixture(scope="module")
def long_runs(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, changes in {"full": {}, "lora": LORA}.items():
        folders[name] = tmp_path_factory.mktemp(f"long_{name}")
        train(recipe, "one", folders[name], processes=1, max_steps=NUM_STEPS, **changes)
    return folders


@pytest.mark.slow
@ways(*WAYS)
def test_twenty_steps_have_the_loss_of_one_process(
    recipe: dict[str, Any], long_runs: dict[str, Path], tmp_path: Path, way: str
) -> None:
    train(recipe, way, tmp_path, max_steps=NUM_STEPS)
    assert_same_curve(long_runs["full"], tmp_path, NUM_STEPS)


@pytest.mark.slow
@ways("ddp", "zero3", "fsdp2")
def test_twenty_steps_of_an_adapter_over_four_processes(
    recipe: dict[str, Any], long_runs: dict[str, Path], tmp_path: Path, way: str
) -> None:
    train(recipe, way, tmp_path, 4, max_steps=NUM_STEPS, **LORA)
    assert_same_curve(long_runs["lora"], tmp_path, NUM_STEPS)
