"""Image features remembered between the passes over one pack, where the vision tower is frozen.

    memo = VisionMemo()
    with memo.of(model, key):       # key: which pack this is, as long as the weights of the tower are the same
        model(...)                  # the first pass runs the tower, later passes over the pack do not
    memo.forget()                   # after the last pass over the rollout

In: a model and the pack's key. Out: the model's own forward pass, in which what `get_image_features` and
`get_video_features` returned for this pack the first time stands in for the tower. The passes of GRPO that share a
pack are the old policy's, the reference's and every iteration's of the policy itself.

What is held per image is what joins the row: for Qwen2.5-VL-3B, 1,000 image tokens are 4 MB in bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers.utils import ModelOutput

from lcot_plugin.packing.families import trains_vision
from lcot_plugin.vlm import unwrap_base_model

METHODS = ("get_image_features", "get_video_features")
SAMPLES = 256
"""Values of each input tensor that are compared between the passes."""
UNUSED = ("last_hidden_state", "hidden_states", "attentions")
"""Fields of a tower's output from before the projector, which no family's forward reads; of LLaVA they are every
layer's hidden states, many times what joins the row."""


class _Input(NamedTuple):
    """A tensor that features were computed from."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    sample: torch.Tensor
    """About SAMPLES of its values, evenly spread; all of a grid's."""


class _Remembered(NamedTuple):
    inputs: list[_Input]
    features: Any
    """What the method returned, without a graph; of a ModelOutput its attributes but for UNUSED."""


class VisionMemo:
    """Remembers image and video features by pack. For frozen towers and projectors only: `trains_vision` tells."""

    def __init__(self) -> None:
        self._remembered: dict[tuple[Hashable, str], _Remembered] = {}
        self._computing = False

    def __len__(self) -> int:
        """Calls that are remembered: one per pack with images, and one per pack with videos."""
        return len(self._remembered)

    def forget(self) -> None:
        """Drops everything, so that the memory is free and keys can be used again."""
        self._remembered.clear()

    @contextmanager
    def of(self, model: Any, key: Hashable) -> Iterator[None]:
        """Within the context a forward pass of `model` takes its image features from the memo, or adds them to it.

        model: what is inside the parallel wrapper, a transformers model or a PEFT model around one; it may be called
        through the wrapper. The backward pass may be inside or outside of the context. A model without a vision tower
        is left alone. AssertionError where a parameter of the tower or projector is trained, and where the pass is
        over other images than those remembered under `key`. Afterwards the model is as before, whatever happened.
        """
        assert not trains_vision(model), "features of a vision tower or projector that is trained change at every step"
        owner = _owner(model)
        methods = {name: getattr(owner, name) for name in METHODS if hasattr(owner, name)}
        patched_before = {name: vars(owner)[name] for name in methods if name in vars(owner)}
        try:
            for name, method in methods.items():
                setattr(owner, name, self._standing_in(method, (key, name)))
            yield
        finally:
            for name in methods:
                vars(owner).pop(name, None)
            vars(owner).update(patched_before)

    def _standing_in(self, method: Callable[..., Any], key: tuple[Hashable, str]) -> Callable[..., Any]:
        def features_of(*args: Any, **kwargs: Any) -> Any:
            if self._computing:  # Qwen3-VL's video features are its image features of the videos
                return method(*args, **kwargs)
            inputs = _samples(args, kwargs)
            if key not in self._remembered:
                self._computing = True
                try:
                    with torch.no_grad(), warnings.catch_warnings():  # no later pass may find the graph of the first
                        # Reentrant checkpointing says so of every pass without gradients.
                        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
                        features = _without_unused(method(*args, **kwargs))
                finally:
                    self._computing = False
                self._remembered[key] = _Remembered(inputs, features)
            remembered = self._remembered[key]
            same = len(inputs) == len(remembered.inputs) and all(map(_same, inputs, remembered.inputs))
            assert same, f"{key} was remembered for other images than those of this pass"
            return remembered.features

        return features_of


def _owner(model: Any) -> Any:
    """The module whose forward asks itself for image features: the model inside that with the output layer."""
    base = unwrap_base_model(model)
    inner = getattr(base, "model", None)
    return inner if hasattr(inner, METHODS[0]) else base


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Input]:
    """The tensors of a call as the memo knows them again."""
    named = [*enumerate(args), *sorted(kwargs.items())]
    tensors = [(str(name), value) for name, value in named if isinstance(value, torch.Tensor)]
    return [
        _Input(name, tensor.shape, tensor.dtype, tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)].clone())
        for name, tensor in tensors
    ]


def _same(left: _Input, right: _Input) -> bool:
    return left[:3] == right[:3] and torch.equal(left.sample, right.sample)


def _without_unused(features: Any) -> Any:
    if not isinstance(features, ModelOutput):
        return features
    # Not as a ModelOutput, which lets no field go; and SmolVLM's `pooler_output` is no field of its class.
    return SimpleNamespace(**{name: value for name, value in vars(features).items() if name not in UNUSED})
