"""Rows of a tokenised data set in, their sizes out: all that a plan needs, without decoding a picture.

Lengths, labels and placeholders are counted in Arrow's flat buffers, a few million tokens a second and core at the
least; images are counted by the placeholders that stand for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.logging import get_logger
from tqdm.auto import tqdm

from lcot_plugin.errors import DataError
from lcot_plugin.types import ExampleSizes, PackLimits
from lcot_plugin.vlm import VisionLanguageModel

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it

BATCH_SIZE = 10_000
"""Rows that are counted at once."""
MAX_NAMED = 5


def patches_per_placeholder(config: Any) -> int:
    """Patches of the vision tower behind one image token. Examples: 4 for the Qwen families (a merge of 2 x 2) and
    InternVL (a shuffle of 2 x 2), 16 for Gemma 3 (4096 patches in 256 tokens), 1 for LLaVA.

    For LLaVA-OneVision, which crops and pools, it is a lower estimate.
    """
    vision = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None)
    if merge:
        return int(merge) ** 2
    if shuffle := getattr(config, "downsample_ratio", None):
        return round(1 / shuffle**2)
    if vision is not None and (tokens := getattr(config, "mm_tokens_per_image", None)):
        return (vision.image_size // vision.patch_size) ** 2 // tokens
    return 1


@dataclass(frozen=True)
class SizeCounter:
    """Counts tokens, patches and labels."""

    placeholders: tuple[int, ...]
    """Ids of the tokens that stand for parts of images and videos; empty for a text model."""
    patches_per_placeholder: int

    @classmethod
    def of_model(cls, config: Any, vlm: VisionLanguageModel) -> SizeCounter:
        ids = [token_id for token_id in (vlm.image_token_id, vlm.video_token_id) if token_id is not None]
        return cls(tuple(ids), patches_per_placeholder(config))

    def of_row(self, row: dict[str, Any]) -> tuple[int, int, int]:
        """Tokens, patches and labels of one row."""
        ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
        return len(ids), self._patches(np.isin(ids, self.placeholders).sum()), int((labels != IGNORE_INDEX).sum())

    def of_dataset(self, dataset: Any) -> ExampleSizes:
        """Of every row, with a progress bar."""
        parts: list[tuple[np.ndarray, ...]] = []
        batches = dataset.select_columns(["input_ids", "labels"]).with_format("arrow").iter(batch_size=BATCH_SIZE)
        # What takes less than two seconds needs no bar.
        with tqdm(total=len(dataset), desc="Measuring examples", unit="example", delay=2.0) as bar:
            for table in batches:
                ids, tokens = flat(table.column("input_ids"))
                labels, _ = flat(table.column("labels"))
                starts = np.concatenate([[0], np.cumsum(tokens)])
                parts.append(
                    (
                        tokens,
                        self._patches(count_per_row(np.isin(ids, self.placeholders), starts)),
                        count_per_row(labels != IGNORE_INDEX, starts),
                    )
                )
                bar.update(len(tokens))
        return ExampleSizes(*(np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True)))

    def _patches(self, num_placeholders: Any) -> Any:
        return num_placeholders * self.patches_per_placeholder


def flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column one after the other, and the length of each row."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(), lists.value_lengths().to_numpy()


def count_per_row(marks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[rows] how many of the marks between `starts[i]` and `starts[i + 1]` are set."""
    sums = np.concatenate([[0], np.cumsum(marks)])
    return sums[starts[1:]] - sums[starts[:-1]]


@dataclass
class Admission:
    """Leaves out what is larger than a pack, or stops, as `overlong_policy` says."""

    limits: PackLimits
    policy: str
    num_left_out: int = 0
    named: list[str] = field(default_factory=list)

    def fault(self, tokens: int, patches: int) -> str | None:
        """What is too large about an example; None where it fits."""
        if tokens > self.limits.max_tokens:
            return f"{tokens:,} tokens, pack_max_tokens is {self.limits.max_tokens:,}"
        if 0 < self.limits.max_patches < patches:
            return f"{patches:,} image patches, pack_max_patches is {self.limits.max_patches:,}"
        return None

    def leave_out(self, row: int, fault: str) -> None:
        """Counts one more. Raises DataError where the policy is `error`."""
        self.num_left_out += 1
        if len(self.named) < MAX_NAMED:
            self.named.append(f"example {row}: {fault}")
        if self.policy == "error":
            raise DataError(
                f"Example {row} is larger than a pack: {fault}. Raise that, lower image_max_pixels, or write "
                "overlong_policy: drop to leave such examples out."
            )

    def say(self, num_seen: int) -> None:
        """A warning with the first few of those left out."""
        more = f" and {self.num_left_out - len(self.named)} more" if self.num_left_out > len(self.named) else ""
        logger.warning_rank0(
            f"{self.num_left_out} of {num_seen} examples are larger than a pack and left out, since neither images nor "
            f"answers are ever cut: {'; '.join(self.named)}{more}."
        )


def measure(
    dataset: Any, counter: SizeCounter, limits: PackLimits, policy: str
) -> tuple[ExampleSizes, np.ndarray | None]:
    """Sizes of the examples that fit into a pack, and their rows; None where all of them fit.

    Raises DataError where the policy is `error` and one does not fit, and where none does.
    """
    sizes, admission = counter.of_dataset(dataset), Admission(limits, policy)
    if unlabelled := int((sizes.labels == 0).sum()):
        logger.warning_rank0(f"{unlabelled} of {len(sizes)} examples have no label: nothing is trained on them.")
    too_large = sizes.tokens > limits.max_tokens
    if limits.max_patches:
        too_large |= sizes.patches > limits.max_patches
    if not too_large.any():
        return sizes, None
    for row in np.flatnonzero(too_large).tolist():
        fault = admission.fault(int(sizes.tokens[row]), int(sizes.patches[row]))
        assert fault is not None
        admission.leave_out(row, fault)
    admission.say(len(sizes))
    kept = np.flatnonzero(~too_large)
    if not len(kept):
        raise DataError(f"No example fits into a pack: {'; '.join(admission.named)}.")
    return ExampleSizes(sizes.tokens[kept], sizes.patches[kept], sizes.labels[kept]), kept


@dataclass
class StreamSizes:
    """The sizes of a stream's rows as they pass; says at the 1st, 10th, 100th... that one is left out."""

    counter: SizeCounter
    admission: Admission
    num_seen: int = 0

    def __call__(self, row: dict[str, Any]) -> tuple[int, int, int] | None:
        """Tokens, patches and labels; None for a row that is larger than a pack. Raises DataError by policy."""
        tokens, patches, labels = self.counter.of_row(row)
        fault = self.admission.fault(tokens, patches)
        self.num_seen += 1
        if fault is None:
            return tokens, patches, labels
        self.admission.leave_out(self.num_seen - 1, fault)
        if str(self.admission.num_left_out).rstrip("0") == "1":
            self.admission.say(self.num_seen)
        return None
