"""Dynamic sampling: groups whose rewards do not differ are replaced by groups of other prompts.

In:  which groups of a rollout are informative (their rewards differ). Out: the prompts to roll out beside them, which
found group takes which place, and the counts of it. The trainer rolls out, scores and exchanges.

A group without reward variance has advantages of 0: its place in the batch is lost. DAPO (arXiv 2503.14476, section
3.2) goes on sampling prompts until the batch is full of groups that teach something; here for at most
`grpo_dynamic_sampling_rounds` further rollouts.

Example, a rollout of 4 prompts on 2 ranks: groups `x . x .` (`.`: uninformative). Two places are open and half of the
groups were informative, so 4 further prompts are rolled out, 2 on each rank: `. x . x`. The extra groups 1 and 3 take
the places 1 and 3, and the batch is full after one round.

Everything follows from (seed, step, round) and from what was found, the same on every rank: there is no state, and a
resumed run draws the same. The order of the epoch is not touched: an extra prompt still has its own turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import chain, repeat
from random import Random


def num_extra_prompts(num_open: int, informative: Sequence[bool], block_size: int, num_ranks: int) -> int:
    """How many prompts the next round rolls out over all ranks: as many as are expected to fill the open places, but
    no more than a block. A multiple of num_ranks, so that no rank is idle.

    informative: of all groups of this step so far, the block's and those of earlier rounds. Where a share p of them is
    informative, num_open / p prompts are expected to be enough.

        4 open places, 24 of 32 informative, 4 ranks: 4 / 0.75 = 5.3, so 8
    """
    num_informative = sum(informative)
    if num_informative * block_size <= num_open * len(informative):
        return block_size
    expected = -(-num_open * len(informative) // num_informative)
    return -(-expected // num_ranks) * num_ranks


def extra_prompts(
    seed: int, step: int, round_index: int, num_prompts: int, num_needed: int, taken: Collection[int]
) -> list[int]:
    """Rows of the data set to roll out in a round, drawn without replacement, in order of drawing.

    taken: rows of the current block and of earlier rounds of this step. They are drawn only once every other row has
    been; a data set smaller than num_needed is drawn from as often as it takes.
    """
    generator = Random(f"dynamic sampling {seed} {step} {round_index}")  # a text is hashed alike in every process
    taken = set(taken)
    others = [row for row in range(num_prompts) if row not in taken]
    drawn: list[int] = []
    for pool in chain((others, sorted(taken)), repeat(range(num_prompts))):
        drawn += generator.sample(pool, min(len(pool), num_needed - len(drawn)))
        if len(drawn) == num_needed:
            break
    return drawn


def extra_slots(block_size: int, num_earlier: int, num_extra: int) -> range:
    """The slots of a round's prompts, which decide their random numbers: after those of the block and of the
    `num_earlier` extra prompts of earlier rounds, so that a prompt drawn again is answered anew."""
    return range(block_size + num_earlier, block_size + num_earlier + num_extra)


def rank_slice(num_extra: int, rank: int, num_ranks: int) -> slice:
    """The prompts of a round that `rank` rolls out, of a number that num_ranks divides: in rank order they are the
    round again, as `gather` puts them together."""
    share = num_extra // num_ranks
    return slice(rank * share, (rank + 1) * share)


def replacements(informative: Sequence[bool], found: Sequence[bool]) -> list[tuple[int, int]]:
    """(place in the block, extra group) pairs: open places in order are given the informative extra groups in order.

    informative: [P] of the block. found: of the extra groups of all rounds so far, in order of drawing. The order is
    that of drawing, not of finishing, so that short completions are not preferred.
    """
    places = (place for place, is_informative in enumerate(informative) if not is_informative)
    extras = (extra for extra, is_informative in enumerate(found) if is_informative)
    return list(zip(places, extras, strict=False))


@dataclass(frozen=True)
class DynamicSamplingCounts:
    """What dynamic sampling (and replay) did, over all ranks; counts of several rollouts add up."""

    num_rollouts: int = 0
    """Rollouts of a block, further rounds not counted."""
    num_places: int = 0
    """Groups that are trained on."""
    num_extra: int = 0
    """Prompts rolled out beside those of the blocks."""
    num_rounds: int = 0
    """Further rounds."""
    num_replaced: int = 0
    """Places whose group was replaced by one of another prompt."""
    num_replayed: int = 0
    """Places whose group was replaced by an earlier one of the replay buffer."""
    num_left: int = 0
    """Places whose group stayed without variance."""
    num_surplus: int = 0
    """Informative extra groups for which no place was open."""

    @classmethod
    def of_rollout(
        cls, informative: Sequence[bool], rounds: Sequence[Sequence[bool]] = (), num_replayed: int = 0
    ) -> DynamicSamplingCounts:
        """Of one block; rounds: which extra groups of each round are informative."""
        found = list(chain.from_iterable(rounds))
        num_replaced = len(replacements(informative, found))
        return cls(
            num_rollouts=1,
            num_places=len(informative),
            num_extra=len(found),
            num_rounds=len(rounds),
            num_replaced=num_replaced,
            num_replayed=num_replayed,
            num_left=len(informative) - sum(informative) - num_replaced - num_replayed,
            num_surplus=sum(found) - num_replaced,
        )

    def __add__(self, other: DynamicSamplingCounts) -> DynamicSamplingCounts:
        names = [item.name for item in fields(self)]
        return DynamicSamplingCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def num_rolled_out(self) -> int:
        """Prompts rolled out in all."""
        return self.num_places + self.num_extra

    def summary(self) -> str:
        """A sentence for the end of the run."""
        uninformative = self.num_replaced + self.num_replayed + self.num_left
        parts = [f"{self.num_replaced:,} were replaced by groups of {self.num_extra:,} further prompts"]
        if self.num_replayed:
            parts.append(f"{self.num_replayed:,} by earlier groups of the replay buffer")
        parts.append(f"{self.num_left:,} stayed and taught nothing")
        sentence = (
            f"{self.num_rolled_out:,} prompts were rolled out for the {self.num_places:,} groups of "
            f"{self.num_rollouts:,} rollouts. The rewards of {uninformative:,} groups did not differ: "
            f"{', '.join(parts)}."
        )
        if self.num_surplus:
            sentence += f" {self.num_surplus:,} informative groups of further prompts found no place."
        return sentence
