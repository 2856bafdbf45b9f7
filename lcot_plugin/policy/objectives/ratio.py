"""How much more probable a token, or its whole completion, has become since the rollout; the surrogates' settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lcot_plugin.policy.objectives.terms import PolicyTerms

RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class SurrogateSettings:
    """The YAML keys that surrogates read, without their `grpo_`."""

    importance_sampling_level: RatioLevel = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    """None: as epsilon."""
    delta: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05

    @property
    def clip_range(self) -> tuple[float, float]:
        """The ratios between which nothing is clipped."""
        return 1.0 - self.epsilon, 1.0 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


def importance_ratio(terms: PolicyTerms, level: RatioLevel) -> torch.Tensor:
    """[n] exp(logp - old logp) per token, or the geometric mean of these over the token's completion."""
    log_ratio = terms.logps - terms.old
    if level == "sequence":
        log_ratio = terms.per_token(terms.sequence_means(log_ratio))
    return log_ratio.exp()
