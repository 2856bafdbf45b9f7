"""Drawing tokens: random numbers keyed by (seed, slot, completion), so that a rollout does not depend on how its
prompts were spread over processes or batches, nor on a random state that a resumed run would have to restore.

In: logits. Out: token ids and their log-probabilities under the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lcot_plugin.types import SamplingParams


def uniform_numbers(seed: int, slot: int, completion: int, num_tokens: int) -> np.ndarray:
    """[num_tokens] float64 in [0, 1): one random number per token of this completion."""
    return np.random.default_rng([seed, slot, completion]).random(num_tokens)


def policy_log_probs(logits: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the policy, exactly as the policy update computes them.

    logits: [rows, vocabulary], any float dtype; banned: [num_banned] int64. Returns float32 nats, -inf where banned.
    """
    scaled = logits.float() / (temperature if temperature > 0 else 1.0)
    return scaled.index_fill(-1, banned, -torch.inf).log_softmax(-1)


class TokenSampler:
    """Draws one token per row; top-k, top-p and the repetition penalty are transformers' own, in `generate`'s order."""

    def __init__(self, sampling: SamplingParams, banned: torch.Tensor):
        """banned: [num_banned] int64 ids that are never drawn."""
        self.sampling, self.banned = sampling, banned
        self.penalty = (
            RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty)
            if sampling.repetition_penalty != 1.0
            else None
        )
        self.warpers = LogitsProcessorList()
        if sampling.temperature > 0 and sampling.top_k > 0:
            self.warpers.append(TopKLogitsWarper(top_k=sampling.top_k))
        if sampling.temperature > 0 and sampling.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p=sampling.top_p))

    def __call__(
        self, logits: torch.Tensor, previous_ids: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits: [rows, vocabulary]; previous_ids: [rows, length] prompt and completion so far; uniforms: [rows].

        Returns the drawn ids [rows] int64 and their log-probabilities under the policy [rows] float32. What narrows
        the draw (top-k, top-p, penalty) does not enter the log-probability: the objective trains the policy itself.
        """
        policy = policy_log_probs(logits, self.sampling.temperature, self.banned)
        shaped = policy
        if self.penalty is not None:
            shaped = policy_log_probs(self.penalty(previous_ids, logits), self.sampling.temperature, self.banned)
        if self.sampling.temperature == 0:
            drawn = shaped.argmax(-1)
        else:
            drawn = draw(self.warpers(previous_ids, shaped), uniforms)
        return drawn, policy.gather(-1, drawn[:, None])[:, 0]


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token per row by inverting the cumulative distribution.

    log_probs: [rows, vocabulary], -inf where excluded; uniforms: [rows] float64 in [0, 1). Returns [rows] int64.
    Example: probabilities `.2 .0 .8`, cumulated `.2 .2 1.`: 0.1 draws token 0, 0.2 draws token 2, never token 1.
    """
    cumulated = log_probs.double().exp().cumsum(-1)
    # Scaled by the last value, which rounding leaves a little off 1; `right` skips tokens of probability zero.
    target = (uniforms[:, None] * cumulated[:, -1:]).contiguous()
    index = torch.searchsorted(cumulated, target, right=True)[:, 0]
    # The last token that has any probability ends the final plateau.
    last = cumulated.shape[-1] - (cumulated == cumulated[:, -1:]).sum(-1)
    return torch.minimum(index, last)


def row_uniforms(seed: int, keys: Sequence[tuple[int, int]], num_tokens: int) -> torch.Tensor:
    """[rows, num_tokens] float64 for the (slot, completion) key of every row."""
    numbers = [uniform_numbers(seed, slot, completion, num_tokens) for slot, completion in keys]
    return torch.from_numpy(np.stack(numbers))
