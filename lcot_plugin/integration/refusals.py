"""The settings of LLaMA-Factory and transformers that stage grpo cannot honour: one table refused, one warned about.

In:  the five parsed argument objects. Out: an ArgumentError that says what to write instead of each refused setting,
     and a warning for each setting without effect. The workflow asks before it reads a file.

Both libraries offer hundreds of settings that act inside SFT's loss, collator or prediction loop, which this stage does
not run. What LLaMA-Factory itself refuses outside SFT is not listed (neat_packing, train_on_prompt, mask_history,
predict_with_generate).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from llamafactory.extras.logging import get_logger

from lcot_plugin.errors import ArgumentError

# A child of LLaMA-Factory's logger: that one's handlers print it, and LLaMA Board shows it.
logger = get_logger(f"llamafactory.{__name__}")


class RunArguments(NamedTuple):
    """LLaMA-Factory's argument objects, in the order in which its parser returns them."""

    model: Any
    data: Any
    training: Any
    finetuning: Any
    generating: Any


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    key: str
    """As it is written in YAML; an environment variable in capitals."""
    is_set: Callable[[RunArguments], bool]
    advice: str
    """Why it cannot act here, and what to write instead."""
    of_sft: bool = False
    """LLaMA Board writes it for every stage; the user has not asked for it."""


def differs(group: str, key: str, default: Any = None) -> Callable[[RunArguments], bool]:
    """Whether a value is neither off nor `default`; a key that this version of transformers lacks is not."""
    return lambda run: getattr(getattr(run, group), key, default) not in (None, False, default)


def dispatches(key: str) -> Callable[[RunArguments], bool]:
    return lambda run: bool(getattr(run.training.accelerator_config, key, False))


def _greedy(run: RunArguments) -> bool:
    return not run.generating.do_sample or run.generating.temperature <= 0


def uses_zero_3(run: RunArguments) -> bool:
    plugin = getattr(run.training, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def uses_fsdp(run: RunArguments) -> bool:
    # `accelerate launch` says it through the environment alone.
    return bool(run.training.fsdp) or _of_launch("ACCELERATE_USE_FSDP") in ("true", "1", "yes")


def shards_weights(run: RunArguments) -> bool:
    """Whether no process has all weights."""
    return uses_zero_3(run) or uses_fsdp(run)


def _of_launch(variable: str) -> str:
    """A setting of `accelerate launch`."""
    return os.environ.get(variable, "").lower()


def _offloads_fsdp(run: RunArguments) -> bool:
    return uses_fsdp(run) and ("offload" in run.training.fsdp or _of_launch("FSDP_OFFLOAD_PARAMS") == "true")


def _wraps_by_size(run: RunArguments) -> bool:
    by_arguments = (run.training.fsdp_config or {}).get("min_num_params", 0) > 0
    return uses_fsdp(run) and (by_arguments or _of_launch("FSDP_AUTO_WRAP_POLICY") == "size_based_wrap")


def _keeps_best(run: RunArguments) -> bool:
    return (
        run.training.load_best_model_at_end
        or run.training.save_strategy == "best"
        or run.finetuning.early_stopping_steps is not None
    )


def _best_of_no_set(run: RunArguments) -> bool:
    if not (run.data.eval_on_each_dataset and run.data.eval_dataset and _keeps_best(run)):
        return False
    metric = (run.training.metric_for_best_model or "").removeprefix("eval_")
    return not metric.startswith(tuple(f"{name}_" for name in run.data.eval_dataset))


def _plateau_of_accuracy(run: RunArguments) -> bool:
    falls_on_rise = (run.training.lr_scheduler_kwargs or {}).get("mode") != "max"
    return run.training.lr_scheduler_type == "reduce_lr_on_plateau" and run.training.greater_is_better and falls_on_rise


def steps_in_backward(run: RunArguments) -> bool:
    """Whether `optim` names an optimizer that changes weights before a backward has ended."""
    return "layerwise" in run.training.optim or "lomo" in run.training.optim


IN_BACKWARD = (
    "it changes each weight within the backward, so a step has as many updates as backwards, none of them clipped, and "
    "a gradient that is not finite cannot be left out. "
)


def _vllm_narrows(run: RunArguments) -> bool:
    """Whether vLLM draws from less than the policy; its log-probabilities are then those of the narrowed draw alone."""
    generating = run.generating
    narrowed = generating.top_p < 1 or generating.top_k > 0 or run.finetuning.grpo_min_p > 0
    by_vllm = run.training.do_train and run.finetuning.grpo_rollout_engine == "vllm"
    return by_vllm and (narrowed or generating.repetition_penalty != 1)


def _goes_by_sampler(run: RunArguments) -> bool:
    """Whether the update uses the sampler's log-probabilities as the policy's."""
    arguments = run.finetuning
    corrected = arguments.grpo_sampler_correction != "none" or arguments.grpo_async_rollouts
    return corrected or arguments.grpo_replay_groups > 0


_SFT_LOSS = "it replaces SFT's loss. Remove it; `grpo_loss_type` chooses among GRPO's."
_SAMPLE = "GRPO compares different completions of a prompt, so it must sample: "
_OFF_POLICY = "the rollout and the update would then be two policies. Remove it."

REFUSED: tuple[Setting, ...] = (
    Setting(
        "do_train",
        lambda run: not (run.training.do_train or run.training.do_eval or run.training.do_predict),
        "there is nothing to do: write `do_train: true` or `do_eval: true`.",
    ),
    # What is run
    Setting(
        "do_predict",
        differs("training", "do_predict"),
        "write `do_eval: true` instead: it writes the metrics and every completion with its verdict.",
    ),
    Setting("USE_MCA", differs("finetuning", "use_mca"), "unset this environment variable: Megatron runs SFT only."),
    Setting("use_hyper_parallel", differs("finetuning", "use_hyper_parallel"), "it runs SFT only. Remove it."),
    # Loss
    Setting("use_dft_loss", differs("finetuning", "use_dft_loss"), _SFT_LOSS),
    Setting("use_eaft_loss", differs("finetuning", "use_eaft_loss"), _SFT_LOSS),
    Setting("use_asft_loss", differs("finetuning", "use_asft_loss"), _SFT_LOSS),
    # Model
    Setting(
        "neftune_noise_alpha",
        differs("training", "neftune_noise_alpha"),
        f"it adds noise to the embeddings in the update only; {_OFF_POLICY}",
        of_sft=True,
    ),
    Setting("mixture_of_depths", differs("model", "mixture_of_depths"), f"it skips tokens in training; {_OFF_POLICY}"),
    Setting("use_unsloth", differs("model", "use_unsloth"), "it replaces the forward pass that is read. Remove it."),
    Setting(
        "use_unsloth_gc",
        differs("model", "use_unsloth_gc"),
        "it is written for SFT's forward pass. Remove it: LLaMA-Factory's own gradient checkpointing is used.",
    ),
    Setting("use_kt", differs("model", "use_kt"), "KTransformers runs SFT only. Remove it."),
    Setting(
        "torch_compile",
        differs("training", "torch_compile"),
        "prompts, images and completions differ in size at every step, so each would compile anew. Remove it.",
    ),
    # Optimizer
    Setting("galore_layerwise", differs("finetuning", "galore_layerwise"), f"{IN_BACKWARD}Keep `use_galore` alone."),
    Setting("apollo_layerwise", differs("finetuning", "apollo_layerwise"), f"{IN_BACKWARD}Keep `use_apollo` alone."),
    Setting("optim", steps_in_backward, f"{IN_BACKWARD}Write `optim: adamw_torch`, or `adafactor` for little memory."),
    # Devices
    Setting(
        "fsdp",
        lambda run: uses_fsdp(run) and not run.training.do_train,
        "it shards what is trained, and nothing is. Remove it.",
    ),
    Setting(
        "fsdp: offload",
        _offloads_fsdp,
        "it was not tried with rollouts. Remove `offload`, or use DeepSpeed with a ZeRO-3 configuration that offloads.",
    ),
    Setting(
        "fsdp_config: min_num_params",
        _wraps_by_size,
        "it may wrap the output layer, which every process calls as often as its own tokens need. Write the layers to "
        "wrap instead: `fsdp_transformer_layer_cls_to_wrap`.",
    ),
    Setting(
        "quantization_bit",
        lambda run: shards_weights(run) and run.model.quantization_bit is not None,
        "rollouts with sharded weights (ZeRO-3, FSDP) were not tried with quantised ones. Use DDP or ZeRO-2.",
    ),
    Setting(
        "grpo_ref_sync_steps",
        lambda run: shards_weights(run) and bool(run.finetuning.grpo_ref_sync_steps),
        "a checkpoint would hold one process's shard of the moved reference (ZeRO-3, FSDP). Use DDP or ZeRO-2.",
    ),
    # Batches
    Setting("streaming", differs("data", "streaming"), "the number of prompts must be known. Remove it."),
    Setting("packing", differs("data", "packing"), "prompts are never concatenated. Remove it.", of_sft=True),
    Setting(
        "auto_find_batch_size",
        differs("training", "auto_find_batch_size"),
        "a group must stay in one batch. Remove it; when memory runs out, lower `per_device_train_batch_size` and "
        "raise `gradient_accumulation_steps`.",
    ),
    Setting(
        "accelerator_config: split_batches",
        dispatches("split_batches"),
        "each process samples its own prompts. Remove it.",
    ),
    Setting(
        "accelerator_config: dispatch_batches",
        dispatches("dispatch_batches"),
        "each process samples its own prompts. Remove it.",
    ),
    # Sampling
    Setting(
        "max_new_tokens",
        lambda run: run.generating.max_new_tokens < 1,
        "it must be at least 1: write for example `max_new_tokens: 1024`.",
    ),
    Setting(
        "do_sample",
        lambda run: run.training.do_train and not run.generating.do_sample,
        f"{_SAMPLE}remove `do_sample: false`.",
    ),
    Setting(
        "temperature",
        lambda run: run.training.do_train and run.generating.temperature <= 0,
        f"{_SAMPLE}write `temperature: 1.0`.",
    ),
    Setting(
        "grpo_eval_generations",
        lambda run: not run.training.do_train and run.finetuning.grpo_eval_generations > 0 and _greedy(run),
        "`do_sample: false` or `temperature: 0` would make all of these samples the greedy answer, which is measured "
        "anyway: write `grpo_eval_generations: 0`, or sample.",
    ),
    Setting(
        "grpo_rollout_engine: vllm",
        lambda run: _vllm_narrows(run) and _goes_by_sampler(run),
        "with top_p, top_k, grpo_min_p or repetition_penalty it tells the log-probabilities of the narrowed draw only, "
        "and grpo_sampler_correction, grpo_async_rollouts "
        "and grpo_replay_groups need those of the policy: write `top_p: 1.0`, `top_k: 0`, `grpo_min_p: 0.0` and "
        "`repetition_penalty: 1.0`, or leave those three out.",
    ),
    Setting("num_beams", differs("generating", "num_beams", 1), "completions are sampled, not searched. Remove it."),
    Setting("eval_num_beams", differs("data", "eval_num_beams", 1), "no answer is searched for by beams. Remove it."),
    Setting(
        "generation_num_beams",
        # LLaMA-Factory copies eval_num_beams into it.
        lambda run: (
            differs("training", "generation_num_beams", 1)(run)
            and run.training.generation_num_beams != run.data.eval_num_beams
        ),
        "no answer is searched for by beams. Remove it.",
    ),
    # The best checkpoint
    Setting(
        "metric_for_best_model",
        _best_of_no_set,
        "with `eval_on_each_dataset` each set has its own accuracy: write `metric_for_best_model: NAME_accuracy` with "
        "the name of one of the sets of `eval_dataset`.",
    ),
    Setting(
        "lr_scheduler_type",
        _plateau_of_accuracy,
        "reduce_lr_on_plateau would lower the learning rate while the metric rises: add "
        "`lr_scheduler_kwargs: {mode: max}`.",
    ),
)
"""Settings that stop the run."""

_IN_UPDATE_ONLY = (
    "it acts in the update but not in the rollout, so the policy that is trained differs from the one that sampled: "
    "write 0."
)

WARNED: tuple[Setting, ...] = (
    Setting(
        "grpo_micro_batch_tokens",
        lambda run: run.finetuning.grpo_micro_batch_tokens is not None and run.finetuning.grpo_update_layout == "rows",
        "it has no effect on `grpo_update_layout: rows`, whose passes hold per_device_train_batch_size completions.",
    ),
    Setting(
        "lora_dropout",
        lambda run: (
            run.training.do_train and run.finetuning.finetuning_type == "lora" and run.finetuning.lora_dropout > 0
        ),
        _IN_UPDATE_ONLY,
    ),
    Setting(
        "module_dropout",
        lambda run: (
            run.training.do_train and run.finetuning.finetuning_type == "oft" and run.finetuning.module_dropout > 0
        ),
        _IN_UPDATE_ONLY,
    ),
    Setting(
        "ref_model",
        lambda run: run.finetuning.ref_model is not None and run.finetuning.grpo_beta == 0,
        "it has no effect while grpo_beta is 0, the weight of the KL divergence to it.",
    ),
    Setting(
        "grpo_rollout_engine: vllm",
        lambda run: _vllm_narrows(run) and not _goes_by_sampler(run),
        "with top_p, top_k, grpo_min_p or repetition_penalty it tells the log-probabilities of the narrowed draw only, "
        "so the gap between sampler and trainer cannot be "
        "measured (`sampler_distance` in the log holds both).",
    ),
    Setting("group_by_length", differs("training", "group_by_length"), "it has no effect on prompts."),
    Setting(
        "train_sampling_strategy",
        differs("training", "train_sampling_strategy", "random"),
        "it has no effect; `disable_shuffling: true` keeps the prompts in order.",
    ),
    Setting(
        "dataloader_drop_last",
        differs("training", "dataloader_drop_last"),
        "it has no effect: the last batch of an epoch is filled with prompts from its start.",
    ),
    Setting(
        "label_smoothing_factor",
        differs("training", "label_smoothing_factor"),
        "it has no effect on GRPO's loss.",
    ),
    Setting(
        "compute_accuracy",
        differs("finetuning", "compute_accuracy"),
        "it has no effect: that is SFT's token accuracy; the accuracy of the answers is always measured.",
    ),
    Setting("length_penalty", differs("generating", "length_penalty", 1.0), "it has no effect without beams."),
    Setting(
        "include_num_input_tokens_seen",
        differs("training", "include_num_input_tokens_seen", "no"),
        "it has no effect: it counts the tokens of padded inputs, which are not made.",
        of_sft=True,
    ),
    Setting(
        "include_effective_tokens_per_second",
        differs("finetuning", "include_effective_tokens_per_second"),
        "it has no effect: it counts the tokens of SFT's data.",
    ),
    Setting("fp16_full_eval", differs("training", "fp16_full_eval"), "it has no effect; use `fp16` or `infer_dtype`."),
    Setting("bf16_full_eval", differs("training", "bf16_full_eval"), "it has no effect; use `bf16` or `infer_dtype`."),
)
"""Settings without effect, or with one that the user should know of."""


def check_settings(run: RunArguments) -> None:
    """Raises ArgumentError with every refused setting; warns about the others, once in a run and on rank 0."""
    check_tables("stage: grpo", run, REFUSED, WARNED)


def check_tables(what: str, run: RunArguments, refused: tuple[Setting, ...], warned: tuple[Setting, ...]) -> None:
    """`check_settings` for any two tables; `what` is the setting that the others do not go with."""
    faults = [f"{setting.key}: {setting.advice}" for setting in refused if setting.is_set(run)]
    if faults:
        raise ArgumentError(f"{what} cannot run with these settings:\n  " + "\n  ".join(faults))
    for setting in warned:
        if setting.is_set(run):
            logger.warning_rank0(f"{what}, {setting.key}: {setting.advice}")
