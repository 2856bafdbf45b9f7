"""The embedded VLM: a Qwen2.5-VL of about one million parameters, written in the layout of a hub repository.

Out: a folder that `AutoConfig`, `AutoTokenizer`, `AutoProcessor` and `AutoModelForImageTextToText` load, and
LLaMA-Factory too (`model_name_or_path: DIR`, `template: qwen2_vl`), on transformers 4.57 and 5.x.
Consumer: `demo.pretrain`, which fills in the weights, and everyone who loads the shipped `demo/model`.

The tokenizer and processor files are written by hand and not with `save_pretrained`, because each transformers major
writes a layout that the other does not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcot_plugin.demo.task import QUESTION, READING_QUESTION, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_DIR = Path(__file__).parent / "model"
"""The shipped base model."""

SYSTEM_PROMPT = "You are a helpful assistant."
"""The default system prompt of LLaMA-Factory's template `qwen2_vl`, and of Qwen2.5-VL's own chat template."""

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
THOUGHT_TOKENS = ["<think>", "</think>"]

PIXELS_PER_TOKEN = 28 * 28

# Qwen2's split: letters with at most one leading character, digits one by one, punctuation, line ends, blanks.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nSYSTEM_PROMPT<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""".replace("SYSTEM_PROMPT", SYSTEM_PROMPT)


def write_processor(output: Path) -> None:
    """Write tokenizer, image and video processor, and chat template into `output`, readable by both majors."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(output / "tokenizer.json"))
    tokenizer.model.save(str(output))  # vocab.json and merges.txt, for the slow tokenizer of 4.x
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in [*SPECIAL_TOKENS, *THOUGHT_TOKENS]
    }
    _write_json(
        output / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": "Qwen2_5_VLProcessor",
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": SPECIAL_TOKENS[1:],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "unk_token": None,
        },
    )
    pixels = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2_5_VLProcessor",
    }
    # A row of one to 64 cells goes through without being resized. Both spellings of the limits: 4.x and 5.x differ.
    limits = {"min_pixels": PIXELS_PER_TOKEN, "max_pixels": 64 * PIXELS_PER_TOKEN}
    size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    _write_json(
        output / "preprocessor_config.json",
        {"image_processor_type": "Qwen2VLImageProcessor", **pixels, **limits, "size": size},
    )
    _write_json(
        output / "video_preprocessor_config.json",
        {"video_processor_type": "Qwen2VLVideoProcessor", **pixels, **limits, "size": size},
    )
    (output / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


def write_config(output: Path) -> None:
    """Write config.json and generation_config.json; the tokenizer must already be in `output`.

    The rotary settings are spelled as on the hub (`rope_scaling`, `rope_theta`): 4.x knows no other spelling and
    5.x converts it.
    """
    vocabulary = json.loads((output / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    ends = {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    text: dict[str, Any] = {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": max(ids.values()) + 1,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        **ends,
    }
    vision = {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    _write_json(
        output / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "text_config": text,
            "vision_config": vision,
        },
    )
    generation = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    _write_json(
        output / "generation_config.json",
        {**generation, "eos_token_id": ends["eos_token_id"], "pad_token_id": ends["pad_token_id"]},
    )


def new_model(directory: Path, seed: int) -> PreTrainedModel:
    """Randomly initialised float32 weights for the config.json in `directory`."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(directory)
    return AutoModelForImageTextToText.from_config(config).float()


def write_weights(model: PreTrainedModel, output: Path) -> None:
    """Write model.safetensors under the hub's parameter names (`visual.*`, `model.*`), which both majors read."""
    from safetensors.torch import save_file

    prefixes = {"model.visual.": "visual.", "model.language_model.": "model."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embedding
            continue
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        tensors[prefixes[prefix] + name.removeprefix(prefix)] = tensor.detach().float().contiguous()
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


def _train_tokenizer() -> Any:
    """A byte-level BPE tokenizer over the task's text: whole words where the task has them, bytes for all else."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import ByteLevel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    corpus = [f"system\n{SYSTEM_PROMPT}", f"user\n{QUESTION}", f"user\n{READING_QUESTION}", "assistant\n"]
    corpus += [problem.thought + "\n\n" + problem.short_response for problem in generate(8, seed=0)]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,  # never reached: every word of the corpus becomes one token before that
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THOUGHT_TOKENS])
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
