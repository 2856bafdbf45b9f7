"""The settings that length-aware packing cannot honour: one table refused, one warned about.

In: the five parsed argument objects. Out: an ArgumentError that says what to write instead, or warnings; before a file
is read.
"""

from __future__ import annotations

from lcot_plugin.integration.refusals import (
    IN_BACKWARD,
    RunArguments,
    Setting,
    check_tables,
    differs,
    dispatches,
    steps_in_backward,
    uses_fsdp,
)

_LOSS = "the loss is computed from the hidden states of label tokens, without logits. Remove it."

REFUSED: tuple[Setting, ...] = (
    Setting(
        "packing",
        differs("data", "packing"),
        "these are two ways to pack. Remove `packing` and `neat_packing`; examples never see each other here.",
    ),
    Setting(
        "group_by_length",
        differs("training", "group_by_length"),
        "packs are balanced already, and sorted data are no random sample. Remove it.",
    ),
    Setting(
        "train_sampling_strategy",
        differs("training", "train_sampling_strategy", "random"),
        "packs are planned by length already. Remove it; `disable_shuffling: true` keeps the examples in order.",
    ),
    # Loss
    Setting("use_dft_loss", differs("finetuning", "use_dft_loss"), _LOSS),
    Setting("use_eaft_loss", differs("finetuning", "use_eaft_loss"), _LOSS),
    Setting("use_asft_loss", differs("finetuning", "use_asft_loss"), _LOSS),
    Setting("label_smoothing_factor", differs("training", "label_smoothing_factor"), _LOSS),
    # Model
    Setting(
        "neftune_noise_alpha",
        differs("training", "neftune_noise_alpha"),
        "its noise is scaled by the length of a row, which is a whole pack here. Remove it.",
    ),
    Setting("shift_attn", differs("model", "shift_attn"), "it attends across examples. Remove it."),
    Setting(
        "mixture_of_depths", differs("model", "mixture_of_depths"), "it drops tokens of other examples. Remove it."
    ),
    Setting("use_unsloth", differs("model", "use_unsloth"), "it replaces the attention. Remove it."),
    Setting("use_unsloth_gc", differs("model", "use_unsloth_gc"), "it replaces the forward pass. Remove it."),
    Setting("use_kt", differs("model", "use_kt"), "KTransformers has its own loop. Remove it."),
    Setting("use_badam", differs("finetuning", "use_badam"), "it was not tried with packs. Remove it."),
    Setting(
        "torch_compile",
        differs("training", "torch_compile"),
        "packs differ in their segments at every step, so each would compile anew. Remove it.",
    ),
    Setting("fp8", differs("training", "fp8"), "it was not tried with packs. Remove it."),
    # Optimizer
    Setting("galore_layerwise", differs("finetuning", "galore_layerwise"), f"{IN_BACKWARD}Remove it."),
    Setting("apollo_layerwise", differs("finetuning", "apollo_layerwise"), f"{IN_BACKWARD}Remove it."),
    Setting("optim", steps_in_backward, f"{IN_BACKWARD}Remove it, or write `optim: adafactor` for little memory."),
    # Devices and batches
    Setting("fsdp", uses_fsdp, "not supported yet: use DDP (`torchrun`) or DeepSpeed."),
    Setting(
        "auto_find_batch_size",
        differs("training", "auto_find_batch_size"),
        "a batch is one pack. Remove it; when memory runs out, lower `pack_max_tokens`.",
    ),
    Setting("accelerator_config: split_batches", dispatches("split_batches"), "a batch is one pack. Remove it."),
    Setting(
        "accelerator_config: dispatch_batches",
        dispatches("dispatch_batches"),
        "every process makes its own packs. Remove it.",
    ),
)
"""Settings that stop the run."""

WARNED: tuple[Setting, ...] = (
    Setting(
        "dataloader_drop_last",
        differs("training", "dataloader_drop_last"),
        "it has no effect: every example is in a pack, once an epoch.",
    ),
    Setting(
        "pack_cost",
        lambda run: run.data.streaming and run.data.pack_cost == "auto",
        "a stream is planned by the model's shape, since its packs are not planned anew.",
    ),
)
"""Settings without effect."""


def check_packing_settings(run: RunArguments) -> None:
    """Raises ArgumentError with every refused setting; warns about the others, once in a run and on rank 0."""
    check_tables("length_aware_packing: true", run, REFUSED, WARNED)
