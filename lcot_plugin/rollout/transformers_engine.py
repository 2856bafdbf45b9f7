"""In-process rollouts with the training model itself: no second copy of the weights, no server.

In: encoded prompts. Out: RolloutGroups. Every prompt, with its images, is prefilled once and its cache repeated for
the G completions; rows that have ended leave the batch and the cache. Where fewer than G completions may be decoded at
once, a prompt is prefilled once for each part of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lcot_plugin.rollout.sampling import TokenSampler, row_uniforms
from lcot_plugin.types import Completion, EncodedPrompt, Ending, RolloutGroup, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel, cast_media, unwrap_base_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DROP_FINISHED_SHARE = 0.25
"""Finished rows are dropped once they are a quarter of the batch: every drop copies the cache."""


def _ignore(num_ended: int) -> None:
    """The progress of nobody."""


@dataclass
class _Rows:
    """The running state of a batch of completions; every tensor's first axis is the rows still decoded."""

    index: torch.Tensor
    """[rows] int64, which completion of the batch each row is."""
    previous_ids: torch.Tensor
    """[rows, length] int64, prompt and completion so far; the prompt's last token stands at its padding, where the
    repetition penalty must not find a token that the prompt does not hold."""
    attention_mask: torch.Tensor
    """[rows, length] int64, 0 at the prompt's padding."""
    next_positions: torch.Tensor
    """[rows] int64."""
    finished: torch.Tensor
    """[rows] bool."""

    def select(self, keep: torch.Tensor) -> _Rows:
        return _Rows(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


class TransformersEngine:
    """Implements RolloutEngine with the model's own forward pass and cache."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        batch_media: Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]],
        max_rows: int | None = None,
        skip_special_tokens: bool = True,
    ):
        """`end_token_ids`: any of them ends a completion. `batch_media` joins the processor tensors of several
        prompts. `max_rows`: completions decoded at once, None for all. `skip_special_tokens`: False keeps special
        tokens other than the end token in the text, for families whose thinking tags are special."""
        self.vlm, self.tokenizer = vlm, tokenizer
        self.end_token_ids = list(end_token_ids)
        self.batch_media = batch_media
        self.max_rows = max_rows
        self.skip_special_tokens = skip_special_tokens

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Callable[[int], None] = _ignore,
    ) -> list[RolloutGroup]:
        """See RolloutEngine.generate. `model` is unwrapped (no DDP around it) and is left in the mode it was in."""
        group_size = sampling.num_generations
        max_rows = self.max_rows or len(prompts) * group_size
        prompts_at_once, rows_of_a_prompt = max(1, max_rows // group_size), min(max_rows, group_size)
        was_training = model.training
        model.eval()  # gradient checkpointing would refuse the cache in training mode
        try:
            groups = []
            for start in range(0, len(prompts), prompts_at_once):
                some = slice(start, start + prompts_at_once)
                whole = [RolloutGroup(prompt, []) for prompt in prompts[some]]
                for first in range(0, group_size, rows_of_a_prompt):
                    part = range(first, min(first + rows_of_a_prompt, group_size))
                    completions = self._generate_batch(model, prompts[some], sampling, slots[some], part, progress)
                    for group, more in zip(whole, completions, strict=True):
                        group.completions += more
                groups += whole
            return groups
        finally:
            model.train(was_training)

    def _generate_batch(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        part: range,
        progress: Callable[[int], None],
    ) -> list[list[Completion]]:
        """The completions `part` of each prompt's group."""
        device = next(model.parameters()).device
        keys = [(slot, completion) for slot in slots for completion in part]
        uniforms = row_uniforms(sampling.seed, keys, sampling.max_new_tokens).to(device)
        sampler = TokenSampler(sampling, torch.tensor(self.vlm.banned_token_ids, dtype=torch.long, device=device))
        end_token_ids = torch.tensor(self.end_token_ids, dtype=torch.long, device=device)

        cache, logits, rows = self._prefill(model, prompts, len(part), device)
        tokens = torch.zeros(len(keys), sampling.max_new_tokens, dtype=torch.long, device=device)
        logps = torch.zeros(len(keys), sampling.max_new_tokens, device=device)
        lengths = torch.full((len(keys),), sampling.max_new_tokens, device=device)
        stopped = torch.zeros(len(keys), dtype=torch.bool, device=device)

        for step in range(sampling.max_new_tokens):
            drawn, drawn_logps = sampler(logits, rows.previous_ids, uniforms[rows.index, step])
            tokens[rows.index, step], logps[rows.index, step] = drawn, drawn_logps
            just_ended = torch.isin(drawn, end_token_ids) & ~rows.finished
            lengths[rows.index[just_ended]] = step + 1
            stopped[rows.index[just_ended]] = True
            rows.finished |= just_ended
            rows.previous_ids = torch.cat([rows.previous_ids, drawn[:, None]], dim=1)
            num_finished = int(rows.finished.sum())
            progress(int(just_ended.sum()))
            if num_finished == len(rows.index) or step == sampling.max_new_tokens - 1:
                break
            if num_finished >= _DROP_FINISHED_SHARE * len(rows.index):
                keep = (~rows.finished).nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows = rows.select(keep)
            logits = self._decode(model, rows, cache)
        progress(int((~stopped).sum()))
        completions = self._collect(tokens, logps, lengths, stopped)
        return [completions[i : i + len(part)] for i in range(0, len(completions), len(part))]

    def _prefill(
        self, model: Any, prompts: Sequence[EncodedPrompt], num_generations: int, device: torch.device
    ) -> tuple[Any, torch.Tensor, _Rows]:
        """Runs every prompt once, padded on the left so that all rows end together, then repeats each for its group."""
        sequences = [prompt.record.input_ids for prompt in prompts]
        width = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in sequences], device=device)
        attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
        media = {key: value.to(device) for key, value in self.batch_media(prompts).items()}
        positions = self.vlm.positions(input_ids, attention_mask, media)
        base = unwrap_base_model(model)
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            **({"logits_to_keep": 1} if self.vlm.accepts("logits_to_keep") else {}),
            **cast_media(media, base),
            **self.vlm.token_type_arguments(input_ids),
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(num_generations)

        def repeat(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(num_generations, dim=0)

        rows = _Rows(
            index=torch.arange(len(prompts) * num_generations, device=device),
            previous_ids=repeat(input_ids.where(attention_mask.bool(), input_ids[:, -1:])),
            attention_mask=repeat(attention_mask),
            next_positions=repeat(self.vlm.next_positions(positions)),
            finished=torch.zeros(len(prompts) * num_generations, dtype=torch.bool, device=device),
        )
        return cache, repeat(output.logits[:, -1]), rows

    def _decode(self, model: Any, rows: _Rows, cache: Any) -> torch.Tensor:
        """One token for every row; returns the logits of the next one, [rows, vocabulary]."""
        rows.attention_mask = torch.cat([rows.attention_mask, torch.ones_like(rows.index)[:, None]], dim=1)
        output = model(
            input_ids=rows.previous_ids[:, -1:],
            attention_mask=rows.attention_mask,
            position_ids=self.vlm.step_positions(rows.next_positions),
            past_key_values=cache,
            use_cache=True,
        )
        rows.next_positions = rows.next_positions + 1
        return output.logits[:, -1]

    def _collect(
        self, tokens: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor, stopped: torch.Tensor
    ) -> list[Completion]:
        ids = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        sampler_logps = [row[:length] for row, length in zip(logps.tolist(), lengths.tolist(), strict=True)]
        answers = [row[:-1] if ended else row for row, ended in zip(ids, stopped.tolist(), strict=True)]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=self.skip_special_tokens)
        return [
            Completion(row, values, Ending.STOPPED if ended else Ending.TRUNCATED, text)
            for row, values, ended, text in zip(ids, sampler_logps, stopped.tolist(), texts, strict=True)
        ]
