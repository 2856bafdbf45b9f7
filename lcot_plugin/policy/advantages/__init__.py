"""Rewards of a rollout in, advantages out; pure functions, consumed by the trainer and the data use of GRPO.

    RewardTable --compute_advantages--> [P, G]

One file per estimator; `registry` knows them by name.
"""

from lcot_plugin.policy.advantages.registry import (
    ADVANTAGES,
    compute_advantages,
    get_advantage,
    register_advantage,
    unregister_advantage,
)
from lcot_plugin.policy.advantages.table import AdvantageSettings, RewardTable, has_variance

__all__ = [
    "ADVANTAGES",
    "AdvantageSettings",
    "RewardTable",
    "compute_advantages",
    "get_advantage",
    "has_variance",
    "register_advantage",
    "unregister_advantage",
]
