"""Operations by formula against those that torch counts while the model computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.flops import ModelOperations, Work
from benchmarks.gpu.shapes import SHAPES, TINY, build, configuration

SIDE = 16
"""Patches along each side of the picture: four windows of Qwen2.5-VL."""


@pytest.fixture(scope="module", params=TINY)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("models"), request.param)


def model_of(folder: Path, tuning: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    if tuning == "lora":
        layers = r".*language_model.*(q|k|v|o|gate|up|down)_proj"
        model = get_peft_model(model, LoraConfig(r=4, target_modules=layers))
        # As with gradient checkpointing: the first layer's inputs need gradients too.
        model.get_input_embeddings().register_forward_hook(lambda module, given, output: output.requires_grad_())
    return model.train()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_operations_are_those_that_torch_counts(folder, tuning):
    from benchmarks.grpo_update_sides import values_of_patch

    model = model_of(folder, tuning)
    config, patches = model.config, SIDE**2
    image = [config.vision_start_token_id, *[config.image_token_id] * (patches // 4), config.vision_end_token_id]
    row = torch.tensor([[5] * 20 + image + [6] * 60])
    tokens = row.shape[1]
    operations = ModelOperations.of(model)
    # Eager attention computes the whole square, of which a causal one needs half.
    work = Work(tokens, 2 * tokens**2, tokens, patches, patches**2)
    with FlopCounterMode(display=False) as forward:
        logits = model(
            input_ids=row,
            pixel_values=torch.randn(patches, values_of_patch(config)),
            image_grid_thw=torch.tensor([[1, SIDE, SIDE]]),
            mm_token_type_ids=(row == config.image_token_id).long(),
            use_cache=False,
        ).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert operations.forward(work) == pytest.approx(forward.get_total_flops(), rel=1e-3)
    total = forward.get_total_flops() + backward.get_total_flops()
    assert operations.training(work, tuning) == pytest.approx(total, rel=1e-3)
    other = {"full": "lora", "lora": "full"}[tuning]
    assert operations.training(work, other) != pytest.approx(total, rel=0.1), "what is trained makes a difference"


def test_of_a_causal_record_half_of_the_square_counts():
    operations = ModelOperations(0.0, 0.0, 0.0, square=6.0, patch=0.0, patch_square=0.0, merged=4)
    # Two records of 3 and 4 tokens; scores and values, two operations each, for half of the pairs.
    assert operations.forward(Work(7, 3**2 + 4**2, 0)) == 6.0 * 25


@pytest.mark.parametrize(("name", "millions"), [("qwen2_5_vl_3b", 3754.6), ("qwen3_vl_4b", 4437.8)])
def test_shapes_have_the_size_of_the_real_ones(name, millions, tmp_path):
    """Qwen2.5-VL-3B has 3.75 billion parameters, Qwen3-VL-4B 4.44."""
    import twins

    blueprint = twins.BLUEPRINTS[SHAPES[name].family](tmp_path)
    with torch.device("meta"):
        model = blueprint.model_class._from_config(configuration(blueprint, SHAPES[name]), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    operations = ModelOperations.of(model)
    language = [p for key, p in model.named_parameters() if ".language_model.layers" in key and p.dim() == 2]
    assert operations.token == 2 * sum(p.numel() for p in language)
