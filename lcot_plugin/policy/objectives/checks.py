"""The YAML keys of loss and advantage in, an ArgumentError for what cannot work, warnings for what is unlikely to.

What each key may hold by itself (signs, choices) `GrpoArguments.check_grpo` knows; here are the keys together.
"""

from __future__ import annotations

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.advantages.registry import get_advantage
from lcot_plugin.policy.objectives.registry import LossType, get_loss_type

WIDE_SEQUENCE_EPSILON = 0.1
"""A mean of log-ratios hardly ever leaves a range this wide."""


def check_objective(arguments: GrpoArguments) -> list[str]:
    """Warnings to be shown once. Raises ArgumentError with what to do instead."""
    loss_type = get_loss_type(arguments.grpo_loss_type)
    get_advantage(arguments.grpo_advantage)
    _check_surrogate(arguments, loss_type)
    _check_correction(arguments)
    _check_reference(arguments)
    _check_advantage(arguments)
    return [*_ratio_warnings(arguments, loss_type), *_regulariser_warnings(arguments), *_unread(arguments)]


def _unread(arguments: GrpoArguments) -> list[str]:
    """Keys that were written and that nothing reads with these others."""
    loss = arguments.grpo_loss_type
    reads = {
        "grpo_epsilon": loss not in ("sapo", "cispo"),
        "grpo_epsilon_high": loss != "sapo",
        "grpo_sapo_temperature_pos": loss == "sapo",
        "grpo_sapo_temperature_neg": loss == "sapo",
        "grpo_sampler_correction_cap": arguments.grpo_sampler_correction != "none",
        "grpo_kl_estimator": arguments.grpo_beta != 0,
        "grpo_dynamic_sampling_rounds": arguments.grpo_dynamic_sampling,
    }
    if loss == "cispo" and arguments.grpo_epsilon_high is None:
        reads["grpo_epsilon"] = True  # its bound is 1 + epsilon_high, which is epsilon where it is not written
    defaults = GrpoArguments()
    written = {key for key in reads if getattr(arguments, key) != getattr(defaults, key)}
    return [
        f"{key}: nothing reads it with the other settings of this run." for key in sorted(written) if not reads[key]
    ]


def _check_surrogate(arguments: GrpoArguments, loss_type: LossType) -> None:
    name, level = arguments.grpo_loss_type, arguments.grpo_importance_sampling_level
    own = loss_type.importance_sampling_level
    if loss_type.fixed_level and level not in (None, own):
        instead = " (gspo with a ratio per token is grpo: write `grpo_loss_type: grpo`)" if name == "gspo" else ""
        raise ArgumentError(
            f"grpo_importance_sampling_level: {name} has one ratio per {own} by definition: leave the key out{instead}."
        )
    if arguments.grpo_delta is not None and not loss_type.uses_delta:
        raise ArgumentError(
            f"grpo_delta: {name} does not read it: leave it out, or write `grpo_loss_type: dapo` or another of the "
            "clipped objectives (grpo, bnpo, dr_grpo)."
        )
    for key in ("grpo_sapo_temperature_pos", "grpo_sapo_temperature_neg"):
        if getattr(arguments, key) <= 0:
            raise ArgumentError(
                f"{key}: {getattr(arguments, key)} must be more than 0 (1.0 and 1.05 in the paper): a gate without "
                "slope passes no gradient."
            )


def _check_correction(arguments: GrpoArguments) -> None:
    cap = arguments.grpo_sampler_correction_cap
    if cap < 1:
        raise ArgumentError(
            f"grpo_sampler_correction_cap: {cap} must be at least 1, the weight of a token on which sampler and "
            "trainer agree (2.0 is usual)."
        )


def _check_reference(arguments: GrpoArguments) -> None:
    beta, alpha = arguments.grpo_beta, arguments.grpo_ref_mixup_alpha
    if not 0.0 < alpha <= 1.0:
        raise ArgumentError(
            f"grpo_ref_mixup_alpha: {alpha} must lie in (0, 1]: 1 replaces the reference by the policy, 0 would leave "
            "it as it is."
        )
    if alpha != 1.0 and arguments.grpo_ref_sync_steps is None:
        raise ArgumentError(
            "grpo_ref_mixup_alpha: the reference is never moved: set grpo_ref_sync_steps too, or leave it out."
        )
    if beta == 0 and arguments.grpo_ref_sync_steps is not None:
        raise ArgumentError(
            "grpo_ref_sync_steps: with `grpo_beta: 0` there is no reference policy to move: set grpo_beta (0.001 to "
            "0.04 are usual), or leave it out."
        )
    if beta == 0 and arguments.grpo_kl_in == "reward":
        raise ArgumentError(
            "grpo_kl_in: with `grpo_beta: 0` there is no KL divergence to take off the reward: set grpo_beta (0.001 to "
            "0.04 are usual), or leave it out."
        )
    if beta != 0 and arguments.grpo_kl_in == "loss" and arguments.grpo_kl_estimator == "k1":
        raise ArgumentError(
            "grpo_kl_estimator: k1 as a term of the loss has an expected gradient of 0 on policy: it would add noise "
            "and hold nothing. Write k3 or k2, or `grpo_kl_in: reward`, where k1 is the right one."
        )


def _check_advantage(arguments: GrpoArguments) -> None:
    advantage, scale = arguments.grpo_advantage, arguments.grpo_scale_rewards
    if advantage in ("reinforce_pp", "reinforce_pp_baseline") and scale != "group":
        raise ArgumentError(
            f"grpo_scale_rewards: {advantage} normalises over the batch by definition: leave the key out, or write "
            f"`grpo_advantage: group` with `grpo_scale_rewards: {scale}`."
        )
    if advantage == "rloo" and scale == "batch":
        raise ArgumentError(
            "grpo_scale_rewards: rloo divides by no standard deviation: leave the key out, or write `grpo_advantage: "
            "reinforce_pp_baseline`, which divides by the batch's."
        )
    summed = arguments.grpo_multi_objective_aggregation == "sum_then_normalize"
    if summed and advantage == "group" and scale == "group" and arguments.grpo_kl_in == "reward":
        raise ArgumentError(
            "grpo_scale_rewards: in a group whose answers earn the same, only the KL divergence differs, and dividing "
            "by the group's standard deviation would make it as large as any reward, whatever grpo_beta is: write "
            "`grpo_scale_rewards: none` or `batch`, or `grpo_kl_in: loss`."
        )
    if summed:
        return
    if advantage != "group":
        raise ArgumentError(
            f"grpo_multi_objective_aggregation: normalize_then_sum is made of group advantages and cannot use "
            f"{advantage}: leave one of the two out."
        )
    if scale != "group":
        raise ArgumentError(
            "grpo_scale_rewards: normalize_then_sum divides each reward by the standard deviation of its group, then "
            "the sum by the batch's: leave the key out."
        )
    if arguments.grpo_kl_in == "reward":
        raise ArgumentError(
            "grpo_kl_in: normalize_then_sum reads each reward by itself, and the KL divergence comes off their sum: "
            "write `grpo_kl_in: loss`."
        )


def _ratio_warnings(arguments: GrpoArguments, loss_type: LossType) -> list[str]:
    level = arguments.grpo_importance_sampling_level or loss_type.importance_sampling_level
    if level == "token" or arguments.grpo_epsilon < WIDE_SEQUENCE_EPSILON:
        return []
    return [
        f"grpo_epsilon: {arguments.grpo_epsilon} clips next to nothing where the ratio is a completion's: GSPO's paper "
        "uses `grpo_epsilon: 3.0e-4` and `grpo_epsilon_high: 4.0e-4`."
    ]


def _regulariser_warnings(arguments: GrpoArguments) -> list[str]:
    warnings = []
    if arguments.grpo_beta and arguments.grpo_kl_in == "reward" and arguments.grpo_kl_estimator != "k1":
        warnings.append(
            f"grpo_kl_estimator: {arguments.grpo_kl_estimator} in the reward does not follow the gradient of the KL "
            "divergence: k1 does."
        )
    if arguments.grpo_llds_coef and arguments.grpo_num_iterations == 1 and arguments.grpo_steps_per_generation is None:
        warnings.append(
            "grpo_llds_coef: one update per rollout is made, and LLDS acts on what earlier updates of the same rollout "
            "have done: set grpo_num_iterations to 2 or more, or grpo_steps_per_generation."
        )
    return warnings
