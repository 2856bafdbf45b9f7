"""How the policy update lays completions out for the model: as packed groups, or as padded rows.

In: sizes of sequences, then micro-batches of them. Out: which sequences meet in which pass, and the log-probability and
entropy of every completion token. `PackedLayout` computes a prompt, with its images, once for all its completions and
pads nothing; `RowsLayout` works for every family and is what the packed one is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object

from lcot_plugin.errors import LcotError
from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.group_plan import GroupSize, plan_groups
from lcot_plugin.packing.groups import pack_groups
from lcot_plugin.packing.vision_memo import VisionMemo
from lcot_plugin.policy.experience import MicroBatch, SequenceSize
from lcot_plugin.policy.head import packed_log_probs, token_log_probs
from lcot_plugin.policy.rows import build_rows
from lcot_plugin.types import EncodedPrompt, PackGroup, TrainingSequence
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model
from lcot_plugin.whole_weights import whole_weights

BatchMedia = Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]]


class UpdateLayout(Protocol):
    """What the trainer asks of a layout."""

    def plan(self, sizes: Sequence[SequenceSize], num_ranks: int) -> list[list[list[int]]]:
        """[num_ranks][passes] indices into `sizes`: as many passes on every rank, at least one, some maybe empty."""
        ...

    def computing(self, unwrapped: Any, micro_batch: MicroBatch) -> Any:
        """A context for the forward and the backward pass of a micro-batch through `unwrapped`."""
        ...

    def log_probs(
        self,
        model: Any,
        unwrapped: Any,
        micro_batch: MicroBatch,
        entropy_gradient: bool = False,
        known_gradients: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[n] log-probabilities and entropies of all completion tokens, in the order of the sequences; within
        `computing`. known_gradients: see `token_log_probs`."""
        ...

    def forget(self) -> None:
        """The micro-batches so far will not be computed again."""
        ...


class PackedLayout:
    """One row per pass: every prompt once, its completions as segments that see it and not each other."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        *,
        max_tokens: int,
        cost: CostModel,
        temperature: float,
        chunk_size: int,
        memo: VisionMemo | None = None,
    ):
        """max_tokens: of one pass. cost: what is levelled over processes. chunk_size: tokens whose logits exist at
        once. memo: keeps the features of a frozen vision tower for further passes of a model over a micro-batch."""
        self.vlm, self.max_tokens, self.cost = vlm, max_tokens, cost
        self.temperature, self.chunk_size, self.memo = temperature, chunk_size, memo
        self._banned = torch.tensor(vlm.banned_token_ids, dtype=torch.long)

    def plan(self, sizes: Sequence[SequenceSize], num_ranks: int) -> list[list[list[int]]]:
        if not sizes:
            return [[[]] for _ in range(num_ranks)]
        members: dict[int, list[int]] = {}
        for index, size in enumerate(sizes):
            members.setdefault(size.group, []).append(index)
        groups = list(members.values())
        group_sizes = [
            GroupSize(
                prompt_tokens=sizes[indices[0]].prompt_tokens,
                prompt_patches=sizes[indices[0]].prompt_patches,
                completion_tokens=tuple(sizes[index].tokens for index in indices),
            )
            for indices in groups
        ]
        planned = plan_groups(group_sizes, max_tokens=self.max_tokens, num_ranks=num_ranks, cost=self.cost)
        return [
            [[groups[part.group][c] for part in pack for c in part.completions] for pack in packs] for packs in planned
        ]

    @contextmanager
    def computing(self, unwrapped: Any, micro_batch: MicroBatch) -> Iterator[None]:
        remembered = (
            nullcontext() if self.memo is None else self.memo.of(unwrapped, (id(unwrapped), micro_batch.number))
        )
        with segment_attention(unwrapped, self._packed(micro_batch).segments), remembered:
            yield

    def log_probs(
        self,
        model: Any,
        unwrapped: Any,
        micro_batch: MicroBatch,
        entropy_gradient: bool = False,
        known_gradients: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = unwrap_base_model(unwrapped).device
        return packed_log_probs(
            model,
            unwrapped,
            self._packed(micro_batch).to(device),
            banned=self._banned.to(device),
            temperature=self.temperature,
            chunk_size=self.chunk_size,
            entropy_gradient=entropy_gradient,
            known_gradients=known_gradients,
        )

    def forget(self) -> None:
        if self.memo is not None:
            self.memo.forget()

    def _packed(self, micro_batch: MicroBatch) -> Any:
        if micro_batch.packed is None:
            runs = [list(run) for _, run in groupby(micro_batch.sequences, key=lambda sequence: sequence.group)]
            micro_batch.packed = pack_groups([_pack_group(run) for run in runs], self.vlm)
        return micro_batch.packed


def _pack_group(sequences: list[TrainingSequence]) -> PackGroup:
    prompt = sequences[0].prompt
    return PackGroup(prompt.record.input_ids, [s.completion.token_ids for s in sequences], prompt.media)


class RowsLayout:
    """One padded row per completion."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        *,
        rows: int,
        batch_media: BatchMedia,
        pad_token_id: int,
        temperature: float,
        chunk_size: int,
    ):
        """rows: completions of one pass."""
        self.vlm, self.rows, self.batch_media = vlm, rows, batch_media
        self.pad_token_id, self.temperature, self.chunk_size = pad_token_id, temperature, chunk_size

    def plan(self, sizes: Sequence[SequenceSize], num_ranks: int) -> list[list[list[int]]]:
        """Rows of one pass are padded to the longest of them, so those of like length meet."""
        by_length = sorted(range(len(sizes)), key=lambda index: sizes[index].prompt_tokens + sizes[index].tokens)
        passes = [by_length[start : start + self.rows] for start in range(0, len(by_length), self.rows)]
        passes += [[]] * (-len(passes) % num_ranks or (not passes) * num_ranks)
        return [passes[rank::num_ranks] for rank in range(num_ranks)]

    def computing(self, unwrapped: Any, micro_batch: MicroBatch) -> Any:
        return nullcontext()

    def log_probs(
        self,
        model: Any,
        unwrapped: Any,
        micro_batch: MicroBatch,
        entropy_gradient: bool = False,
        known_gradients: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model_inputs, targets = build_rows(
            self.vlm,
            micro_batch.sequences,
            self.batch_media,
            unwrap_base_model(unwrapped),
            self.pad_token_id,
            self.temperature,
            self.chunk_size,
        )
        return token_log_probs(
            model,
            unwrapped,
            targets,
            model_inputs,
            entropy_gradient=entropy_gradient,
            known_gradients=known_gradients,
        )

    def forget(self) -> None:
        """Nothing is kept."""


MAX_DIFFERENCE = 1e-3
"""Nats, in float32; what was measured is below 1e-5."""
MAX_MEAN_DIFFERENCE = 0.1
"""Nats per token in lower precision, where single tokens differ by tenths from one kernel to another. A wrong layout is
off by more than 1."""
NUM_CHECKED = 4
"""Sequences that are computed once more, one at a time."""


def check_first_pass(
    layout: PackedLayout, rows: RowsLayout, model: Any, accelerator: Any, passes: Sequence[MicroBatch]
) -> float | None:
    """`check_layout` of the first pass that some process trains on; None where no process trains on any.

    Called by every process, with as many passes on each. model: in its parallel wrapper.
    """
    trained = [any(sequence.token_weight for sequence in micro_batch.sequences) for micro_batch in passes]
    # The same pass on all: image features that one process remembers of a pass it would not compute with the others.
    number = min(gather_object([trained.index(True) if any(trained) else len(passes)]))
    if number == len(passes):
        return None
    with whole_weights(model, accelerator) as unwrapped:
        was_training = unwrapped.training
        unwrapped.eval()
        try:
            mixed = accelerator.mixed_precision != "no"
            return check_layout(layout, rows, unwrapped, passes[number], mixed)
        finally:
            unwrapped.train(was_training)


@torch.no_grad()
def check_layout(
    layout: PackedLayout, rows: RowsLayout, unwrapped: Any, micro_batch: MicroBatch, mixed_precision: bool = False
) -> float:
    """The largest difference in nats between the packed log-probabilities and those of one sequence at a time.

    mixed_precision: whether the model computes in less than its weights' dtype. Raises LcotError where the difference
    is no rounding error.
    """
    with layout.computing(unwrapped, micro_batch):
        packed, _ = layout.log_probs(unwrapped, unwrapped, micro_batch)
    pieces = list(zip(micro_batch.sequences, packed.split(micro_batch.lengths), strict=True))
    step = max(1, len(pieces) // NUM_CHECKED)
    differences = torch.cat(
        [
            (piece - rows.log_probs(unwrapped, unwrapped, MicroBatch([sequence], 0))[0]).abs()
            for sequence, piece in pieces[::step][:NUM_CHECKED]
        ]
    )
    base = unwrap_base_model(unwrapped)
    exact = base.dtype == torch.float32 and not mixed_precision
    largest, mean = differences.max().item(), differences.mean().item()
    if not (largest <= MAX_DIFFERENCE if exact else mean <= MAX_MEAN_DIFFERENCE):
        raise LcotError(
            f"The packed policy update computes other log-probabilities than one completion at a time: up to "
            f"{largest:.3g} nats, {mean:.3g} on average, for {base.config.model_type} in {base.dtype}. Nothing has "
            "been trained. Write grpo_update_layout: rows, and please report the model."
        )
    return largest
