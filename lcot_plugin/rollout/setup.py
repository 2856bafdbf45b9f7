"""What an engine is told once. In: the loaded model's parts. Out: what both ways to decode share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lcot_plugin.rollout.sampling import TokenSampler
from lcot_plugin.rollout.stopping import StopRule, token_limit
from lcot_plugin.types import Completion, EncodedPrompt, Ending, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Called with the numbers of completions just ended and of tokens just written."""


@dataclass(frozen=True)
class RolloutSetup:
    """The same for every rollout of an engine."""

    vlm: VisionLanguageModel
    tokenizer: PreTrainedTokenizerBase
    end_token_ids: Sequence[int]
    batch_media: Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]]
    """Joins the processor tensors of several prompts."""
    max_rows: int | None
    """Completions decoded at once; None for all."""
    skip_special_tokens: bool
    prefill_tokens: int
    """Tokens of the prompts that one forward pass computes, where no single prompt has more."""
    block_size: int
    """Tokens of a block of a completion's keys and values."""

    def stop_rule(self, sampling: SamplingParams) -> StopRule:
        return StopRule(self.tokenizer, self.end_token_ids, sampling.stop_strings, self.skip_special_tokens)


@dataclass
class Draft:
    """A completion that is being written."""

    token_ids: list[int]
    sampler_logps: list[float]
    policy_logps: list[float]
    """Empty where nothing narrows the draw."""
    limit: int
    """The most tokens it may have."""
    ending: Ending | None = None

    def add(self, token_id: int, sampler_logp: float, policy_logp: float | None, rule: StopRule) -> None:
        self.token_ids.append(token_id)
        self.sampler_logps.append(sampler_logp)
        if policy_logp is not None:
            self.policy_logps.append(policy_logp)
        self.ending = rule.ending(self.token_ids, self.limit)

    def completion(self, rule: StopRule) -> Completion:
        """Of a draft that has ended."""
        assert self.ending is not None
        text = rule.text(self.token_ids)
        return Completion(self.token_ids, self.sampler_logps, self.ending, text, self.policy_logps or None)


class Rollout:
    """One call of `generate`; the subclasses say in which order the completions are decoded."""

    def __init__(
        self,
        setup: RolloutSetup,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Progress,
    ):
        """`model` is in eval mode, and the call without gradients."""
        self.setup, self.model, self.prompts, self.sampling = setup, model, prompts, sampling
        self.slots, self.progress = slots, progress
        self.device = next(model.parameters()).device
        self.rule = setup.stop_rule(sampling)
        banned = torch.tensor(setup.vlm.banned_token_ids, dtype=torch.long, device=self.device)
        self.sampler = TokenSampler(sampling, banned)

    def run(self) -> list[list[Completion]]:
        """[prompts][num_generations]."""
        raise NotImplementedError

    def limit(self, prompt: int, index: int) -> int:
        """The most tokens of a prompt's completion `index`."""
        return token_limit(self.prompts[prompt], self.sampling)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Dropout off, and no gradient checkpointing, which refuses a cache; afterwards every module is as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
