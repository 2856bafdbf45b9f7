"""The YAML keys of length-aware packing, with their meanings.

In: what the user wrote. Out: `PackingArguments` (part of LLaMA-Factory's DataArguments).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lcot_plugin.errors import ArgumentError


def _key(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


# Read by HfArgumentParser at run time: see GrpoArguments.
@dataclass
class PackingArguments:
    """How examples of very different lengths are put together in SFT, without padding and without cutting."""

    length_aware_packing: bool = _key(
        False,
        "SFT: pack whole examples, text and images mixed, into rows without padding, so that every process computes "
        "as much as the others; an example sees itself only, and every label token weighs the same. A device batch is "
        "one pack. Not together with `packing` and `neat_packing`.",
    )
    pack_max_tokens: int | None = _key(
        None,
        "Tokens of a pack at most; decides about the memory of a step. Default: cutoff_len times "
        "per_device_train_batch_size. Records that are longer meet `overlong_policy`.",
    )
    pack_max_patches: int = _key(
        0,
        "Image patches of a pack at most, where the vision tower needs the memory; 0: as many as the tokens allow. For "
        "LLaVA-OneVision, which pools its patches, an estimate.",
    )
    pack_mode: Literal["levelled", "fill"] = _key(
        "levelled",
        "`levelled`: packs that cost alike, so that no process waits for another; `fill`: as few packs as possible, a "
        "little faster on a single device.",
    )
    pack_cost: Literal["model", "auto"] = _key(
        "model",
        "How costly tokens, attention and image patches are: estimated from the shape of the `model`, or, from the "
        "second epoch on, fitted to the durations of the first steps (`auto`).",
    )
    pack_loss_weighting: Literal["token", "example"] = _key(
        "token",
        "What weighs the same in the loss of an optimizer step, over all its packs and processes: every label `token`, "
        "or every `example`, however long.",
    )
    pack_buffer_size: int = _key(4096, "With `streaming`: examples that are planned together.")

    def check_packing(self) -> None:
        """Raises ArgumentError for values that no run could mean."""
        if self.pack_max_tokens is not None and self.pack_max_tokens < 1:
            raise ArgumentError(f"pack_max_tokens: {self.pack_max_tokens} must be at least 1, or left out.")
        if self.pack_max_patches < 0:
            raise ArgumentError(f"pack_max_patches: {self.pack_max_patches} must be 0 (no cap) or more.")
        if self.pack_buffer_size < 1:
            raise ArgumentError(f"pack_buffer_size: {self.pack_buffer_size} must be at least 1.")
