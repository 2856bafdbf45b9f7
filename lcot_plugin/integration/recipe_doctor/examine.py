"""`lcot doctor RECIPE` from the first finding to the last line. Reads like a table of contents."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.errors import LcotError
from lcot_plugin.integration.data_sets import DataRecipe, read_recipe
from lcot_plugin.integration.recipe_doctor.lines import GIB, GOOD, NOTE, SKIPPED, WRONG, Line, gib, millions
from lcot_plugin.integration.recipe_doctor.memory import (
    Sharding,
    Static,
    UpdatePass,
    bits_per_weight,
    device_bytes,
    rollout_bytes,
    static_bytes,
    vision_bytes,
)
from lcot_plugin.integration.recipe_doctor.sets import entry_lines, record_lines
from lcot_plugin.integration.recipe_doctor.settings import (
    looks_local,
    offloads,
    pack_budget,
    read_settings,
    zero_stage,
)
from lcot_plugin.integration.recipe_doctor.shape import count, empty_model
from lcot_plugin.integration.recipe_doctor.speed import decode_seconds, measure_device, update_seconds
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

LOW, HIGH = 1024, 4096
"""Lengths at which a pass is run to know the others."""
PATCH_AREA = 14 * 14
"""Pixels of a patch in most vision towers."""


@dataclass
class Examination:
    """What is known so far; every step adds findings."""

    config: str
    overrides: tuple[str, ...]
    dry_run: bool
    num_processes: int
    memory: float | None
    """Bytes of a device, where the user or this machine says."""
    num_records: int
    lines: list[Line] = field(default_factory=list)
    estimates: dict[str, Any] = field(default_factory=dict)

    def add(self, *lines: Line) -> None:
        """Prints as it finds."""
        for line in lines:
            print(line, flush=True)
        self.lines += lines


def examine(
    config: str,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    num_processes: int = 1,
    memory_gib: float | None = None,
    num_records: int = 500,
    json_file: Path | None = None,
) -> int:
    """Prints every finding; 1 where something is wrong. Raises ArgumentError where the file cannot be read."""
    memory = memory_gib * GIB if memory_gib is not None else _memory_here()
    found = Examination(config, tuple(overrides), dry_run, num_processes, memory, num_records)
    written, run, plan, lines = read_settings(config, found.overrides, num_processes, dry_run)
    found.add(*lines)
    if run is not None:
        here, entries = entry_lines(run, dry_run)
        found.add(*entries)
        if dry_run:
            found.add(Line(SKIPPED, "model and data", "--dry-run: nothing was opened"))
        else:
            examine_data_and_model(found, written, run, plan, here)
    return finish(found, json_file)


def _memory_here() -> float | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def examine_data_and_model(
    found: Examination, written: dict[str, Any], run: RunArguments, plan: BatchPlan | None, here: Sequence[str]
) -> None:
    """What needs the tokenizer, the configuration and the data."""
    changes = [*found.overrides, f"max_samples={found.num_records}"]
    try:
        # Without its sets a recipe has no data to read; the tokenizer is wanted all the same.
        recipe = read_recipe(found.config, changes, datasets=",".join(here) or "none")
    except LcotError as error:
        is_here = Path(str(run.model.model_name_or_path)).is_dir()
        found.add(Line(WRONG if is_here else SKIPPED, "model", _why_no_model(run, error)))
        return
    if here:
        measures, lines = record_lines(recipe, run, found.num_records)
        found.estimates["data"] = measures
        found.add(*lines)
    examine_model(found, written, run, plan, recipe)


def _on_a_hub(run: RunArguments) -> bool:
    name = str(run.model.model_name_or_path)
    return not Path(name).is_dir() and not looks_local(name)


def _why_no_model(run: RunArguments, error: LcotError) -> str:
    if not Path(str(run.model.model_name_or_path)).is_dir() and not _on_a_hub(run):
        return (
            f"{run.model.model_name_or_path} is not there yet, so template, lengths, golds and memory were not looked "
            "at: name the model that it will be made of, model_name_or_path=..., to have an estimate now."
        )
    if _on_a_hub(run) and os.environ.get("HF_HUB_OFFLINE") == "1":
        return (
            f"{run.model.model_name_or_path} is not on this machine, so template, lengths, golds and memory were not "
            "looked at: --download fetches its configuration and tokenizer (a few MB, no weights)."
        )
    return str(error)


def examine_model(
    found: Examination, written: dict[str, Any], run: RunArguments, plan: BatchPlan | None, recipe: DataRecipe
) -> None:
    """Parameters, context, end tokens, disk, memory and time."""
    try:
        model = empty_model(run, recipe.tokenizer, run.training.do_train)
    except Exception as error:  # whatever a family raises where it is built without weights
        found.add(Line(SKIPPED, "model", f"cannot be built without weights ({type(error).__name__}: {error})"))
        return
    parameters = count(model)
    found.estimates["parameters"] = vars(parameters)
    language, vision = millions(parameters.language), millions(parameters.vision)
    text = f"{language} parameters in the language model, {vision} in the vision tower; {millions(parameters.trained)}"
    found.add(Line(GOOD, "model", f"{text} are trained"))
    examine_tokens(found, run, recipe, model)
    examine_disk(found, run, parameters.trained, parameters.language + parameters.vision)
    examine_memory(found, written, run, plan, recipe, model)


def examine_tokens(found: Examination, run: RunArguments, recipe: DataRecipe, model: Any) -> None:
    """Image tokens, end tokens, and the model's context."""
    base = unwrap_base_model(model)
    plugin = recipe.template.mm_plugin
    vlm = VisionLanguageModel(model, recipe.tokenizer, (plugin.image_token, plugin.video_token, plugin.audio_token))
    if vlm.image_token_id is not None:
        written = recipe.tokenizer.convert_tokens_to_ids(plugin.image_token) if plugin.image_token else None
        same = written == vlm.image_token_id
        detail = f"template {plugin.image_token!r} is {written}, the model's is {vlm.image_token_id}"
        advice = "" if same else ": choose the template of the model's family."
        found.add(Line(GOOD if same else WRONG, "image token", detail + advice))
    ends = sorted(set(recipe.template.get_stop_token_ids(recipe.tokenizer)))
    names = ", ".join(f"{recipe.tokenizer.convert_ids_to_tokens(i)!r}" for i in ends)
    found.add(
        Line(GOOD if ends else WRONG, "end tokens", names or "the template names none: completions would not end.")
    )
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    longest = run.data.cutoff_len + (run.generating.max_new_tokens if run.finetuning.stage == "grpo" else 0)
    if limit is not None:
        fits = longest <= limit
        advice = "" if fits else ": lower cutoff_len or max_new_tokens."
        text = f"{longest:,} tokens at most of the model's {limit:,}{advice}"
        found.add(Line(GOOD if fits else WRONG, "context", text))


def examine_disk(found: Examination, run: RunArguments, trained: int, all_: int) -> None:
    """Whether the checkpoints fit where they go."""
    if not run.training.do_train or str(run.training.save_strategy) in ("no", "SaveStrategy.NO"):
        return
    import shutil

    folder = Path(run.training.output_dir)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    weights = all_ * 2 if run.finetuning.finetuning_type == "full" else trained * 4
    each = weights + (0 if run.training.save_only_model else trained * 8)
    kept = (run.training.save_total_limit or 5) + 1
    free = shutil.disk_usage(existing).free
    text = f"a checkpoint takes {gib(each)}; {gib(free)} are free in {existing}"
    if free < each * kept:
        limit = run.training.save_total_limit
        wanted = f"save_total_limit {limit}" if limit else "no save_total_limit"
        found.add(Line(NOTE if free > 2 * each else WRONG, "disk", f"{text}: with {wanted} that may not be enough."))
    else:
        found.add(Line(GOOD, "disk", text))


# Memory and time


def examine_memory(
    found: Examination,
    written: dict[str, Any],
    run: RunArguments,
    plan: BatchPlan | None,
    recipe: DataRecipe,
    model: Any,
) -> None:
    """Peak memory by phase, the largest settings that fit, and the least time of a step."""
    host = offloads(written)
    sharding = Sharding(found.num_processes, zero_stage(written), bool(written.get("fsdp")), *host)
    dtype = run.model.compute_dtype or torch.float32
    optimizer = str(run.training.optim).rpartition(".")[2].lower()
    args = run.model
    bits = bits_per_weight(args.quantization_bit, args.quantization_method, args.double_quantization)
    static = static_bytes(model, dtype, optimizer, bits, sharding)
    kept = static.weights + static.gradients + static.optimizer
    trains = run.training.do_train
    phases: dict[str, float] = {}
    largest: dict[str, str] = {}
    limit = found.memory
    if run.finetuning.stage == "grpo":
        rows = run.finetuning.grpo_rollout_batch_size or (
            plan.prompts_per_rank * plan.num_generations if plan else run.training.per_device_eval_batch_size
        )
        if run.finetuning.grpo_rollout_engine != "vllm":
            states = _rollout(run, model, dtype, rows)
            phases["rollout"] = states + static.weights + static.optimizer + static.casts
            _fit_rows(largest, limit, phases["rollout"], states / rows, rows)
    budget = _budget(run)
    if trains and budget:
        seen = vision_bytes(model, _patches(found, run, recipe, budget), dtype)
        try:
            uses_mrope = VisionLanguageModel(model, recipe.tokenizer).uses_mrope
            line = UpdatePass(model, dtype, _chunk(run), uses_mrope).line(LOW, HIGH)
        except Exception as error:  # whatever a family raises where it meets tensors without data
            cause = " ".join(str(error).split())[:200]
            found.add(Line(SKIPPED, "memory", f"a pass cannot be estimated ({type(error).__name__}: {cause})"))
        else:
            phases["update"] = kept + line(budget) + seen
            _fit_tokens(largest, limit, lambda tokens: kept + line(tokens) + seen, budget, _budget_key(run))
        phases["optimizer step"] = kept + static.step
    if not phases:
        return
    _say_memory(found, static, phases, largest, sharding)
    _say_time(found, run, plan, model, static, dtype, budget)


def _rollout(run: RunArguments, model: Any, dtype: torch.dtype, rows: int) -> float:
    group = max(run.finetuning.grpo_num_generations, 1)
    vocabulary = unwrap_base_model(model).get_output_embeddings().weight.shape[0]
    return rollout_bytes(model, dtype, rows, group, run.data.cutoff_len, run.generating.max_new_tokens, vocabulary)


def _budget(run: RunArguments) -> int:
    """Tokens of one forward and backward pass."""
    rows = run.training.per_device_train_batch_size
    if run.finetuning.stage == "grpo":
        each = run.data.cutoff_len + run.generating.max_new_tokens
        return int(run.finetuning.grpo_micro_batch_tokens or rows * each)
    return pack_budget(run) if run.data.length_aware_packing else rows * run.data.cutoff_len


def _budget_key(run: RunArguments) -> str:
    if run.finetuning.stage == "grpo":
        return "grpo_micro_batch_tokens"
    return "pack_max_tokens" if run.data.length_aware_packing else "per_device_train_batch_size x cutoff_len"


def _chunk(run: RunArguments) -> int:
    """Tokens whose logits exist at once: all of them in LLaMA-Factory's own SFT."""
    if run.finetuning.stage == "grpo":
        return int(run.finetuning.grpo_logits_chunk_size)
    vocabulary_rows = 1024  # of packing/loss.py, about
    return vocabulary_rows if run.data.length_aware_packing else 1 << 20


def _patches(found: Examination, run: RunArguments, recipe: DataRecipe, budget: int) -> int:
    """Patches of a pass at most, from the records looked at; without them, from image_max_pixels."""
    if not recipe.placeholders:
        return 0
    merged = (getattr(getattr(recipe.processor, "image_processor", None), "merge_size", None) or 2) ** 2
    data = found.estimates.get("data", {})
    of_image = data.get("image_tokens") or run.model.image_max_pixels // (PATCH_AREA * merged)
    if run.finetuning.stage == "grpo":  # the prompt once for its group
        group = run.data.cutoff_len + run.finetuning.grpo_num_generations * run.generating.max_new_tokens
        return -(-budget // group) * of_image * merged
    share = data.get("image_share", 1.0)
    return min(int(budget * share * merged), run.data.pack_max_patches or budget * merged)


def _fit_tokens(largest: dict[str, str], limit: float | None, needs: Any, budget: int, key: str) -> None:
    if limit is None:
        return
    low, high = 0, 1 << 20
    while high - low > 256:  # needs is a line
        middle = (low + high) // 2
        low, high = (middle, high) if device_bytes(needs(middle)) <= limit else (low, middle)
    largest[key] = f"{low // 256 * 256:,} (written: {budget:,})"


def _fit_rows(largest: dict[str, str], limit: float | None, needed: float, per_row: float, rows: int) -> None:
    if limit is None or per_row <= 0:
        return
    spare = limit - device_bytes(needed)
    largest["grpo_rollout_batch_size"] = f"{max(int(rows + spare / per_row), 0):,} (written: {rows:,})"


def _say_memory(
    found: Examination, static: Static, phases: dict[str, float], largest: dict[str, str], sharding: Sharding
) -> None:
    needed = {name: device_bytes(alive) for name, alive in phases.items()}
    found.estimates["memory"] = {"static": vars(static), "phases": needed}
    worst = max(needed, key=lambda name: needed[name])
    parts = f"weights {gib(static.weights)}, gradients {gib(static.gradients)}, optimizer {gib(static.optimizer)}"
    text = f"{parts}; " + ", ".join(f"{name} {gib(value)}" for name, value in needed.items())
    text += f" per device, about ({sharding.num_processes} process{'es' if sharding.num_processes > 1 else ''})"
    if found.memory is None:
        found.add(Line(NOTE, "memory", f"{text}; --memory GIB says whether it fits"))
        return
    fits = needed[worst] <= found.memory
    if fits:
        found.add(Line(GOOD, "memory", f"{text}, of {gib(found.memory)}"))
    else:
        found.add(Line(WRONG, "memory", f"{text}: the {worst} does not fit into {gib(found.memory)}."))
    for key, value in largest.items():
        found.add(Line(NOTE, "largest that fits", f"{key}: {value}"))


def _say_time(
    found: Examination,
    run: RunArguments,
    plan: BatchPlan | None,
    model: Any,
    static: Static,
    dtype: torch.dtype,
    budget: int,
) -> None:
    from lcot_plugin.integration.packing_trainer import model_cost

    device = measure_device(dtype)
    cost, accumulation = model_cost(model), run.training.gradient_accumulation_steps
    each = run.data.cutoff_len + (run.generating.max_new_tokens if run.finetuning.stage == "grpo" else 0)
    seconds: dict[str, float] = {}
    once = run.generating.max_new_tokens
    if plan is not None:
        rows = plan.prompts_per_rank * plan.num_generations
        tokens = plan.prompts_per_rank * (run.data.cutoff_len + plan.num_generations * once)
        if run.finetuning.grpo_rollout_engine != "vllm":
            rounds = -(-rows // (run.finetuning.grpo_rollout_batch_size or rows))
            seconds["rollout"] = decode_seconds(device, static.weights, once, rounds)
        seconds["update"] = update_seconds(device, cost, tokens, each)
    elif run.training.do_train and budget:
        seconds["step"] = update_seconds(device, cost, budget * accumulation, each)
    if not seconds:
        return
    found.estimates["least_seconds"] = seconds
    parts = ", ".join(f"{name} {value:,.1f} s" for name, value in seconds.items())
    rates = f"{device.operations / 1e12:,.2f} TFLOP/s and {device.bandwidth / 1e9:,.0f} GB/s measured here"
    longest = f"at least {parts} for completions and prompts as long as their caps allow, shorter ones in proportion"
    found.add(Line(NOTE, "longest step", f"{longest}; on {device.name} ({rates})"))


def finish(found: Examination, json_file: Path | None) -> int:
    """The last line, the JSON file, the exit code."""
    num_wrong = sum(line.level == WRONG for line in found.lines)
    num_notes = sum(line.level == NOTE for line in found.lines)
    notes = f"; {num_notes} note{'s' if num_notes != 1 else ''}" if num_notes else ""
    what = "fault" if num_wrong == 1 else "faults"
    print(f"{num_wrong} {what} found{notes}" if num_wrong else f"nothing is wrong{notes}")
    if json_file is not None:
        result = {
            "ok": not num_wrong,
            "recipe": found.config,
            "findings": [line.as_dict() for line in found.lines],
            "estimates": found.estimates,
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(json_file)
    return 1 if num_wrong else 0
