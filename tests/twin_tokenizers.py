"""Tokenizers of the tiny twins: byte-level BPE trained on the spot, in the classes and files of the real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

VOCABULARY = 560
"""Byte-pair tokens before the family's special tokens are added."""

WORDS = """the a an of is are and or in on to what which how many number count sum total answer question image picture
figure shape circle square triangle line angle side length area red green blue left right top bottom think step first
then so therefore equals plus minus times user assistant system model helpful"""
PIECES = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")


def train_tokenizer(special_tokens: list[str], plain_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer; `plain_tokens` are whole tokens that are decoded as text, as `<think>` is."""
    generator, words = random.Random(0), WORDS.split()
    corpus = [" ".join(generator.choices(words, k=12)) + f" {generator.randrange(1000)}.\n" for _ in range(300)]
    corpus += ["<think>\n", "\n</think>\n\n", "\\boxed{3}", "$\\frac{1}{2}$", "<answer>3</answer>"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain_tokens])
    return tokenizer


QWEN_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_SPECIAL_TOKENS += [
    f"<|{kind}_{edge}|>" for kind in ("object_ref", "box", "quad", "vision") for edge in ("start", "end")
]
QWEN_SPECIAL_TOKENS += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_END_TOKENS = ("<|im_end|>", "<|endoftext|>")
THINK_TOKENS = ("<think>", "</think>")


def qwen_tokenizer(directory: Path, plain_tokens: tuple[str, ...] = ()) -> PreTrainedTokenizerBase:
    """Qwen's processors insist on the Qwen2Tokenizer class, which both transformers majors build from files."""
    tokenizer = train_tokenizer(QWEN_SPECIAL_TOKENS, plain_tokens)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in QWEN_SPECIAL_TOKENS,
        }
        for token in (*QWEN_SPECIAL_TOKENS, *plain_tokens)
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 131072,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": QWEN_SPECIAL_TOKENS[1:],
        "added_tokens_decoder": added,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(directory)


def named_tokenizer(
    special_tokens: list[str],
    named_tokens: dict[str, str],
    plain_tokens: tuple[str, ...] = (),
    **roles: str,
) -> PreTrainedTokenizerBase:
    """`named_tokens` become attributes that the family's processor reads (`image_token`...), kept in the files."""
    keyword = "model_specific_special_tokens" if TRANSFORMERS_5 else "extra_special_tokens"
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(special_tokens, plain_tokens),
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
        # Without this, transformers 5 returns token_type_ids, which the models do not take.
        model_input_names=["input_ids", "attention_mask"],
        **{keyword: named_tokens},
        **roles,
    )


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The part of a text configuration that depends on the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
