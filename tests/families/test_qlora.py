"""QLoRA: every family's recipes on a 4-bit base (`quantization_bit: 4`), on its tiny twin on the CPU.

bitsandbytes quantises on a CPU as on a GPU, with other kernels. What is compared with what: the trained model with its
adapter on a base that is quantised anew; packed records, and log-probabilities and gradients after a rollout, with
transformers alone on the weights that the 4 bits stand for.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families.runs import FAMILIES, TWINS, Workplace, answer, load, question, workplace
from families.test_families import is_vision
from lora_twins import train
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, TrainerCallback

from lcot_plugin.packing.attention import segment_attention

pytestmark = [
    # Third-party warnings while training are not this test's subject; its assertions are.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="QLoRA needs `pip install bitsandbytes`"),
]
QLORA = {"quantization_bit": 4}
ONE = "qwen2_5_vl_3b"
"""For what does not differ between families."""
ROWS = {"qwen3_5_2b", "gemma4_e2b", "lfm2_vl_1_6b"}
"""Families that are not packed."""
PACKED = [family for family in FAMILIES if family not in ROWS and "thinking" not in family]
TOLERANCE = 1e-5
FAR = 1e-2
"""What a wrong alternative must exceed."""


@pytest.fixture
def place(request: pytest.FixtureRequest, twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    from llamafactory.data import template

    # `default_system` is written into LLaMA-Factory's global template; later tests want it as it was.
    monkeypatch.setattr(template, "TEMPLATES", deepcopy(template.TEMPLATES))
    monkeypatch.chdir(tmp_path)
    family = getattr(request, "param", ONE)
    return workplace(tmp_path, family, twin(TWINS[family]))


class Trained(TrainerCallback):
    """What the trained model is made of, and what it says to `question` in the end."""

    def __init__(self, directory: Path) -> None:
        self.inputs = question(directory)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.layers = {name: type(module) for name, module in model.named_modules() if "lora_" not in name}
        self.weight_bytes = stored_bytes(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            self.logits = model.eval()(**self.inputs).logits


def stored_bytes(model: Any) -> int:
    """Of all weights, with the scales of those that are quantised; without the table of 256 values of each layer."""
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    return sum(parameter.nbytes for parameter in model.parameters()) + scales


def quantised_anew() -> BitsAndBytesConfig:
    """As LLaMA-Factory's defaults; LFM2-VL and Gemma 4 cast pixels to the dtype that the 4 bits are stored as."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )


@pytest.mark.parametrize("place", FAMILIES, indirect=True)
def test_qlora(place: Workplace) -> None:
    """SFT, GRPO on its adapter, and the adapter on a base that is quantised anew."""
    from bitsandbytes.nn import Linear4bit

    packs = place.recipe("sft")["length_aware_packing"]
    sft = place.run("sft", **QLORA)
    logged = [entry for entry in place.history(sft) if "loss" in entry]
    assert logged and all(0 < entry["loss"] < 50 for entry in logged)
    assert any("pack/fill" in entry for entry in logged) is packs is (place.family not in ROWS)

    trained = Trained(place.twin)
    grpo = place.run("grpo", [trained], **QLORA)
    gaps = [entry["sampler_gap/max"] for entry in place.history(grpo) if "sampler_gap/max" in entry]
    assert gaps and max(gaps) < 1e-4
    adapters = [load_file(output / "adapter_model.safetensors") for output in (sft, grpo)]
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])

    four_bit = {name for name, kind in trained.layers.items() if issubclass(kind, Linear4bit)}
    assert {name.rsplit(".", 1)[-1] for name, kind in trained.layers.items() if kind is torch.nn.Linear} == {"lm_head"}
    assert any(map(is_vision, four_bit)), "the tower is frozen, and quantised all the same"

    logits, ids = answer(load(place.twin, grpo, quantization_config=quantised_anew()), trained.inputs)
    torch.testing.assert_close(logits, trained.logits, atol=TOLERANCE, rtol=0)
    assert len(ids) > 0
    on_whole_weights, _ = answer(load(place.twin, grpo), trained.inputs)
    assert (on_whole_weights - logits).abs().max() > FAR, "nothing was quantised"
    estimate = doctors_bytes(place.recipe("grpo", output_dir="elsewhere", **QLORA))
    assert estimate == pytest.approx(trained.weight_bytes, rel=1e-3)


def doctors_bytes(recipe: dict[str, Any]) -> float:
    """Weights of a recipe as `lcot doctor` estimates them without loading any."""
    from llamafactory.model import load_tokenizer

    from lcot_plugin.integration.recipe_doctor.memory import Sharding, bits_per_weight, static_bytes
    from lcot_plugin.integration.recipe_doctor.shape import empty_model

    run = parsed(recipe)
    model = empty_model(run, load_tokenizer(run.model)["tokenizer"])
    bits = bits_per_weight(run.model.quantization_bit, run.model.quantization_method, run.model.double_quantization)
    return static_bytes(model, torch.float32, "adamw_torch", bits, Sharding()).weights


def parsed(recipe: dict[str, Any]) -> Any:
    from lcot_plugin.integration.recipe_doctor.settings import parse

    run, problem = parse(recipe)
    assert run is not None, problem
    return run


# --- numerics ---------------------------------------------------------------------------------------------------------


def rolled_out(place: Workplace) -> Any:
    """The model that SFT trains, 4-bit, with an adapter that changes what it says, after a pass in eval mode."""
    from llamafactory.model import load_model, load_tokenizer

    run = parsed(place.recipe("sft", **QLORA))
    model = load_model(load_tokenizer(run.model)["tokenizer"], run.model, run.finetuning, is_trainable=True)
    train(model, seed=1)
    with torch.no_grad():
        model.eval()(**question(place.twin))
    return model.train()


def dequantise(model: Any) -> None:
    """Puts plain layers in the place of all 4-bit ones, with the weights that these stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    for name, layer in layers:
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain.bias = layer.bias
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, plain.requires_grad_(False))


@pytest.mark.parametrize("place", PACKED, indirect=True)
def test_packed_4_bit_records_are_those_of_plain_weights_alone(place: Workplace, twin: Any) -> None:
    from integration import test_packed_families as packing

    architecture = TWINS[place.family]
    like = "qwen2_5_vl" if architecture == "qwen2_vl" else architecture  # its tokenizer and processor
    model = rolled_out(place)
    family = replace(packing.load_family(architecture, twin(like)), model=model)
    which = packing.PACKS["mixed"]
    batch = family.packed(which)
    with segment_attention(model, batch.segments):  # backward too: layers are computed once more in it
        found = packing.at_targets(model(**packing.inputs_of(batch)).logits, batch)
        packing.weighted(found).backward()
    gradients = packing.gradients(model)

    dequantise(model)
    expected = torch.cat([packing.standalone(family, family.rows[index]) for index in which])
    packing.weighted(expected).backward()
    torch.testing.assert_close(found.detach(), expected.detach(), atol=TOLERANCE, rtol=0)
    worst = packing.differences(gradients, packing.gradients(model))
    assert len(worst) > 8 and max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("place", [family for family in FAMILIES if family in ROWS], indirect=True)
def test_4_bit_rows_are_those_of_plain_weights(place: Workplace, twin: Any) -> None:
    from integration import test_packed_families as packing
    from loaded_twins import ONE_IMAGE, load_twin, reference_log_probs, written

    loaded = load_twin(twin(TWINS[place.family]))
    model = rolled_out(place)
    sequence = written(loaded.prompts[ONE_IMAGE], [5, 9, 7, 30, 11])
    results = []
    for _ in range(2):
        log_probs = reference_log_probs(model, sequence, [], 1.0)
        packing.weighted(log_probs).backward()
        results.append((log_probs.detach(), packing.gradients(model)))
        dequantise(model)
    (found, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    worst = packing.differences(gradients, expected_gradients)
    assert len(worst) > 8 and max(worst.values()) < TOLERANCE, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("stage", ["packed SFT", "GRPO"])
def test_an_output_layer_of_4_bits_is_computed_by_itself(place: Workplace, twin: Any, stage: str) -> None:
    """None is quantised by LLaMA-Factory; a checkpoint may have one, whose weight nobody may multiply with as it is."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from integration import test_packed_families as packing

    from lcot_plugin.packing.loss import packed_nll
    from lcot_plugin.policy.head import packed_log_probs

    model = load(place.twin).train()
    width = model.lm_head.in_features
    layer = Linear4bit(width, model.lm_head.out_features, bias=False, compute_dtype=torch.float32)
    layer.weight = Params4bit(model.lm_head.weight.data, requires_grad=False, quant_type="nf4")
    model.lm_head = layer.to("cpu")
    family = replace(packing.load_family("qwen2_5_vl", twin("qwen2_5_vl")), model=model)
    batch = family.packed(packing.PACKS["mixed"])
    results = []
    for _ in range(2):
        with segment_attention(model, batch.segments):
            if stage == "GRPO":
                banned = torch.tensor([7])
                values, _ = packed_log_probs(model, model, batch, banned=banned, temperature=0.9, chunk_size=16)
                packing.weighted(values).backward()
            else:
                total, values = packed_nll(model, model, batch, chunk_size=16)
                total.backward()
        found = packing.gradients(model)
        results.append((values.detach(), {name: found[name] for name in found if "lm_head" not in name}))
        dequantise(model)
    (found, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert max(packing.differences(gradients, expected_gradients).values()) < TOLERANCE


# --- what does not differ between families ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(place: Workplace, stage: str) -> None:
    """GRPO with a KL term too: its reference is the adapter as it was at the start."""
    changes = {**QLORA, "save_strategy": "steps", "save_steps": 1}
    if stage == "grpo":
        changes |= {"adapter_name_or_path": None, "grpo_beta": 0.04}
    whole = place.run(stage, output_dir="whole", **changes)
    resumed = place.run(stage, output_dir="resumed", resume_from_checkpoint=str(whole / "checkpoint-1"), **changes)
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    between = load_file(whole / "checkpoint-1" / "adapter_model.safetensors")
    assert any(not torch.equal(between[name], expected[name]) for name in expected), "the second step did nothing"
    if stage == "grpo":
        first, second = (entry["kl"] for entry in place.history(whole) if "kl" in entry)
        assert abs(first) < 1e-9 < second


def test_evaluation_and_export_of_an_adapter(place: Workplace) -> None:
    """On the 16-bit weights, into which it is merged, as the eval recipe does it; and on those it was trained with."""
    from llamafactory.train.tuner import export_model

    sft = place.run("sft", **QLORA)
    recipe = {"adapter_name_or_path": str(sft), "max_steps": None, "grpo_eval_generations": 2}
    for changes in ({}, QLORA):
        output = place.run("eval", output_dir=f"eval_{len(changes)}", **recipe, **changes)
        assert json.loads((output / "eval_results.json").read_text())["eval_problems"] == 8

    export = {key: place.recipe("eval")[key] for key in ("model_name_or_path", "template", "finetuning_type")}
    export |= {"adapter_name_or_path": str(sft), "export_dir": "merged", "infer_dtype": "float32"}
    with pytest.raises(ValueError, match="Cannot merge adapters to a quantized model"):
        export_model({**export, **QLORA})
    export_model({**export, "export_device": "cpu"})
    inputs = question(place.twin)
    merged, expected = (answer(model, inputs)[0] for model in (load(Path("merged")), load(place.twin, sft)))
    torch.testing.assert_close(merged, expected, atol=2e-3, rtol=1e-4)


def test_adapters_reach_a_4_bit_tower_that_is_not_frozen(place: Workplace) -> None:
    sft = place.run("sft", max_steps=1, freeze_vision_tower=False, **QLORA)
    adapter = load_file(sft / "adapter_model.safetensors")
    moved = {name for name, values in adapter.items() if "lora_B" in name and values.any()}
    assert any(map(is_vision, moved)) and not all(map(is_vision, moved))
