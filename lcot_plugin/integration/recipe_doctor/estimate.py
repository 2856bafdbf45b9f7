"""Peak memory by phase, the largest settings that fit, the least time of a step: the doctor's estimates.

In: the model without weights, the parsed recipe, what the records said. Out: findings, and figures for the JSON file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.integration.data_sets import DataRecipe
from lcot_plugin.integration.recipe_doctor.lines import (
    GOOD,
    NOTE,
    SKIPPED,
    WRONG,
    Examination,
    Line,
    duration,
    gib,
)
from lcot_plugin.integration.recipe_doctor.memory import (
    Sharding,
    Static,
    UpdatePass,
    bits_per_weight,
    device_bytes,
    largest_that_fits,
    rollout_bytes,
    static_bytes,
    vision_bytes,
)
from lcot_plugin.integration.recipe_doctor.settings import needs_gpu, offloads, pack_budget, zero_stage
from lcot_plugin.integration.recipe_doctor.speed import Device, decode_seconds, measure_device, update_seconds
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.packing.loss import rows_per_chunk
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

MOST_TOKENS = 1 << 17
"""Of a pass; more are not looked for."""
STEP_TOKENS = 256
"""What is recommended is a multiple of it."""
PATCH_AREA = 14 * 14
"""Pixels of a patch in most vision towers."""
ASSUMED_GPU = Device("a GPU of 100 TFLOP/s and 1,000 GB/s, which is assumed: there is none here", 1e14, 1e12)


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
    phases: dict[str, float] = {}
    largest: dict[str, str] = {}
    limit = found.memory
    if run.finetuning.stage == "grpo" and run.finetuning.grpo_rollout_engine != "vllm":
        problems, samples = run.training.per_device_eval_batch_size, max(run.finetuning.grpo_eval_generations, 1)
        most = plan.prompts_per_rank * plan.num_generations if plan else problems * samples
        rows = min(run.finetuning.grpo_rollout_batch_size or most, most)
        beside = static.whole + static.optimizer + static.casts

        def rollout(completions: int) -> float:
            return beside + _rollout(run, model, dtype, completions)

        phases["rollout"] = rollout(rows)
        if limit is not None:
            largest["grpo_rollout_batch_size"] = _fit_rows(limit, rollout, rows, most)
    budget = _budget(run)
    if run.training.do_train and budget:
        uses_mrope = VisionLanguageModel(model, recipe.tokenizer).uses_mrope
        update_pass = UpdatePass(model, dtype, _chunk(run, model), uses_mrope)

        def update(tokens: int) -> float:
            seen = vision_bytes(model, _patches(found, run, recipe, tokens), dtype)
            return kept + static.gathered + update_pass.peak(tokens) + seen

        try:
            phases["update"] = update(budget)
            if limit is not None:
                largest[_budget_key(run)] = _fit_tokens(limit, update, budget)
        except Exception as error:  # whatever a family raises where it meets tensors without data
            cause = " ".join(str(error).split())[:200]
            found.add(Line(SKIPPED, "memory", f"a pass cannot be estimated ({type(error).__name__}: {cause})"))
        phases["optimizer step"] = kept + static.step
    if not phases:
        return
    _say_memory(found, static, phases, largest, sharding)
    _say_time(found, written, run, plan, model, static, dtype, budget)


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


def _chunk(run: RunArguments, model: Any) -> int:
    """Tokens whose logits exist at once: all of them in LLaMA-Factory's own SFT."""
    if run.finetuning.stage == "grpo":
        return int(run.finetuning.grpo_logits_chunk_size)
    if run.data.length_aware_packing:
        return rows_per_chunk(unwrap_base_model(model).config.get_text_config().vocab_size)
    return 1 << 20


def _patches(found: Examination, run: RunArguments, recipe: DataRecipe, tokens: int) -> int:
    """Patches of a pass at most, from the records looked at; without them, from image_max_pixels."""
    if not recipe.placeholders:
        return 0
    merged = (getattr(getattr(recipe.processor, "image_processor", None), "merge_size", None) or 2) ** 2
    data = found.estimates.get("data", {})
    of_image = data.get("image_tokens") or run.model.image_max_pixels // (PATCH_AREA * merged)
    if run.finetuning.stage == "grpo":  # the prompt once for its group
        group = run.data.cutoff_len + run.finetuning.grpo_num_generations * run.generating.max_new_tokens
        return -(-tokens // group) * of_image * merged
    share = data.get("image_share", 1.0)
    return min(int(tokens * share * merged), run.data.pack_max_patches or tokens * merged)


def _fit_tokens(limit: float, needs: Callable[[int], float], budget: int) -> str:
    fits = largest_that_fits(needs, limit, budget, max(MOST_TOKENS, budget)) // STEP_TOKENS * STEP_TOKENS
    # Patches come in whole pictures, so `needs` is convex but for steps.
    while fits > 0 and device_bytes(needs(fits)) > limit:
        fits -= max(STEP_TOKENS, fits // 32 // STEP_TOKENS * STEP_TOKENS)
    if fits <= 0:
        return f"nothing that was tried (written: {budget:,}); lora, ZeRO-3 or a smaller model need less"
    return f"{fits:,}{' or more' if fits >= MOST_TOKENS else ''} (written: {budget:,})"


def _fit_rows(limit: float, needs: Callable[[int], float], rows: int, most: int) -> str:
    """most: completions of a rollout on one process."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if device_bytes(needs(middle)) <= limit else (low, middle)
    if not low:
        return f"not even 1 (written: {rows:,}); lower max_new_tokens or cutoff_len, or let vLLM write"
    return f"{low:,}{', all of a rollout' if low == most else ''} (written: {rows:,})"


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
    if needed[worst] <= found.memory:
        found.add(Line(GOOD, "memory", f"{text}, of {gib(found.memory)}"))
    else:
        advice = {"rollout": "lower grpo_rollout_batch_size", "update": "lower what the next lines name"}
        what = advice.get(worst, "train fewer weights (lora), or split them with DeepSpeed over more --processes")
        found.add(Line(WRONG, "memory", f"{text}: the {worst} does not fit into {gib(found.memory)}: {what}."))
    for key, value in largest.items():
        found.add(Line(NOTE, "largest that fits", f"{key}: {value}"))


def _say_time(
    found: Examination,
    written: dict[str, Any],
    run: RunArguments,
    plan: BatchPlan | None,
    model: Any,
    static: Static,
    dtype: torch.dtype,
    budget: int,
) -> None:
    from lcot_plugin.integration.packing_trainer import model_cost

    # The CPU's time says nothing of a recipe that is written for a GPU.
    assumed = needs_gpu(written) and not torch.cuda.is_available()
    device = ASSUMED_GPU if assumed else measure_device(dtype)
    cost, accumulation = model_cost(model), run.training.gradient_accumulation_steps
    each = run.data.cutoff_len + (run.generating.max_new_tokens if run.finetuning.stage == "grpo" else 0)
    seconds: dict[str, float] = {}
    once = run.generating.max_new_tokens
    full = "with packs as full" if run.data.length_aware_packing else "with records as long"
    if plan is not None:
        rows = plan.prompts_per_rank * plan.num_generations
        tokens = plan.prompts_per_rank * (run.data.cutoff_len + plan.num_generations * once)
        if run.finetuning.grpo_rollout_engine != "vllm":
            rounds = -(-rows // (run.finetuning.grpo_rollout_batch_size or rows))
            seconds["rollout"] = decode_seconds(device, static.whole, once, rounds)
        seconds["update"] = update_seconds(device, cost, tokens, each)
        full = "with prompts and completions as long"
    elif run.training.do_train and budget:
        seconds["step"] = update_seconds(device, cost, budget * accumulation, each)
    if not seconds:
        return
    found.estimates["least_seconds"] = seconds
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    name = device.name
    if not assumed:
        name += f" ({device.operations / 1e12:,.2f} TFLOP/s and {device.bandwidth / 1e9:,.0f} GB/s measured here)"
    found.add(Line(NOTE, "longest step", f"at least {parts} {full} as the caps allow, on {name}; a bound, no forecast"))
