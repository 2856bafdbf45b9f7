"""What the YAML keys make of the rollout engine, before a server is asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from rollout.vllm.fake_server import fake_servers, make_engine, prompt

from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration import rollout_engine
from lcot_plugin.integration.rollout_engine import check_engine, check_nodes, folder_for_weights, sync_mode
from lcot_plugin.types import EncodedPrompt, PromptRecord, SamplingParams


def run(**changes: Any) -> Any:
    """Arguments of a LoRA training; changes: of any of the groups."""
    finetuning = {
        **{"grpo_vllm_sync": "auto", "finetuning_type": "lora", "lora_rank": 8, "create_new_adapter": False},
        **{"pissa_init": False, "grpo_vllm_python": "python", "grpo_vllm_weights_dir": None},
    }
    model = {"adapter_name_or_path": None, "resize_vocab": False, "quantization_bit": None}
    model |= {"use_kt": False, "use_unsloth": False}
    training = {"do_train": True, "deepspeed_plugin": None, "output_dir": "saves"}
    groups = {"finetuning": finetuning, "model": model, "training": training}
    for name, value in changes.items():
        next(group for group in groups.values() if name in group)[name] = value
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in groups.items()})


ZERO_3 = SimpleNamespace(zero_stage=3)
ON_BASE: list[dict[str, Any]] = [
    {},
    {"adapter_name_or_path": ["a"]},  # it is trained on
    {"adapter_name_or_path": ["a"], "create_new_adapter": True, "quantization_bit": 4},  # not merged
    {"adapter_name_or_path": ["a"], "do_train": False, "deepspeed_plugin": ZERO_3},
]
ON_OTHER_WEIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"adapter_name_or_path": ["a"], "create_new_adapter": True}, "merged into the base"),
    ({"adapter_name_or_path": ["a", "b"]}, "merged into the base"),
    ({"adapter_name_or_path": ["a"], "do_train": False}, "merged into the base"),
    ({"pissa_init": True}, "pissa_init"),
    ({"resize_vocab": True}, "resize_vocab"),
    ({"lora_rank": 513}, "up to rank 512"),
]


@pytest.mark.parametrize("changes", ON_BASE)
def test_an_adapter_on_the_models_own_weights_may_travel(changes: dict[str, Any]) -> None:
    for mode in ("auto", "adapter", "weights"):
        assert sync_mode(run(grpo_vllm_sync=mode, **changes)) == mode


@pytest.mark.parametrize(("changes", "reason"), ON_OTHER_WEIGHTS)
def test_an_adapter_on_other_weights_does_not(changes: dict[str, Any], reason: str) -> None:
    """It would be served on the base model's weights: another policy, and nothing would say so."""
    assert sync_mode(run(**changes)) == sync_mode(run(grpo_vllm_sync="weights", **changes)) == "weights"
    with pytest.raises(ArgumentError, match=f"grpo_vllm_sync: adapter: .*{reason}"):
        sync_mode(run(grpo_vllm_sync="adapter", **changes))


def test_full_tuning_sends_weights() -> None:
    assert sync_mode(run(finetuning_type="full")) == "weights"


def test_a_started_server_serves_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    check_nodes(run().finetuning)
    for variable, value in (("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(variable, value)
    with pytest.raises(ArgumentError, match="grpo_vllm_url"):
        check_nodes(run().finetuning)
    check_nodes(run(grpo_vllm_python=None).finetuning)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_nodes(run().finetuning)


def test_shared_memory_is_used_where_a_model_has_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    shared, out = tmp_path / "shm", tmp_path / "out"
    shared.mkdir()
    monkeypatch.setattr(rollout_engine, "SHARED_MEMORY", shared)
    monkeypatch.setattr(rollout_engine.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    assert folder_for_weights(run(output_dir=str(out)), 30 * 2**20, said.append) == shared and not said
    assert folder_for_weights(run(output_dir=str(out)), 40 * 2**20, said.append) == out
    assert "0.06 GiB free" in said[0] and str(out) in said[0]
    named = run(output_dir=str(out), grpo_vllm_weights_dir=str(tmp_path))
    assert folder_for_weights(named, 40 * 2**20, said.append) == tmp_path
    assert folder_for_weights(run(output_dir=str(out), grpo_vllm_python=None), 1, said.append) == out


def rows(*records: PromptRecord) -> Dataset:
    """Without pictures: the fake server asks for none."""
    return Dataset.from_list([vars(record) for record in records])


def test_every_data_set_is_checked() -> None:
    with fake_servers() as (server,):
        made = make_engine([server])
        sampling = SamplingParams(num_generations=2, max_new_tokens=4)
        parts: Any = SimpleNamespace(
            engine=made.engine, sampling=sampling, encode=lambda record: EncodedPrompt(record, {})
        )
        train, easy, hard = (rows(prompt(text).record) for text in ("how many", "why", "which"))
        check_engine(parts, [train, {"easy": easy, "hard": hard}])
        sent = [body["token_ids"] for body in server.bodies]
        assert all(dataset[0]["input_ids"] in sent for dataset in (train, easy, hard))
        server.bodies.clear()
        video = rows(prompt("how many").record, *[prompt("why", videos=["a.mp4"]).record] * 20)
        with pytest.raises(ArgumentError, match="problems, record 0 has videos"):
            check_engine(parts, [train, {"easy": easy, "hard": video}])
        assert not server.bodies
