"""Peak memory of a run by phase, from a run of the model on tensors that have shapes and no data.

In: the model on the meta device, the recipe's budgets, the way of sharding. Out: bytes by phase.

The update is not estimated by a formula: the model's own forward, the plugin's chunked output layer and the backward
run under torch's FakeTensorMode, which allocates nothing, while `LiveBytes` adds up what would be alive. Weights,
gradients and optimizer states follow from every parameter's dtype. What the allocator loses between blocks and the CUDA
context are added as `ALLOWANCE`.

Legend: T tokens of a pass, R completions decoded at once, N processes.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lcot_plugin.integration.recipe_doctor.shape import cache_bytes_per_token, of_vision
from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.packing.families import why_not_packable
from lcot_plugin.policy.head import HeadTargets, token_log_probs
from lcot_plugin.types import Segments
from lcot_plugin.vlm import unwrap_base_model

CONTEXT_BYTES = 700 * 2**20
"""CUDA's context and libraries, about."""
ALLOWANCE = 1.05
"""What the allocator holds beyond what is alive, at least."""
LIVE_WEIGHTS = 10**9
"""Weights that ZeRO-3 keeps gathered at most (DeepSpeed's stage3_max_live_parameters)."""
STATES_PER_WEIGHT = {"adamw": 2, "adam": 2, "adafactor": 0.01, "sgd": 0, "lion": 1, "muon": 1}
"""Optimizer -> values that it keeps per weight, in the weight's dtype."""


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations under it make, until they are let go of."""

    def __init__(self, known: Any) -> None:
        """known: tensors that were there before and are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    size = storage.nbytes()
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Sharding:
    """How weights, gradients and optimizer states are spread."""

    num_processes: int = 1
    zero_stage: int | None = None
    fsdp: bool = False
    optimizer_on_host: bool = False
    weights_on_host: bool = False


@dataclass(frozen=True)
class Static:
    """Bytes that stay over a step, per device."""

    weights: float
    gradients: float
    optimizer: float
    casts: float
    """Copies in the compute dtype of weights that are kept in float32, which autocast makes once per pass."""
    step: float
    """What the optimizer step itself needs for a moment."""
    gathered: float
    """Weights of other processes that a pass under ZeRO-3 holds for a while."""
    whole: float
    """All weights: what a rollout in process needs of sharded ones, which are gathered for it."""


def bits_per_weight(quantization_bit: int | None, method: str = "bnb", double: bool = True) -> float | None:
    """Of a quantised linear layer, scales included; None without quantisation. Arguments: LLaMA-Factory's keys.

    At 4 bits 64 weights share a scale in float32; with double quantisation in 8 bits, and 256 scales one in float32.
    HQQ has a scale and a zero point of 16 bits each for 64 weights. Scales of 8 bits, one per row, are left out.
    """
    if quantization_bit is None:
        return None
    if method == "hqq":
        return quantization_bit + 2 * 16 / 64
    scales = 8 / 64 + 32 / (64 * 256) if double else 32 / 64
    return quantization_bit + (scales if quantization_bit == 4 else 0)


def static_bytes(
    model: Any, compute_dtype: torch.dtype, optimizer: str, bits: float | None, sharding: Sharding
) -> Static:
    """From every parameter's dtype and whether it is trained.

    optimizer: transformers' name. bits: `bits_per_weight` (QLoRA).
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is not None}
    linear -= {id(getattr(unwrap_base_model(model).get_output_embeddings(), "weight", None))}
    weights = gradients = states = casts = trained = 0.0
    eight_bit = "8bit" in optimizer
    per_weight = next((n for name, n in STATES_PER_WEIGHT.items() if optimizer.startswith(name)), 2)
    for parameter in model.parameters():
        size = parameter.element_size()
        if bits is not None and not parameter.requires_grad and id(parameter) in linear:
            weights += parameter.numel() * bits / 8
            continue
        if sharding.zero_stage is not None:
            size = compute_dtype.itemsize  # DeepSpeed keeps the module in it, and float32 masters with the optimizer
        weights += parameter.numel() * size
        if not parameter.requires_grad:
            continue
        trained += parameter.numel()
        gradients += parameter.numel() * size
        if sharding.zero_stage is not None:
            states += parameter.numel() * (4 + 4 * per_weight)
        else:
            states += parameter.numel() * per_weight * (1 if eight_bit else size)
            casts += parameter.numel() * compute_dtype.itemsize * (size > compute_dtype.itemsize)
    zero, number = sharding.zero_stage, sharding.num_processes
    whole = weights
    if zero is None and not sharding.fsdp and number > 1:
        gradients *= 2  # DDP's buckets
    step = trained * 4 / (number if zero or sharding.fsdp else 1)
    if sharding.fsdp or zero == 3:
        weights, gradients, states = weights / number, gradients / number, states / number
    elif zero:
        states /= number
        gradients /= number if zero == 2 else 1
    if sharding.optimizer_on_host:
        states = step = 0.0
    if sharding.weights_on_host:
        weights = 0.0
    gathered = min(LIVE_WEIGHTS * compute_dtype.itemsize, whole) if zero == 3 else 0.0
    casts /= number if sharding.fsdp else 1
    return Static(weights, gradients, states, casts, step, gathered, whole)


def materialise(model: Any) -> None:
    """Gives parameters and buffers of a model on the meta device shapes without data on the CPU, in FakeTensorMode."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, old in list(store.items()):
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    is_weight = isinstance(old, torch.nn.Parameter)
                    made[id(old)] = torch.nn.Parameter(new, requires_grad=old.requires_grad) if is_weight else new
                store[name] = made[id(old)]


@dataclass
class UpdatePass:
    """Activations of one forward and backward pass, for any number of tokens."""

    model: Any
    """On the meta device; changed by `materialise`."""
    compute_dtype: torch.dtype
    chunk_size: int
    uses_mrope: bool
    _mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    _known: dict[int, float] = field(default_factory=dict)
    _ready: bool = False

    def peak(self, num_tokens: int) -> float:
        """Bytes beyond weights and gradients at the worst moment of a pass of `num_tokens`; convex in them.

        Raises whatever the model raises where it cannot run without data.
        """
        if num_tokens not in self._known:
            with self._mode:
                if not self._ready:
                    materialise(self.model)
                    self._ready = True
                self._known[num_tokens] = self._run(num_tokens)
        return self._known[num_tokens]

    def line(self, low: int, high: int) -> Callable[[int], float]:
        """Bytes as a line through two lengths. Between them the peak lies below it, beyond them above."""
        at_low, at_high = self.peak(low), self.peak(high)
        slope = (at_high - at_low) / (high - low)
        return lambda num_tokens: at_low + slope * (num_tokens - low)

    def _run(self, num_tokens: int) -> float:
        tokens = torch.zeros(1, num_tokens, dtype=torch.int64)
        positions = torch.arange(num_tokens)[None]
        columns = torch.arange(num_tokens - 1)
        targets = HeadTargets(
            torch.zeros_like(columns), columns, columns, torch.zeros(0, dtype=torch.int64), 1.0, self.chunk_size
        )
        inputs = {
            "input_ids": tokens,
            "position_ids": positions.expand(3, 1, -1) if self.uses_mrope else positions,
        }
        if "token_type_ids" in inspect.signature(unwrap_base_model(self.model).forward).parameters:
            inputs["token_type_ids"] = torch.zeros_like(tokens)  # Gemma 3 asks for them in training
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            # As after an earlier pass of the step. Made in this pass they would be part of its peak at short lengths,
            # where the end of the backward is the worst moment, and not at long ones.
            parameter.grad = torch.zeros_like(parameter)
        known = [*self.model.parameters(), *(p.grad for p in trained), *self.model.buffers()]
        live = LiveBytes([*known, targets.columns, *inputs.values()])
        autocast = torch.autocast("cpu", self.compute_dtype, enabled=self.compute_dtype != torch.float32)
        # The plugin's own attention builds no mask of the row by the row; one record as long as the pass.
        packed = why_not_packable(self.model) is None
        row = segment_attention(self.model, Segments((num_tokens,))) if packed else nullcontext()
        with row, live, autocast:
            log_probs, _ = token_log_probs(self.model, self.model, targets, inputs)
            log_probs.sum().backward()
        for parameter in trained:
            parameter.grad = None
        return float(live.peak)


def vision_bytes(model: Any, num_patches: int, dtype: torch.dtype) -> float:
    """The vision tower's own peak, about: one layer where it is frozen; and every layer's input where it is trained."""
    config = getattr(unwrap_base_model(model).config, "vision_config", None)
    hidden = getattr(config, "hidden_size", None) or getattr(config, "embed_dim", 0)
    if not hidden or not num_patches:
        return 0.0
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    depth = getattr(config, "num_hidden_layers", None) or getattr(config, "depth", 1)
    trained = any(p.requires_grad for name, p in model.named_parameters() if of_vision(model, name))
    layer = num_patches * (8 * hidden + 3 * inner) * dtype.itemsize
    return layer + (num_patches * hidden * depth * dtype.itemsize if trained else 0)


def rollout_bytes(
    model: Any, dtype: torch.dtype, completions: int, group: int, prompt_tokens: int, new_tokens: int, vocabulary: int
) -> float:
    """Keys and values of R completions, prompts once per group, and the logits of one step."""
    tokens = completions * new_tokens + -(-completions // group) * prompt_tokens
    return tokens * cache_bytes_per_token(model, dtype) + completions * vocabulary * (dtype.itemsize + 3 * 4)


def device_bytes(alive: float) -> float:
    """What a device needs where `alive` bytes are in use."""
    return alive * ALLOWANCE + CONTEXT_BYTES


def largest_that_fits(needs: Callable[[int], float], limit: float, budget: int, most: int) -> int:
    """The most tokens, up to `most`, of which `needs` lets a pass fit into `limit` bytes; 0 where hardly any do.

    needs: bytes alive at a number of tokens, convex in it: what is read off a chord fits. budget: those of the recipe.
    """
    low, high = min(1024, max(budget // 2, 2)), budget
    room = {tokens: limit - device_bytes(needs(tokens)) for tokens in (low, high)}
    if room[low] < 0:
        return 0
    if room[high] >= 0:
        slope = (room[low] - room[high]) / (high - low)
        low, high = high, min(int(high + room[high] / slope), most) if slope > 0 else most
        if high <= low:
            return high
        room[high] = limit - device_bytes(needs(high))
        if room[high] >= 0:
            return high
    return int(low + (high - low) * room[low] / (room[low] - room[high]))
