"""completions.jsonl: every completion of a run with what was made of it, one JSON object per line.

In: rollouts with scores. Out: lines that a person can grep, `datasets` can load and a viewer can browse.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lcot_plugin.types import Completion, PromptRecord, Score

COMPLETIONS_FILE = "completions.jsonl"


def completion_line(
    record: PromptRecord, completion: Completion, score: Score, *, advantage: float | None = None, **context: Any
) -> dict[str, Any]:
    """One completion as plain JSON values. `context` (step, sample...) comes first."""
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


def image_name(image: Any) -> str:
    """The path of an image, or what stands in for it where the data set embeds the bytes."""
    if isinstance(image, str):
        return image
    if isinstance(image, dict) and image.get("path"):
        return image["path"]
    return getattr(image, "filename", "") or f"<{type(image).__name__} in the data set>"


class CompletionsLog:
    """Appends lines to a file, and takes back those that a resumed run will write again."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """All of the lines, or none where the disk is full (OSError)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError:
            if self.path.exists():
                os.truncate(self.path, size)
            raise

    def drop_from_step(self, step: int) -> None:
        """Removes the lines of rollouts made at `step` or later, and a line that a kill cut short."""
        if not self.path.exists():
            return
        kept = []
        with self.path.open("rb") as file:  # bytes: a line may be cut inside a character
            for line in file:
                if not line.endswith(b"\n") or json.loads(line)["step"] >= step:
                    break
                kept.append(line)
        partial = self.path.with_suffix(".tmp")
        partial.write_bytes(b"".join(kept))
        partial.replace(self.path)
