"""Drawing tokens: random numbers keyed by (seed, slot, completion), so that a rollout does not depend on how its
prompts were spread over processes or batches, nor on a random state that a resumed run would have to restore.

In: logits. Out: token ids and their log-probabilities, under the distribution that they were drawn from and under the
policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lcot_plugin.errors import LcotError
from lcot_plugin.types import SamplingParams

DRAW_CHUNK = 256
"""Neighbouring tokens of which `draw` first chooses one lot, then one token: a sum is cheaper than a cumulative one."""


def uniform_numbers(seed: int, slot: int, completion: int, num_tokens: int) -> np.ndarray:
    """[num_tokens] float64 in [0, 1): one random number per token of this completion."""
    return np.random.default_rng([seed, slot, completion]).random(num_tokens)


def policy_log_probs(logits: torch.Tensor, temperature: float, banned: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the policy, exactly as the policy update computes them.

    logits: [rows, vocabulary], any float dtype; banned: [num_banned] int64. Returns float32 nats, -inf where banned.
    """
    scaled = logits.float() / (temperature if temperature > 0 else 1.0)
    return scaled.index_fill_(-1, banned, -torch.inf).log_softmax(-1)


def penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """The repetition penalty of CTRL (Keskar et al., 2019), as transformers applies it.

    logits: [rows, vocabulary]; seen: [rows, vocabulary] bool, the tokens of each row's prompt and completion so far.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


class Drawn(NamedTuple):
    """One token per row."""

    token_ids: torch.Tensor
    """[rows] int64."""
    sampler_logps: torch.Tensor
    """[rows] float32, under the distribution drawn from; of greedy ones under the policy at temperature 1."""
    policy_logps: torch.Tensor | None
    """[rows] float32, under the policy; None where nothing narrowed it, so that sampler_logps are these."""


class TokenSampler:
    """Draws one token per row: penalty, ban, temperature, top-k, top-p, min-p, in `generate`'s order.

    Greedy (temperature 0) takes the best token after the penalty; top-k, top-p and min-p cannot change it. A greedy
    completion has no distribution that it was drawn from, so its log-probabilities are the policy's.
    """

    def __init__(self, sampling: SamplingParams, banned: torch.Tensor):
        """banned: [num_banned] int64 ids that are never drawn."""
        self.sampling, self.banned = sampling, banned
        self.warpers = LogitsProcessorList()
        if sampling.temperature > 0:
            if sampling.top_k > 0:
                self.warpers.append(TopKLogitsWarper(top_k=sampling.top_k))
            if sampling.top_p < 1.0:
                self.warpers.append(TopPLogitsWarper(top_p=sampling.top_p))
            if sampling.min_p > 0:
                self.warpers.append(MinPLogitsWarper(min_p=sampling.min_p))

    @property
    def needs_seen(self) -> bool:
        """Whether there is a repetition penalty."""
        return self.sampling.repetition_penalty != 1.0

    def __call__(self, logits: torch.Tensor, uniforms: torch.Tensor, seen: torch.Tensor | None = None) -> Drawn:
        """logits: [rows, vocabulary]; uniforms: [rows] float64 in [0, 1); seen: [rows, vocabulary] bool, the tokens of
        each row's prompt and completion so far, where `needs_seen`."""
        temperature = self.sampling.temperature
        policy = policy_log_probs(logits, temperature, self.banned)
        shaped = policy
        if self.needs_seen:
            assert seen is not None
            shaped = policy_log_probs(
                penalised(logits, seen, self.sampling.repetition_penalty), temperature, self.banned
            )
        if temperature == 0:
            drawn = shaped.argmax(-1)
            return Drawn(drawn, _at(policy, drawn), None)
        if self.warpers:
            # None of the three looks at the ids written so far.
            shaped = self.warpers(None, shaped).log_softmax(-1)
        drawn = draw(shaped, uniforms)
        return Drawn(drawn, _at(shaped, drawn), None if shaped is policy else _at(policy, drawn))


def _at(log_probs: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, token_ids[:, None])[:, 0]


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token per row by inverting the cumulative distribution.

    log_probs: [rows, vocabulary], -inf where excluded; uniforms: [rows] float64 in [0, 1). Returns [rows] int64.
    Example: probabilities `.2 .0 .8`, cumulated `.2 .2 1.`: 0.1 draws token 0, 0.2 draws token 2, never token 1.
    """
    rows, vocabulary = log_probs.shape
    probabilities = log_probs.exp()
    if vocabulary % DRAW_CHUNK:
        probabilities = torch.nn.functional.pad(probabilities, (0, -vocabulary % DRAW_CHUNK))
    chunks = probabilities.view(rows, -1, DRAW_CHUNK)
    cumulated = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    # Scaled by the last value, which rounding leaves a little off 1.
    target = uniforms[:, None] * cumulated[:, -1:]
    chunk = _first_above(cumulated, target)
    before = torch.nn.functional.pad(cumulated, (1, 0)).gather(-1, chunk)
    within = chunks.take_along_dim(chunk[:, :, None], dim=1)[:, 0].cumsum(-1, dtype=torch.float64)
    drawn = (chunk * DRAW_CHUNK + _first_above(within, target - before))[:, 0]
    # Where numbers are not finite the id is legal all the same: `check_finite` says what is wrong.
    return drawn.clamp_(max=vocabulary - 1)


def check_finite(log_probs: Sequence[float]) -> None:
    """Raises LcotError where the log-probability of a token that was drawn is NaN or infinite."""
    if not all(map(math.isfinite, log_probs)):
        raise LcotError(
            "The model's logits are not finite (NaN or infinite) in a rollout: its weights have diverged, or its "
            "activations overflow in this precision. Train in bf16 or float32 rather than fp16, or resume from a "
            "checkpoint of well before this step, given as resume_from_checkpoint, with a lower learning_rate."
        )


def _first_above(cumulated: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[rows, 1] int64: where each row first exceeds its target, which skips what has probability zero; where it never
    does, because of rounding, the last place that has any probability."""
    index = torch.searchsorted(cumulated, target.contiguous(), right=True)
    # That place begins the final plateau.
    last = cumulated.shape[-1] - (cumulated == cumulated[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(index, last).clamp_(max=cumulated.shape[-1] - 1)


def row_uniforms(seed: int, keys: Sequence[tuple[int, int]], num_tokens: int) -> torch.Tensor:
    """[rows, num_tokens] float64 for the (slot, completion) key of every row."""
    numbers = [uniform_numbers(seed, slot, completion, num_tokens) for slot, completion in keys]
    return torch.from_numpy(np.stack(numbers))
