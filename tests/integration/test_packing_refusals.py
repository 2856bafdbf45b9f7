"""Settings that length-aware packing cannot honour: every row of the table acts on LLaMA-Factory's own arguments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from integration.test_refusals import LIBRARY_LACKS, changed

from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.packing_refusals import REFUSED, WARNED, check_packing_settings
from lcot_plugin.integration.refusals import RunArguments

Changes = tuple[tuple[str, Any], ...]

CASES: dict[str, Changes] = {
    "packing": (("data.packing", True),),
    "group_by_length": (("training.group_by_length", True),),
    "train_sampling_strategy": (("training.train_sampling_strategy", "group_by_length"),),
    "use_dft_loss": (("finetuning.use_dft_loss", True),),
    "use_eaft_loss": (("finetuning.use_eaft_loss", True),),
    "use_asft_loss": (("finetuning.use_asft_loss", True),),
    "label_smoothing_factor": (("training.label_smoothing_factor", 0.1),),
    "neftune_noise_alpha": (("training.neftune_noise_alpha", 5.0),),
    "shift_attn": (("model.shift_attn", True),),
    "mixture_of_depths": (("model.mixture_of_depths", "convert"),),
    "use_unsloth": (("model.use_unsloth", True),),
    "use_unsloth_gc": (("model.use_unsloth_gc", True),),
    "use_kt": (("model.use_kt", True),),
    "use_badam": (("finetuning.use_badam", True),),
    "torch_compile": (("training.torch_compile", True),),
    "fp8": (("training.fp8", True),),
    "galore_layerwise": (("finetuning.galore_layerwise", True),),
    "apollo_layerwise": (("finetuning.apollo_layerwise", True),),
    "optim": (("training.optim", "lomo"),),
    "fsdp": (("training.fsdp", ["full_shard"]),),
    "auto_find_batch_size": (("training.auto_find_batch_size", True),),
    "accelerator_config: split_batches": (
        ("training.accelerator_config", SimpleNamespace(split_batches=True, dispatch_batches=None)),
    ),
    "accelerator_config: dispatch_batches": (
        ("training.accelerator_config", SimpleNamespace(split_batches=False, dispatch_batches=True)),
    ),
}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> RunArguments:
    from llamafactory.hparams import get_train_args

    recipe = {
        "model_name_or_path": "x",
        "stage": "sft",
        "do_train": True,
        "dataset": "x",
        "template": "qwen2_vl",
        "length_aware_packing": True,
        "output_dir": str(tmp_path_factory.mktemp("out")),
        "report_to": "none",
        "use_cpu": True,
    }
    return RunArguments(*get_train_args(recipe))


def test_every_row_is_tested_and_every_key_exists(parsed: RunArguments) -> None:
    assert {setting.key for setting in REFUSED} == set(CASES)
    known = {key for group in parsed for key in vars(group)} | LIBRARY_LACKS
    assert {setting.key.split(":")[0] for setting in (*REFUSED, *WARNED)} <= known


def test_the_defaults_are_allowed(parsed: RunArguments) -> None:
    check_packing_settings(parsed)
    check_packing_settings(changed(parsed, ("training.deepspeed_plugin", SimpleNamespace(zero_stage=3))))


@pytest.mark.parametrize("key", CASES)
def test_what_cannot_be_honoured_is_refused(parsed: RunArguments, key: str) -> None:
    with pytest.raises(ArgumentError, match="length_aware_packing: true cannot run") as caught:
        check_packing_settings(changed(parsed, *CASES[key]))
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"  {key}: ")
    assert "emove" in line or "use DDP" in line


def test_what_has_no_effect_is_said(parsed: RunArguments, caplog: pytest.LogCaptureFixture) -> None:
    from lcot_plugin.integration import refusals

    refusals.logger.propagate = True
    check_packing_settings(changed(parsed, ("training.dataloader_drop_last", True)))
    assert "dataloader_drop_last: it has no effect" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pack_mode": "tight"}, "pack_mode: 'tight' must be one of levelled, fill"),
        ({"pack_max_tokens": 0}, "pack_max_tokens: 0 must be at least 1"),
        ({"pack_max_patches": -1}, "pack_max_patches: -1"),
        ({"pack_buffer_size": 0}, "pack_buffer_size: 0"),
        ({"pack_cost": "guess"}, "pack_cost: 'guess' must be one of model, auto"),
        ({"pack_loss_weighting": "word"}, "must be one of token, example"),
    ],
)
def test_values_that_mean_nothing(keys: dict[str, Any], message: str) -> None:
    from llamafactory.hparams import DataArguments

    with pytest.raises(ArgumentError, match=message):
        DataArguments(template="qwen2_vl", length_aware_packing=True, **keys)


def test_other_stages_say_that_they_do_not_pack(twin: Any, tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp
    from twins import TWIN_TEMPLATES, write_problems

    write_problems(tmp_path, 2)
    recipe = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_train": True,
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "length_aware_packing": True,
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    with pytest.raises(ArgumentError, match="stage: grpo does not use it"):
        run_exp(recipe)
