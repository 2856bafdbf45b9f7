"""Log-probabilities without logits: the output layer runs in recomputed chunks over the completion tokens only.

In: a model (wrapped or not) and what to call it with. Out: one log-probability and one entropy per completion token.
Memory is O(chunk x vocabulary) instead of O(tokens x vocabulary).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lcot_plugin.head import ToLogits, forward_with_head, recomputed_chunks


@dataclass(frozen=True)
class HeadTargets:
    """Which hidden states predict which tokens."""

    rows: torch.Tensor
    """[n] int64, the batch row of each completion token."""
    columns: torch.Tensor
    """[n] int64, the column *before* the token: its hidden state predicts it."""
    token_ids: torch.Tensor
    """[n] int64."""
    banned: torch.Tensor
    """[num_banned] int64, excluded from the softmax as they were in sampling."""
    temperature: float
    chunk_size: int
    """Tokens whose logits exist at once."""


def chunk_log_probs(
    logits: torch.Tensor, token_ids: torch.Tensor, banned: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(token) and the entropy -sum p log p, both float32 nats, of the policy that sampled.

    logits: [chunk, vocabulary]; token_ids: [chunk] int64. The entropy carries no gradient.
    """
    scaled = (logits.float() / temperature).index_fill(-1, banned, -torch.inf)
    log_probs = scaled.log_softmax(-1)
    with torch.no_grad():
        entropies = -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)
    return log_probs.gather(-1, token_ids[:, None])[:, 0], entropies


def token_log_probs(
    model: Any, unwrapped: Any, targets: HeadTargets, model_inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass through `model`: log-probabilities and entropies, [n] float32 each.

    `model` may be wrapped by DDP, FSDP, DeepSpeed or PEFT; `unwrapped` is what is inside the parallel wrapper.
    Raises LcotError for families that change the logits after the output layer (soft-capping, scaling) or do not call
    it: what came out would not be log-probabilities.
    """

    def compute(to_logits: ToLogits, hidden_states: torch.Tensor) -> torch.Tensor:
        def chunk(hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
            log_probs = chunk_log_probs(to_logits(hidden), token_ids, targets.banned, targets.temperature)
            return torch.stack(log_probs, dim=-1)

        selected = hidden_states[targets.rows, targets.columns]
        return recomputed_chunks(chunk, targets.chunk_size, selected, targets.token_ids)[None]

    output = forward_with_head(model, unwrapped, compute, model_inputs, needed_by="stage: grpo")
    return output[0, :, 0], output[0, :, 1]
