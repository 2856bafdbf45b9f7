"""The rows of each pack, as a data set whose keys are packs.

In: `PackKey`s from a PackSampler, or, for a stream, packs with their rows from a `PackStreamSampler`. Out: `PackItem`s,
which the collate function turns into PackedBatches. In data-loader workers both run there: the sampler's process reads
no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Dataset, Sampler

from lcot_plugin.errors import DataError
from lcot_plugin.packing.sampler import PackKey

if TYPE_CHECKING:
    from lcot_plugin.packing.stream import StreamPlanner


class PackItem(NamedTuple):
    """The examples of one pack, not yet decoded."""

    rows: Sequence[dict[str, Any]]
    """Each with input_ids and labels, lists of one length, and images, videos and audios, lists or None."""
    idle: bool = False
    """Whether nothing is trained on them: see PackPlan.idle."""


class PackedExamples(Dataset[PackItem]):
    """Packs of a tokenised data set."""

    def __init__(self, examples: Any):
        """examples: a `datasets.Dataset`; a stream's packs bring their rows along and need none of it."""
        self.examples = examples

    def __len__(self) -> int:
        """Examples, which is what the Trainer counts as such."""
        return len(self.examples)

    def __getitem__(self, key: PackKey | PackItem) -> PackItem:
        if isinstance(key, PackItem):
            return key
        return PackItem([self.examples[index] for index in key.examples], key.idle)


class PackStreamSampler(Sampler[PackItem]):
    """The packs of a stream, pass after pass without an end: `max_steps` ends a run.

    Reading, tokenising and planning happen in the training process (a few hundred records a second), pictures are
    decoded in the workers that the packs are sent to. A resumed run plans the packs it skips anew, without decoding
    them, and so goes on with the very pack that comes next.
    """

    def __init__(
        self,
        stream: Any,
        make_planner: Callable[[], StreamPlanner],
        size_of: Callable[[dict[str, Any]], tuple[int, int, int] | None],
    ):
        """stream: a `datasets.IterableDataset`; size_of: tokens, patches and labels of a row; None
        for one that is left out."""
        self.stream, self.make_planner, self.size_of = stream, make_planner, size_of

    def __iter__(self) -> Iterator[PackItem]:
        planner, number = self.make_planner(), 0
        while True:
            self.stream.set_epoch(number)
            num_seen = 0
            for row in self.stream:
                size = self.size_of(row)
                if size is None:
                    continue
                num_seen += 1
                tokens, patches, _ = size
                for packs in planner.add(row, tokens, patches):
                    yield from map(PackItem, packs.packs, packs.idle)
            if not num_seen:
                raise DataError("The stream holds no record that can be used.")
            number += 1
