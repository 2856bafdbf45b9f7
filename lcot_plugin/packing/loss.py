"""The SFT loss of a pack without logits: the output layer sees the trained tokens only, a chunk at a time.

In: a model (wrapped or not) and a PackedBatch. Out: the weighted sum of the negative log-likelihoods, whose
normaliser only the trainer knows (the label tokens of the whole optimizer step over all ranks), and each of them for
the log. Memory is O(chunk x vocabulary) instead of O(tokens x vocabulary).
"""

from __future__ import annotations

from typing import Any

import torch

from lcot_plugin.head import ToLogits, forward_with_head, recomputed_chunks
from lcot_plugin.types import PackedBatch
from lcot_plugin.vlm import cast_media, unwrap_base_model

CHUNK_BYTES = 128 << 20
"""Float32 logits that exist at once where no chunk size is given."""


def packed_nll(
    model: Any, unwrapped: Any, batch: PackedBatch, chunk_size: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass through `model`: sum over the targets of weight * nll, and nll [n]; float32, in nats.

    Only the sum carries a gradient. It takes part in the graph without targets too: DDP waits for every parameter.
    `unwrapped` is what is inside the parallel wrapper; the batch is on the model's device. chunk_size: tokens whose
    logits exist at once; 0 for as many as CHUNK_BYTES hold. Raises LcotError for families that change their logits
    after the output layer.
    """
    base = unwrap_base_model(unwrapped)
    output_layer = base.get_output_embeddings()

    def compute(to_logits: ToLogits, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = hidden_states[0, batch.target_columns]
        rows = chunk_size or rows_per_chunk(base.config.get_text_config().vocab_size)
        if is_plain_linear(output_layer, to_logits) and computed_in(hidden) != torch.float16:
            total, nll = _LinearNll.apply(
                hidden, output_layer.weight, batch.target_ids, batch.target_weights, rows, torch.is_grad_enabled()
            )
        else:
            nll = recomputed_chunks(
                lambda inputs, token_ids: _chunk_nll(to_logits(inputs), token_ids), rows, hidden, batch.target_ids
            )
            total = (nll * batch.target_weights).sum()
        return torch.cat([total[None], nll.detach()])[None, :, None]

    model_inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        **cast_media(batch.media, base),
        **batch.token_types,
    }
    output = forward_with_head(model, unwrapped, compute, model_inputs, needed_by="length_aware_packing: true")
    return output[0, 0, 0], output[0, 1:, 0].detach()


def rows_per_chunk(vocabulary: int) -> int:
    """Tokens whose float32 logits fill CHUNK_BYTES: 220 for the 151,936 tokens of the Qwen families."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def is_plain_linear(output_layer: torch.nn.Module, to_logits: ToLogits) -> bool:
    """Whether `hidden @ weight.T`, with a weight that lies whole on this device, is all that the layer does.

    Not so with an adapter, a bias, quantised or sharded weights (bitsandbytes, FSDP's views and DTensors, ZeRO-3), or
    a hook or patch that someone put on the layer. Asked inside the forward pass, where FSDP has its weights gathered.
    """
    weight = getattr(output_layer, "weight", None)
    return (
        type(output_layer) is torch.nn.Linear
        and getattr(to_logits, "__func__", None) is torch.nn.Linear.forward
        and output_layer.bias is None
        and type(weight) is torch.nn.Parameter
        and not hasattr(weight, "ds_id")
        and not output_layer._forward_pre_hooks
        and not output_layer._forward_hooks
        and not output_layer._backward_pre_hooks
        and not output_layer._backward_hooks
    )


def _chunk_nll(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """logits [chunk, vocabulary], token_ids [chunk] int64; [chunk] float32."""
    return torch.nn.functional.cross_entropy(logits.float(), token_ids, reduction="none")


def computed_in(hidden: torch.Tensor) -> torch.dtype:
    """The dtype in which a linear layer would compute here."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _LinearNll(torch.autograd.Function):
    """sum(weights * nll) and nll of `hidden @ weight.T`, with the gradients of the sum computed while the logits exist.

    With p = softmax(logits) the sum's gradient by the logits is weights * (p - onehot(token_ids)), known in the forward
    pass up to the one factor that the backward pass brings. So no logits are computed twice, as recomputation would.
    That factor may be a float16 loss scale, without which small gradients are lost: float16 is for recomputation.

    torch.nn.functional.linear_cross_entropy (in 2.14, not in 2.11) does the same for a plain sum or mean only: it has
    no weight per token, gives no values per token, and with `reduction="none"` recomputes the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        token_ids: torch.Tensor,
        token_weights: torch.Tensor,
        chunk_size: int,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [n, hidden], weight [vocabulary, hidden], token_ids [n] int64, token_weights [n] float32."""
        dtype = computed_in(hidden)
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        needed = [with_gradients and needs for needs in ctx.needs_input_grad[:2]]
        gradients = LinearGradients(hidden, weight, *needed)
        nll = torch.empty_like(token_weights)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_size):
                chunk = slice(start, start + chunk_size)
                log_probs = (inputs[chunk] @ matrix.T).float().log_softmax(-1)
                ids = token_ids[chunk, None]
                nll[chunk] = -log_probs.gather(-1, ids)[:, 0]
                if not any(needed):
                    continue
                logits_gradient = log_probs.exp_()
                logits_gradient.scatter_add_(-1, ids, logits_gradient.new_full(ids.shape, -1.0))
                logits_gradient = logits_gradient.mul_(token_weights[chunk, None]).to(dtype)
                gradients.add(chunk, logits_gradient, inputs[chunk], matrix)
        ctx.save_for_backward(*gradients.result())
        ctx.mark_non_differentiable(nll)
        return (token_weights * nll).sum(), nll

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: a copy of the weight's gradient would be the largest tensor of all. Autograd refuses a second
        # backward pass through saved tensors that changed.
        scaled = [None if gradient is None else gradient.mul_(factor) for gradient in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


class LinearGradients:
    """The gradients of `hidden @ weight.T` by hidden [n, hidden] and weight [vocabulary, hidden], chunk by chunk."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, by_hidden: bool, by_weight: bool) -> None:
        self._dtype = weight.dtype
        self._hidden = torch.empty_like(hidden) if by_hidden else None
        # A sum of many chunks in bfloat16 would lose what each one adds, so it is held in float32.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self._weight = torch.zeros_like(weight, dtype=dtype) if by_weight else None

    def add(self, chunk: slice, by_logits: torch.Tensor, inputs: torch.Tensor, matrix: torch.Tensor) -> None:
        """by_logits [chunk, vocabulary] of the rows `chunk`; inputs [chunk, hidden], matrix [vocabulary, hidden]: what
        the layer multiplied."""
        with torch.autocast(by_logits.device.type, enabled=False):
            if self._hidden is not None:
                self._hidden[chunk] = by_logits @ matrix
            if self._weight is None:
                return
            if self._weight.dtype == by_logits.dtype:
                self._weight.addmm_(by_logits.T, inputs)
            else:
                self._weight.add_(by_logits.T @ inputs)

    def result(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """By hidden and by weight, in their dtypes; None where not asked for."""
        return self._hidden, None if self._weight is None else self._weight.to(self._dtype)
