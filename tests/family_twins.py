"""Tiny twins of families whose rows are not packed, or that one transformers release alone has; and of Qwen2-VL.

`twins.build_twin` imports this module, which adds its blueprints to those there. Qwen3.5, LFM2-VL and
Gemma 4 need transformers 5.5; the others are on 4.57 too.
"""

from __future__ import annotations

from pathlib import Path

import transformers
import twins
from twins import (
    QWEN3_VISION,
    QWEN_CHAT,
    QWEN_END_TOKENS,
    TEXT,
    TEXT_WITHOUT_HEAD_DIM,
    THINK_TOKENS,
    VISION,
    Blueprint,
    fast_image_processor,
    mrope,
    named_tokenizer,
    qwen2_vl_processing,
    qwen3_vl_processor,
    qwen_image_tokens,
    qwen_tokenizer,
    token_ids,
)

FAMILY_TEMPLATES = {
    "qwen2_vl": "qwen2_vl_lcot",
    "qwen3_vl_thinking": "qwen3_vl_thinking_lcot",
    **({"qwen3_5": "qwen3_5_lcot", "lfm2_vl": "lfm2_vl_lcot", "gemma4": "gemma4_lcot"} if twins.TRANSFORMERS_5 else {}),
}
"""The template of each family here, as `twins.TWIN_TEMPLATES` has those of the others."""

LFM2_CHAT = (
    "{{- bos_token }}{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA4_CHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- part['text'] | trim }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<turn|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{%- endif %}"
)
QWEN3_5_CHAT = QWEN_CHAT.replace(
    "'<|im_start|>assistant\\n' }}{%- endif %}",
    "'<|im_start|>assistant\\n' }}"
    "{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false else '<think>\\n' }}"
    "{%- endif %}",
)


def qwen2_vl(directory: Path) -> Blueprint:
    tokenizer = qwen_tokenizer(directory)
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT_WITHOUT_HEAD_DIM, **token_ids(tokenizer), **mrope([4, 6, 6])},
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "hidden_size": TEXT_WITHOUT_HEAD_DIM["hidden_size"],
        },
        **qwen_image_tokens(tokenizer),
    )
    processor = transformers.Qwen2VLProcessor(**qwen2_vl_processing(tokenizer))
    return Blueprint(transformers.Qwen2VLForConditionalGeneration, config, processor, QWEN_END_TOKENS)


def qwen3_vl_thinking(directory: Path) -> Blueprint:
    """As Qwen3-VL, but the generation prompt opens the thought."""
    blueprint = twins.qwen3_vl(directory)
    blueprint.processor.chat_template = QWEN_CHAT.replace(
        "assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif"
    )
    return blueprint


def qwen3_5(directory: Path) -> Blueprint:
    """Layers of linear attention (gated delta rule) and of full attention in turn; three in four in the real ones."""
    tokenizer = qwen_tokenizer(directory, THINK_TOKENS)
    config = transformers.Qwen3_5Config(
        text_config={
            **TEXT,
            **token_ids(tokenizer),
            **mrope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        vision_config=QWEN3_VISION,
        **qwen_image_tokens(tokenizer),
    )
    processor = qwen3_vl_processor(tokenizer, QWEN3_5_CHAT)
    return Blueprint(transformers.Qwen3_5ForConditionalGeneration, config, processor, QWEN_END_TOKENS)


def lfm2_vl(directory: Path) -> Blueprint:
    """Short convolutions and attention in turn; 4 tokens per tile, larger images cut into tiles with a thumbnail."""
    named_tokens = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    cells = [f"<|img_row_{row + 1}_col_{col + 1}|>" for row in range(4) for col in range(4)]
    tokenizer = named_tokenizer(
        ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *named_tokens.values(), *cells],
        named_tokens,
        THINK_TOKENS,
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    config = transformers.Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            **TEXT_WITHOUT_HEAD_DIM,
            **token_ids(tokenizer),
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": [1],
            "layer_types": ["conv", "full_attention"],
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            **VISION,
            "patch_size": 16,
            "num_patches": 16,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    processor = transformers.Lfm2VlProcessor(
        image_processor=fast_image_processor("Lfm2VlImageProcessor")(
            tile_size=64, min_image_tokens=2, max_image_tokens=4, min_tiles=2, max_tiles=4, max_num_patches=32
        ),
        tokenizer=tokenizer,
        chat_template=LFM2_CHAT,
    )
    return Blueprint(transformers.Lfm2VlForConditionalGeneration, config, processor, ("<|im_end|>", "<|endoftext|>"))


def gemma4(directory: Path) -> Blueprint:
    """As E2B: embeddings per layer, layers that share keys and values, soft-capped logits; no audio tower."""
    named_tokens = {f"{kind}_token": f"<|{kind}|>" for kind in ("image", "boi", "eoi", "audio", "boa", "eoa")}
    special = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|video|>"]
    tokenizer = named_tokenizer(
        [*special, *named_tokens.values()], named_tokens, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    convert = tokenizer.convert_tokens_to_ids
    config = transformers.Gemma4Config(
        text_config={
            **TEXT,
            **token_ids(tokenizer),
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "global_head_dim": 64,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": len(tokenizer),
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
        vision_config={
            **VISION,
            "patch_size": 16,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "pooling_kernel_size": 3,
            "position_embedding_size": 64,
        },
        image_token_id=convert("<|image|>"),
        video_token_id=convert("<|video|>"),
        audio_token_id=convert("<|audio|>"),
        boi_token_id=convert("<|boi|>"),
        eoi_token_id=convert("<|eoi|>"),
        boa_token_id=convert("<|boa|>"),
        eoa_token_index=convert("<|eoa|>"),
        tie_word_embeddings=False,
    )
    processor = transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=fast_image_processor("Gemma4ImageProcessor")(max_soft_tokens=70),
        tokenizer=tokenizer,
        video_processor=transformers.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=GEMMA4_CHAT,
    )
    return Blueprint(transformers.Gemma4ForConditionalGeneration, config, processor, ("<eos>", "<turn|>"))


twins.BLUEPRINTS |= {"qwen2_vl": qwen2_vl, "qwen3_vl_thinking": qwen3_vl_thinking}
if twins.TRANSFORMERS_5:
    twins.BLUEPRINTS |= {"qwen3_5": qwen3_5, "lfm2_vl": lfm2_vl, "gemma4": gemma4}
