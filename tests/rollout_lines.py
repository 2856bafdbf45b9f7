"""Lines of a completions.jsonl for the viewer's tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def completion_line(step: int = 0, sample: int | str = 0, reward: float | None = 1.0, **values: Any) -> dict[str, Any]:
    """What completions.py writes, with `values` in place of the defaults."""
    outcome = None if reward is None else "matched" if reward > 0 else "mismatched"
    return {
        "step": step,
        "sample": sample,
        "source": "problems",
        "record": 0,
        "question": "How many?",
        "images": [],
        "opening": "<think>\n",
        "completion": "One and two.</think>\n\\boxed{3}",
        "ending": "stopped",
        "num_tokens": 12,
        "policy_step": step,
        "extracted": "3",
        "gold": "3",
        "answer_type": "number",
        "match": "",
        "outcome": outcome,
        "rewards": {"accuracy": reward},
        "reward": reward,
        "advantage": 0.5,
        **values,
    }


def group_lines(step: int, record: int, rewards: Iterable[float | None], **values: Any) -> list[dict[str, Any]]:
    return [completion_line(step, sample, reward, record=record, **values) for sample, reward in enumerate(rewards)]


def written(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_bytes(written(lines))
    return path


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("ab") as file:
        file.write(written(lines))
