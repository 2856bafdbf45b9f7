"""Families with recipes, the twin that stands for each, and runs of a family's recipes on its twin.

A run is the shipped YAML but for the model (the twin), the data (problems made here) and lengths, steps and devices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from twins import TRANSFORMERS_5, write_problems

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "yaml_recipes"

TWINS = {
    "qwen2_vl_2b": "qwen2_vl",
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "qwen3_vl_2b": "qwen3_vl",
    "qwen3_vl_2b_thinking": "qwen3_vl_thinking",
    "qwen3_5_2b": "qwen3_5",
    "internvl3_5_2b": "internvl",
    "gemma3_4b": "gemma3",
    "gemma4_e2b": "gemma4",
    "smolvlm2_2b": "smolvlm",
    "llava_onevision_0_5b": "llava_onevision",
    "lfm2_vl_1_6b": "lfm2_vl",
}
"""Folder of yaml_recipes -> twin of its architecture and processor."""
ON_5_ONLY = {"qwen3_5_2b", "gemma4_e2b", "lfm2_vl_1_6b"}
"""Families that transformers 4.57 lacks; of LFM2-VL it cannot load what it has saved (`lfm2-vl`)."""
FAMILIES = [family for family in TWINS if TRANSFORMERS_5 or family not in ON_5_ONLY]

DATA_SETS = ("multimodal_cold_start", "geometry3k", "geometry3k_test")
"""Of the families' recipes."""
ON_CPU = {"bf16": False, "use_cpu": True, "flash_attn": "sdpa"}
SMALL = {
    **ON_CPU,
    "max_steps": 2,
    "logging_steps": 1,
    "gradient_accumulation_steps": 4,
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "max_new_tokens": 8,
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
    "plot_loss": False,
    # So that two steps move the outputs by more than rounding.
    "learning_rate": 5e-3,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "constant",
}


VARIED = """
def varied(completion_ids, **kwargs):
    return [sum(ids) % 7 / 7 for ids in completion_ids]
"""
"""A reward that differs within a group: an untrained model is never right, so that nothing would be learnt."""


@dataclass(frozen=True)
class Workplace:
    """A folder in which a family's recipes run: its own dataset_info and saves. `family`: a folder of yaml_recipes."""

    folder: Path
    family: str
    twin: Path

    def recipe(self, stage: str, **changes: Any) -> dict[str, Any]:
        """The shipped recipe on the twin, `None` taking a key away."""
        shipped = yaml.safe_load((RECIPES / self.family / f"{stage}.yaml").read_text())
        merged = {**shipped, **SMALL, "media_dir": str(self.folder / "dataset_info"), **changes}
        if merged["stage"] == "grpo" and merged["do_train"]:
            merged["grpo_reward_funcs"] += f",{self.folder}/varied.py:varied"
            if "grpo_reward_weights" in merged:
                merged["grpo_reward_weights"] += ",1.0"
            merged["grpo_mask_truncated"] = False  # an untrained model is always cut off
        if not merged["model_name_or_path"].startswith("saves/"):
            merged["model_name_or_path"] = str(self.twin)
        return {key: value for key, value in merged.items() if value is not None}

    def run(self, stage: str, callbacks: Sequence[Any] = (), **changes: Any) -> Path:
        """Runs a recipe in this process and returns its output folder."""
        from llamafactory.train.tuner import run_exp

        recipe = self.recipe(stage, **changes)
        run_exp(dict(recipe), callbacks=list(callbacks))
        return self.folder / recipe["output_dir"]

    def history(self, output: Path) -> list[dict[str, Any]]:
        return json.loads((output / "trainer_state.json").read_text())["log_history"]


def workplace(folder: Path, family: str, twin: Path, data_sets: tuple[str, ...] = DATA_SETS) -> Workplace:
    """Writes problems with one picture, text only and two pictures under the names that the recipes have."""
    data = write_problems(folder / "dataset_info", 8, num_text_only=2, num_two_images=1)
    entry = json.loads((data / "dataset_info.json").read_text())["problems"]
    (data / "dataset_info.json").write_text(json.dumps(dict.fromkeys(data_sets, entry)))
    (folder / "varied.py").write_text(VARIED)
    os.chdir(folder)  # the recipes' own relative folders; the test's monkeypatch puts it back
    return Workplace(folder, family, twin)


def load(directory: Path, adapter: Path | None = None, **settings: Any) -> Any:
    """A model in eval mode and float32, with an adapter or without; `settings`: of `from_pretrained`."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, **settings)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def question(directory: Path) -> dict[str, torch.Tensor]:
    """A question with a picture as the processor of a folder makes it."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    parts = [{"type": "image"}, {"type": "text", "text": "How many circles are in the picture?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    picture = Image.frombytes("RGB", (112, 84), bytes(range(256)) * 110 + bytes(64))
    return processor(text=[text], images=[[picture]], return_tensors="pt")


@torch.no_grad()
def answer(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Logits of the question [1, length, vocabulary], and the ids of a greedy completion."""
    logits = model(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return logits, ids[0, inputs["input_ids"].shape[1] :].tolist()
