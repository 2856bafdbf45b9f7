"""Tiny twins of real VLM families, and small data sets to feed them: what the tests train on without a network.

`build_twin` writes a randomly initialised model of the family's real architecture, with its real processor classes and
a tokenizer trained on the spot, in the layout of a hub repository, so that `AutoModelForImageTextToText` and
LLaMA-Factory load it as they load the real one. `write_problems` writes images, records and dataset_info.json.
Both work on transformers 4.57 and 5.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw
from transformers import GenerationConfig, PreTrainedTokenizerBase
from twin_tokenizers import (
    QWEN_END_TOKENS,
    QWEN_SPECIAL_TOKENS,
    THINK_TOKENS,
    TRANSFORMERS_5,
    named_tokenizer,
    qwen_tokenizer,
    token_ids,
)

TWIN_TEMPLATES = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl_nothink",
    "internvl": "intern_vl",
    "gemma3": "gemma3",
    "llava": "llava",
    "llava_onevision": "llava_onevision",
    "smolvlm": "smolvlm",
}
"""LLaMA-Factory's template for each family."""

GAIN = 5.0
HEAD_GAIN = 12.0
"""Factors on the matrices; see `sharpen`."""

# head_dim 32, because vLLM's CPU attention refuses 16; grouped queries, because every real family has them.
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
# Qwen2.5 has no head_dim of its own: it is hidden_size / num_attention_heads, here 128 / 4.
TEXT_WITHOUT_HEAD_DIM = {**TEXT, "hidden_size": 128, "intermediate_size": 256}
del TEXT_WITHOUT_HEAD_DIM["head_dim"]
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Blueprint:
    """Everything a family needs besides its weights."""

    model_class: type
    config: Any
    processor: Any
    end_tokens: tuple[str, ...]
    """What ends a completion in generation_config.json, the tokenizer's own end token first."""


def build_twin(family: str, directory: Path) -> Path:
    """Writes the twin of a family (a key of `TWIN_TEMPLATES`) into `directory`, the same bytes every time."""
    import family_twins  # noqa: F401  (both add their own to BLUEPRINTS)
    import more_twins  # noqa: F401

    directory.mkdir(parents=True, exist_ok=True)
    blueprint = BLUEPRINTS[family](directory)
    tokenizer = blueprint.processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = blueprint.model_class(blueprint.config).float()
        sharpen(model)
    model.generation_config = GenerationConfig(
        do_sample=True,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(blueprint.end_tokens)),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    blueprint.processor.save_pretrained(directory)
    return directory


@torch.no_grad()
def sharpen(model: torch.nn.Module) -> None:
    """Scales the matrices up until attention and predictions are peaked.

    At the usual initialisation (0.02) attention is flat and every token is equally likely whatever the context, so
    that wrong positions, masks or images would change nothing that a test can see.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            if not parameter.any():  # Gemma3's image projection starts at 0, which would make it blind
                parameter.normal_(std=0.02)
            parameter.mul_(HEAD_GAIN if "lm_head" in name else GAIN)


# --- chat templates ---------------------------------------------------------------------------------------------------

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- 'IMAGE' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA_CHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<start_of_image>' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
LLAVA_CHAT = (
    "{%- for message in messages %}{{- 'USER: ' if message['role'] == 'user' else ' ASSISTANT:' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>\\n' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{%- endif %}"
)


# --- families ---------------------------------------------------------------------------------------------------------


def fast_image_processor(name: str) -> type:
    """The torchvision image processor: transformers 5 calls `X` what 4 calls `XFast`."""
    return getattr(transformers, name if TRANSFORMERS_5 else f"{name}Fast")


def mrope(sections: list[int], **settings: Any) -> dict[str, Any]:
    """Multimodal rope under the keys of each transformers major; sections count half the head's dimensions."""
    if TRANSFORMERS_5:
        return {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **settings},
        }
    return {"rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "mrope_section": sections, **settings}}


def qwen_image_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    convert = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": convert("<|image_pad|>"),
        "video_token_id": convert("<|video_pad|>"),
        "vision_start_token_id": convert("<|vision_start|>"),
        "vision_end_token_id": convert("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def qwen2_vl_processing(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the processors of Qwen2-VL and Qwen2.5-VL are made of."""
    return {
        "image_processor": fast_image_processor("Qwen2VLImageProcessor")(
            patch_size=14, min_pixels=56 * 56, max_pixels=28 * 28 * 64
        ),
        "tokenizer": tokenizer,
        "video_processor": transformers.Qwen2VLVideoProcessor(patch_size=14),
        "chat_template": QWEN_CHAT,
    }


def qwen3_vl_processor(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> Any:
    """That of Qwen3-VL, and of Qwen3.5."""
    return transformers.Qwen3VLProcessor(
        image_processor=fast_image_processor("Qwen2VLImageProcessor")(
            patch_size=16,
            size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 64},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=chat_template,
    )


QWEN_CHAT = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": TEXT["hidden_size"],
    "patch_size": 16,
    "num_position_embeddings": 64,
}


def qwen2_5_vl(directory: Path) -> Blueprint:
    tokenizer = qwen_tokenizer(directory)
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT_WITHOUT_HEAD_DIM, **token_ids(tokenizer), **mrope([4, 6, 6])},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": TEXT_WITHOUT_HEAD_DIM["hidden_size"],
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        **qwen_image_tokens(tokenizer),
    )
    processor = transformers.Qwen2_5_VLProcessor(**qwen2_vl_processing(tokenizer))
    return Blueprint(transformers.Qwen2_5_VLForConditionalGeneration, config, processor, QWEN_END_TOKENS)


def qwen3_vl(directory: Path) -> Blueprint:
    tokenizer = qwen_tokenizer(directory, THINK_TOKENS)
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, **token_ids(tokenizer), **mrope([6, 5, 5], mrope_interleaved=True)},
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0]},
        **qwen_image_tokens(tokenizer),
    )
    processor = qwen3_vl_processor(tokenizer, QWEN_CHAT)
    return Blueprint(transformers.Qwen3VLForConditionalGeneration, config, processor, QWEN_END_TOKENS)


def internvl(directory: Path) -> Blueprint:
    """As InternVL3.5 in its Hugging Face form: a Qwen3 text model behind an InternViT."""
    named_tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special_tokens = [*QWEN_SPECIAL_TOKENS[:3], *named_tokens.values()]
    tokenizer = named_tokenizer(
        special_tokens, named_tokens, THINK_TOKENS, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen3", **TEXT, **token_ids(tokenizer)},
        vision_config={**VISION, "patch_size": [14, 14], "image_size": [56, 56]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    size = {"height": 56, "width": 56}
    processor = transformers.InternVLProcessor(
        image_processor=fast_image_processor("GotOcr2ImageProcessor")(crop_to_patches=False, size=size),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n"),
    )
    return Blueprint(transformers.InternVLForConditionalGeneration, config, processor, QWEN_END_TOKENS)


def gemma3(directory: Path) -> Blueprint:
    named_tokens = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    special_tokens = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named_tokens.values()]
    tokenizer = named_tokenizer(special_tokens, named_tokens, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = transformers.Gemma3Config(
        text_config={
            **TEXT,
            **token_ids(tokenizer),
            # Shorter than the tests' prompts with an image, so that a missing sliding window shows.
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": TEXT["head_dim"],
            **({"rope_parameters": ropes} if TRANSFORMERS_5 else {}),
        },
        vision_config={**VISION, "image_size": 56, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    processor = transformers.Gemma3Processor(
        image_processor=fast_image_processor("Gemma3ImageProcessor")(
            size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
        ),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_CHAT,
    )
    return Blueprint(transformers.Gemma3ForConditionalGeneration, config, processor, ("<eos>", "<end_of_turn>"))


def llava(directory: Path) -> Blueprint:
    special_tokens = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    tokenizer = named_tokenizer(
        special_tokens, {"image_token": "<image>"}, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, **token_ids(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 56, "projection_dim": 64},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    processor = transformers.LlavaProcessor(
        image_processor=fast_image_processor("CLIPImageProcessor")(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    return Blueprint(transformers.LlavaForConditionalGeneration, config, processor, ("</s>",))


BLUEPRINTS: dict[str, Callable[[Path], Blueprint]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "gemma3": gemma3,
    "llava": llava,
}


# --- data -------------------------------------------------------------------------------------------------------------

IMAGE_SIZES = [(56, 56), (84, 56), (60, 120), (140, 70), (112, 112)]
"""Width and height in pixels; the Qwen families turn each into another number of image tokens, 4 to 16."""


def write_problems(
    directory: Path,
    num: int,
    *,
    num_text_only: int = 0,
    num_two_images: int = 0,
    name: str = "problems",
    seed: int = 0,
) -> Path:
    """Writes `num` counting problems as a LLaMA-Factory data set, to be used as `dataset_dir` and `dataset: name`.

    Of the `num` records, the first `num_text_only` have no image, the next `num_two_images` have two, the others one.
    The answer is the number of circles in the images, or a sum, and `dataset_info.json` names it as `gold`, which
    LLaMA-Factory by itself ignores. A second call with another name adds a second data set.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    records = []
    for index in range(num):
        num_images = 0 if index < num_text_only else 2 if index < num_text_only + num_two_images else 1
        images, answer = [], 0
        for position in range(num_images):
            file_name = f"{name}_{index}_{position}.png"
            answer += draw_circles(directory / file_name, IMAGE_SIZES[(index + position) % len(IMAGE_SIZES)], generator)
            images.append(file_name)
        question = "How many circles are in the picture?"
        if not images:
            left, right = generator.randrange(10), generator.randrange(10)
            question, answer = f"What is {left} plus {right}?", left + right
        records.append(
            {
                "problem": "<image>" * num_images + question,
                "images": images,
                "answer": str(answer),
                "response": f"<think>\nLet me count: {answer}.\n</think>\n\n\\boxed{{{answer}}}",
            }
        )
    (directory / f"{name}.json").write_text(json.dumps(records, indent=1))

    info_file = directory / "dataset_info.json"
    info = json.loads(info_file.read_text()) if info_file.exists() else {}
    info[name] = {
        "file_name": f"{name}.json",
        "columns": {"prompt": "problem", "response": "response", "images": "images", "gold": "answer"},
    }
    info_file.write_text(json.dumps(info, indent=1))
    return directory


def draw_circles(path: Path, size: tuple[int, int], generator: random.Random) -> int:
    """Draws one to four coloured circles side by side on noise and returns how many."""
    num_circles = generator.randint(1, 4)
    image = Image.frombytes("RGB", size, generator.randbytes(3 * size[0] * size[1])).point(lambda level: level // 4)
    draw = ImageDraw.Draw(image)
    diameter = size[0] // 5
    for circle in range(num_circles):
        left, top = circle * size[0] // 4 + 2, generator.randrange(size[1] - diameter)
        colour = tuple(generator.randrange(120, 256) for _ in range(3))
        draw.ellipse((left, top, left + diameter, top + diameter), fill=colour)
    image.save(path)
    return num_circles
