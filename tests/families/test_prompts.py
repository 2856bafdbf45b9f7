"""The prompt that is trained on has the tokens that the family's own processor makes of its own chat template."""

from __future__ import annotations

from typing import Any

import pytest
from family_twins import FAMILY_TEMPLATES
from loaded_twins import PROBLEMS, aligned_problems, load_twin
from transformers import AutoProcessor

from lcot_plugin.data.targets import TARGETS


@pytest.mark.parametrize("family", FAMILY_TEMPLATES)
def test_prompts_are_the_processors(family: str, twin: Any) -> None:
    """With no, one and two pictures, those of LFM2-VL in tiles; placeholders are counted without pixels."""
    directory = twin(family)
    loaded = load_twin(directory)
    processor = AutoProcessor.from_pretrained(directory)
    pictures = aligned_problems()["_images"]
    system = {"role": "system", "content": [{"type": "text", "text": TARGETS["think_boxed"].system_prompt}]}
    for (question, _), images, prompt in zip(PROBLEMS, pictures, loaded.prompts, strict=True):
        parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        text = processor.apply_chat_template([system, {"role": "user", "content": parts}], add_generation_prompt=True)
        made = processor(text=[text], **({"images": [images]} if images else {}), add_special_tokens=False)
        assert prompt.record.input_ids == made["input_ids"][0], question
