"""One rollout made ready for training: rewards become advantages, completions become micro-batches.

In: RolloutGroups and their Scores. Out: an Experience, which serves `num_iterations` passes of optimizer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcot_plugin.types import Ending, RolloutGroup, Score, TrainingSequence


@dataclass
class Experience:
    """What one process trains on until the next rollout."""

    micro_batches: list[list[TrainingSequence]]
    """[steps_per_generation] lists of completions."""
    normalizers: list[float]
    """[optimizer steps of one iteration] what each step's loss is divided by, over all ranks."""


def reward_matrix(scores: Sequence[Score], num_generations: int) -> torch.Tensor:
    """[P, G] float32, NaN where every reward function abstained."""
    totals = [float("nan") if score.total is None else score.total for score in scores]
    return torch.tensor(totals, dtype=torch.float32).view(-1, num_generations)


def training_sequences(
    groups: Sequence[RolloutGroup], scores: Sequence[Score], advantages: torch.Tensor, mask_truncated: bool
) -> list[TrainingSequence]:
    """Rows of the policy update in group order; advantages: [P, G]."""
    pairs = [(group.prompt, completion) for group in groups for completion in group.completions]
    return [
        TrainingSequence(
            prompt=prompt,
            completion=completion,
            advantage=advantage,
            trained=prompt.usable
            and score.total is not None
            and not (mask_truncated and completion.ending is Ending.TRUNCATED),
        )
        for (prompt, completion), score, advantage in zip(pairs, scores, advantages.flatten().tolist(), strict=True)
    ]


def split_micro_batches(
    sequences: Sequence[TrainingSequence], micro_batch_size: int, micro_steps_per_update: int
) -> list[list[TrainingSequence]]:
    """Cuts the sequences into optimizer steps in order and each of those into micro-batches of like lengths.

    The order inside an optimizer step does not change its gradient, but rows of one micro-batch are padded to the
    longest of them.
    """
    per_update = micro_batch_size * micro_steps_per_update
    micro_batches = []
    for start in range(0, len(sequences), per_update):
        by_length = sorted(
            sequences[start : start + per_update],
            key=lambda sequence: len(sequence.prompt.record.input_ids) + len(sequence.completion.token_ids),
        )
        micro_batches += [by_length[i : i + micro_batch_size] for i in range(0, per_update, micro_batch_size)]
    return micro_batches


def lengths_and_trained(sequences: Sequence[TrainingSequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """[S] int64 completion lengths and [S] bool."""
    lengths = torch.tensor([len(sequence.completion.token_ids) for sequence in sequences])
    return lengths, torch.tensor([sequence.trained for sequence in sequences])
