"""Packed SFT in this process: what the log, the checkpoints and the metrics say, and what happens to odd data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from llamafactory.train.tuner import run_exp
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.errors import ArgumentError, DataError

NUM_RECORDS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("data"), NUM_RECORDS, num_text_only=8, num_two_images=5)


@pytest.fixture
def train(data: Path, twin: Any, tmp_path: Path) -> Any:
    """`train(key=value, ...)` runs a recipe and returns its training logs and metrics."""

    def train(family: str = "qwen2_5_vl", **keys: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        recipe = {
            "model_name_or_path": str(twin(family)),
            "template": TWIN_TEMPLATES[family],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "problems",
            "dataset_dir": str(data),
            "media_dir": str(data),
            "cutoff_len": 256,
            "length_aware_packing": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "output_dir": str(tmp_path / "out"),
            "overwrite_output_dir": True,
        }
        run_exp({**recipe, **keys})
        state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
        metrics = json.loads((tmp_path / "out" / "train_results.json").read_text())
        return [entry for entry in state["log_history"] if "loss" in entry], metrics

    return train


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What LLaMA-Factory's log gets."""
    from llamafactory.extras import logging as llamafactory_logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    llamafactory_logging.add_handler(handler)
    yield lines
    llamafactory_logging.remove_handler(handler)


def test_every_record_is_trained_on_once_an_epoch(train: Any, said: list[str], tmp_path: Path) -> None:
    logs, metrics = train(num_train_epochs=2, plot_loss=True)
    steps = len(logs) // 2
    assert logs[-1]["epoch"] == 2.0
    for epoch in (logs[:steps], logs[steps:]):
        assert sum(entry["pack/examples_per_step"] for entry in epoch) == NUM_RECORDS
    assert logs[0]["loss"] > logs[-1]["loss"]
    assert 0.5 < metrics["pack/fill"] <= 1
    assert metrics["pack/tokens_per_second"] > 0
    assert metrics["pack/predicted_bubble"] == 0, "one process waits for nobody"
    assert any(f"{NUM_RECORDS} examples in " in line for line in said)
    assert (tmp_path / "out" / "packing.png").stat().st_size > 10_000


def test_the_budget_is_what_so_many_rows_would_hold(train: Any) -> None:
    (small, *_), _ = train()
    (large, *_), _ = train(per_device_train_batch_size=4, gradient_accumulation_steps=1)
    assert small["pack/tokens_per_step"] <= 2 * 256
    assert 2 * 256 < large["pack/tokens_per_step"] <= 4 * 256


def test_a_record_longer_than_a_pack_meets_the_policy(train: Any, said: list[str]) -> None:
    logs, _ = train(pack_max_tokens=60)
    kept = sum(entry["pack/examples_per_step"] for entry in logs)
    assert 0 < kept < NUM_RECORDS
    assert any("records longer than 60 tokens meet overlong_policy: drop" in line for line in said)
    assert any("longer than cutoff_len" in line and str(NUM_RECORDS - int(kept)) in line for line in said)
    with pytest.raises(DataError, match="cutoff_len is 60"):
        train(pack_max_tokens=60, overlong_policy="error")


def test_a_record_with_more_patches_than_a_pack(train: Any, said: list[str]) -> None:
    logs, _ = train(pack_max_patches=40)
    kept = sum(entry["pack/examples_per_step"] for entry in logs)
    assert 8 <= kept < NUM_RECORDS
    assert max(entry["pack/patches/max"] for entry in logs) <= 40
    assert any(f"{NUM_RECORDS - int(kept)} of {NUM_RECORDS} examples are larger than a pack" in line for line in said)
    with pytest.raises(DataError, match="pack_max_patches is 40"):
        train(pack_max_patches=40, overlong_policy="error")


def test_its_keys_alone_do_nothing_and_that_is_said(train: Any, said: list[str]) -> None:
    logs, _ = train(length_aware_packing=False, pack_max_tokens=100, pack_mode="fill", max_samples=2)
    assert "pack/fill" not in logs[0]
    assert any(line.startswith("pack_max_tokens, pack_mode: without effect") for line in said)


def test_one_record(train: Any) -> None:
    logs, _ = train(max_samples=1)
    assert [entry["pack/examples_per_step"] for entry in logs] == [1]


def test_evaluation_goes_on_in_padded_batches(train: Any, tmp_path: Path) -> None:
    train(eval_dataset="problems", per_device_eval_batch_size=3, eval_strategy="steps", eval_steps=1, do_eval=True)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_loss"] > 0


def test_costs_are_fitted_to_the_first_packs_and_kept(train: Any, said: list[str], tmp_path: Path) -> None:
    train(pack_cost="auto", pack_max_tokens=128, cutoff_len=128, num_train_epochs=5, save_strategy="epoch")
    assert any("from the durations of 32 packs" in line for line in said)
    states = [
        json.loads((folder / "packing.json").read_text())["costs"]
        for folder in sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    ]
    assert list(states[0]) == ["0"]
    assert len(states[-1]) == 2
    assert states[-1]["0"] == states[0]["0"]


def test_weighting_by_example_is_another_loss(train: Any) -> None:
    by_token, by_example = train()[0], train(pack_loss_weighting="example")[0]
    # The same packs with the same first weights, so that only the weights in the loss differ.
    assert by_token[0]["pack/tokens_per_step"] == by_example[0]["pack/tokens_per_step"]
    assert by_token[0]["loss"] != by_example[0]["loss"]
    assert by_token[0]["loss"] == pytest.approx(by_example[0]["loss"], rel=0.2)


def test_workers_decode_pictures(train: Any) -> None:
    here, there = train()[0], train(dataloader_num_workers=2)[0]
    assert [entry["loss"] for entry in here] == [entry["loss"] for entry in there]


def test_only_the_vision_tower_is_trained(train: Any) -> None:
    """A pack of text alone would have nothing to train: it gets a white picture that nothing sees."""
    frozen = {"freeze_language_model": True, "freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    logs, _ = train(**frozen, max_samples=6)  # the records without pictures come first
    assert sum(entry["pack/examples_per_step"] for entry in logs) == 6
    assert all(entry["pack/patches"] > 0 for entry in logs)


def test_a_family_that_cannot_be_packed_is_refused(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lcot_plugin.packing import families

    monkeypatch.setattr(families, "PACKABLE_FAMILIES", {"llama"})
    with pytest.raises(ArgumentError, match="qwen2_5_vl"):
        train()


@pytest.mark.parametrize("family", ["gemma3", "internvl"])
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_other_families_train_too(train: Any, family: str) -> None:
    logs, _ = train(family, cutoff_len=1024, finetuning_type="lora", disable_shuffling=True, pack_mode="fill")
    assert sum(entry["pack/examples_per_step"] for entry in logs) == NUM_RECORDS
