"""What differs between VLM families when one is called: its positions, its token types, the tokens it must not write.

In: a loaded transformers model and its tokenizer. Out: keyword arguments for `model.forward`. Used by the rollout
engine and by the policy update, so that both call the model in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PLACEHOLDER_CONFIG_KEYS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "video_token_index",
    "audio_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "boi_token_index",
    "eoi_token_index",
    "boi_token_id",
    "eoi_token_id",
)
_PLACEHOLDER_TOKENIZER_KEYS = (
    "image_token",
    "video_token",
    "audio_token",
    "boi_token",
    "eoi_token",
    "start_image_token",
    "end_image_token",
    "context_image_token",
    "fake_image_token",
    "global_image_token",
)
_PLACEHOLDER_TOKENS = (
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<fake_token_around_image>", "<global-img>"),  # SmolVLM; older tokenizers do not name them as attributes
)


def unwrap_base_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cast_media(media: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Pixels in the model's dtype, as transformers' `generate` casts them; grids stay integers."""
    return {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in media.items()}


class VisionLanguageModel:
    """Facts about one loaded model; holds no weights."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extra_placeholders: Iterable = ()):
        """`extra_placeholders`: further placeholder tokens as strings, e.g. those of the chat template's plugin."""
        base = unwrap_base_model(model)
        self.config = base.config
        self._forward_parameters = inspect.signature(base.forward).parameters
        # A rope index function means multimodal rope (mrope): positions have 3 rows (time, height, width).
        owner = base if hasattr(base, "get_rope_index") else getattr(base, "model", None)
        self._get_rope_index = getattr(owner, "get_rope_index", None)
        self.image_token_id = self._config_id("image_token_id", "image_token_index")
        self.video_token_id = self._config_id("video_token_id", "video_token_index")
        weight = base.get_output_embeddings().weight
        self.vocab_size = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 has emptied the weight itself
        self.banned_token_ids = self._banned(tokenizer, extra_placeholders)

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that are not forked: the model's weights stay behind, since its rope index needs
        nothing but the configuration."""
        state = {**vars(self), "_forward_parameters": dict(self._forward_parameters)}
        if self._get_rope_index is not None:
            owner = self._get_rope_index.__self__
            empty = object.__new__(type(owner))
            vars(empty)["config"] = owner.config
            state["_get_rope_index"] = getattr(empty, self._get_rope_index.__name__)
        return state

    def _config_id(self, *keys: str) -> int | None:
        return next((value for key in keys if (value := getattr(self.config, key, None)) is not None), None)

    def _banned(self, tokenizer: PreTrainedTokenizerBase, extra_placeholders: Iterable[str | None]) -> list[int]:
        """Ids that a completion must never hold: an image token written by the model has no image behind it and
        stops the next forward pass; an id past the tokenizer's vocabulary (embedding rows added for alignment) has
        no text."""
        vocabulary = tokenizer.get_vocab()
        names = {getattr(tokenizer, key, None) for key in _PLACEHOLDER_TOKENIZER_KEYS}
        names |= set(_PLACEHOLDER_TOKENS) | set(extra_placeholders)
        ids = {vocabulary[name] for name in names if isinstance(name, str) and name in vocabulary}
        ids |= {value for key in _PLACEHOLDER_CONFIG_KEYS if isinstance(value := getattr(self.config, key, None), int)}
        ids |= set(range(max(vocabulary.values()) + 1, self.vocab_size))
        return sorted(token_id for token_id in ids if 0 <= token_id < self.vocab_size)

    def accepts(self, argument: str) -> bool:
        """Whether `forward` takes an argument of this name."""
        return argument in self._forward_parameters

    @property
    def uses_mrope(self) -> bool:
        return self._get_rope_index is not None

    def _media_types(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[batch, length] int64: 0 text, 1 image, 2 video."""
        types = (input_ids == self.image_token_id).long() if self.image_token_id is not None else input_ids * 0
        if self.video_token_id is not None:
            types = types.masked_fill(input_ids == self.video_token_id, 2)
        return types

    def positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, media: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Position ids of padded rows, padding on either side.

        input_ids, attention_mask: [batch, length] int64. Returns [batch, length] int64, or [3, batch, length] for
        mrope. Example without images, left padded by one: mask `0 1 1 1` gives `0 0 1 2`.
        """
        if self._get_rope_index is None:
            return (attention_mask.cumsum(-1) - 1).clamp(min=0)
        available: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mm_token_type_ids": self._media_types(input_ids),
            "image_grid_thw": media.get("image_grid_thw"),
            "video_grid_thw": media.get("video_grid_thw"),
            "second_per_grid_ts": media.get("second_per_grid_ts"),
        }
        accepted = inspect.signature(self._get_rope_index).parameters
        return self._get_rope_index(**{key: value for key, value in available.items() if key in accepted})[0]

    def next_positions(self, positions: torch.Tensor) -> torch.Tensor:
        """[batch] int64: the position of the first token after each row. After an image, mrope goes on from the
        largest coordinate used, not from the number of tokens."""
        return (positions.amax(0) if self.uses_mrope else positions).amax(-1) + 1

    def step_positions(self, next_positions: torch.Tensor) -> torch.Tensor:
        """Position ids of one generated text token per row: [batch, 1], or [3, batch, 1] for mrope."""
        column = next_positions[:, None]
        return column[None].expand(3, -1, -1) if self.uses_mrope else column

    def token_type_arguments(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The token types that `forward` must be told on a pass that holds the prompt."""
        types = self._media_types(input_ids)
        arguments = {}
        if self.accepts("mm_token_type_ids"):
            arguments["mm_token_type_ids"] = types
        if getattr(self.config, "model_type", "").startswith("gemma3") and self.accepts("token_type_ids"):
            # Gemma3 attends in both directions inside an image, which it finds by these.
            arguments["token_type_ids"] = (types == 1).long()
        return arguments
