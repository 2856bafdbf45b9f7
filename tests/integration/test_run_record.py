"""run.json: what a run was started with."""

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.run_record import (
    arguments_of,
    grpo_plan,
    hardware,
    plain,
    run_record,
    sft_plan,
    versions,
    written_arguments,
    written_keys,
)


@dataclass
class Model:
    model_name_or_path: str = "base"
    adapter_name_or_path: list[str] | None = None
    hub_token: str | None = None


@dataclass
class Data:
    template: str | None = None
    dataset: list[str] | None = None
    eval_dataset: list[str] | None = None
    cutoff_len: int = 2048
    length_aware_packing: bool = False
    pack_max_tokens: int | None = None
    pack_max_patches: int = 0
    computed: int = field(default=3, init=False)


@dataclass
class Training:
    output_dir: str = "saves"
    do_train: bool = True
    do_eval: bool = False
    resume_from_checkpoint: str | None = None
    world_size: int = 1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 2


@dataclass
class Finetuning(GrpoArguments):
    stage: str = "grpo"
    finetuning_type: str = "lora"


@dataclass
class Generating:
    max_new_tokens: int = 1024


@pytest.fixture
def run():
    return RunArguments(
        Model("org/model", hub_token="very-secret"),
        Data("qwen2_vl", ["a", "b"], computed_differently()),
        Training(),
        Finetuning(grpo_reward_funcs="accuracy,judge(api_key=very-secret)"),
        Generating(64),
    )


def computed_differently():
    return ["held_out"]


def test_a_run_says_what_it_is(run):
    record = run_record(run, {"num_generations": 8})
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["format"], record["stage"], record["model"], record["template"]) == (
        1,
        "grpo",
        "org/model",
        "qwen2_vl",
    )
    assert record["datasets"] == ["a", "b"] and record["eval_datasets"] == ["held_out"]
    assert record["trains"] and not record["evaluates"] and record["resumed_from"] is None
    assert record["plan"] == {"num_generations": 8}
    assert record["started"].endswith("+00:00")


def test_no_secret_is_in_it(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "another-secret")
    run.training.output_dir = "saves/another-secret"
    told = json.dumps(run_record(run, {}))
    assert "very-secret" not in told and "another-secret" not in told
    assert json.loads(told)["arguments"]["hub_token"] == "***"


def test_what_differs_from_the_defaults_is_kept(run):
    run.data.computed = 99
    assert arguments_of(run) == {
        "model_name_or_path": "org/model",
        "hub_token": "very-secret",
        "template": "qwen2_vl",
        "dataset": ["a", "b"],
        "eval_dataset": ["held_out"],
        "grpo_reward_funcs": "accuracy,judge(api_key=very-secret)",
        "max_new_tokens": 64,
    }


@pytest.mark.parametrize(
    "written",
    [
        {"cutoff_len": 2048, "stage": "grpo", "not_an_argument": 1},
        ["--cutoff-len", "2048", "--stage=grpo", "--not_an_argument", "1"],
    ],
    ids=["YAML", "command line"],
)
def test_what_the_user_wrote_is_kept_where_that_is_known(run, written):
    """A key that happens to have its default's value too; the parsed value, not the text."""
    with written_arguments(written):
        assert arguments_of(run) == {"cutoff_len": 2048, "stage": "grpo"}
    assert "cutoff_len" not in arguments_of(run), "afterwards it is not known any more"


def test_keys_of_a_command_line():
    assert list(written_keys(["--a-b", "1", "--c=--d", "e", "-f"])) == ["a_b", "c"]


def test_how_many_meet_in_a_step(run):
    plan = grpo_plan(run, BatchPlan(8, 4, 2, 8, 3))
    assert plan["prompts_per_rollout"] == 12 and plan["completions_per_rollout"] == 96
    assert plan["rewards"] == ["accuracy", "judge(api_key=very-secret)"]
    assert sft_plan(run) == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "cutoff_len": 2048,
        "packed": False,
    }
    run.data.length_aware_packing, run.data.pack_max_tokens = True, 4096
    assert sft_plan(run)["pack_max_tokens"] == 4096


def test_versions_and_hardware():
    assert {"python", "torch", "transformers", "llamafactory", "lcot-plugin"} <= versions().keys()
    found = hardware(2)
    assert found["num_processes"] == 2 and found["devices"] and all(device["name"] for device in found["devices"])


def test_devices_and_their_memory(monkeypatch):
    properties = SimpleNamespace(name="GPU", total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    assert hardware(2)["devices"] == [{"name": "GPU", "memory_gib": 80.0}] * 2


class Color(Enum):
    RED = "red"


def test_anything_becomes_what_json_takes():
    value = {1: (1, 2.5, None), "set": {3}, "path": Path("a"), "enum": Color.RED, "nan": float("nan"), "flag": True}
    assert plain(value) == {
        "1": [1, 2.5, None],
        "set": [3],
        "path": "a",
        "enum": "red",
        "nan": "nan",
        "flag": True,
    }
