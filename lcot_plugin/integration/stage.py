"""Seam: `llamafactory.train.tuner`. Sends `stage: grpo` to our workflow.

The tuner chooses the stage in an if chain inside `_training_function`, which Ray workers call by its global name too;
the function is wrapped, and the GRPO stage gets the callbacks that the tuner gives every stage. Can go when stages can
be registered.
"""

from __future__ import annotations

import gc
from itertools import pairwise
from types import ModuleType
from typing import Any

from lcot_plugin.arguments import SAMPLING_DEFAULTS


def apply(module: ModuleType) -> None:
    """Wraps `_training_function` of the tuner."""
    original = module._training_function

    def _training_function(config: dict[str, Any]) -> None:
        from lcot_plugin.integration.run_record import written_arguments
        from lcot_plugin.survival.stopping import RunStopped

        try:
            with written_arguments(config["args"]):
                if is_grpo(config["args"]):
                    _train_grpo(module, with_sampling_defaults(config["args"]), config["callbacks"])
                else:
                    original(config)
        except RunStopped:  # on every process
            _leave_process_group(module)
            raise

    module._training_function = _training_function


def is_grpo(args: dict[str, Any] | list[str]) -> bool:
    """Whether arguments from a YAML file (a dict) or a command line (a list) ask for the GRPO stage."""
    if isinstance(args, dict):
        return args.get("stage") == "grpo"
    return "--stage=grpo" in args or ("--stage", "grpo") in pairwise(args)


def with_sampling_defaults(args: dict[str, Any] | list[str]) -> dict[str, Any] | list[str]:
    """Temperature, top-p and top-k that explore, where the user wrote none: LLaMA-Factory's defaults are for chat."""
    if isinstance(args, dict):
        return {**SAMPLING_DEFAULTS, **args}
    # argparse takes `--top-p` for `--top_p`.
    written = {arg.split("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
    missing = {f"--{key}": str(value) for key, value in SAMPLING_DEFAULTS.items() if f"__{key}" not in written}
    return [*args, *(part for pair in missing.items() for part in pair)]


def judge_checkpoints_by_accuracy(training_args: Any, finetuning_args: Any) -> None:
    """Makes greedy accuracy the metric of the best checkpoint where the user named none, or the loss.

    transformers' default is the evaluation loss, which an evaluation by verdicts does not have.
    """
    needs_metric = finetuning_args.early_stopping_steps is not None or training_args.save_strategy == "best"
    metric = training_args.metric_for_best_model
    if metric in ("loss", "eval_loss") or (metric is None and needs_metric):
        training_args.metric_for_best_model = "accuracy"
        training_args.greater_is_better = True


def _train_grpo(tuner: ModuleType, args: dict[str, Any] | list[str], callbacks: list[Any]) -> None:
    from lcot_plugin.integration.grpo import run_grpo

    model_args, data_args, training_args, finetuning_args, generating_args = tuner.get_train_args(args)
    judge_checkpoints_by_accuracy(training_args, finetuning_args)
    callbacks.append(tuner.LogCallback())
    if finetuning_args.pissa_convert:
        callbacks.append(tuner.PissaConvertCallback())
    if finetuning_args.use_swanlab:
        callbacks.append(tuner.get_swanlab_callback(finetuning_args))
    if finetuning_args.early_stopping_steps is not None:
        callbacks.append(tuner.EarlyStoppingCallback(early_stopping_patience=finetuning_args.early_stopping_steps))
    if getattr(training_args, "enable_torch_profiler", False):
        callbacks.append(tuner.TorchProfilerCallback(training_args))
    if getattr(training_args, "profile_modules", None):
        callbacks.append(tuner.ModuleProfilerCallback(training_args.profile_modules))
    callbacks.append(tuner.ReporterCallback(model_args, data_args, finetuning_args, generating_args))

    run_grpo(model_args, data_args, training_args, finetuning_args, generating_args, callbacks)

    _leave_process_group(tuner)


def _leave_process_group(tuner: ModuleType) -> None:
    if tuner.is_ray_available() and tuner.ray.is_initialized():
        return  # Ray destroys the process group itself
    if tuner.dist.is_initialized():
        wait_for_everyone()
        tuner.dist.destroy_process_group()


def wait_for_everyone() -> None:
    """Waits for the other processes, so that `destroy_process_group` then ends gloo's threads.

    They let go of a collective's tensors after it has returned, and need the interpreter to do so. Where that is being
    torn down they end the process ("terminate called without an active exception", SIGABRT), and torchrun then ends
    the one that still saves (pytorch/pytorch#190489). The group joins its threads when the last reference to it goes;
    DDP's reducer, in a cycle with the trainer that has just gone out of scope, is another one.
    """
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    gc.collect()
