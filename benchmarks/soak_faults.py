"""The faults of soak.py that happen within a run: verdicts whose comparison hangs, and pictures that are broken.

`accuracy` is a reward function as a user would write one, `soak_faults.py:accuracy` in `grpo_reward_funcs`; run as a
module by the verifier's zygote, this file is the solver that hangs.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

HANGING = 0.01
"""Share of the completions whose verdict is left to a solver that hangs."""
DEADLINE = 1.0
"""Seconds after which the verifier kills it."""
BROKEN = 0.01
"""Share of the records whose picture is cut in the middle."""
HANGS = "LCOT_SOAK_HANGS"
"""Environment variable: the file that gets a line for every verdict that hung."""


class HangingSolver:
    """Never answers."""

    def readable(self, expression: str) -> bool:
        return True

    def equal(self, gold: str, answer: str) -> bool:
        time.sleep(3600)
        return False


def _verifier() -> Any:
    from lcot_plugin.rewards.verifier import Verifier

    return Verifier(DEADLINE, num_workers=1, _worker_module=Path(__file__).stem)


def accuracy(verdicts: list[Any], trainer_state: Any, **kwargs: Any) -> list[float | None]:
    """The registered `accuracy`, but for HANGING of the completions what the verifier says of a comparison that hangs.

    Every such comparison is another one, since the verifier remembers what has overrun. It needs algebra; where the
    machine is so busy that not even the gold answer was read by the deadline, that is the verdict.
    """
    from lcot_plugin.rewards.functions.correctness import accuracy as undisturbed
    from lcot_plugin.types import Outcome, ScoringRequest

    global _state
    if _state is None:
        _state = _verifier(), random.Random(7)
    verifier, draws = _state
    verdicts = list(verdicts)
    for number in range(len(verdicts)):
        if draws.random() < HANGING:
            power = draws.randrange(10**9)
            request = ScoringRequest(
                rf"\boxed{{\sqrt{{2}}+x^{{{power}}}}}", rf"\sqrt{{3}}+x^{{{power}}}", answer_type="expression"
            )
            verdicts[number] = verifier.verify_batch([request])[0]
            assert verdicts[number].outcome in (Outcome.TIMED_OUT, Outcome.GOLD_UNPARSABLE)
            with Path(os.environ[HANGS]).open("a") as file:
                file.write("hung\n")
    return undisturbed(verdicts=verdicts)


_state: tuple[Any, random.Random] | None = None


def write_data(source: Path, folder: Path) -> int:
    """A copy of an embedded set in which BROKEN of the pictures end in the middle; returns how many.

    source: the parquet file. Writes `problems.parquet` and `dataset_info.json` to `folder`.
    """
    from datasets import Dataset, Image

    folder.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_parquet(str(source)).cast_column("images", [Image(decode=False)])
    chosen = set(random.Random(7).sample(range(len(data)), round(BROKEN * len(data))))

    def cut(content: bytes) -> bytes:
        return content[: len(content) // 2]

    def broken(record: dict[str, Any], index: int) -> dict[str, Any]:
        if index in chosen:
            record["images"] = [{**image, "bytes": cut(image["bytes"])} for image in record["images"]]
        return record

    data.map(broken, with_indices=True).to_parquet(str(folder / "problems.parquet"))
    columns = {"prompt": "problem", "images": "images", "gold": "answer"}
    entry = {"problems": {"file_name": "problems.parquet", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(entry))
    return len(chosen)


if __name__ == "__main__":
    from lcot_plugin.rewards import worker

    sys.exit(worker.main(HangingSolver))
