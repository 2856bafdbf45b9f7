"""completions.jsonl: every completion of a run with what was made of it, one JSON object per line.

In: rollouts with scores. Out: lines that a person can grep, `datasets` can load and a viewer can browse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lcot_plugin.report.completion_images import CompletionImages
from lcot_plugin.report.run_log import StepLog
from lcot_plugin.report.token_trace import TokenTracer
from lcot_plugin.types import Completion, PromptRecord, Score

COMPLETIONS_FILE = "completions.jsonl"


def image_name(image: Any) -> str:
    """The path of an image, or what stands in for it where the data set embeds the bytes."""
    if isinstance(image, str):
        return image
    if isinstance(image, dict) and image.get("path"):
        return image["path"]
    return getattr(image, "filename", "") or f"<{type(image).__name__} in the data set>"


def completion_line(
    record: PromptRecord,
    completion: Completion,
    score: Score,
    *,
    advantage: float | None = None,
    image_name: Callable[[Any], str] = image_name,
    **context: Any,
) -> dict[str, Any]:
    """One completion as plain JSON values. `context` (step, group, sample...) comes first."""
    verdict = score.verdict
    return {
        **context,
        "source": record.source,
        "record": record.record,
        "question": record.question,
        "images": [image_name(image) for image in record.images],
        "opening": record.opening,
        "completion": completion.text,
        "ending": completion.ending.value,
        "num_tokens": len(completion.token_ids),
        "policy_step": completion.policy_step,
        "extracted": verdict.extracted if verdict else None,
        "gold": record.gold,
        "answer_type": record.answer_type,
        "match": record.match,
        "outcome": verdict.outcome.value if verdict else None,
        "rewards": score.rewards,
        "reward": score.total,
        "advantage": advantage,
    }


class CompletionsLog(StepLog):
    """The file, and what a resumed run takes back of it."""


@dataclass
class CompletionLines:
    """Makes the lines of a run: `completion_line`, with what the run keeps beside the text."""

    images: CompletionImages | None = None
    """Keeps pictures that are in the data set; None names them only."""
    traces: TokenTracer | None = None
    """Keeps every token's log-probability under `trace`; None does not."""

    def __call__(self, record: PromptRecord, completion: Completion, score: Score, **context: Any) -> dict[str, Any]:
        """See `completion_line`."""
        line = completion_line(record, completion, score, image_name=self.image_name, **context)
        return line if self.traces is None else {**line, "trace": self.traces(completion)}

    def image_name(self, image: Any) -> str:
        """Where a viewer finds an image: its path, or that of the copy that was kept, relative to output_dir."""
        kept = self.images(image) if self.images is not None else None
        return kept or image_name(image)
