"""The estimate of memory: counting, fixed parts by hand, and a pass without data beside one with data."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache

from lcot_plugin.integration.recipe_doctor.memory import (
    LiveBytes,
    Sharding,
    UpdatePass,
    bits_per_weight,
    device_bytes,
    largest_that_fits,
    rollout_bytes,
    static_bytes,
    vision_bytes,
)
from lcot_plugin.integration.recipe_doctor.shape import cache_bytes_per_token, count


def test_live_bytes_are_those_that_are_referred_to() -> None:
    before = torch.zeros(1000)
    with LiveBytes([before]) as live:
        first = torch.ones(256)
        view = first.view(16, 16).t()
        assert live.now == 1024, "a view has no bytes of its own"
        before.add_(1.0)
        assert live.now == 1024, "what was there is not counted"
        second = first + 1
        del first, view
        assert (live.now, live.peak) == (1024, 2048)
        del second
    assert (live.now, live.peak) == (0, 2048)


@pytest.fixture
def linear() -> torch.nn.Module:
    """1,000 frozen weights of 2 bytes, and 100 trained ones of 4."""

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Linear(10, 100, bias=False, dtype=torch.bfloat16).requires_grad_(False)
            self.trained = torch.nn.Linear(10, 10, bias=False, dtype=torch.float32)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.trained

    return Two()


@pytest.mark.parametrize(
    ("sharding", "optimizer", "expected"),
    [
        (Sharding(), "adamw_torch", (2400, 400, 800, 200, 400)),
        (Sharding(), "adamw_8bit", (2400, 400, 200, 200, 400)),
        (Sharding(), "sgd", (2400, 400, 0, 200, 400)),
        # Buckets of DDP.
        (Sharding(2), "adamw_torch", (2400, 800, 800, 200, 400)),
        # 2 bytes each in the module; masters and two moments of 4 bytes, over two processes.
        (Sharding(2, zero_stage=1), "adamw_torch", (2200, 200, 600, 0, 200)),
        (Sharding(2, zero_stage=2), "adamw_torch", (2200, 100, 600, 0, 200)),
        (Sharding(2, zero_stage=3), "adamw_torch", (1100, 100, 600, 0, 200)),
        (Sharding(2, 3, optimizer_on_host=True, weights_on_host=True), "adamw_torch", (0, 100, 0, 0, 0)),
        (Sharding(2, fsdp=True), "adamw_torch", (1200, 200, 400, 100, 200)),
    ],
)
def test_what_stays_over_a_step(
    linear: torch.nn.Module, sharding: Sharding, optimizer: str, expected: tuple[float, ...]
) -> None:
    found = static_bytes(linear, torch.bfloat16, optimizer, None, sharding)
    assert found.whole == (2200 if sharding.zero_stage else 2400), "a rollout in process has them all"
    assert found.gathered == (2200 if sharding.zero_stage == 3 else 0)
    assert (found.weights, found.gradients, found.optimizer, found.casts, found.step) == expected


@pytest.mark.parametrize(
    ("keys", "bytes_per_weight"),
    [
        # 64 weights of 4 bits with a scale: in float32; in 8 bits, and 4 bytes for 256 scales; 2 x 2 bytes (HQQ).
        ((4, "bnb", False), (32 + 4) / 64),
        ((4, "bnb", True), (32 + 1 + 4 / 256) / 64),
        ((4, "hqq", True), (32 + 4) / 64),
        ((8, "bnb", True), 1),
        ((None, "bnb", True), 2),
    ],
)
def test_quantised_layers_take_their_bits(
    linear: torch.nn.Module, keys: tuple[Any, ...], bytes_per_weight: float
) -> None:
    """The output layer, which is trained here, keeps its 100 weights of 4 bytes."""
    found = static_bytes(linear, torch.bfloat16, "adamw_torch", bits_per_weight(*keys), Sharding())
    assert found.weights == pytest.approx(1000 * bytes_per_weight + 400)


def on_meta(model: torch.nn.Module) -> Any:
    return deepcopy(model).to("meta")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "gemma3"])
def test_a_pass_without_data_takes_what_one_with_data_takes(family: str, twin: Any) -> None:
    """The same pass on the twin's own weights: what is alive at its worst moment."""
    from lcot_plugin.packing.attention import segment_attention
    from lcot_plugin.policy.head import HeadTargets, token_log_probs
    from lcot_plugin.types import Segments

    model = AutoModelForImageTextToText.from_pretrained(twin(family), attn_implementation="sdpa")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    mrope, num_tokens = family == "qwen2_5_vl", 512
    estimate = UpdatePass(on_meta(model), torch.float32, 64, mrope).peak(num_tokens)

    tokens, positions = torch.zeros(1, num_tokens, dtype=torch.int64), torch.arange(num_tokens)[None]
    columns = torch.arange(num_tokens - 1)
    targets = HeadTargets(columns * 0, columns, columns * 0, torch.zeros(0, dtype=torch.int64), 1.0, 64)
    inputs = {"input_ids": tokens, "position_ids": positions.expand(3, 1, -1) if mrope else positions}
    if family == "gemma3":
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as after an earlier pass of the step
    known = [*model.parameters(), *(p.grad for p in model.parameters()), *model.buffers(), columns, *inputs.values()]
    with segment_attention(model, Segments((num_tokens,))), LiveBytes(known) as live:
        log_probs, _ = token_log_probs(model, model, targets, inputs)
        log_probs.sum().backward()
    assert estimate == pytest.approx(live.peak, rel=0.02)
    assert estimate > 20 * num_tokens * model.config.get_text_config().hidden_size


@pytest.mark.filterwarnings("default")
def test_a_pass_of_any_length_lies_on_a_line(twin: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"), attn_implementation="sdpa")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    update = UpdatePass(on_meta(model.train()), torch.float32, 64, True)
    line = update.line(512, 1024)
    assert line(4096) == pytest.approx(update.peak(4096), rel=0.05)
    assert line(4096) > 3 * line(1024)


@pytest.mark.filterwarnings("default")
def test_the_layers_inputs_are_kept_for_every_token_where_all_weights_are_trained(twin: Any) -> None:
    """Counted as part of a pass, gradients hid its activations: a million tokens of a 3B model "fitted" into 80 GiB."""
    model = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"), attn_implementation="sdpa")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    update = UpdatePass(on_meta(model.train()), torch.float32, 64, True)
    config = model.config.get_text_config()
    inputs = config.num_hidden_layers * config.hidden_size * 4
    assert update.peak(256) - update.peak(128) > 128 * inputs


@pytest.mark.parametrize("limit", [1, 2, 5, 20, 80])
@pytest.mark.parametrize("budget", [64, 1024, 8192, 100_000])
def test_the_largest_that_fits_fits(limit: int, budget: int) -> None:
    def needs(tokens: int) -> float:
        return max(2**30 + tokens * 1e5, tokens * 3e5)  # two worst moments: convex

    found = largest_that_fits(needs, limit * 2**30, budget, 1 << 17)
    assert 0 <= found <= 1 << 17
    if found:
        assert device_bytes(needs(found)) <= limit * 2**30
    else:
        assert device_bytes(needs(1024)) > limit * 2**30


@pytest.mark.filterwarnings("default")
def test_keys_and_values_are_those_of_transformers_cache(twin: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(twin("internvl"))
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 7, dtype=torch.int64), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert 7 * cache_bytes_per_token(model, torch.float32) == kept
    per_token, vocabulary = kept / 7, 560
    # 16 completions of 100 tokens in 2 groups with prompts of 50.
    expected = (16 * 100 + 2 * 50) * per_token + 16 * vocabulary * (4 + 12)
    assert rollout_bytes(model, torch.float32, 16, 8, 50, 100, vocabulary) == expected


@pytest.mark.filterwarnings("default")
def test_parameters_are_counted_by_part(twin: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"))
    tower = sum(p.numel() for p in model.model.visual.parameters())
    everything = sum(p.numel() for p in model.parameters())
    model.model.visual.requires_grad_(False)
    found = count(model)
    assert (found.vision, found.language, found.trained) == (tower, everything - tower, everything - tower)
    frozen = vision_bytes(model, 100, torch.float32)
    model.model.visual.requires_grad_(True)
    assert vision_bytes(model, 100, torch.float32) > frozen > 0


def test_the_package_reads_no_weights(twin: Any, tmp_path: Path) -> None:
    """A folder without weights is enough, and what is built holds no data."""
    import shutil

    from lcot_plugin.integration.recipe_doctor.settings import parse
    from lcot_plugin.integration.recipe_doctor.shape import empty_model

    folder = shutil.copytree(twin("qwen2_5_vl"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    written = {
        "model_name_or_path": str(folder),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "dataset": "x",
        "template": "qwen2_vl",
        "output_dir": str(tmp_path / "out"),
        "bf16": True,
    }
    run, problem = parse(written)
    assert run is not None, problem
    from transformers import AutoTokenizer

    model = empty_model(run, AutoTokenizer.from_pretrained(folder))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert count(model).trained == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
