"""Which layout the policy update of a run has, and what it may hold.

In: the loaded model and the run's arguments. Out: the layout, and the padded rows that it is checked against.
"""

from __future__ import annotations

from typing import Any

from llamafactory.extras.logging import get_logger

from lcot_plugin.arguments import BatchPlan, GrpoArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.media import batch_media
from lcot_plugin.integration.packing_trainer import model_cost
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.packing.families import PACKABLE_FAMILIES, trains_vision, why_not_packable
from lcot_plugin.packing.vision_memo import VisionMemo
from lcot_plugin.policy.layouts import PackedLayout, RowsLayout, UpdateLayout
from lcot_plugin.vlm import VisionLanguageModel

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it


def make_layouts(
    run: RunArguments, plan: BatchPlan, model: Any, vlm: VisionLanguageModel, pad_token_id: int
) -> tuple[UpdateLayout, RowsLayout]:
    """The layout of the run, and padded rows. Raises ArgumentError where packed groups are asked for and cannot be."""
    arguments, generating = run.finetuning, run.generating
    temperature = generating.temperature if generating.temperature > 0 else 1.0
    chunk_size = arguments.grpo_logits_chunk_size
    rows = RowsLayout(
        vlm,
        rows=run.training.per_device_train_batch_size,
        batch_media=batch_media,
        pad_token_id=pad_token_id,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    if arguments.grpo_update_layout == "rows" or not run.training.do_train:
        return rows, rows
    reason = why_not_packable(model)
    if reason is not None:
        if arguments.grpo_update_layout == "packed":
            raise ArgumentError(
                f"grpo_update_layout: packed: {reason}. Write grpo_update_layout: auto; packed model types: "
                f"{', '.join(sorted(PACKABLE_FAMILIES))}."
            )
        logger.warning_rank0(
            f"The policy update pads one row per completion and computes every prompt once for each: {reason}. "
            "Out of memory, lower per_device_train_batch_size; grpo_micro_batch_tokens has no effect."
        )
        return rows, rows
    max_tokens = arguments.grpo_micro_batch_tokens or (
        run.training.per_device_train_batch_size * (run.data.cutoff_len + generating.max_new_tokens)
    )
    several = num_passes(arguments, plan, run.training.gradient_accumulation_steps) > 1
    packed = PackedLayout(
        vlm,
        max_tokens=max_tokens,
        cost=model_cost(model),
        temperature=temperature,
        chunk_size=chunk_size,
        memo=VisionMemo() if several and not trains_vision(model) else None,
    )
    return packed, rows


def num_passes(arguments: GrpoArguments, plan: BatchPlan, accumulation: int) -> int:
    """How often one micro-batch is computed: by the policy in every iteration, by the old one where a rollout serves
    several updates, by the reference."""
    off_policy = plan.micro_steps_per_rollout > accumulation
    in_loss = arguments.grpo_beta > 0 and arguments.grpo_kl_in == "loss"
    return plan.num_iterations + off_policy + in_loss
