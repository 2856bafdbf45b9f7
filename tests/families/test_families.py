"""Every family with recipes, on its tiny twin: LoRA SFT, GRPO, evaluation, export and reload; full tuning.

The table of docs/families.md says that these tests pass (test_support_table.py).
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from families.runs import FAMILIES, TWINS, Workplace, answer, load, question, workplace
from safetensors.torch import load_file

# Third-party warnings while training are not this test's subject; its assertions are.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def place(request: pytest.FixtureRequest, twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    from llamafactory.data import template

    # `default_system` is written into LLaMA-Factory's global template; later tests want it as it was.
    monkeypatch.setattr(template, "TEMPLATES", deepcopy(template.TEMPLATES))
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path, request.param, twin(TWINS[request.param]))


@pytest.mark.parametrize("place", FAMILIES, indirect=True)
def test_lora(place: Workplace) -> None:
    from llamafactory.train.tuner import export_model

    packs = place.recipe("sft").get("length_aware_packing")
    sft = place.run("sft")
    logged = [entry for entry in place.history(sft) if "loss" in entry]
    assert logged and all(0 < entry["loss"] < 50 for entry in logged)
    assert any("pack/fill" in entry for entry in logged) is packs

    grpo = place.run("grpo")
    completions = [json.loads(line) for line in (grpo / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 2 * grpo_completions(place)
    assert all({"accuracy", "format_think_boxed"} < set(line["rewards"]) for line in completions)
    gaps = [entry["sampler_gap/max"] for entry in place.history(grpo) if "sampler_gap/max" in entry]
    assert gaps and max(gaps) < 1e-4
    adapters = [load_file(output / "adapter_model.safetensors") for output in (sft, grpo)]
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])

    evaluation = place.run("eval", max_steps=None, grpo_eval_generations=2)
    metrics = json.loads((evaluation / "eval_results.json").read_text())
    assert metrics["eval_problems"] == 8
    assert {"eval_accuracy", "eval_avg@2", "eval_pass@2", "eval_truncated"} <= set(metrics)

    merged = place.folder / "merged"
    recipe = place.recipe("eval")
    export_model(
        {key: recipe[key] for key in ("model_name_or_path", "adapter_name_or_path", "template", "finetuning_type")}
        | {"export_dir": str(merged), "export_size": 5, "export_device": "cpu", "infer_dtype": "float32"}
    )
    inputs = question(place.twin)
    again = question(merged)
    assert inputs.keys() == again.keys()
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
    logits, ids = answer(load(place.twin, grpo), inputs)
    merged_logits, merged_ids = answer(load(merged), inputs)
    torch.testing.assert_close(merged_logits, logits, atol=2e-3, rtol=1e-4)
    assert merged_ids == ids
    base_logits, _ = answer(load(place.twin), inputs)
    assert (base_logits - logits).abs().max() > 0.05, "the adapter changes nothing"


def grpo_completions(place: Workplace) -> int:
    recipe = place.recipe("grpo")
    return recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]


@pytest.mark.parametrize("place", FAMILIES, indirect=True)
def test_full(place: Workplace) -> None:
    """All weights of the language model, none of the vision tower, which both stages freeze."""
    full = {"learning_rate": 1e-3, "deepspeed": None}
    sft = place.run("sft_full", **full)
    grpo = place.run("grpo_full", **full)
    before, between, after = (dict(load(path).named_parameters()) for path in (place.twin, sft, grpo))
    for first, second in ((before, between), (between, after)):
        changed = {name for name in first if not torch.equal(first[name], second[name])}
        assert not [name for name in changed if is_vision(name)]
        still = {name for name in first.keys() - changed if not is_vision(name)}
        assert not [name for name in still if "layers" in name and "proj" in name], "the language model stands still"


@pytest.mark.parametrize("place", FAMILIES, indirect=True)
def test_a_tower_that_is_not_frozen(place: Workplace) -> None:
    free = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    sft = place.run("sft_full", deepspeed=None, learning_rate=1e-3, max_steps=1, **free)
    before, after = (dict(load(path).named_parameters()) for path in (place.twin, sft))
    moved = {name for name in before if is_vision(name) and not torch.equal(before[name], after[name])}
    assert any("layer" in name or "blocks" in name for name in moved), "the tower stands still"
    assert any(part in name for name in moved for part in PROJECTORS), "the projector stands still"


PROJECTORS = ("projector", "merger", "connector", "embed_vision")


def is_vision(name: str) -> bool:
    return any(part in name for part in ("vis", *PROJECTORS))
