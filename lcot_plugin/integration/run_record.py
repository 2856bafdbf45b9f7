"""What a run was started with, as run.json keeps it: arguments, versions, hardware; no secrets.

In: LLaMA-Factory's parsed argument objects, and what the user wrote. Out: one dict of plain values. Consumer:
integration.run_files.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.report.masking import masked
from lcot_plugin.report.run_log import FORMAT

LIBRARIES = (
    *("lcot-plugin", "llamafactory", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed"),
    "flash-attn",
)
"""Distributions whose versions are kept, where they are installed."""
GIB = 2**30

_written: ContextVar[frozenset[str] | None] = ContextVar("lcot_written_arguments", default=None)


@contextmanager
def written_arguments(args: Mapping[str, Any] | list[str]) -> Iterator[None]:
    """For as long as it lasts, `args` (a YAML file's keys, or a command line) are what the user wrote."""
    token = _written.set(frozenset(written_keys(args)))
    try:
        yield
    finally:
        _written.reset(token)


def written_keys(args: Mapping[str, Any] | list[str]) -> Iterable[str]:
    """Names of the arguments, as the argument classes call them."""
    if isinstance(args, Mapping):
        return [str(key) for key in args]
    return [arg[2:].split("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]


def run_record(run: RunArguments, plan: Mapping[str, Any]) -> dict[str, Any]:
    """run.json. plan: how records meet in a step, by name."""
    record = {
        "format": FORMAT,
        "stage": run.finetuning.stage,
        "trains": bool(run.training.do_train),
        "evaluates": bool(run.training.do_eval),
        "model": run.model.model_name_or_path,
        "adapters": list(run.model.adapter_name_or_path or ()),
        "template": run.data.template,
        "datasets": list(run.data.dataset or ()),
        "eval_datasets": list(run.data.eval_dataset or ()),
        "finetuning_type": run.finetuning.finetuning_type,
        "output_dir": run.training.output_dir,
        "resumed_from": run.training.resume_from_checkpoint or None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(run.training.world_size),
        "arguments": arguments_of(run),
        "plan": dict(plan),
    }
    return masked(plain(record))


def grpo_plan(run: RunArguments, plan: BatchPlan) -> dict[str, Any]:
    """How many prompts and completions meet."""
    return {
        **asdict(plan),
        "prompts_per_rollout": plan.prompts_per_rollout,
        "completions_per_rollout": plan.prompts_per_rollout * plan.num_generations,
        "micro_steps_per_rollout": plan.micro_steps_per_rollout,
        "gradient_accumulation_steps": run.training.gradient_accumulation_steps,
        "max_new_tokens": run.generating.max_new_tokens,
        "eval_generations": run.finetuning.grpo_eval_generations,
        "rewards": run.finetuning.reward_functions(),
        "reward_weights": run.finetuning.reward_weights(),
        "rollout_engine": run.finetuning.grpo_rollout_engine,
    }


def sft_plan(run: RunArguments) -> dict[str, Any]:
    """How records meet in a step of SFT."""
    plan = {
        "per_device_train_batch_size": run.training.per_device_train_batch_size,
        "gradient_accumulation_steps": run.training.gradient_accumulation_steps,
        "cutoff_len": run.data.cutoff_len,
        "packed": bool(run.data.length_aware_packing),
    }
    if run.data.length_aware_packing:
        plan |= {"pack_max_tokens": run.data.pack_max_tokens, "pack_max_patches": run.data.pack_max_patches}
    return plan


def arguments_of(run: RunArguments) -> dict[str, Any]:
    """The value of each key that the user wrote; where that is not known, of each that differs from its default."""
    written, found = _written.get(), {}
    for group in run:
        for item in fields(group):
            value = getattr(group, item.name, None)
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            if item.name in written if written is not None else item.init and value != default:
                found[item.name] = value
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(num_processes: int) -> dict[str, Any]:
    """The devices that this process sees, with their memory in GiB."""
    devices = [
        {"name": properties.name, "memory_gib": round(properties.total_memory / GIB, 1)}
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "devices": devices or [{"name": cpu_name()}],
        "num_processes": num_processes,
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "system": platform.system(),
    }


def cpu_name() -> str:
    """As /proc/cpuinfo calls it; its architecture on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] else platform.processor() or platform.machine() or "CPU"


def plain(value: Any) -> Any:
    """What JSON takes; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and value - value != 0:  # inf, NaN
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(getattr(value, "value", value))
