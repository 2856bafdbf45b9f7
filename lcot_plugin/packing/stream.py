"""The planner for data of which nobody knows the length: the same packs from a buffer.

Comes in: examples one after the other, their sizes beside them. Goes out: rows of packs, one pack per rank. Consumed by
the streaming data set in the trainer's worker or main process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.packing.fill import fill_packs
from lcot_plugin.packing.leftovers import MAX_LEFT
from lcot_plugin.packing.levelled import integer_costs, level, mixed_loads
from lcot_plugin.packing.orders import ascending, exact_sums, generator_of, permutation
from lcot_plugin.packing.plan import FITTED_SHARES, JITTER, MODES, SLACK, check_size, ordered_plan, plan_epoch
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan

BUFFERED_STEPS = 8
"""The buffer holds at least so many optimizer steps: with fewer, rows of like cost cannot be made."""

Example = TypeVar("Example")


@dataclass(frozen=True)
class StreamRow(Generic[Example]):
    """What all ranks compute at one micro-step."""

    packs: list[list[Example]]
    """[num_ranks] the examples of each rank's pack."""
    idle: list[bool]
    """[num_ranks] True where a pack repeats an example because a rank would have had none; its labels are masked."""


class StreamPlanner(Generic[Example]):
    """Collects examples until there are enough, packs them, keeps what does not fill a step for the next time.

    Nothing but the examples fed so far, the arguments and the seed decide what comes out: to resume, feed a new planner
    from the stream's beginning and throw away as many rows as were given out. Rows are planned from sizes, so examples
    whose content is read lazily are not decoded for it.
    """

    def __init__(
        self,
        limits: PackLimits,
        *,
        num_ranks: int,
        micro_steps: int,
        cost: CostModel,
        buffer_size: int = 4096,
        seed: int = 0,
        epoch: int = 0,
        mode: str = "levelled",
        shuffle: bool = True,
    ) -> None:
        """As `plan_epoch`; `buffer_size` is the least number of examples that are packed together. It is exceeded where
        so many do not fill 8 optimizer steps."""
        if mode not in MODES:
            raise ValueError(f"Unknown mode of packing {mode!r}: choose one of {', '.join(MODES)}.")
        self.limits = limits
        self.num_ranks = num_ranks
        self.micro_steps = micro_steps
        self.cost = cost
        self.buffer_size = buffer_size
        self.seed = seed
        self.epoch = epoch
        self.mode = mode
        self.shuffle = shuffle
        self._step_packs = num_ranks * micro_steps
        self._examples: list[Example] = []
        self._sizes: list[tuple[int, int]] = []
        self._num_tokens = 0
        self._num_windows = 0
        self._num_fed = 0

    def rows(self, examples: Iterable[tuple[Example, int, int]]) -> Iterator[StreamRow[Example]]:
        """The rows of a whole stream of (example, tokens, patches).

        Raises:
            DataError: an example is larger than a cap.
        """
        for example, tokens, patches in examples:
            yield from self.add(example, tokens, patches)
        yield from self.flush()

    def add(self, example: Example, tokens: int, patches: int) -> list[StreamRow[Example]]:
        """Takes one example; the rows that have become ready, mostly none."""
        check_size(self._num_fed, tokens, patches, self.limits)
        self._num_fed += 1
        self._examples.append(example)
        self._sizes.append((tokens, patches))
        self._num_tokens += tokens
        least = BUFFERED_STEPS * self._step_packs
        if len(self._examples) < max(self.buffer_size, least) or self._num_tokens < least * self.limits.max_tokens * (
            1 - SLACK
        ):
            return []
        return self._window()

    def flush(self) -> list[StreamRow[Example]]:
        """The rows of what is left at the end of the stream; the last step may have fewer micro-steps."""
        if not self._examples:
            return []
        sizes = self._buffered()
        plan = plan_epoch(
            sizes,
            self.limits,
            num_ranks=self.num_ranks,
            micro_steps=self.micro_steps,
            cost=self.cost,
            seed=self.seed,
            epoch=self.epoch,
            mode=self.mode,
            shuffle=self.shuffle,
        )
        return self._taken(plan)

    def _buffered(self) -> ExampleSizes:
        tokens, patches = np.array(self._sizes, dtype=np.int64).T
        return ExampleSizes(tokens, patches, tokens)

    def _window(self) -> list[StreamRow[Example]]:
        sizes = self._buffered()
        generator = generator_of(self.seed, self.epoch, self._num_windows)
        self._num_windows += 1
        packed = self._filled if self.mode == "fill" else self._levelled
        pack_of, num_packs = packed(sizes, generator)
        plan = ordered_plan(
            sizes,
            pack_of,
            np.array([num_packs]),
            integer_costs(sizes, self.cost),
            num_ranks=self.num_ranks,
            micro_steps=self.micro_steps,
            generator=generator,
            shuffle=self.shuffle,
        )
        return self._taken(plan)

    def _levelled(self, sizes: ExampleSizes, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """The pack of each example of the buffer, -1 for those that wait, and the number of packs."""
        share = sizes.tokens / self.limits.max_tokens / (1 - SLACK)
        if self.limits.max_patches:
            share = np.maximum(share, sizes.patches / self.limits.max_patches / (1 - 2 * SLACK))
        filled = np.cumsum(share)
        # With long examples only, there are fewer packs than their tokens would fill.
        num_packs = min(int(filled[-1]), len(sizes)) // self._step_packs * self._step_packs
        # The oldest come first: none waits for ever.
        oldest = max(int(np.searchsorted(filled, num_packs, side="right")), num_packs)
        loads = mixed_loads(sizes, *integer_costs(sizes, self.cost))
        ties = permutation(oldest, generator)
        keys = loads[ties] * (1 + JITTER * generator.random(oldest) * self.shuffle)
        order = ties[ascending((2.0**21 - keys).astype(np.int64))]
        for fitted in FITTED_SHARES:
            pack_of = level(
                sizes.tokens,
                sizes.patches,
                loads,
                order=order,
                counts=np.array([oldest]),
                num_packs=np.array([num_packs]),
                limits=self.limits,
                fitted=fitted,
            )
            # What has no place waits for the next window; many would leave packs half empty.
            if (pack_of[:oldest] < 0).sum() <= oldest // MAX_LEFT:
                break
        return pack_of, num_packs

    def _filled(self, sizes: ExampleSizes, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        pack_of = fill_packs(sizes.tokens, sizes.patches, self.limits, permutation(len(sizes), generator))
        tokens = exact_sums(sizes.tokens, pack_of, int(pack_of.max()) + 1)
        num_packs = len(tokens) // self._step_packs * self._step_packs
        # The fullest packs go out; the examples of the others wait.
        number = np.full(len(tokens), -1, dtype=np.int64)
        number[ascending(self.limits.max_tokens - tokens)[:num_packs]] = np.arange(num_packs)
        return number[pack_of], num_packs

    def _taken(self, plan: PackPlan) -> list[StreamRow[Example]]:
        """The rows of `plan`, whose examples leave the buffer."""
        packs = [
            [self._examples[index] for index in pack.tolist()] for pack in np.split(plan.indices, plan.offsets[1:-1])
        ]
        rows = [
            StreamRow(packs[start : start + self.num_ranks], plan.idle[start : start + self.num_ranks].tolist())
            for start in range(0, plan.num_packs, self.num_ranks)
        ]
        waiting = np.ones(len(self._examples), dtype=bool)
        waiting[plan.indices[~np.repeat(plan.idle, np.diff(plan.offsets))]] = False
        kept = np.flatnonzero(waiting).tolist()
        self._examples = [self._examples[index] for index in kept]
        self._sizes = [self._sizes[index] for index in kept]
        self._num_tokens = sum(tokens for tokens, _ in self._sizes)
        return rows
