"""Log-probabilities without logits: the output layer runs in recomputed chunks over the completion tokens only.

In: a model (wrapped or not) and what to call it with. Out: one log-probability and one entropy per completion token.
Memory is O(chunk x vocabulary) instead of O(tokens x vocabulary).

The work happens *inside* the model's forward pass, by standing in for the output layer's own forward: DDP, FSDP and
DeepSpeed then see its parameters used where their hooks expect them (outside, DDP with full fine-tuning fails with
"marked ready only once").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lcot_plugin.errors import LcotError
from lcot_plugin.vlm import unwrap_base_model


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


@contextmanager
def _head_computes(output_layer: torch.nn.Module, targets: HeadTargets) -> Iterator[list[torch.Tensor]]:
    """Yields a list to which every call of the output layer appends what it returned."""
    returned: list[torch.Tensor] = []
    to_logits = output_layer.forward
    instance_forward = output_layer.__dict__.get("forward")  # set where accelerate or PEFT has patched it already

    def chunk(hidden: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_log_probs(to_logits(hidden), token_ids, targets.banned, targets.temperature)

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        selected = hidden_states[targets.rows, targets.columns]
        pieces = [
            torch.stack(checkpoint(chunk, hidden, token_ids, use_reentrant=False), dim=-1)
            for hidden, token_ids in zip(
                selected.split(targets.chunk_size), targets.token_ids.split(targets.chunk_size), strict=True
            )
        ]
        returned.append(torch.cat(pieces)[None])
        return returned[-1]

    output_layer.forward = forward
    try:
        yield returned
    finally:
        del output_layer.forward
        if instance_forward is not None:
            output_layer.forward = instance_forward


def token_log_probs(
    model: Any, unwrapped: Any, targets: HeadTargets, model_inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass through `model`: log-probabilities and entropies, [n] float32 each.

    `model` may be wrapped by DDP, FSDP, DeepSpeed or PEFT; `unwrapped` is what is inside the parallel wrapper.
    Raises LcotError for families that change the logits after the output layer (soft-capping, scaling) or do not call
    it: what came out would not be log-probabilities.
    """
    base = unwrap_base_model(unwrapped)
    text_config = base.config.get_text_config()
    if getattr(text_config, "final_logit_softcapping", None):
        raise LcotError(
            f"stage: grpo does not support {base.config.model_type}: it soft-caps its logits after the output layer. "
            "Train a model of another family."
        )
    with _head_computes(base.get_output_embeddings(), targets) as returned:
        output = model(**model_inputs, use_cache=False).logits
    if not (len(returned) == 1 and _same_values(output, returned[0])):
        raise LcotError(
            f"stage: grpo does not support {base.config.model_type}: its logits are not what its output layer returns "
            "(they are scaled afterwards, or computed without it). Train a model of another family."
        )
    return output[0, :, 0], output[0, :, 1]


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    # A diverged policy's NaN are the same too: that is another fault than the one looked for.
    return left is right or (left.shape == right.shape and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True))
