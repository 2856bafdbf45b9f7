"""Decoding with shared prompts and refilled slots, for the families that can compute packed rows.

    pending completions --free slots--> prefill of their prompts, once each --> rows, one token each per forward pass
    a row that has ended gives its blocks back and its slot to the next pending completion

In: prompts, sampling parameters. Out: the completions of each prompt. Nothing is padded: prompts lie in one row, a
completion takes as many blocks as it needs. A prompt's keys and values exist once, from its first completion's start
to its last one's end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lcot_plugin.packing.attention import text_attention
from lcot_plugin.rollout.attention import IMPLEMENTATION, DecodePass, attending
from lcot_plugin.rollout.block_store import BlockStore
from lcot_plugin.rollout.prefill import Prefix, prefill
from lcot_plugin.rollout.readers import Holding, Readers, find_readers
from lcot_plugin.rollout.sampling import check_finite, uniform_numbers
from lcot_plugin.rollout.setup import Draft, Rollout
from lcot_plugin.types import Completion

PROMPT_BLOCK = 512
"""The most tokens of a block of a prompt. Where all prompts are shorter, a block is as long as the longest."""


@dataclass
class Row:
    """A completion that occupies a slot."""

    prompt: int
    prefix: Prefix
    slot: int
    """Its place in `seen`."""
    draft: Draft
    uniforms: np.ndarray
    """[limit] float64 in [0, 1)."""
    blocks: list[int] = field(default_factory=list)


class SharedPrefixRollout(Rollout):
    """Completions take slots as they fall free."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        prompts, setup = self.prompts, self.setup
        group_size = self.sampling.num_generations
        self.max_rows = min(setup.max_rows or len(prompts) * group_size, len(prompts) * group_size)
        self.pending = deque((prompt, index) for prompt in range(len(prompts)) for index in range(group_size))
        self.drafts: dict[tuple[int, int], Draft] = {}
        self.unfinished = [group_size] * len(prompts)
        longest = max(len(prompt.record.input_ids) for prompt in prompts)
        self.prompt_store = BlockStore(min(PROMPT_BLOCK, longest))
        self.completion_store = BlockStore(setup.block_size, num_blocks=self.max_rows)
        self.prefixes: dict[int, Prefix] = {}
        self.rows: list[Row] = []
        self.free_slots = list(reversed(range(self.max_rows)))
        self.readers: tuple[Readers, Readers] | None = None
        """None when rows or blocks have changed."""
        self.seen: torch.Tensor | None = None
        """[max_rows, vocabulary] bool, tokens of each slot's prompt and completion, where the sampler needs it."""

    def run(self) -> list[list[Completion]]:
        """[prompts][num_generations]."""
        with text_attention(self.model, IMPLEMENTATION):
            while self.pending or self.rows:
                while self.pending and len(self.rows) < self.max_rows:
                    self._admit()
                if self.rows:
                    self._write(self.rows, self._decode())
        group_size = self.sampling.num_generations
        return [
            [self.drafts[prompt, index].completion(self.rule) for index in range(group_size)]
            for prompt in range(len(self.prompts))
        ]

    def _admit(self) -> None:
        """Fills the free slots and writes the new rows' first tokens."""
        num = min(self.max_rows - len(self.rows), len(self.pending))
        chosen = [self.pending.popleft() for _ in range(num)]
        missing = sorted({prompt for prompt, _ in chosen} - set(self.prefixes))
        if missing:
            prompts = [self.prompts[prompt] for prompt in missing]
            found = prefill(self.model, self.setup.vlm, prompts, self.prompt_store, self.setup.prefill_tokens)
            self.prefixes |= dict(zip(missing, found, strict=True))
        rows = [self._new_row(prompt, index) for prompt, index in chosen]
        self.rows += rows
        self.readers = None
        self._write(rows, torch.stack([row.prefix.logits for row in rows]))

    def _new_row(self, prompt: int, index: int) -> Row:
        limit = self.limit(prompt, index)
        draft = Draft([], [], [], limit)
        self.drafts[prompt, index] = draft
        uniforms = uniform_numbers(self.sampling.seed, self.slots[prompt], index, limit)
        row = Row(prompt, self.prefixes[prompt], self.free_slots.pop(), draft, uniforms)
        if self.sampler.needs_seen:
            if self.seen is None:
                vocabulary = row.prefix.logits.shape[-1]
                self.seen = torch.zeros(self.max_rows, vocabulary, dtype=torch.bool, device=self.device)
            self.seen[row.slot] = False
            self.seen[row.slot, torch.tensor(self.prompts[prompt].record.input_ids, device=self.device)] = True
        return row

    def _write(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Draws the next token of some rows and ends those that it ends. logits: [rows, vocabulary]."""
        uniforms = np.array([row.uniforms[len(row.draft.token_ids)] for row in rows])
        seen = None
        if self.seen is not None:
            places = torch.tensor([row.slot for row in rows], device=self.device)
            seen = self.seen[places]
        drawn = self.sampler(logits, torch.from_numpy(uniforms).to(self.device), seen)
        if self.seen is not None:
            self.seen[places, drawn.token_ids] = True
        # Float64 holds both ids and float32 exactly.
        ids, *logps = torch.stack([part.double() for part in drawn if part is not None]).tolist()
        check_finite(logps[0])
        sampler_logps, policy_logps = logps[0], logps[1] if len(logps) > 1 else [None] * len(rows)
        for row, token_id, sampler_logp, policy_logp in zip(rows, ids, sampler_logps, policy_logps, strict=True):
            row.draft.add(int(token_id), sampler_logp, policy_logp, self.rule)
        ended = [row for row in rows if row.draft.ending is not None]
        for row in ended:
            self._end(row)
        if ended:
            self.rows = [row for row in self.rows if row.draft.ending is None]
            self.readers = None
        self.progress(len(ended), len(rows))

    def _end(self, row: Row) -> None:
        self.free_slots.append(row.slot)
        self.completion_store.give_back(row.blocks)
        self.unfinished[row.prompt] -= 1
        if self.unfinished[row.prompt] == 0:
            self.prompt_store.give_back(self.prefixes.pop(row.prompt).blocks)

    def _decode(self) -> torch.Tensor:
        """One token of every row; returns the logits of the next one, [rows, vocabulary]."""
        store = self.completion_store
        inputs = np.empty((4, len(self.rows)), dtype=np.int64)
        queries = np.full(len(self.rows) + 1, -1, dtype=np.int64)
        for index, row in enumerate(self.rows):
            at = len(row.draft.token_ids) - 1
            block, column = divmod(at, store.block_size)
            if block == len(row.blocks):
                row.blocks += store.take(1)
                self.readers = None
            inputs[:, index] = row.draft.token_ids[at], row.prefix.next_position + at, row.blocks[block], column
            queries[index] = row.prefix.length + at
        if self.readers is None:
            self.readers = self._find_readers()
        ids, positions, blocks, columns = torch.from_numpy(inputs).to(self.device)
        stores = (self.prompt_store, store)
        with attending(DecodePass(stores, self.readers, queries, blocks, columns)):
            output = self.model(
                input_ids=ids[:, None], position_ids=self.setup.vlm.step_positions(positions), use_cache=False
            )
        return output.logits[:, -1]

    def _find_readers(self) -> tuple[Readers, Readers]:
        of_prompt: dict[int, list[int]] = {}
        for index, row in enumerate(self.rows):
            of_prompt.setdefault(row.prompt, []).append(index)
        prompts = [
            Holding(self.prefixes[prompt].blocks, rows, 0, self.prefixes[prompt].length)
            for prompt, rows in of_prompt.items()
        ]
        size = self.completion_store.block_size
        completions = [
            Holding(row.blocks, [index], row.prefix.length, row.prefix.length + len(row.blocks) * size)
            for index, row in enumerate(self.rows)
        ]
        return (
            find_readers(prompts, len(self.rows), self.prompt_store.block_size),
            find_readers(completions, len(self.rows), size),
        )
