"""Verdicts in, the plainest of all rewards out: the answer is right or it is not."""

from __future__ import annotations

from typing import Any

from lcot_plugin.types import Outcome, Verdict


def accuracy(verdicts: list[Verdict | None], **kwargs: Any) -> list[float | None]:
    """1.0 for the gold answer, 0.0 for another, none or one that timed out; None where the gold answer is no use.

    The reward of DeepSeek-R1 (arXiv 2501.12948) and of arXiv 2509.03321, over this package's verifier.
    """
    return [
        None if verdict is None or verdict.outcome is Outcome.GOLD_UNPARSABLE else float(verdict.matched)
        for verdict in verdicts
    ]
