"""The paper's recipes on a tiny Qwen2.5-VL: each arm trains, from where it should start; DynaMath's worst case."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families.runs import Workplace, load, workplace

# Third-party warnings while training are not this test's subject; its assertions are.
pytestmark = pytest.mark.filterwarnings("default")
DATA_SETS = ("tbac_vlr1_sft", "tbac_vlr1_rl", "tbac_vlr1_rl_text", "openr1_math_94k")
HERE = {"deepspeed": None, "learning_rate": 1e-3}
HERE |= dict.fromkeys(("grpo_rollout_engine", "grpo_vllm_python", "grpo_vllm_devices"))


@pytest.fixture
def place(twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    from llamafactory.data import template

    # `default_system` is written into LLaMA-Factory's global template; later tests want it as it was.
    monkeypatch.setattr(template, "TEMPLATES", deepcopy(template.TEMPLATES))
    monkeypatch.chdir(tmp_path)
    return workplace(tmp_path, "paper/qwen2_5_vl_3b", twin("qwen2_5_vl"), DATA_SETS)


def write_dynamath(folder: Path) -> None:
    """Two problems in ten variants, each a data set, with the columns of the real one."""
    info = json.loads((folder / "dataset_info.json").read_text())
    records = [
        {
            "id": f"problem {number}",
            "question": f"What is {number} plus 1?",
            "image": "images/1.png",
            "decoded_image": "problems_3_0.png",
            "ground_truth": str(number + 1),
            "answer_type": "float",
        }
        for number in range(2)
    ]
    (folder / "dynamath.json").write_text(json.dumps(records))
    entry = {"file_name": "dynamath.json", "formatting": "lcot_problem", "columns": {"problem_id": "id"}}
    info |= {f"dynamath_{number}": entry for number in range(1, 11)}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_the_arms_and_their_evaluation(place: Workplace) -> None:
    sft = place.run("sft", **HERE)
    arms = {
        "sft": (place.twin, sft),
        "sft_text_only": (place.twin, place.run("sft_text_only", **HERE)),
        "rl_only": (place.twin, place.run("rl_only", **HERE)),
        "sft_rl": (sft, place.run("sft_rl", **HERE)),
    }
    for name, (before, after) in arms.items():
        assert after == place.folder / "saves/paper/qwen2_5_vl_3b" / name
        parameters = [dict(load(folder).named_parameters()) for folder in (before, after)]
        changed = {key for key in parameters[0] if not torch.equal(parameters[0][key], parameters[1][key])}
        assert changed and not [key for key in changed if "visual" in key], name

    write_dynamath(place.folder / "dataset_info")
    benchmark = replace(place, family="paper/eval")
    output = benchmark.run("dynamath", model_name_or_path="saves/paper/qwen2_5_vl_3b/sft_rl", max_steps=None)
    metrics = json.loads((output / "eval_results.json").read_text())
    assert metrics["eval_problems"] == 20
    assert (metrics["eval_variant_problems"], metrics["eval_variants"], metrics["eval_variants_missing"]) == (2, 10, 0)
    assert metrics["eval_worst_case"] <= metrics["eval_accuracy"]
