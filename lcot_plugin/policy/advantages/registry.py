"""The advantage estimators by name; a user's own is registered, or named in the YAML as `path/to/file.py:function`.

An estimator takes the rewards of a rollout and the settings, and returns one advantage per completion:

    def best_only(table: RewardTable, settings: AdvantageSettings) -> torch.Tensor:  # [P, G]
        return (table.totals == table.totals.nan_to_num(-torch.inf).amax(-1, keepdim=True)).float()

What it returns for a completion without a reward is overwritten by 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.advantages.gdpo import gdpo
from lcot_plugin.policy.advantages.group import group
from lcot_plugin.policy.advantages.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from lcot_plugin.policy.advantages.rloo import rloo
from lcot_plugin.policy.advantages.table import AdvantageSettings, RewardTable
from lcot_plugin.user_functions import function_in_file, split_file_spec

AdvantageEstimator = Callable[[RewardTable, AdvantageSettings], torch.Tensor]

ADVANTAGES: dict[str, AdvantageEstimator] = {
    "group": group,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def register_advantage(name: str, estimator: AdvantageEstimator) -> None:
    """Make an estimator known as `name`; ArgumentError where the name is taken or reads as a file's."""
    if name in ADVANTAGES:
        raise ArgumentError(
            f"there is an advantage {name!r} already; choose another name or unregister_advantage({name!r}) first"
        )
    if not name or ":" in name:
        raise ArgumentError(f"{name!r} cannot name an advantage: a colon stands for path/to/file.py:function")
    ADVANTAGES[name] = estimator


def unregister_advantage(name: str) -> None:
    """Forget an estimator; ArgumentError where there is none of that name."""
    if name not in ADVANTAGES:
        raise ArgumentError(_unknown(name))
    del ADVANTAGES[name]


def get_advantage(spec: str) -> AdvantageEstimator:
    """The estimator of a name or `path/to/file.py:function`; ArgumentError where there is none, or the file is bad."""
    if spec in ADVANTAGES:
        return ADVANTAGES[spec]
    if (in_file := split_file_spec(spec)) is None:
        raise ArgumentError(_unknown(spec))
    return function_in_file(*in_file, "advantage", ArgumentError)


def compute_advantages(arguments: GrpoArguments, table: RewardTable) -> torch.Tensor:
    """[P, G] advantages of a rollout, 0 where the total is NaN.

    Raises ArgumentError where a user's estimator returns something else than one number per completion.
    """
    if arguments.grpo_multi_objective_aggregation == "normalize_then_sum":
        return gdpo(table)
    estimator = get_advantage(arguments.grpo_advantage)
    advantages = estimator(table, AdvantageSettings(arguments.grpo_scale_rewards))
    if advantages.shape != table.totals.shape:
        raise ArgumentError(
            f"grpo_advantage: the function returned a tensor of shape {list(advantages.shape)}; return one advantage "
            f"per completion, {list(table.totals.shape)} (prompts, completions)."
        )
    advantages = torch.where(table.totals.isnan(), 0.0, advantages)
    if not advantages.isfinite().all():
        raise ArgumentError("grpo_advantage: the function returned NaN or infinity for a completion with a reward.")
    return advantages


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, ADVANTAGES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"grpo_advantage: unknown estimator {name!r}{hint} Known: {', '.join(ADVANTAGES)}, or a function of yours as "
        "path/to/file.py:function."
    )
