"""The policy objectives: the terms of a pack in, its share of the loss out; the trainer consumes it.

    GrpoArguments --make_objective--> Objective --token_weights--> PolicyTerms.weights
    Objective + PolicyTerms --policy_loss--> loss, statistics

One file per idea: surrogates `clip` (GSPO too), `cispo`, `sapo`; `aggregation`; regularisers `llds`, `top_entropy` and
`policy.kl`; `policy.sampler_correction`. `registry` knows the loss types by name, `objective`
composes them, `checks` refuses what cannot work.
"""

from lcot_plugin.policy.objectives.checks import check_objective
from lcot_plugin.policy.objectives.objective import Objective, make_objective, policy_loss
from lcot_plugin.policy.objectives.ratio import SurrogateSettings, importance_ratio
from lcot_plugin.policy.objectives.registry import (
    LOSS_TYPES,
    LossType,
    get_loss_type,
    register_loss_type,
    unregister_loss_type,
)
from lcot_plugin.policy.objectives.terms import PolicyTerms
from lcot_plugin.policy.objectives.top_entropy import entropy_threshold

__all__ = [
    "LOSS_TYPES",
    "LossType",
    "Objective",
    "PolicyTerms",
    "SurrogateSettings",
    "check_objective",
    "entropy_threshold",
    "get_loss_type",
    "importance_ratio",
    "make_objective",
    "policy_loss",
    "register_loss_type",
    "unregister_loss_type",
]
