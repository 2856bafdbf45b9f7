"""Selective sample replay: informative groups of earlier rollouts stand in for groups whose rewards do not differ.

In:  the informative groups of each rollout. Out: some of them again, at later rollouts, in places that would otherwise
teach nothing (VL-Rethinker, arXiv 2504.08837: as the model learns, ever more groups are all right or all
wrong, and the share of useful ones vanishes).

There the buffer holds single completions, drawn with probability |A_i|^alpha / sum_k |A_k|^alpha. Here it holds whole
groups, drawn by the mean of |A| over their completions, because a prompt and its image are computed once per group.

Every rank holds the whole buffer: what is added is gathered first, so that all ranks draw the same groups without
talking, and any rank can train any of them. That is cheap because no pixels are kept: a StoredGroup holds the
PromptRecord, whose images are encoded anew when it is drawn, and 8 to 12 bytes per token; 256 groups of 8 completions
with 2,000 tokens take 33 to 49 MB on every rank. (Pictures that a data set embeds as bytes are part of the record.)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Generic, TypeVar

import torch

from lcot_plugin.types import Completion, EncodedPrompt, PromptRecord, TrainingSequence

MAX_AGE = 8
"""Rollouts. A group's log-probabilities are those of the policy that wrote it. The longer ago, the more of its tokens
have left the clipping range: such a group costs a place and gives little gradient, and what it gives is biased."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    group: T
    priority: float
    rollout: int


class ReplayBuffer(Generic[T]):
    """The most recent informative groups, drawn by priority.

    Rollouts are counted from 0, the same in a resumed run. All ranks call `add` and `draw` with the same arguments.
    """

    def __init__(self, capacity: int, exponent: float = 1.0, max_age: int = MAX_AGE):
        """capacity: groups over all ranks. exponent: alpha, 0 draws evenly. max_age: rollouts after which a group
        leaves; one of rollout 3 is drawn at 3 + max_age for the last time."""
        self.capacity, self.exponent, self.max_age = capacity, exponent, max_age
        self._entries: list[_Entry[T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, groups: Iterable[tuple[T, float]], rollout: int) -> None:
        """Keeps (group, priority) pairs of a rollout; the oldest leave where there are too many.

        A group of priority 0 has advantages of 0: it is not kept.
        """
        self._entries += [_Entry(group, priority, rollout) for group, priority in groups if priority > 0.0]
        self._drop_old(rollout)
        del self._entries[: max(len(self._entries) - self.capacity, 0)]

    def draw(self, num: int, seed: int, rollout: int) -> list[T]:
        """At most `num` groups of earlier rollouts, none twice; they stay in the buffer.

        Drawn one after another without replacement, each time with probability proportional to priority ** exponent:
        give every group a clock that rings after an exponentially distributed time of rate priority ** exponent, and
        take those that ring first.
        """
        self._drop_old(rollout)
        generator = Random(f"replay {seed} {rollout}")  # a text is hashed alike in every process
        earlier = [entry for entry in self._entries if entry.rollout < rollout]
        times = [-math.log(1.0 - generator.random()) / entry.priority**self.exponent for entry in earlier]
        first = sorted(range(len(earlier)), key=times.__getitem__)[:num]
        return [earlier[index].group for index in first]

    def _drop_old(self, rollout: int) -> None:
        self._entries = [entry for entry in self._entries if rollout - entry.rollout <= self.max_age]

    def state_dict(self) -> dict[str, Any]:
        """The groups, for a checkpoint; the same on every rank, so that one file serves all."""
        return {"entries": [(entry.group, entry.priority, entry.rollout) for entry in self._entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the groups by those of a checkpoint; of more than `capacity` the most recent stay."""
        self._entries = [_Entry(*entry) for entry in state["entries"]][-self.capacity :]


@dataclass(frozen=True)
class StoredGroup:
    """A group as the buffer keeps it: no tensors, so that it is gathered and saved as it is."""

    record: PromptRecord
    completions: tuple[Completion, ...]
    """Without text, which no update needs, log-probabilities and token ids, which the next fields hold."""
    token_ids: tuple[array[int], ...]
    """[G] int32 arrays [T]."""
    sampler_logps: tuple[array[float], ...]
    """[G] float32 arrays [T], as in Completion."""
    policy_logps: tuple[array[float] | None, ...]
    """[G] float32 arrays [T], as in Completion."""
    advantages: tuple[float, ...]
    """[G] as of its own rollout."""
    trained: tuple[bool, ...]

    @classmethod
    def of(cls, sequences: Sequence[TrainingSequence]) -> StoredGroup:
        """Of the G sequences of one group."""
        completions = [sequence.completion for sequence in sequences]
        return cls(
            record=sequences[0].prompt.record,
            completions=tuple(
                replace(c, token_ids=[], sampler_logps=[], policy_logps=None, text="") for c in completions
            ),
            token_ids=tuple(array("i", c.token_ids) for c in completions),
            sampler_logps=tuple(array("f", c.sampler_logps) for c in completions),
            policy_logps=tuple(None if c.policy_logps is None else array("f", c.policy_logps) for c in completions),
            advantages=tuple(sequence.advantage for sequence in sequences),
            trained=tuple(sequence.trained for sequence in sequences),
        )

    @property
    def priority(self) -> float:
        """Mean |advantage| over the G completions, 0 for one that is not trained.

        With rewards of 0 and 1 it is highest where half of the completions are right.
        """
        pairs = zip(self.advantages, self.trained, strict=True)
        return sum(abs(advantage) for advantage, trained in pairs if trained) / len(self.advantages)

    def sequences(self, prompt: EncodedPrompt, group: int) -> list[TrainingSequence]:
        """The sequences for another update. prompt: its record, encoded again; group: the place that it takes.

        Their old_logps are the sampler's, under the policy that wrote them.
        """
        sequences = []
        for i, completion in enumerate(self.completions):
            policy_logps = self.policy_logps[i]
            sampler_logps = self.sampler_logps[i].tolist()
            old_logps = sampler_logps if policy_logps is None else policy_logps.tolist()
            sequences.append(
                TrainingSequence(
                    prompt=prompt,
                    completion=replace(
                        completion,
                        token_ids=self.token_ids[i].tolist(),
                        sampler_logps=sampler_logps,
                        policy_logps=None if policy_logps is None else old_logps,
                    ),
                    group=group,
                    advantage=self.advantages[i],
                    trained=self.trained[i] and prompt.usable,
                    old_logps=torch.tensor(old_logps, dtype=torch.float32),
                    replayed=True,
                )
            )
        return sequences
