"""Log-probabilities without logits: the output layer sees the completion tokens only, a chunk at a time.

In: a model (wrapped or not) and a PackedBatch, or padded rows. Out: one log-probability and one entropy per completion
token, for the objectives. Memory is O(chunk x vocabulary) instead of O(tokens x vocabulary).

Both kinds of input come down to hidden states [n, hidden] that predict one token each. A plain linear output layer is
then computed by `_LinearLogProbs`, any other one (an adapter, quantised or sharded weights) by recomputation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lcot_plugin.head import ToLogits, forward_with_head, recomputed_chunks
from lcot_plugin.packing.loss import LinearGradients, computed_in, is_plain_linear
from lcot_plugin.types import PackedBatch
from lcot_plugin.vlm import cast_media, unwrap_base_model


@dataclass(frozen=True)
class HeadTargets:
    """Which hidden states predict which tokens."""

    rows: torch.Tensor
    """[n] int64, the batch row of each completion token."""
    columns: torch.Tensor
    """[n] int64, the column *before* the token: its hidden state predicts it. Several tokens may share one, as the
    first tokens of a group's completions do."""
    token_ids: torch.Tensor
    """[n] int64."""
    banned: torch.Tensor
    """[num_banned] int64, excluded from the softmax as they were in sampling."""
    temperature: float
    chunk_size: int
    """Tokens whose logits exist at once."""


def packed_log_probs(
    model: Any,
    unwrapped: Any,
    batch: PackedBatch,
    *,
    banned: torch.Tensor,
    temperature: float,
    chunk_size: int,
    entropy_gradient: bool = False,
    known_gradients: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass of a pack: log-probabilities and entropies of its targets, [n] float32 each, in nats.

    They are those of the policy that sampled: logits / temperature without the `banned` ids ([num_banned] int64). The
    entropies carry a gradient where `entropy_gradient` asks for it. A pack without targets takes part in the graph
    too: DDP waits for every parameter. `model`, `unwrapped` and LcotError as in `token_log_probs`; the batch is on the
    model's device. chunk_size: tokens whose logits exist at once. known_gradients: see `token_log_probs`.
    """
    columns = batch.target_columns
    targets = HeadTargets(torch.zeros_like(columns), columns, batch.target_ids, banned, temperature, chunk_size)
    model_inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        **cast_media(batch.media, unwrap_base_model(unwrapped)),
        **batch.token_types,
    }
    log_probs, entropies = token_log_probs(
        model,
        unwrapped,
        targets,
        model_inputs,
        entropy_gradient=entropy_gradient,
        known_gradients=known_gradients,
    )
    return log_probs, entropies if entropy_gradient else entropies.detach()


def token_log_probs(
    model: Any,
    unwrapped: Any,
    targets: HeadTargets,
    model_inputs: dict[str, torch.Tensor],
    *,
    entropy_gradient: bool = False,
    known_gradients: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass through `model`: log-probabilities and entropies, [n] float32 each.

    `model` may be wrapped by DDP, FSDP, DeepSpeed or PEFT; `unwrapped` is what is inside the parallel wrapper.
    Raises LcotError for families that change the logits after the output layer (scaling; not soft-capping) or do not
    call it: what came out would not be log-probabilities.

    known_gradients: [n] float32, the loss's gradient by each log-probability, up to a common factor, where it is known
    before the pass (on policy it does not depend on them). A plain linear layer then computes its logits once instead
    of twice. The backward pass holds what comes in against it.
    """
    base = unwrap_base_model(unwrapped)

    def compute(to_logits: ToLogits, hidden_states: torch.Tensor) -> torch.Tensor:
        def chunk(hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
            logits = to_logits(hidden)
            return torch.stack(
                chunk_log_probs(logits, token_ids, targets.banned, targets.temperature, entropy_gradient), dim=-1
            )

        # Indexed outside of the function below: autograd then sums the gradients of a column that several tokens share.
        hidden = hidden_states[targets.rows, targets.columns]
        output_layer = base.get_output_embeddings()
        if is_plain_linear(output_layer, to_logits) and computed_in(hidden) != torch.float16:
            if known_gradients is not None and not entropy_gradient and torch.is_grad_enabled():
                log_probs = _KnownLinearLogProbs.apply(
                    hidden,
                    output_layer.weight,
                    targets.token_ids,
                    targets.banned,
                    targets.temperature,
                    targets.chunk_size,
                    known_gradients,
                )
                return torch.stack(log_probs, dim=-1)[None]
            log_probs = _LinearLogProbs.apply(
                hidden,
                output_layer.weight,
                targets.token_ids,
                targets.banned,
                targets.temperature,
                targets.chunk_size,
                entropy_gradient,
            )
            return torch.stack(log_probs, dim=-1)[None]
        return recomputed_chunks(chunk, targets.chunk_size, hidden, targets.token_ids)[None]

    output = forward_with_head(model, unwrapped, compute, model_inputs, needed_by="stage: grpo")
    return output[0, :, 0], output[0, :, 1]


def chunk_log_probs(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    banned: torch.Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(token) and the entropy -sum p log p, both float32 nats, of the policy that sampled.

    logits: [chunk, vocabulary]; token_ids: [chunk] int64. The entropy carries a gradient only where asked for.
    """
    scaled = (logits.float() / temperature).index_fill(-1, banned, -torch.inf)
    log_probs = scaled.log_softmax(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)
    return log_probs.gather(-1, token_ids[:, None])[:, 0], entropies


class _LinearLogProbs(torch.autograd.Function):
    """log p(token) and entropies of softmax(hidden @ weight.T / temperature), whose backward pass recomputes logits.

    Unlike the sum of an SFT loss, what each log-probability weighs is known only after all of them are: the ratios to
    the old policy, the clipping. So the logits are computed twice, but the gradient by them is written down instead of
    traced. With z = log p, H = -sum(p z), and the gradients g of log p(token) and h of H that come in:

        d logits = (g * (onehot(token) - p) - h * p * (z + H)) / temperature

    Kept between the passes: hidden states, and per token the log of the softmax's denominator and the entropy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        token_ids: torch.Tensor,
        banned: torch.Tensor,
        temperature: float,
        chunk_size: int,
        entropy_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [n, hidden], weight [vocabulary, hidden], token_ids [n] int64, banned [num_banned] int64."""
        ctx.dtype = computed_in(hidden)
        ctx.temperature, ctx.chunk_size, ctx.entropy_gradient = temperature, chunk_size, entropy_gradient
        log_probs, normalisers, entropies = hidden.new_empty(
            (3, len(hidden)), dtype=torch.promote_types(ctx.dtype, torch.float32)
        )
        matrix = weight.to(ctx.dtype)
        for start in range(0, len(hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = _scaled_logits(hidden[chunk].to(ctx.dtype), matrix, banned, temperature)
            log_probs[chunk], normalisers[chunk], entropies[chunk] = _statistics(logits, token_ids[chunk], banned)
            del logits  # before the next chunk's exist
        ctx.save_for_backward(hidden, weight, token_ids, banned, normalisers, entropies if entropy_gradient else None)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_prob_gradient: torch.Tensor, entropy_gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, token_ids, banned, normalisers, entropies = ctx.saved_tensors
        by_log_prob, by_entropy = log_prob_gradient / ctx.temperature, entropy_gradient / ctx.temperature
        gradients = LinearGradients(hidden, weight, *ctx.needs_input_grad[:2])
        matrix = weight.to(ctx.dtype)
        for start in range(0, len(hidden), ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            inputs, g, ids = hidden[chunk].to(ctx.dtype), by_log_prob[chunk, None], token_ids[chunk, None]
            logits = _scaled_logits(inputs, matrix, banned, ctx.temperature).sub_(normalisers[chunk, None])
            if ctx.entropy_gradient:
                probabilities = logits.exp()
                factor = logits.index_fill_(-1, banned, 0.0).add_(entropies[chunk, None])
                factor.mul_(by_entropy[chunk, None]).add_(g)
                logits_gradient = probabilities.mul_(factor).neg_()
                del factor, probabilities
            else:
                logits_gradient = logits.exp_().mul_(-g)
            del logits
            logits_gradient = logits_gradient.scatter_add_(-1, ids, g).index_fill_(-1, banned, 0.0).to(ctx.dtype)
            gradients.add(chunk, logits_gradient, inputs, matrix)
            del logits_gradient
        return (*gradients.result(), None, None, None, None, None)


class _KnownLinearLogProbs(torch.autograd.Function):
    """The same where the loss's gradient by each log-probability is known up to a common factor: the gradients of
    hidden states and weight are computed while the logits exist, as in packed SFT (`packing.loss`)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        token_ids: torch.Tensor,
        banned: torch.Tensor,
        temperature: float,
        chunk_size: int,
        known: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_LinearLogProbs.forward`; known: [n]."""
        dtype = computed_in(hidden)
        matrix, by_log_prob = weight.to(dtype), known / temperature
        gradients = LinearGradients(hidden, weight, *ctx.needs_input_grad[:2])
        log_probs, entropies = hidden.new_empty((2, len(hidden)), dtype=torch.promote_types(dtype, torch.float32))
        for start in range(0, len(hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            inputs, ids, g = hidden[chunk].to(dtype), token_ids[chunk], by_log_prob[chunk, None]
            logits = _scaled_logits(inputs, matrix, banned, temperature)
            log_probs[chunk], normalisers, entropies[chunk] = _statistics(logits, ids, banned, keep=True)
            logits_gradient = logits.sub_(normalisers[:, None]).exp_().mul_(-g)
            logits_gradient = logits_gradient.scatter_add_(-1, ids[:, None], g).index_fill_(-1, banned, 0.0).to(dtype)
            del logits
            gradients.add(chunk, logits_gradient, inputs, matrix)
            del logits_gradient
        ctx.save_for_backward(known, *gradients.result())
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        known, *gradients = ctx.saved_tensors
        factor = (log_prob_gradient * known).sum() / known.square().sum().clamp(min=torch.finfo(known.dtype).tiny)
        difference = (log_prob_gradient - factor * known).abs().sum()
        # One wait for the device per pass, for a gradient that would else be silently another objective's.
        # What is not finite is told by the loss and the alarms.
        expected = difference <= 1e-4 * log_prob_gradient.abs().sum()
        assert expected or not torch.isfinite(difference), "the loss has another gradient than was foretold"
        # In place: a copy of the weight's gradient would be the largest tensor of all.
        scaled = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        return (*scaled, None, None, None, None, None)


def _scaled_logits(
    inputs: torch.Tensor, matrix: torch.Tensor, banned: torch.Tensor, temperature: float
) -> torch.Tensor:
    """[chunk, vocabulary] logits / temperature, banned ids -inf; at least float32, to be overwritten.

    The product is that of the linear layer, in the dtype of `inputs` [chunk, hidden] and `matrix`, so that the backward
    pass finds the values of the forward pass.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        logits = inputs @ matrix.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.div_(temperature).index_fill_(-1, banned, -torch.inf)


def _statistics(
    logits: torch.Tensor, token_ids: torch.Tensor, banned: torch.Tensor, keep: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p(token), the log of the softmax's denominator and the entropy, [chunk] each; overwrites the logits, unless
    they are to be kept.

    With x = logits - max and s = sum(exp x): log p = x - log s, and the entropy is log s - sum(exp(x) x) / s.
    """
    largest = logits.amax(-1, keepdim=True)
    logits = logits - largest if keep else logits.sub_(largest)
    token_logits = logits.gather(-1, token_ids[:, None])[:, 0]
    shares = logits.exp()
    total = shares.sum(-1)
    log_total = total.log()
    # exp(-inf) * -inf is NaN where p log p is 0.
    weighted = shares.mul_(logits.index_fill_(-1, banned, 0.0)).sum(-1)
    return token_logits - log_total, largest[:, 0] + log_total, log_total - weighted / total
