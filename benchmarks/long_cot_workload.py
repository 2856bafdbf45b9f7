"""What sft_throughput.py trains: a Qwen2.5-VL of any size with random weights, and long-CoT records with pictures.

In: a shape, and the distribution of the lengths. Out: a model folder and a data set folder that LLaMA-Factory reads.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

SIGMA = 0.843
"""Of the logarithm of the lengths: the 95th percentile is four times the median."""
PATCH = 28
"""Pixels along the side of what becomes one image token."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2.5-VL, with heads of 64 dimensions of which two share keys and values."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    """Rows of the embedding; the tokenizer has fewer tokens. Input and output embeddings are not tied."""
    vision_hidden: int
    vision_layers: int


def build_model(folder: Path, shape: Shape) -> int:
    """Qwen2.5-VL's architecture, processor and tokenizer class, random weights; returns the number of parameters."""
    import torch
    import transformers
    import twins

    folder.mkdir(parents=True)
    tokenizer = twins.qwen_tokenizer(folder)
    processor = twins.qwen2_5_vl(folder).processor
    processor.image_processor.size = {"shortest_edge": 4 * PATCH**2, "longest_edge": 640 * PATCH**2}
    heads = shape.hidden // 64
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **twins.token_ids(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            **twins.mrope([8, 12, 12]),
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": 4 * shape.vision_hidden,
            "num_heads": shape.vision_hidden // 64,
            "out_hidden_size": shape.hidden,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [shape.vision_layers - 1],
        },
        **twins.qwen_image_tokens(tokenizer),
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def draw(path: Path, tokens: int, generator: random.Random) -> int:
    """A picture of about `tokens` image tokens with an aspect ratio between 1:2 and 2:1; returns the exact number."""
    from PIL import Image

    across = max(2, round((tokens * generator.uniform(0.5, 2.0)) ** 0.5))
    down = max(2, round(tokens / across))
    noise = Image.frombytes("RGB", (across, down), generator.randbytes(3 * across * down))
    noise.resize((across * PATCH, down * PATCH), Image.Resampling.BICUBIC).save(path)
    return across * down


def write_records(
    folder: Path, name: str, tokenizer: Any, num: int, median: int, longest: int, image_tokens: tuple[int, int]
) -> None:
    """Records as long as evenly spaced quantiles of the lognormal distribution, so that few of them stand for many.

    Six of ten have one image, one has two, three have none; the second data set `<name>_images` leaves those out.
    """
    import twin_tokenizers

    generator = random.Random(0)
    words = [word for word in sorted(set(twin_tokenizers.WORDS.split())) if len(tokenizer.encode(" " + word)) == 1]
    lengths = [
        min(longest, round(median * math.exp(SIGMA * NormalDist().inv_cdf((index + 0.5) / num))))
        for index in range(num)
    ]
    generator.shuffle(lengths)
    records = []
    for index, length in enumerate(lengths):
        num_images = (1, 1, 0, 1, 1, 0, 1, 2, 1, 0)[index % 10]
        images, used = [], 0
        for position in range(num_images):
            wanted = generator.randint(*image_tokens)
            images.append(f"{name}_{index}_{position}.png")
            used += 2 + draw(folder / images[-1], min(wanted, max(4, length // 4)), generator)
        record = {"problem": "<image>" * num_images + "What is the total area?", "images": images}
        prompt = len(tokenizer.encode(record["problem"].replace("<image>", ""))) + 24  # with the template's own tokens
        thought = generator.choices(words, k=max(8, length - used - prompt - 12))
        records.append({**record, "response": f"<think>\n{' '.join(thought)}\n</think>\n\n\\boxed{{{index % 10}}}"})
    info_file = folder / "dataset_info.json"
    info = json.loads(info_file.read_text()) if info_file.exists() else {}
    for key, chosen in ((name, records), (f"{name}_images", [record for record in records if record["images"]])):
        (folder / f"{key}.json").write_text(json.dumps(chosen))
        columns = {"prompt": "problem", "response": "response", "images": "images"}
        info[key] = {"file_name": f"{key}.json", "columns": columns}
    info_file.write_text(json.dumps(info, indent=1))
