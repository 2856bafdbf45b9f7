"""The plain layout of the policy update: one row per completion, prompt and completion together, padded on the right.

In: training sequences. Out: the model's keyword arguments and the head's targets. Every family of LLaMA-Factory can
be called this way, so it is also what faster layouts are checked against.

Example, two completions of the prompt `p p p`, of 2 and 1 tokens:

    row 0: p p p a a      targets: (row 0, column 2) -> a, (row 0, column 3) -> a
    row 1: p p p b .      targets: (row 1, column 2) -> b
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lcot_plugin.policy.head import HeadTargets
from lcot_plugin.types import EncodedPrompt, TrainingSequence
from lcot_plugin.vlm import VisionLanguageModel, cast_media


def build_rows(
    vlm: VisionLanguageModel,
    sequences: Sequence[TrainingSequence],
    batch_media: Callable[[Sequence[EncodedPrompt]], dict[str, torch.Tensor]],
    base_model: Any,
    pad_token_id: int,
    temperature: float,
    chunk_size: int,
) -> tuple[dict[str, torch.Tensor], HeadTargets]:
    """Keyword arguments of `model.forward` on the model's device, and what the head must compute.

    `batch_media` joins the processor tensors of the rows' prompts, in row order.
    """
    device = base_model.device
    prompts = [sequence.prompt.record.input_ids for sequence in sequences]
    completions = [sequence.completion.token_ids for sequence in sequences]
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(lengths)
    input_ids = torch.tensor(
        [p + c + [pad_token_id] * (width - len(p) - len(c)) for p, c in zip(prompts, completions, strict=True)],
        device=device,
    )
    attention_mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long().to(device)
    media = {k: v.to(device) for k, v in batch_media([sequence.prompt for sequence in sequences]).items()}
    model_inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": vlm.positions(input_ids, attention_mask, media),
        **cast_media(media, base_model),
        **vlm.token_type_arguments(input_ids),
    }
    columns = [torch.arange(len(p) - 1, len(p) + len(c) - 1) for p, c in zip(prompts, completions, strict=True)]
    targets = HeadTargets(
        rows=torch.arange(len(sequences)).repeat_interleave(torch.tensor([len(c) for c in completions])).to(device),
        columns=torch.cat(columns).to(device),
        token_ids=torch.tensor([token for completion in completions for token in completion], device=device),
        banned=torch.tensor(vlm.banned_token_ids, dtype=torch.long, device=device),
        temperature=temperature if temperature > 0 else 1.0,
        chunk_size=chunk_size,
    )
    return model_inputs, targets
