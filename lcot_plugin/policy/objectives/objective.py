"""The loss of a pack: a surrogate, what is added to it, and the weights that make a mean of it.

In: the terms of a pack, whose token weights `Objective.token_weights` gave for the optimizer step as a whole. Out: the
pack's share of the step's loss and statistics for `MetricSums.add_statistics`. The shares of all packs and ranks add up
to the loss; nothing is divided later:

    loss = sum over tokens of weight x (w x m x surrogate + beta x KL + llds_coef x LLDS - entropy_coef x entropy)

with w the sampler correction and m 1 for the tokens of the top-entropy quantile, else 0; both are 1 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.kl import KlEstimator, kl_terms
from lcot_plugin.policy.objectives.aggregation import Aggregation, token_weights
from lcot_plugin.policy.objectives.llds import llds_terms
from lcot_plugin.policy.objectives.ratio import SurrogateSettings
from lcot_plugin.policy.objectives.registry import LossType, get_loss_type
from lcot_plugin.policy.objectives.statistics import Statistics, loss_statistics
from lcot_plugin.policy.objectives.terms import PolicyTerms
from lcot_plugin.policy.objectives.top_entropy import entropy_threshold
from lcot_plugin.policy.sampler_correction import CorrectionMode, sampler_correction


@dataclass(frozen=True)
class Objective:
    """What is optimised; `make_objective` builds it from the YAML keys."""

    loss_type: LossType
    settings: SurrogateSettings
    aggregation: Aggregation
    max_completion_length: int
    """Tokens; the constant of the `constant` aggregation."""
    beta: float = 0.0
    """Weight of the KL divergence in the loss; 0 where it is in the reward."""
    kl_estimator: KlEstimator = "k3"
    beta_in_reward: float = 0.0
    """What the trainer takes off the rewards, times `policy.kl.completion_kl`."""
    llds_coef: float = 0.0
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0
    correction: CorrectionMode | None = None
    correction_cap: float = 2.0

    def token_weights(self, lengths: Sequence[int], trained: Sequence[bool], micro_batch_size: int) -> list[float]:
        """[S] what each token of each completion weighs in the loss; 0.0 where it is not trained.

        lengths, trained: [S], all completions of one optimizer step over all ranks, in rollout order.
        micro_batch_size: per_device_train_batch_size, which the `micro_batch` aggregation goes by.
        """
        return token_weights(
            self.aggregation,
            lengths,
            trained,
            micro_batch_size=micro_batch_size,
            max_completion_length=self.max_completion_length,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the reference policy's log-probabilities are asked for, in the loss or in the reward."""
        return self.beta != 0.0 or self.beta_in_reward != 0.0

    @property
    def skips_zero_advantages(self) -> bool:
        """Whether a completion of advantage 0 contributes exactly nothing to the loss, so that none need be computed.

        The top-entropy quantile is taken over all tokens: those of such completions decide which others are left out.
        """
        return (
            self.loss_type.skips_zero_advantages
            and self.beta == self.entropy_coef == self.llds_coef == 0.0
            and self.top_entropy_quantile == 1.0
        )

    @property
    def is_linear_on_policy(self) -> bool:
        """Whether, on policy, the loss's gradient by the log-probabilities does not depend on them."""
        return (
            self.loss_type.is_linear_on_policy
            and self.beta == self.entropy_coef == self.llds_coef == 0.0
            and self.top_entropy_quantile == 1.0
            and self.correction is None
        )

    @property
    def entropy_gradient(self) -> bool:
        """Whether the entropies must come with a gradient."""
        return self.entropy_coef != 0.0


def make_objective(arguments: GrpoArguments, max_completion_length: int) -> Objective:
    """The objective that the YAML keys describe.

    max_completion_length: tokens, the run's max_new_tokens. Raises ArgumentError for an unknown loss type; the rest is
    for `check_objective` to refuse.
    """
    loss_type = get_loss_type(arguments.grpo_loss_type)
    in_loss = arguments.grpo_kl_in == "loss"
    mode = arguments.grpo_sampler_correction
    return Objective(
        loss_type=loss_type,
        settings=SurrogateSettings(
            importance_sampling_level=arguments.grpo_importance_sampling_level or loss_type.importance_sampling_level,
            epsilon=arguments.grpo_epsilon,
            epsilon_high=arguments.grpo_epsilon_high,
            delta=arguments.grpo_delta,
            sapo_temperature_pos=arguments.grpo_sapo_temperature_pos,
            sapo_temperature_neg=arguments.grpo_sapo_temperature_neg,
        ),
        aggregation=arguments.grpo_loss_aggregation or loss_type.aggregation,
        max_completion_length=max_completion_length,
        beta=arguments.grpo_beta if in_loss else 0.0,
        kl_estimator=arguments.grpo_kl_estimator,
        beta_in_reward=0.0 if in_loss else arguments.grpo_beta,
        llds_coef=arguments.grpo_llds_coef,
        entropy_coef=arguments.grpo_entropy_coef,
        top_entropy_quantile=arguments.grpo_top_entropy_quantile,
        correction=None if mode == "none" else mode,
        correction_cap=arguments.grpo_sampler_correction_cap,
    )


def policy_loss(
    objective: Objective, terms: PolicyTerms, entropy_floor: torch.Tensor | None = None
) -> tuple[torch.Tensor, Statistics]:
    """This pack's share of the loss of its optimizer step.

    Args:
        objective: what is optimised.
        terms: the pack's tokens.
        entropy_floor: least entropy that enters the policy term, from `entropy_threshold` over all ranks; None takes
            the threshold of this pack. Read only where the top-entropy quantile is below 1.

    Returns:
        The scalar loss, which always has a gradient, and statistics for `MetricSums.add_statistics`; none of an idle
        pack. Raises ArgumentError where a user's surrogate returns something else than one value per token.
    """
    if terms.is_idle:
        # Not 0 times the terms: what overflows there would make it NaN.
        return terms.logps.sum() * 0.0, {}

    token_loss = objective.loss_type.surrogate(terms, objective.settings)
    if token_loss.shape != terms.logps.shape:
        raise ArgumentError(
            f"grpo_loss_type: the function returned a tensor of shape {list(token_loss.shape)} for "
            f"{terms.logps.numel()} tokens; return one loss per token, [{terms.logps.numel()}]."
        )
    correction = kl = llds = None
    if objective.correction is not None:
        assert terms.sampler_logps is not None
        correction = sampler_correction(
            terms.old, terms.sampler_logps, terms.num_tokens, objective.correction, objective.correction_cap
        )
        token_loss = correction.weights * token_loss
    if objective.top_entropy_quantile < 1.0:
        assert terms.entropies is not None
        entropies = terms.entropies.detach()
        if entropy_floor is None:
            entropy_floor = entropy_threshold(entropies, objective.top_entropy_quantile)
        token_loss = (entropies >= entropy_floor) * token_loss
    if objective.beta:
        assert terms.ref_logps is not None
        kl = kl_terms(terms.logps, terms.ref_logps, objective.kl_estimator)
        token_loss = token_loss + objective.beta * kl
    if objective.llds_coef:
        llds = llds_terms(terms)
        token_loss = token_loss + objective.llds_coef * llds
    if objective.entropy_coef:
        assert terms.entropies is not None
        # The entropy bonus of A3C (arXiv 1602.01783): a policy that stays uncertain goes on exploring.
        token_loss = token_loss - objective.entropy_coef * terms.entropies

    loss = (terms.weights * token_loss).sum()
    return loss, loss_statistics(objective.loss_type, objective.settings, terms, kl, llds, correction)
