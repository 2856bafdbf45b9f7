"""Every family of docs/families.md against a real vLLM: prompts with pictures, an adapter and all weights.

`tests/real_vllm/test_real_vllm.py` asks more of two families. `make test-vllm` runs these; by hand:
LCOT_VLLM_PYTHON=DIR/bin/python pytest -m vllm.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from loaded_twins import load_model
from lora_twins import lora_twin, train
from real_vllm.test_real_vllm import NOTICEABLE, SAMPLING, TOLERANCE, started
from twins import TRANSFORMERS_5

pytestmark = [
    pytest.mark.vllm,
    # InternVL's processor in transformers lets NumPy add up tensors.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

FAMILIES = ("qwen2_vl", "qwen3_vl_thinking")
"""Served as they are trained, beside those of test_real_vllm."""
NOT_SERVED = {
    "qwen3_5": "not in float32 on a CPU: `CPU GDN attention requires BF16` (0.32)",
    "smolvlm": "not yet: 0.7 nats off the trainer with pictures, cause not found (0.32, CPU)",
}
"""What vLLM says where it was tried."""


def as_on_the_hub(directory: Path, folder: Path) -> Path:
    """The twin under the names that vLLM knows: transformers 5 saves some families under others."""
    shutil.copytree(directory, folder)
    if TRANSFORMERS_5:
        load_model(directory).save_pretrained(folder, save_original_format=False)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "lfm2_vl":  # the hub's configuration has it, transformers' own does not
        config["text_config"] |= dict.fromkeys(("conv_dim", "block_dim"), config["text_config"]["hidden_size"])
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_as_it_is_trained(family: str, twin: Any, vllm_python: str, tmp_path: Path) -> None:
    directory = as_on_the_hub(twin(family), tmp_path / family)
    with started(directory, vllm_python, tmp_path) as running:
        running.engine("auto").check(running.twin.prompts, SAMPLING)
        adapted, full = lora_twin(directory), load_model(directory)
        train(full, seed=6, scale=0.05)
        for mode, model in (("adapter", adapted), ("weights", full)):
            engine = running.engine(mode)  # type: ignore[arg-type]
            groups = running.roll(engine, model, version=0)
            assert running.gap(groups, model) < TOLERANCE, mode
            assert running.gap(groups, running.twin.model) > NOTICEABLE, mode
