"""What a policy objective is computed from: the tokens of all completions of one pack, one after another, unpadded.

Example, completions of 3 and 2 tokens:

    tokens      a    a    a    b    b        n = 5
    lengths     3, 2                         S = 2
    advantages  0.7  0.7  0.7 -0.7 -0.7
    weights     1/6  1/6  1/6  1/4  1/4      sequence means, two completions in the optimizer step

Legend: n tokens, S completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class PolicyTerms:
    """Everything that is known of the tokens of one pack. Log-probabilities and entropies are float32 nats."""

    logps: torch.Tensor
    """[n] log-probabilities under the policy in training, with gradient."""
    advantages: torch.Tensor
    """[n] the advantage of each token's completion."""
    weights: torch.Tensor
    """[n] what each token weighs in the loss of its optimizer step (`Objective.token_weights`); 0 for every token of
    an idle pack, above 0 in every other."""
    lengths: Sequence[int] | torch.Tensor
    """[S] tokens of each completion, adding up to n; a tensor should lie on the CPU."""
    old_logps: torch.Tensor | None = None
    """[n] under the policy at rollout time, by the trainer's own pass; None where that is the policy in training."""
    ref_logps: torch.Tensor | None = None
    """[n] under the reference policy; needed where its KL divergence is a term of the loss."""
    sampler_logps: torch.Tensor | None = None
    """[n] under the policy at rollout time, by the sampler's pass; needed for the sampler correction."""
    entropies: torch.Tensor | None = None
    """[n] of the policy's distribution at each token, with gradient where there is an entropy bonus; needed for that
    and for the top-entropy quantile, otherwise only reported."""
    idle: bool | None = None
    """Whether every weight is 0: a pack that a rank computes only to keep step with the others. None looks at the
    weights, for which the host must wait for the device."""

    @cached_property
    def num_tokens(self) -> list[int]:
        """The lengths as a list."""
        return [int(length) for length in self.lengths]

    @cached_property
    def is_idle(self) -> bool:
        return not bool(self.weights.any()) if self.idle is None else self.idle

    @property
    def old(self) -> torch.Tensor:
        """[n] without gradient: log-probabilities under the policy that wrote the completions."""
        return self.logps.detach() if self.old_logps is None else self.old_logps

    def sequence_sums(self, values: torch.Tensor) -> torch.Tensor:
        """[S] of [n]: the sum over each completion's tokens."""
        # The stack of nothing is an error; an empty slice keeps the gradient's path.
        sums = [piece.sum() for piece in values.split(self.num_tokens)]
        return torch.stack(sums) if sums else values[:0]

    def sequence_means(self, values: torch.Tensor) -> torch.Tensor:
        """[S] of [n]: the mean over each completion's tokens; 0 for a completion without tokens."""
        return self.sequence_sums(values) / values.new_tensor([max(length, 1) for length in self.num_tokens])

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """[n] of [S]: each completion's value at all of its tokens."""
        spread = [value.expand(length) for value, length in zip(values, self.num_tokens, strict=True)]
        return torch.cat(spread) if spread else values
