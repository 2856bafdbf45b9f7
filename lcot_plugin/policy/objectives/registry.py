"""The objectives by name; a user's own is registered, or named in the YAML as `path/to/file.py:function`.

A surrogate takes the tokens of a pack and the settings, and returns the loss of each token before it is weighted:

    def reinforce(terms: PolicyTerms, settings: SurrogateSettings) -> torch.Tensor:  # [n]
        return -terms.advantages * terms.logps

    reinforce.aggregation = "constant"

Attributes of a function in a file stand for the fields of LossType: `aggregation`, `importance_sampling_level` and
`skips_zero_advantages`; each may be left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch

from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.objectives.aggregation import Aggregation
from lcot_plugin.policy.objectives.cispo import bounded_tokens, cispo
from lcot_plugin.policy.objectives.clip import clip, clipped_tokens
from lcot_plugin.policy.objectives.ratio import RatioLevel, SurrogateSettings
from lcot_plugin.policy.objectives.sapo import sapo
from lcot_plugin.policy.objectives.terms import PolicyTerms
from lcot_plugin.user_functions import function_in_file, split_file_spec

Surrogate = Callable[[PolicyTerms, SurrogateSettings], torch.Tensor]
ClippedTokens = Callable[[torch.Tensor, torch.Tensor, SurrogateSettings], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class LossType:
    """What one value of `grpo_loss_type` stands for."""

    surrogate: Surrogate
    aggregation: Aggregation = "token"
    """Where `grpo_loss_aggregation` is not written."""
    importance_sampling_level: RatioLevel = "token"
    """Where `grpo_importance_sampling_level` is not written."""
    fixed_level: bool = False
    """Whether the other level would make another objective of it."""
    uses_delta: bool = False
    skips_zero_advantages: bool = False
    """Whether the surrogate and its gradient are exactly 0 where the advantage is."""
    is_linear_on_policy: bool = False
    """Whether, where every ratio is 1, the surrogate's gradient by the log-probabilities does not depend on them."""
    clipped: ClippedTokens | None = None
    """(ratio [n], advantages [n], settings) -> the tokens that are clipped, for the logs."""


def _shipped(surrogate: Surrogate, aggregation: Aggregation, **fields: Any) -> LossType:
    return LossType(surrogate, aggregation, skips_zero_advantages=True, is_linear_on_policy=True, **fields)


def _clip_over(aggregation: Aggregation) -> LossType:
    return _shipped(clip, aggregation, uses_delta=True, clipped=clipped_tokens)


LOSS_TYPES: dict[str, LossType] = {
    "grpo": _clip_over("sequence"),
    "bnpo": _clip_over("micro_batch"),
    "dr_grpo": _clip_over("constant"),
    "dapo": _clip_over("token"),
    "gspo": _shipped(clip, "sequence", importance_sampling_level="sequence", fixed_level=True, clipped=clipped_tokens),
    "cispo": _shipped(cispo, "token", fixed_level=True, clipped=bounded_tokens),
    "sapo": _shipped(sapo, "sequence", fixed_level=True),
}


def register_loss_type(name: str, loss_type: LossType) -> None:
    """Make an objective known as `name`; ArgumentError where the name is taken or reads as a file's."""
    if name in LOSS_TYPES:
        raise ArgumentError(
            f"there is a loss type {name!r} already; choose another name or unregister_loss_type({name!r}) first"
        )
    if not name or ":" in name:
        raise ArgumentError(f"{name!r} cannot name a loss type: a colon stands for path/to/file.py:function")
    LOSS_TYPES[name] = loss_type


def unregister_loss_type(name: str) -> None:
    """Forget an objective; ArgumentError where there is none of that name."""
    if name not in LOSS_TYPES:
        raise ArgumentError(_unknown(name))
    del LOSS_TYPES[name]


def get_loss_type(spec: str) -> LossType:
    """The objective of a name or `path/to/file.py:function`; ArgumentError where there is none, or the file is bad."""
    if spec in LOSS_TYPES:
        return LOSS_TYPES[spec]
    if (in_file := split_file_spec(spec)) is None:
        raise ArgumentError(_unknown(spec))
    function = function_in_file(*in_file, "loss", ArgumentError)
    return LossType(
        function,
        _choice(spec, function, "aggregation", get_args(Aggregation), "token"),
        _choice(spec, function, "importance_sampling_level", get_args(RatioLevel), "token"),
        uses_delta=True,
        skips_zero_advantages=bool(getattr(function, "skips_zero_advantages", False)),
    )


def _choice(spec: str, function: Surrogate, attribute: str, choices: tuple[str, ...], default: str) -> Any:
    value = getattr(function, attribute, default)
    if value not in choices:
        raise ArgumentError(f"loss {spec}: its {attribute} {value!r} must be one of {', '.join(choices)}")
    return value


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, LOSS_TYPES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"grpo_loss_type: unknown objective {name!r}{hint} Known: {', '.join(LOSS_TYPES)}, or a function of yours as "
        "path/to/file.py:function."
    )
