"""The clipped policy objective on ragged rows: log-probabilities come in, a scalar loss and its statistics go out.

The tokens of all completions of one micro-batch lie one after another, without padding. Example: completions of 3 and
2 tokens, the second one masked (it was truncated):

    tokens      a a a b b        n = 5
    lengths     [3, 2]           S = 2
    advantages  [0.7, -0.7]
    trained     [True, False]

The meanings are those of TRL 0.24 (`GRPOTrainer._compute_loss`), which the tests hold this file against, values and
gradients. Micro-batches are ragged, so what a loss is divided by cannot be read off one of them: `loss_normalizer`
counts it, the trainer adds the counts up over the micro-batches of an optimizer step and over the ranks, and
`policy_loss` returns its micro-batch's share of the global loss. The shares add up to the loss.

    loss_type   per sequence      divided by                                  source
    grpo        mean over tokens  sequences, masked ones too                  GRPO, arXiv 2402.03300
    dr_grpo     sum over tokens   sequences, masked ones too, x max length    Dr. GRPO, arXiv 2503.20783
    dapo        sum over tokens   trained tokens                              DAPO, arXiv 2503.14476

What a masked row does to the denominator: in grpo and dr_grpo, as in TRL, a sequence weighs one S-th whatever becomes
of the others, so masked rows stay in the count. dapo is a mean over tokens; TRL 0.24 leaves the masked tokens in that
count too, which shrinks the loss (its issue #6369, mended in later releases); here they are out.

Legend: n tokens of the micro-batch, S sequences (completions) of the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

LOSS_TYPES = ("grpo", "dr_grpo", "dapo")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")


@dataclass(frozen=True)
class PolicyLossConfig:
    """Which objective, with TRL's names and meanings."""

    loss_type: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether the ratio to the old policy is taken per token or, as its geometric mean, per sequence (GSPO,
    arXiv 2507.18071)."""
    epsilon: float = 0.2
    """Ratios below 1 - epsilon are clipped."""
    epsilon_high: float | None = None
    """Ratios above 1 + epsilon_high are clipped; None means epsilon ("clip-higher" of DAPO where it is larger)."""
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative, which one-sided clipping leaves unbounded
    (INTELLECT-2, arXiv 2505.07291); None means no bound. Should exceed 1 + epsilon_high."""
    beta: float = 0.0
    """Weight of the KL divergence to the reference policy."""
    top_entropy_quantile: float = 1.0
    """Share of the tokens, those of the highest entropy, that enter the policy term (arXiv 2506.01939)."""
    max_completion_length: int | None = None
    """Tokens; dr_grpo's constant length."""

    def __post_init__(self) -> None:
        # The user's own mistakes are refused where the YAML is checked.
        assert self.loss_type in LOSS_TYPES, self.loss_type
        assert self.importance_sampling_level in IMPORTANCE_SAMPLING_LEVELS, self.importance_sampling_level
        assert self.loss_type != "dr_grpo" or self.max_completion_length
        assert 0.0 < self.top_entropy_quantile <= 1.0, self.top_entropy_quantile

    @property
    def clip_range(self) -> tuple[float, float]:
        """The ratios between which nothing is clipped."""
        return 1.0 - self.epsilon, 1.0 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


def loss_normalizer(config: PolicyLossConfig, lengths: torch.Tensor, trained: torch.Tensor) -> float:
    """What these sequences ([S] lengths, [S] bool) add to the denominator; sum it over micro-batches and ranks."""
    match config.loss_type:
        case "grpo":
            return float(len(lengths))
        case "dr_grpo":
            assert config.max_completion_length is not None
            return float(len(lengths) * config.max_completion_length)
        case "dapo":
            return float(lengths[trained].sum())


def policy_loss(
    config: PolicyLossConfig,
    logps: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
    trained: torch.Tensor,
    normalizer: float,
    *,
    old_logps: torch.Tensor | None = None,
    ref_logps: torch.Tensor | None = None,
    entropies: torch.Tensor | None = None,
    entropy_floor: torch.Tensor | float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor | int]]:
    """This micro-batch's share of the global loss.

    Args:
        config: the objective.
        logps: [n] float32, nats, with gradient: log-probabilities under the policy in training.
        advantages: [S].
        lengths: [S] int64, tokens of each completion, adding up to n.
        trained: [S] bool; the tokens of a False row take no part, whatever their values.
        normalizer: sum of `loss_normalizer` over all micro-batches and ranks of the optimizer step.
        old_logps: [n] under the policy that the rollouts came from; None where it is the one in training.
        ref_logps: [n] under the reference policy; wanted where beta is not 0.
        entropies: [n] nats; wanted where top_entropy_quantile is below 1, otherwise only reported.
        entropy_floor: least entropy that enters the policy term, from `entropy_threshold` over all ranks; None takes
            the threshold of this micro-batch.

    Returns:
        The scalar loss, and statistics for `MetricSums.add_statistics`.
    """
    lengths_kept = lengths[trained]
    # Masked tokens are taken out rather than multiplied by 0: an overflowing ratio of theirs would give 0 * inf.
    token_kept = trained.repeat_interleave(lengths)
    logps, old_logps, ref_logps, entropies = (
        None if values is None else values[token_kept] for values in (logps, old_logps, ref_logps, entropies)
    )
    advantages = advantages[trained].repeat_interleave(lengths_kept)

    ratio = importance_ratio(config, logps, logps.detach() if old_logps is None else old_logps, lengths_kept)
    token_loss = clipped_policy_term(config, ratio, advantages)
    if config.top_entropy_quantile < 1.0:
        assert entropies is not None
        if entropy_floor is None:
            entropy_floor = entropy_threshold(entropies, config.top_entropy_quantile)
        token_loss = token_loss * (entropies >= entropy_floor)
    kl = None
    if config.beta != 0.0:
        assert ref_logps is not None
        kl = k3_divergence(logps, ref_logps)
        token_loss = token_loss + config.beta * kl

    per_sequence = config.loss_type == "grpo"
    total = sequence_means(token_loss, lengths_kept).sum() if per_sequence else token_loss.sum()
    # A step whose rows are all masked has dapo's normalizer 0 and no tokens: its loss is 0, not 0 / 0.
    loss = total / max(normalizer, 1.0)
    return loss, _statistics(config, ratio.detach(), advantages, lengths_kept, kl, entropies)


def importance_ratio(
    config: PolicyLossConfig, logps: torch.Tensor, old_logps: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """[n] probability of each token, or of its sequence, under the policy in training over that under the old one."""
    log_ratio = logps - old_logps
    if config.importance_sampling_level == "sequence":
        log_ratio = sequence_means(log_ratio, lengths).repeat_interleave(lengths)
    return log_ratio.exp()


def clipped_policy_term(config: PolicyLossConfig, ratio: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """[n] the clipped surrogate, negated: -min(ratio * A, clip(ratio) * A), the first ratio bounded by delta."""
    clipped = ratio.clamp(*config.clip_range)
    if config.delta is not None:
        ratio = ratio.clamp(max=config.delta)
    return -torch.min(ratio * advantages, clipped * advantages)


def k3_divergence(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """[n] Schulman's k3 estimate of KL(policy || reference) in nats: unbiased, never negative."""
    log_ratio = ref_logps - logps
    return log_ratio.exp() - log_ratio - 1


def entropy_threshold(entropies: torch.Tensor, top_entropy_quantile: float) -> torch.Tensor:
    """The entropy that a share `top_entropy_quantile` of the trained tokens' entropies [m] reaches; inf for m = 0."""
    if entropies.numel() == 0:
        return entropies.new_tensor(torch.inf)
    return torch.quantile(entropies, 1.0 - top_entropy_quantile)


def sequence_means(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[S] mean of each sequence's values [n]; 0 for an empty sequence."""
    sums = [piece.sum() for piece in values.split(lengths.tolist())]
    # The stack of nothing is an error; an empty slice keeps the gradient's path for a micro-batch without sequences.
    return (torch.stack(sums) if sums else values[:0]) / lengths.clamp(min=1)


@torch.no_grad()
def _statistics(
    config: PolicyLossConfig,
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
    kl: torch.Tensor | None,
    entropies: torch.Tensor | None,
) -> dict[str, torch.Tensor | int]:
    """Sums with their counts (`x_sum` goes with `x_count`) and maxima (`x_max`), so that parts can be merged."""
    low, high = config.clip_range
    quantities = {
        "clip_low": (ratio < low) & (advantages < 0),
        "clip_high": (ratio > high) & (advantages > 0),
    }
    quantities["clip_region"] = quantities["clip_low"] | quantities["clip_high"]
    if config.importance_sampling_level == "sequence":
        # A sequence has one ratio, however many tokens repeat it.
        quantities = {name: sequence_means(hit.float(), lengths) for name, hit in quantities.items()}
    if kl is not None:
        quantities["kl"] = kl
    if entropies is not None:
        quantities["entropy"] = entropies

    # Ratios are positive, so the 0 of a micro-batch without trained tokens is neutral under the maximum.
    stats: dict[str, torch.Tensor | int] = {"ratio_max": ratio.max() if ratio.numel() else ratio.new_zeros(())}
    for name, values in quantities.items():
        stats[f"{name}_sum"] = values.float().sum()
        stats[f"{name}_count"] = values.numel()
    return stats
