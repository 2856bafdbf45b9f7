"""Completions and gold answers in, verdicts and rewards out; the GRPO trainer and the evaluation consume them.

    ScoringRequest --extraction--> Found --answers (in process, or in a worker killed at its deadline)--> Verdict
    Verdict + ScoringRequest --registry, scorer--> Score

Importing this package imports neither sympy nor math_verify; only the worker process ever does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcot_plugin.rewards.extraction import Found, extract_answer
    from lcot_plugin.rewards.functions.registry import get_reward, register_reward, reward_names, unregister_reward
    from lcot_plugin.rewards.scorer import Scorer
    from lcot_plugin.rewards.verifier import Verifier, gold_is_usable, verify

_HOMES = {
    "Found": "extraction",
    "Scorer": "scorer",
    "Verifier": "verifier",
    "extract_answer": "extraction",
    "get_reward": "functions.registry",
    "gold_is_usable": "verifier",
    "register_reward": "functions.registry",
    "reward_names": "functions.registry",
    "unregister_reward": "functions.registry",
    "verify": "verifier",
}

__all__ = [
    "Found",
    "Scorer",
    "Verifier",
    "extract_answer",
    "get_reward",
    "gold_is_usable",
    "register_reward",
    "reward_names",
    "unregister_reward",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
