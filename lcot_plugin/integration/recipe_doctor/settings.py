"""The arguments of a recipe: do they parse, do they fit together, are the files there that they name?

In: the keys as written. Out: findings, and the parsed arguments where they can be had on this machine.

Settings that only the machine of the run can check (bf16, DeepSpeed, FSDP) are left out of the parsing here where this
machine lacks what they need; they are kept in `written`, for the estimates.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from llamafactory.hparams import get_train_args, parser

from lcot_plugin.arguments import BatchPlan, plan_batches
from lcot_plugin.command_checks import near_names, read_run_file
from lcot_plugin.errors import LcotError
from lcot_plugin.integration import contract
from lcot_plugin.integration.recipe_doctor.folders import folder_lines
from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, WRONG, Line
from lcot_plugin.integration.recipe_doctor.values import value_lines
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.stage import with_sampling_defaults

FOLDERS_OF_RUNS = ("saves", "output", "outputs", "runs", ".", "..", "~")
"""First parts of paths that are no organisation of a hub."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
OF_THE_MACHINE: dict[str, Any] = {"bf16": False, "fp16": False, "tf32": None, "pure_bf16": False, "flash_attn": "sdpa"}
"""What needs a GPU to be parsed: what stands in for it on a machine without one."""
OF_THE_LAUNCH = ("deepspeed", "fsdp", "fsdp_config", "ray_num_workers")
"""Needs several processes, or packages, to be parsed."""
OF_PACKAGES = (
    ("quantization_bit", "bitsandbytes", None),
    ("flash_attn", "flash_attn", "fa2"),
    ("enable_liger_kernel", "liger_kernel", None),
)
"""Key, the package that it needs, and the value for which; None: any."""


def read_settings(
    config: str, overrides: tuple[str, ...], num_processes: int, dry_run: bool
) -> tuple[dict[str, Any], RunArguments | None, BatchPlan | None, list[Line]]:
    """The keys as written, the parsed arguments, the batch arithmetic of a GRPO run, findings.

    Raises ArgumentError where the file itself cannot be read. dry_run: what an earlier run of the recipes makes need
    not be there.
    """
    written = read_run_file(config, overrides)
    lines = [version_line(), *unknown_keys(written), *value_lines(written)]
    lines += [*path_lines(written, Path(config), dry_run), *folder_lines(written), *launch_lines(written)]
    if any(line.subject in ("keys", "values") for line in lines):
        return written, None, None, lines
    run, problem = parse(written)
    if run is None:
        return written, None, None, [*lines, Line(WRONG, "arguments", problem)]
    lines.append(Line(GOOD, "arguments", f"{len(written)} keys, stage {run.finetuning.stage}"))
    if run.finetuning.stage == "grpo":
        plan, of_stage = grpo_lines(run, num_processes)
        return written, run, plan, lines + of_stage
    return written, run, None, lines + sft_lines(run, num_processes)


def version_line() -> Line:
    """Whether the releases that are installed are those that the plugin works with."""
    found = {name: metadata.version(name) for name in contract.REQUIREMENTS if find_spec(name) is not None}
    problems = [problem for name in found if (problem := contract.requirement_problem(name, found[name]))]
    if problems:
        return Line(WRONG, "versions", " ".join(problems))
    shown = ", ".join(f"{name} {found[name]}" for name in ("llamafactory", "transformers", "torch") if name in found)
    return Line(GOOD, "versions", shown)


def unknown_keys(written: Mapping[str, Any]) -> list[Line]:
    """Keys that no argument class has; LLaMA-Factory names them without a suggestion."""
    known = {item.name for arguments in parser._TRAIN_ARGS for item in dataclasses.fields(arguments)}
    unknown = sorted(set(written) - known)
    if not unknown:
        return []
    advice = near_names(unknown, sorted(known)) or "check the spelling (docs/arguments.md has all keys)."
    return [Line(WRONG, "keys", f"no argument is called {', '.join(unknown)}: {advice}")]


def parse(written: Mapping[str, Any]) -> tuple[RunArguments | None, str]:
    """LLaMA-Factory's own parsing and checks; the arguments, or None and what is wrong."""
    adapted = {key: value for key, value in written.items() if key not in OF_THE_LAUNCH}
    adapted["report_to"] = "none"  # trackers need not be installed here
    if not torch.cuda.is_available():
        adapted |= {key: value for key, value in OF_THE_MACHINE.items() if key in written}
        adapted["use_cpu"] = True
    try:
        run = RunArguments(*get_train_args(with_sampling_defaults(adapted)))
    except (LcotError, ValueError, TypeError, ImportError, OSError) as error:
        return None, " ".join(str(error).split())
    if written.get("bf16") or written.get("pure_bf16"):
        run.model.compute_dtype = torch.bfloat16
    elif written.get("fp16"):
        run.model.compute_dtype = torch.float16
    return run, ""


# Files


def path_lines(written: Mapping[str, Any], config: Path, dry_run: bool) -> list[Line]:
    """Models, adapters and functions that are named by a path and are not there."""
    lines = []
    for key in ("model_name_or_path", "adapter_name_or_path", "ref_model", "resume_from_checkpoint"):
        value = written.get(key)
        if value in (None, True, False):
            continue
        for part in value if isinstance(value, list) else str(value).split(","):
            path = Path(part.strip()).expanduser()
            if "://" in part:
                name = "/".join(part.strip().rstrip("/").split("/")[-2:])
                lines.append(Line(WRONG, key, f"{part.strip()} is an address: write the hub's name, {name}."))
                continue
            if path.is_dir() or not looks_local(part.strip()):
                continue
            maker = made_by(part.strip(), config)
            if maker is None:
                lines.append(
                    Line(
                        WRONG,
                        key,
                        f"there is no folder {part.strip()}, and no recipe beside {config} "
                        "writes it: correct the path, or train it first.",
                    )
                )
            elif not dry_run:
                lines.append(
                    Line(WRONG, key, f"{part.strip()} is not there yet: `llamafactory-cli train {maker}` makes it.")
                )
            else:
                lines.append(Line(NOTE, key, f"{part.strip()} is made by {maker}"))
    for key in ("grpo_reward_funcs", "grpo_loss_type"):
        names = written.get(key) or []
        for name in names if isinstance(names, list) else str(names).split(","):
            file = str(name).partition(".py:")[0].strip() + ".py"
            if ".py:" in str(name) and not Path(file).expanduser().is_file():
                lines.append(Line(WRONG, key, f"there is no file {file}."))
    return lines


def looks_local(name: str) -> bool:
    """Whether a name that is no folder here is meant as one."""
    return not HUB_NAME.fullmatch(name) or name.partition("/")[0] in FOLDERS_OF_RUNS


def made_by(folder: str, config: Path) -> Path | None:
    """The recipe in the folder of `config`, or below the one above it, whose output_dir is `folder`."""
    places = [*sorted(config.parent.glob("*.y*ml")), *sorted(config.parent.parent.glob("*/*.y*ml"))]
    for place in places:
        try:
            if str(read_run_file(str(place)).get("output_dir", "")).rstrip("/") == folder.rstrip("/"):
                return place
        except LcotError:
            continue
    return None


# Launch


def zero_stage(written: Mapping[str, Any]) -> int | None:
    """DeepSpeed's ZeRO stage; None without DeepSpeed."""
    return int(_zero(written).get("stage", 0)) if written.get("deepspeed") else None


def offloads(written: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether ZeRO keeps (optimizer states, weights) in the host's memory."""
    zero = _zero(written)
    devices = [(zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param")]
    return devices[0] != "none", devices[1] != "none"


def _zero(written: Mapping[str, Any]) -> dict[str, Any]:
    configured = written.get("deepspeed") or {}
    if isinstance(configured, str):
        try:
            configured = json.loads(Path(configured).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
    return dict(configured.get("zero_optimization") or {})


def needs_gpu(written: Mapping[str, Any]) -> bool:
    """Whether a recipe is written for a GPU."""
    return any(written.get(key) for key in ("bf16", "fp16", "pure_bf16", "quantization_bit", *OF_THE_LAUNCH[:3]))


def launch_lines(written: Mapping[str, Any]) -> list[Line]:
    """What the way of starting needs."""
    lines = []
    file = written.get("deepspeed")
    if isinstance(file, str):
        try:
            json.loads(Path(file).read_text(encoding="utf-8"))
        except OSError:
            lines.append(Line(WRONG, "deepspeed", f"there is no file {file}: `lcot init` copies those of the recipes."))
        except ValueError as error:
            lines.append(Line(WRONG, "deepspeed", f"{file} is not JSON: {error}."))
    for key, package, value in OF_PACKAGES:
        if written.get(key) and value in (None, written[key]) and find_spec(package) is None:
            level = WRONG if torch.cuda.is_available() else NOTE
            text = f"{key} needs the package {package.replace('_', '-')}, which is not installed here."
            lines.append(Line(level, "packages", text))
    if file and find_spec("deepspeed") is None:
        lines.append(
            Line(
                NOTE,
                "deepspeed",
                "not installed here; the run needs `pip install lcot-plugin[deepspeed]` "
                "and FORCE_TORCHRUN=1 where there is one GPU",
            )
        )
    machine = [key for key in (*OF_THE_MACHINE, *OF_THE_LAUNCH) if written.get(key) and key != "flash_attn"]
    if machine and not torch.cuda.is_available():
        lines.append(Line(NOTE, "this machine", f"has no GPU, so {', '.join(machine)} could not be tried"))
    return lines


# Stages


def grpo_lines(run: RunArguments, num_processes: int) -> tuple[BatchPlan | None, list[Line]]:
    """The stage's own checks, and how prompts, completions and steps go together."""
    from lcot_plugin.integration.grpo import check_arguments

    training, arguments = run.training, run.finetuning
    try:
        check_arguments(run)
        if not training.do_train:
            return None, [Line(GOOD, "stage grpo", f"evaluation, {arguments.grpo_eval_generations} samples a problem")]
        plan = plan_batches(
            arguments, training.per_device_train_batch_size, training.gradient_accumulation_steps, num_processes
        )
    except LcotError as error:
        return None, [Line(WRONG, "stage grpo", str(error))]
    completions = plan.prompts_per_rollout * plan.num_generations
    steps = plan.steps_per_generation // training.gradient_accumulation_steps * plan.num_iterations
    served = "one optimizer step" if steps == 1 else f"{steps} optimizer steps"
    text = (
        f"{plan.prompts_per_rollout} prompts x {plan.num_generations} completions = {completions} a rollout, for "
        f"{served}, on {num_processes} process{'es' if num_processes > 1 else ''}"
    )
    lines = [Line(GOOD, "batch", text)]
    if plan.prompts_per_rollout < 4:
        advice = "raise gradient_accumulation_steps: few prompts make noisy steps, and none where no rewards differ."
        lines.append(Line(NOTE, "batch", f"{plan.prompts_per_rollout} prompts a rollout: {advice}"))
    return plan, lines


def sft_lines(run: RunArguments, num_processes: int) -> list[Line]:
    """The checks of packed SFT, and the size of a step."""
    training, data = run.training, run.data
    if not training.do_train:
        return []
    steps = training.gradient_accumulation_steps * num_processes
    if not getattr(data, "length_aware_packing", False):
        return (
            [
                Line(
                    GOOD,
                    "batch",
                    f"{training.per_device_train_batch_size * steps} records a step, padded; "
                    "length_aware_packing: true would pack them",
                )
            ]
            if run.finetuning.stage == "sft"
            else []
        )
    from lcot_plugin.integration.packing_refusals import check_packing_settings

    try:
        check_packing_settings(run)
    except LcotError as error:
        return [Line(WRONG, "packing", str(error))]
    budget = pack_budget(run)
    return [Line(GOOD, "batch", f"packs of up to {budget:,} tokens, {steps} a step: {budget * steps:,} tokens at most")]


def pack_budget(run: RunArguments) -> int:
    """Tokens of a pack."""
    return int(run.data.pack_max_tokens or run.data.cutoff_len * run.training.per_device_train_batch_size)
