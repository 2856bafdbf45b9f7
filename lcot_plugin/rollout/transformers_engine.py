"""In-process rollouts with the training model itself: no second copy of the weights, no server.

In: encoded prompts. Out: RolloutGroups. Families that can compute packed rows share prompts and refill slots
(`shared_prefix`); others are decoded batch by batch with transformers' own cache (`batch`).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from lcot_plugin.errors import ArgumentError
from lcot_plugin.packing.families import why_not_packable
from lcot_plugin.rollout.batch import BatchRollout
from lcot_plugin.rollout.setup import Progress, RolloutSetup, eval_mode
from lcot_plugin.rollout.shared_prefix import SharedPrefixRollout
from lcot_plugin.types import EncodedPrompt, RolloutGroup, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel
from lcot_plugin.whole_weights import whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 8192
BLOCK_SIZE = 64


def _ignore(num_ended: int, num_tokens: int) -> None:
    """The progress of nobody."""


class TransformersEngine:
    """Implements RolloutEngine with the model's own forward pass."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        batch_media: Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]],
        max_rows: int | None = None,
        skip_special_tokens: bool = True,
        *,
        shared_prefix: bool | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        block_size: int = BLOCK_SIZE,
    ):
        """`end_token_ids`: any of them ends a completion. `batch_media` joins the processor tensors of several
        prompts. `max_rows`: completions decoded at once, None for all. `skip_special_tokens`: False keeps special
        tokens other than the end token in the text, for families whose thinking tags are special. `shared_prefix`:
        None to share prompts and refill slots where the model can; False never, True raises ArgumentError where it
        cannot. `prefill_tokens`: tokens of the prompts that one forward pass computes. `block_size`: tokens by which a
        completion's keys and values grow."""
        self.vlm, self.tokenizer = vlm, tokenizer
        self.end_token_ids = list(end_token_ids)
        self.batch_media = batch_media
        self.max_rows = max_rows
        self.skip_special_tokens = skip_special_tokens
        self.shared_prefix = shared_prefix
        self.prefill_tokens, self.block_size = prefill_tokens, block_size
        self._can_share: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def policy(self, model: Any, accelerator: Any, version: int) -> AbstractContextManager[Any]:
        """See RolloutEngine.policy: the training model itself, with whole weights."""
        return whole_weights(model, accelerator)

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Progress = _ignore,
    ) -> list[RolloutGroup]:
        """See RolloutEngine.generate. `model` is what `policy` yields and is left in the mode it was in."""
        if not prompts:
            return []
        setup = RolloutSetup(
            self.vlm,
            self.tokenizer,
            self.end_token_ids,
            self.batch_media,
            self.max_rows,
            self.skip_special_tokens,
            self.prefill_tokens,
            self.block_size,
        )
        way = SharedPrefixRollout if self._shares_prefixes(model) else BatchRollout
        with eval_mode(model):
            completions = way(setup, model, prompts, sampling, slots, progress).run()
        return [RolloutGroup(prompt, own) for prompt, own in zip(prompts, completions, strict=True)]

    def take_counts(self) -> dict[str, float]:
        """See RolloutEngine.take_counts: there is nothing to tell."""
        return {}

    def _shares_prefixes(self, model: Any) -> bool:
        if self.shared_prefix is False:
            return False
        if model not in self._can_share:
            reason = why_not_packable(model)
            if reason is not None:
                if self.shared_prefix:
                    raise ArgumentError(f"rollouts cannot share prompts: {reason}. Leave shared_prefix out.")
                logger.info("Rollouts are decoded in padded batches: %s", reason)
            self._can_share[model] = reason is None
        return self._can_share[model]
