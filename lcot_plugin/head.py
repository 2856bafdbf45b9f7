"""Standing in for a model's output layer, so that [tokens, vocabulary] logits never exist.

In: a model (wrapped or not), what to call it with, and what to compute of the hidden states instead of all logits.
Out: what that gave. Used by the policy update (log-probabilities, entropies) and by packed SFT (the loss).

The work happens *inside* the model's forward pass, in place of the output layer's own forward: DDP, FSDP and DeepSpeed
then see its parameters used where their hooks expect them (outside, DDP with full fine-tuning fails with "marked ready
only once").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from lcot_plugin.errors import LcotError
from lcot_plugin.vlm import unwrap_base_model

ToLogits = Callable[[torch.Tensor], torch.Tensor]
HeadComputation = Callable[[ToLogits, torch.Tensor], torch.Tensor]
"""From the output layer's own forward and the hidden states [batch, length, hidden] to any float32 tensor."""


def forward_with_head(
    model: Any, unwrapped: Any, compute: HeadComputation, model_inputs: dict[str, Any], *, needed_by: str
) -> torch.Tensor:
    """One forward pass through `model` in which `compute` stands in for the output layer; returns what it gave.

    `model` may be wrapped by DDP, FSDP, DeepSpeed or PEFT; `unwrapped` is what is inside the parallel wrapper.
    `needed_by`: the user's setting that asks for this, for the error. A model that soft-caps its logits after the
    output layer (Gemma 4) has them capped in `to_logits` instead. Raises LcotError for families that change them in
    another way (scaling) or do not call the layer: what came out would be wrong.
    """
    base = unwrap_base_model(unwrapped)
    with _uncapped(base) as cap, _standing_in(base.get_output_embeddings(), compute, cap) as returned:
        output = model(**model_inputs, use_cache=False).logits
    if not (len(returned) == 1 and _same_values(output, returned[0])):
        raise LcotError(
            f"{needed_by} does not support {base.config.model_type}: its logits are not what its output layer returns "
            "(they are scaled afterwards, or computed without it). Train a model of another family."
        )
    return output


def recomputed_chunks(function: Callable[..., torch.Tensor], chunk_size: int, *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)`, computed on `chunk_size` rows at a time, and again in the backward pass.

    Memory is that of one chunk. Right for any function, whatever parameters it uses and however they are sharded.
    Without rows `function` is called once on none, so that its parameters still take part in the graph.
    """
    chunks = zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


@contextmanager
def _uncapped(base: Any) -> Iterator[float | None]:
    """The model does not cap its logits meanwhile; yields its cap c, of c * tanh(logits / c), or None without one.

    Some families have the setting from their text model and do not follow it (PaliGemma 2): the code of `forward`
    decides.
    """
    config = base.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None or "final_logit_softcapping" not in inspect.getsource(inspect.unwrap(type(base).forward)):
        yield None
        return
    config.final_logit_softcapping = None
    try:
        yield cap
    finally:
        config.final_logit_softcapping = cap


def _capping(to_logits: ToLogits, cap: float) -> ToLogits:
    return lambda hidden_states: torch.tanh(to_logits(hidden_states) / cap) * cap


@contextmanager
def _standing_in(
    output_layer: torch.nn.Module, compute: HeadComputation, cap: float | None
) -> Iterator[list[torch.Tensor]]:
    """Yields a list to which every call of the output layer appends what it returned."""
    returned: list[torch.Tensor] = []
    layer_forward = output_layer.forward
    # A plain function: what computes `hidden @ weight.T` by itself must not take this for a plain linear layer.
    to_logits = layer_forward if cap is None else _capping(layer_forward, cap)
    instance_forward = output_layer.__dict__.get("forward")  # set where accelerate or PEFT has patched it already

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        returned.append(compute(to_logits, hidden_states))
        return returned[-1]

    output_layer.forward = forward
    try:
        yield returned
    finally:
        del output_layer.forward
        if instance_forward is not None:
            output_layer.forward = instance_forward


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    # A diverged model's NaN are the same too: that is another fault than the one looked for.
    return left is right or (left.shape == right.shape and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True))
