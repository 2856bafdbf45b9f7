"""Tiny twins as stage grpo has them in memory: model, template, tokenised prompts with their images, engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from family_twins import FAMILY_TEMPLATES
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer
from PIL import Image
from transformers import AutoModelForImageTextToText
from twins import TRANSFORMERS_5, TWIN_TEMPLATES

from lcot_plugin.integration.grpo import end_token_ids
from lcot_plugin.integration.media import PromptEncoder, batch_media
from lcot_plugin.integration.tokenising import RecordTokeniser
from lcot_plugin.policy.rows import build_rows
from lcot_plugin.rollout.transformers_engine import TransformersEngine
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, RolloutGroup, TrainingSequence
from lcot_plugin.vlm import VisionLanguageModel

FAMILIES = sorted(TWIN_TEMPLATES)
MROPE_FAMILIES = ("qwen2_5_vl", "qwen3_vl")
TYPED_FAMILIES = (*MROPE_FAMILIES, "qwen2_vl", "qwen3_5", "gemma4")
"""By model type: those that transformers 5 tells where images are."""
# (width, height) of each image: the Qwen families give each another number of tokens.
PROBLEMS = (
    ("How many circles are in the picture?", [(112, 84)]),
    ("What is 2 plus 3? Think step by step.", []),
    ("Which picture has more circles?", [(56, 140), (84, 56)]),
    ("Why?", []),
)
"""One image, text only, two images, and a short text: prompts of four lengths."""
ONE_IMAGE, TEXT, TWO_IMAGES, SHORT_TEXT = range(len(PROBLEMS))


@dataclass(frozen=True)
class LoadedTwin:
    """A twin on the CPU in float32, in eval mode; not to be changed by a test (`fresh_model` is for that)."""

    family: str
    directory: Path
    model: Any
    tokenizer: Any
    vlm: VisionLanguageModel
    prompts: list[EncodedPrompt]
    """Those of PROBLEMS."""
    end_token_ids: list[int]

    def fresh_model(self) -> Any:
        return load_model(self.directory)

    def engine(self, end_token_ids: Sequence[int] | None = None, max_rows: int | None = None) -> TransformersEngine:
        """`end_token_ids`: None for the family's own."""
        ends = self.end_token_ids if end_token_ids is None else end_token_ids
        return TransformersEngine(self.vlm, self.tokenizer, ends, batch_media, max_rows)

    def endless_engine(self, max_rows: int | None = None) -> TransformersEngine:
        """Every completion is truncated: a placeholder cannot be drawn, so it ends nothing."""
        return self.engine([self.vlm.image_token_id], max_rows)

    def rows(self, sequences: Sequence[TrainingSequence], temperature: float, chunk_size: int = 512) -> Any:
        """`build_rows` for this model."""
        pad = self.tokenizer.pad_token_id
        return build_rows(self.vlm, sequences, batch_media, self.model, pad, temperature, chunk_size)


@lru_cache
def load_twin(directory: Path) -> LoadedTwin:
    """`directory`: what the fixture `twin` gives, named after its family."""
    family = directory.name
    module = load_tokenizer(ModelArguments(model_name_or_path=str(directory)))
    tokenizer, processor = module["tokenizer"], module["processor"]
    data_args = DataArguments(template={**TWIN_TEMPLATES, **FAMILY_TEMPLATES}[family], cutoff_len=1024)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    model = load_model(directory)
    plugin = template.mm_plugin
    vlm = VisionLanguageModel(model, tokenizer, (plugin.image_token, plugin.video_token, plugin.audio_token))
    rows = RecordTokeniser("grpo", template, tokenizer, processor, data_args)(aligned_problems())
    names = [field.name for field in fields(PromptRecord)]
    records = [PromptRecord(*values) for values in zip(*(rows[name] for name in names), strict=True)]
    prompts = list(map(PromptEncoder(template, processor, vlm), records))
    return LoadedTwin(family, directory, model, tokenizer, vlm, prompts, end_token_ids(template, tokenizer, model))


def load_model(directory: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


def aligned_problems() -> dict[str, list[Any]]:
    """PROBLEMS as a batch of LLaMA-Factory's aligned records."""
    generator = random.Random(0)
    num = len(PROBLEMS)
    images = [
        [Image.frombytes("RGB", size, generator.randbytes(3 * size[0] * size[1])) for size in sizes]
        for _, sizes in PROBLEMS
    ]
    return {
        "_prompt": [[{"role": "user", "content": "<image>" * len(sizes) + text}] for text, sizes in PROBLEMS],
        "_response": [[]] * num,
        "_system": [""] * num,
        "_tools": [""] * num,
        "_images": images,
        "_videos": [[]] * num,
        "_audios": [[]] * num,
        "_gold": ["3"] * num,
        "_answer_type": ["auto"] * num,
        "_match": [""] * num,
        "_pass_rate": [None] * num,
        "_source": ["problems"] * num,
        "_file": ["problems.json"] * num,
        "_findings": [""] * num,
        "_record": list(range(num)),
    }


def as_sequences(groups: Sequence[RolloutGroup]) -> list[TrainingSequence]:
    """Every completion of the groups, in order, with advantages that differ."""
    rows = [(group.prompt, c, place) for place, group in enumerate(groups) for c in group.completions]
    return [TrainingSequence(*row, advantage=(i % 5) - 1.7) for i, row in enumerate(rows)]


def written(prompt: EncodedPrompt, token_ids: list[int]) -> TrainingSequence:
    """A sequence with a given completion."""
    completion = Completion(token_ids, [0.0] * len(token_ids), Ending.TRUNCATED, "")
    return TrainingSequence(prompt, completion, group=0, advantage=1.0)


def reference_log_probs(model: Any, sequence: TrainingSequence, banned: list[int], temperature: float) -> torch.Tensor:
    """[T] by one plain forward pass of one unpadded sequence, which lets transformers find the positions itself."""
    prompt, completion = sequence.prompt.record.input_ids, sequence.completion.token_ids
    ids = torch.tensor([prompt + completion])
    config = model.config
    image_token_id = getattr(config, "image_token_id", None) or config.image_token_index
    inputs = dict(sequence.prompt.media)
    if config.model_type == "gemma3":
        inputs["token_type_ids"] = (ids == image_token_id).long()
    elif config.model_type in TYPED_FAMILIES and TRANSFORMERS_5:
        inputs["mm_token_type_ids"] = (ids == image_token_id).long()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
    logits = logits[len(prompt) - 1 : -1] / temperature
    keep = torch.ones(logits.shape[-1], dtype=torch.bool)
    keep[banned] = False
    normalizer = logits[:, keep].logsumexp(-1)
    return logits.gather(-1, torch.tensor(completion)[:, None])[:, 0] - normalizer
