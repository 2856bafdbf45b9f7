"""Decoding batch by batch with the model's own cache, for families that cannot compute packed rows.

In: prompts, sampling parameters. Out: the completions of each prompt. Every prompt, with its images, is prefilled once
and its cache repeated for the G completions; rows that have ended leave the batch and the cache. Where fewer than G
completions may be decoded at once, a prompt is prefilled once for each part of its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lcot_plugin.rollout.sampling import check_finite, row_uniforms
from lcot_plugin.rollout.setup import Draft, Rollout
from lcot_plugin.types import Completion, EncodedPrompt
from lcot_plugin.vlm import cast_media, unwrap_base_model

_DROP_FINISHED_SHARE = 0.25
"""Finished rows are dropped once they are a quarter of the batch: every drop copies the cache."""


@dataclass
class _Rows:
    """The running state of a batch of completions; every tensor's first axis is the rows still decoded."""

    index: torch.Tensor
    """[rows] int64, which completion of the batch each row is."""
    last_ids: torch.Tensor
    """[rows] int64, the token that was written last."""
    attention_mask: torch.Tensor
    """[rows, length] int64, 0 at the prompt's padding."""
    next_positions: torch.Tensor
    """[rows] int64."""
    seen: torch.Tensor | None
    """[rows, vocabulary] bool, tokens of prompt and completion so far, where the sampler needs it."""

    def select(self, keep: torch.Tensor) -> _Rows:
        columns = (getattr(self, name) for name in self.__dataclass_fields__)
        return _Rows(*(None if column is None else column[keep] for column in columns))


class BatchRollout(Rollout):
    """Batches of whole groups, or parts of one, each until its last completion ends."""

    def run(self) -> list[list[Completion]]:
        """[prompts][num_generations]."""
        group_size = self.sampling.num_generations
        max_rows = self.setup.max_rows or len(self.prompts) * group_size
        prompts_at_once, rows_of_a_prompt = max(1, max_rows // group_size), min(max_rows, group_size)
        completions: list[list[Completion]] = [[] for _ in self.prompts]
        for start in range(0, len(self.prompts), prompts_at_once):
            some = range(start, min(start + prompts_at_once, len(self.prompts)))
            for first in range(0, group_size, rows_of_a_prompt):
                part = range(first, min(first + rows_of_a_prompt, group_size))
                drafts = self._write_batch(some, part)
                for position, prompt in enumerate(some):
                    own = drafts[position * len(part) : (position + 1) * len(part)]
                    completions[prompt] += [draft.completion(self.rule) for draft in own]
        return completions

    def _write_batch(self, some: range, part: range) -> list[Draft]:
        """The completions `part` of the groups of the prompts `some`."""
        prompts = [self.prompts[prompt] for prompt in some]
        keys = [(self.slots[prompt], completion) for prompt in some for completion in part]
        limits = [self.limit(prompt, completion) for prompt in some for completion in part]
        drafts = [Draft([], [], [], limit) for limit in limits]
        uniforms = row_uniforms(self.sampling.seed, keys, max(limits)).to(self.device)
        cache, logits, rows = self._prefill(prompts, len(part))
        for step in range(max(limits)):
            drawn = self.sampler(logits, uniforms[rows.index, step], rows.seen)
            rows.last_ids = drawn.token_ids
            if rows.seen is not None:
                rows.seen.scatter_(1, drawn.token_ids[:, None], True)
            columns = [rows.index.tolist(), *(None if values is None else values.tolist() for values in drawn)]
            check_finite(columns[2])
            if columns[3] is None:
                columns[3] = [None] * len(columns[0])
            num_ended = num_written = 0
            for index, token_id, sampler_logp, policy_logp in zip(*columns, strict=True):
                draft = drafts[index]
                if draft.ending is None:
                    draft.add(token_id, sampler_logp, policy_logp, self.rule)
                    num_written += 1
                    num_ended += draft.ending is not None
            self.progress(num_ended, num_written)
            going_on = [place for place, index in enumerate(columns[0]) if drafts[index].ending is None]
            if not going_on:
                break
            if len(columns[0]) - len(going_on) >= _DROP_FINISHED_SHARE * len(columns[0]):
                keep = torch.tensor(going_on, device=self.device)
                cache.reorder_cache(keep)
                rows = rows.select(keep)
            logits = self._decode(rows, cache)
        return drafts

    def _prefill(self, prompts: list[EncodedPrompt], num_generations: int) -> tuple[Any, torch.Tensor, _Rows]:
        """Runs every prompt once, padded on the left so that all rows end together, then repeats each for its group."""
        setup, device = self.setup, self.device
        sequences = [prompt.record.input_ids for prompt in prompts]
        width = max(map(len, sequences))
        pad = setup.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in sequences], device=device)
        attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
        media = {key: value.to(device) for key, value in setup.batch_media(prompts).items()}
        positions = setup.vlm.positions(input_ids, attention_mask, media)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            **({"logits_to_keep": 1} if setup.vlm.accepts("logits_to_keep") else {}),
            **cast_media(media, unwrap_base_model(self.model)),
            **setup.vlm.token_type_arguments(input_ids),
        )
        cache = output.past_key_values
        # Not batch_repeat_interleave and batch_select_indices, which layers of linear attention and convolutions lack.
        cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(num_generations))
        logits = output.logits[:, -1]
        seen = None
        if self.sampler.needs_seen:
            seen = torch.zeros(logits.shape, dtype=torch.bool, device=device)
            for row, ids in zip(seen, sequences, strict=True):
                row[torch.tensor(ids, device=device)] = True

        def repeat(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(num_generations, dim=0)

        rows = _Rows(
            index=torch.arange(len(prompts) * num_generations, device=device),
            last_ids=repeat(input_ids[:, -1]),
            attention_mask=repeat(attention_mask),
            next_positions=repeat(setup.vlm.next_positions(positions)),
            seen=None if seen is None else repeat(seen),
        )
        return cache, repeat(logits), rows

    def _decode(self, rows: _Rows, cache: Any) -> torch.Tensor:
        """One token for every row; returns the logits of the next one, [rows, vocabulary]."""
        rows.attention_mask = torch.cat([rows.attention_mask, torch.ones_like(rows.index)[:, None]], dim=1)
        output = self.model(
            input_ids=rows.last_ids[:, None],
            attention_mask=rows.attention_mask,
            position_ids=self.setup.vlm.step_positions(rows.next_positions),
            past_key_values=cache,
            use_cache=True,
        )
        rows.next_positions = rows.next_positions + 1
        return output.logits[:, -1]
