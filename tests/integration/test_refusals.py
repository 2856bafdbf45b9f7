"""Settings that stage grpo cannot honour: every row of both tables acts on LLaMA-Factory's own parsed arguments."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.training_args import OptimizerNames

from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration import refusals
from lcot_plugin.integration.refusals import REFUSED, WARNED, RunArguments, check_settings

LIBRARY_LACKS = {"USE_MCA", "group_by_length", "train_sampling_strategy"}
"""Keys that are no key, or none in one of the two versions of transformers."""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> RunArguments:
    from llamafactory.hparams import get_train_args

    from lcot_plugin.integration.stage import with_sampling_defaults

    recipe = {
        "model_name_or_path": "x",
        "stage": "grpo",
        "do_train": True,
        "dataset": "x",
        "eval_dataset": "easy,hard",
        "template": "qwen2_vl",
        "output_dir": str(tmp_path_factory.mktemp("out")),
        "report_to": "none",
        "use_cpu": True,
    }
    return RunArguments(*get_train_args(with_sampling_defaults(recipe)))


def changed(parsed: RunArguments, *changes: tuple[str, Any]) -> RunArguments:
    """A copy with `("training.torch_compile", True)` set."""
    run = RunArguments(*map(copy.copy, parsed))
    for path, value in changes:
        group, key = path.split(".")
        setattr(getattr(run, group), key, value)
    return run


EVALUATION = (("training.do_train", False), ("training.do_eval", True))
ZERO_3 = ("training.deepspeed_plugin", SimpleNamespace(zero_stage=3))
FSDP = ("training.fsdp", ["full_shard"])
EACH = ("data.eval_on_each_dataset", True)

VLLM = ("finetuning.grpo_rollout_engine", "vllm")
NARROWED = ("generating.top_p", 0.9)

REFUSED_CASES: list[tuple[str, tuple[tuple[str, Any], ...], str]] = [
    ("do_train", (("training.do_train", False),), "`do_eval: true`"),
    ("do_predict", (("training.do_predict", True),), "write `do_eval: true` instead"),
    ("USE_MCA", (("finetuning.use_mca", True),), "unset"),
    ("use_hyper_parallel", (("finetuning.use_hyper_parallel", True),), "Remove it"),
    ("use_dft_loss", (("finetuning.use_dft_loss", True),), "grpo_loss_type"),
    ("use_eaft_loss", (("finetuning.use_eaft_loss", True),), "grpo_loss_type"),
    ("use_asft_loss", (("finetuning.use_asft_loss", True),), "grpo_loss_type"),
    ("neftune_noise_alpha", (("training.neftune_noise_alpha", 5.0),), "Remove it"),
    ("mixture_of_depths", (("model.mixture_of_depths", "convert"),), "Remove it"),
    ("use_unsloth", (("model.use_unsloth", True),), "Remove it"),
    ("use_unsloth_gc", (("model.use_unsloth_gc", True),), "Remove it"),
    ("use_kt", (("model.use_kt", True),), "Remove it"),
    ("torch_compile", (("training.torch_compile", True),), "Remove it"),
    ("galore_layerwise", (("finetuning.galore_layerwise", True),), "Keep `use_galore` alone"),
    ("apollo_layerwise", (("finetuning.apollo_layerwise", True),), "Keep `use_apollo` alone"),
    ("optim", (("training.optim", OptimizerNames.ADALOMO),), "Write `optim: adamw_torch`"),
    ("optim", (("training.optim", OptimizerNames.GALORE_ADAMW_8BIT_LAYERWISE),), "adafactor"),
    ("fsdp", (FSDP, *EVALUATION), "Remove it"),
    ("fsdp: offload", (("training.fsdp", ["full_shard", "offload"]),), "ZeRO-3"),
    (
        "fsdp_config: min_num_params",
        (FSDP, ("training.fsdp_config", {"min_num_params": 100})),
        "fsdp_transformer_layer",
    ),
    ("quantization_bit", (FSDP, ("model.quantization_bit", 4)), "ZeRO-2"),
    ("grpo_ref_sync_steps", (ZERO_3, ("finetuning.grpo_ref_sync_steps", 8)), "ZeRO-2"),
    ("grpo_rollout_engine: vllm", (VLLM, NARROWED, ("finetuning.grpo_replay_groups", 4)), "`top_p: 1.0`"),
    ("streaming", (("data.streaming", True),), "Remove it"),
    ("packing", (("data.packing", True),), "Remove it"),
    ("auto_find_batch_size", (("training.auto_find_batch_size", True),), "per_device_train_batch_size"),
    (
        "accelerator_config: split_batches",
        (("training.accelerator_config", SimpleNamespace(split_batches=True, dispatch_batches=None)),),
        "Remove it",
    ),
    (
        "accelerator_config: dispatch_batches",
        (("training.accelerator_config", SimpleNamespace(split_batches=False, dispatch_batches=True)),),
        "Remove it",
    ),
    ("max_new_tokens", (("generating.max_new_tokens", 0),), "max_new_tokens: 1024"),
    ("do_sample", (("generating.do_sample", False),), "remove `do_sample: false`"),
    ("temperature", (("generating.temperature", 0.0),), "temperature: 1.0"),
    ("grpo_eval_generations", (*EVALUATION, ("generating.do_sample", False)), "write `grpo_eval_generations: 0`"),
    ("grpo_eval_generations", (*EVALUATION, ("generating.temperature", 0.0)), "write `grpo_eval_generations: 0`"),
    ("num_beams", (("generating.num_beams", 4),), "Remove it"),
    ("eval_num_beams", (("data.eval_num_beams", 4), ("training.generation_num_beams", 4)), "Remove it"),
    ("generation_num_beams", (("training.generation_num_beams", 4),), "Remove it"),
    ("metric_for_best_model", (EACH, ("training.load_best_model_at_end", True)), "NAME_accuracy"),
    ("metric_for_best_model", (EACH, ("finetuning.early_stopping_steps", 2)), "NAME_accuracy"),
    (
        "lr_scheduler_type",
        (("training.lr_scheduler_type", "reduce_lr_on_plateau"), ("training.greater_is_better", True)),
        "lr_scheduler_kwargs: {mode: max}",
    ),
]

WARNED_CASES: list[tuple[str, tuple[tuple[str, Any], ...], str]] = [
    ("lora_dropout", (("finetuning.lora_dropout", 0.1),), "not in the rollout"),
    (
        "module_dropout",
        (("finetuning.finetuning_type", "oft"), ("finetuning.module_dropout", 0.1)),
        "not in the rollout",
    ),
    (
        "grpo_micro_batch_tokens",
        (("finetuning.grpo_micro_batch_tokens", 4096), ("finetuning.grpo_update_layout", "rows")),
        "no effect",
    ),
    ("ref_model", (("finetuning.ref_model", "y"),), "grpo_beta"),
    ("grpo_rollout_engine: vllm", (VLLM, ("generating.repetition_penalty", 1.1)), "`sampler_distance`"),
    ("group_by_length", (("training.group_by_length", True),), "no effect"),
    ("train_sampling_strategy", (("training.train_sampling_strategy", "sequential"),), "disable_shuffling"),
    ("dataloader_drop_last", (("training.dataloader_drop_last", True),), "no effect"),
    ("label_smoothing_factor", (("training.label_smoothing_factor", 0.1),), "no effect"),
    ("compute_accuracy", (("finetuning.compute_accuracy", True),), "always measured"),
    ("length_penalty", (("generating.length_penalty", 2.0),), "no effect"),
    ("include_num_input_tokens_seen", (("training.include_num_input_tokens_seen", "all"),), "no effect"),
    ("include_effective_tokens_per_second", (("finetuning.include_effective_tokens_per_second", True),), "no effect"),
    ("fp16_full_eval", (("training.fp16_full_eval", True),), "no effect"),
    ("bf16_full_eval", (("training.bf16_full_eval", True),), "no effect"),
]


@pytest.fixture
def warnings_said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    monkeypatch.setattr(refusals.logger, "handlers", [handler])
    monkeypatch.setattr(refusals.logger, "propagate", False)
    return said


def ids(cases: list[Any]) -> list[str]:
    return [f"{key}-{index}" for index, (key, _, _) in enumerate(cases)]


def test_every_row_is_tested_and_every_key_exists(parsed: RunArguments) -> None:
    assert {setting.key for setting in REFUSED} == {key for key, _, _ in REFUSED_CASES}
    assert {setting.key for setting in WARNED} == {key for key, _, _ in WARNED_CASES}
    known = {key for group in parsed for key in vars(group)} | LIBRARY_LACKS
    assert {setting.key.split(":")[0] for setting in (*REFUSED, *WARNED)} <= known


def test_the_defaults_are_silent(parsed: RunArguments, warnings_said: list[str]) -> None:
    check_settings(parsed)
    check_settings(changed(parsed, *EVALUATION))
    assert warnings_said == []


@pytest.mark.parametrize(("key", "changes", "advice"), REFUSED_CASES, ids=ids(REFUSED_CASES))
def test_what_cannot_be_honoured_is_refused(
    parsed: RunArguments, key: str, changes: tuple[tuple[str, Any], ...], advice: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_settings(changed(parsed, *changes))
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"  {key}: ")
    assert advice in line


@pytest.mark.parametrize(("key", "changes", "message"), WARNED_CASES, ids=ids(WARNED_CASES))
def test_what_has_no_effect_is_said(
    parsed: RunArguments, warnings_said: list[str], key: str, changes: tuple[tuple[str, Any], ...], message: str
) -> None:
    check_settings(changed(parsed, *changes))
    (said,) = warnings_said
    assert said.startswith(f"stage: grpo, {key}: ")
    assert message in said


def test_all_refused_settings_are_named_at_once(parsed: RunArguments) -> None:
    with pytest.raises(ArgumentError, match=r"use_dft_loss: (.|\n)*num_beams: "):
        check_settings(changed(parsed, ("finetuning.use_dft_loss", True), ("generating.num_beams", 2)))


@pytest.mark.parametrize(
    ("variable", "value"), [("FSDP_OFFLOAD_PARAMS", "true"), ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP")]
)
@pytest.mark.parametrize("used", ["true", "True", "1"])
def test_fsdp_of_accelerate_launch_is_seen(
    parsed: RunArguments, monkeypatch: pytest.MonkeyPatch, used: str, variable: str, value: str
) -> None:
    """It says everything through the environment."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", used)
    check_settings(parsed)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ArgumentError, match="fsdp"):
        check_settings(parsed)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    check_settings(parsed)


@pytest.mark.parametrize(
    "changes",
    [
        (*EVALUATION, ("generating.do_sample", False), ("finetuning.grpo_eval_generations", 0)),
        (*EVALUATION, ("generating.temperature", 0.0), ("finetuning.grpo_eval_generations", 0)),
        (EACH, ("training.load_best_model_at_end", True), ("training.metric_for_best_model", "hard_accuracy")),
        (EACH, ("training.load_best_model_at_end", True), ("training.metric_for_best_model", "eval_easy_pass@8")),
        (("training.deepspeed_plugin", SimpleNamespace(zero_stage=2)), ("finetuning.grpo_ref_sync_steps", 8)),
        (ZERO_3,),
        (FSDP,),
        (
            ("training.lr_scheduler_type", "reduce_lr_on_plateau"),
            ("training.greater_is_better", True),
            ("training.lr_scheduler_kwargs", {"mode": "max"}),
        ),
        (("training.do_train", False), ("training.do_eval", True), ("finetuning.lora_dropout", 0.1)),
        (("finetuning.ref_model", "y"), ("finetuning.grpo_beta", 0.1)),
    ],
)
def test_what_works_is_allowed_in_silence(
    parsed: RunArguments, warnings_said: list[str], changes: tuple[tuple[str, Any], ...]
) -> None:
    check_settings(changed(parsed, *changes))
    assert warnings_said == []


def test_warnings_reach_llamafactorys_log(parsed: RunArguments, tmp_path: Path) -> None:
    from llamafactory.extras import logging as llamafactory_logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    llamafactory_logging.add_handler(handler)
    check_settings(changed(parsed, ("generating.length_penalty", 2.0)))
    llamafactory_logging.remove_handler(handler)
    assert len(said) == 1 and "length_penalty" in said[0]


@pytest.mark.parametrize("narrowed", [NARROWED, ("generating.top_k", 5), ("finetuning.grpo_min_p", 0.1)])
@pytest.mark.parametrize(
    "need", [("finetuning.grpo_sampler_correction", "token_mask"), ("finetuning.grpo_async_rollouts", True)]
)
def test_a_narrowed_draw_of_vllm_is_not_corrected_for(
    parsed: RunArguments, narrowed: tuple[str, Any], need: tuple[str, Any]
) -> None:
    with pytest.raises(ArgumentError, match="narrowed draw"):
        check_settings(changed(parsed, VLLM, narrowed, need))
    check_settings(changed(parsed, narrowed, need))  # the engine in process tells both
    check_settings(changed(parsed, VLLM, need))
    check_settings(changed(parsed, VLLM, narrowed, need, *EVALUATION))
