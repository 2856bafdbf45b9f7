"""Tiny twins of the families for which LLaMA-Factory has no template: SmolVLM and LLaVA-OneVision.

`twins.build_twin` imports this module, which adds its blueprints to those there.
"""

from __future__ import annotations

from pathlib import Path

import transformers
import twins
from twins import TEXT, TEXT_WITHOUT_HEAD_DIM, THINK_TOKENS, VISION, Blueprint, fast_image_processor, named_tokenizer

TILE = 56
"""Side of an image tile in pixels: 16 patches."""

SMOLVLM_CHAT = (
    "{{- '<|im_start|>' }}{%- for message in messages %}{{- message['role'] | capitalize + ':' }}"
    "{%- if message['content'] is string %}{{- ' ' + message['content'] }}{%- else %}"
    "{%- if message['content'][0]['type'] != 'image' %}{{- ' ' }}{%- endif %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<end_of_utterance>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)
# The blank after `assistant` of an earlier answer, where the generation prompt has none, is the real one's too.
LLAVA_ONEVISION_CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + ' ' }}"
    "{%- if message['content'] is string %}{{- '\\n' + message['content'] }}{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>' }}{%- endfor %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- '\\n' + part['text'] }}{%- endfor %}"
    "{%- endif %}{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def smolvlm(directory: Path) -> Blueprint:
    """SmolVLM2: 4 tokens per tile, and every image is cut into tiles."""
    named_tokens = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    cells = [f"<row_{row + 1}_col_{col + 1}>" for row in range(6) for col in range(6)]
    tokenizer = named_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named_tokens.values(), *cells],
        named_tokens,
        THINK_TOKENS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    ids = twins.token_ids(tokenizer)
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, **ids},
        vision_config={**VISION, "image_size": TILE},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=ids["pad_token_id"],
        scale_factor=2,
        tie_word_embeddings=False,
    )
    size = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    processor = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(**size),  # transformers 4 takes no fast one here
        tokenizer=tokenizer,
        video_processor=transformers.SmolVLMVideoProcessor(**size),
        image_seq_len=4,
        chat_template=SMOLVLM_CHAT,
    )
    return Blueprint(transformers.SmolVLMForConditionalGeneration, config, processor, ("<end_of_utterance>",))


def llava_onevision(directory: Path) -> Blueprint:
    """16 tokens per tile; an image alone in its conversation gets up to four tiles and an overview."""
    named_tokens = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer = named_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named_tokens.values()],
        named_tokens,
        THINK_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    pinpoints = [[height * TILE, width * TILE] for height in (1, 2) for width in (1, 2, 3)]
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT_WITHOUT_HEAD_DIM, **twins.token_ids(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": TILE, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    size = {"height": TILE, "width": TILE}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=fast_image_processor("LlavaOnevisionImageProcessor")(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_CHAT,
    )
    return Blueprint(transformers.LlavaOnevisionForConditionalGeneration, config, processor, twins.QWEN_END_TOKENS)


twins.BLUEPRINTS |= {"smolvlm": smolvlm, "llava_onevision": llava_onevision}
