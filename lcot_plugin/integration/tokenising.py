"""Aligned records in, tokenised rows out, for SFT and GRPO; nothing is cut, nothing is lost without being counted.

The prompt is encoded by the same calls in both stages (`mm_plugin.process_messages`, `template.encode_...`,
`mm_plugin.process_token_ids`), LLaMA-Factory's own, so a prompt's tokens in GRPO are those that SFT trained on.
Pictures are not decoded: the plugins run on headers (token_counting.py) where the family's arithmetic is known.

Every record gives a row; one that cannot be used has no tokens and says why in `_findings`. `settled` counts those and
takes them out.
"""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from llamafactory.data.data_utils import Role
from llamafactory.data.processor import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor
from PIL import Image

from lcot_plugin.errors import ArgumentError, DataError, RecordError
from lcot_plugin.integration.cache import digest_of, media_digest, media_paths, tokenizer_digest
from lcot_plugin.integration.conversion import findings_text
from lcot_plugin.integration.pictures import MEDIA_ERRORS, encoded_image
from lcot_plugin.integration.token_counting import without_pixels
from lcot_plugin.render.folding import FoldingTokenizer
from lcot_plugin.render.headers import HeaderImage, read_header
from lcot_plugin.render.shorten import shorten_thought
from lcot_plugin.types import Finding, Handling, PromptRecord, RecordFault

RECORD_COLUMNS = ("_source", "_file", "_record", "_findings")
NUMBERS = {"input_ids": "int32", "attention_mask": "int8", "labels": "int32"}
"""Columns of numbers and their types."""
PROMPT_TEXTS = ("question", "gold", "answer_type", "match", "source", "opening", "problem_id")
"""The fields of a PromptRecord that are text."""
RECORDS_PER_WORKER = 2000
"""A process takes a second to start; below this many records more of them do not pay."""
MAX_WORKERS = 16
INTERNVL_PLACEHOLDER = "<IMG_CONTEXT>"
"""What its plugin writes; `image_token` is the data set's `<image>`."""
MAX_SHORTENINGS = 4
"""Tokens merge anew at a cut, so that a shortened record may still be a few tokens too long."""


@dataclass
class RecordTokeniser:
    """Tokenises batches of aligned records; sent to worker processes."""

    stage: str
    template: Any
    tokenizer: Any
    processor: Any
    data_args: Any
    counting: Any = field(init=False)
    """The processor without pixels; None where the family's arithmetic is unknown."""
    _sft: SupervisedDatasetProcessor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counting = without_pixels(self.processor) if self.processor is not None else None
        uncut = copy.copy(self.data_args)
        uncut.cutoff_len = 2**31  # LLaMA-Factory's encoder cuts at it, even images
        plugin = self.template.mm_plugin
        folding = FoldingTokenizer(self.tokenizer, {plugin.image_token, plugin.video_token, INTERNVL_PLACEHOLDER})
        self._sft = SupervisedDatasetProcessor(self.template, folding, self.processor, uncut)

    def __call__(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """One row per record, in order."""
        rows = []
        for i in range(len(examples["_prompt"])):
            example = {key: values[i] for key, values in examples.items()}
            rows.append(self.row(example))
        return {key: [row[key] for row in rows] for key in rows[0]}

    def arrays(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The same with NumPy arrays for lists of numbers, which Arrow takes ten times faster."""
        rows = self(examples)
        for name, dtype in NUMBERS.items():
            if name in rows:
                rows[name] = [np.array(values, dtype) for values in rows[name]]
        return rows

    def row(self, example: dict[str, Any]) -> dict[str, Any]:
        """The tokenised row of one aligned record; without tokens where it cannot be used."""
        # What was found in reading the record has been counted by now.
        try:
            tokens, findings = self._grpo_row(example) if self.stage == "grpo" else self._sft_row(example)
        except RecordError as error:
            tokens, findings = self._empty_row(), [Finding(error.fault, Handling.DROPPED, error.detail)]
        dropped = any(finding.handling is Handling.DROPPED for finding in findings)
        media = {name: [] if dropped else example[f"_{name}"] or [] for name in ("images", "videos", "audios")}
        return {
            **tokens,
            **media,
            "_source": example["_source"],
            "_file": example["_file"],
            "_record": example["_record"],
            "_findings": findings_text(findings),
        }

    def _sft_row(self, example: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
        prompt, response = example["_prompt"], example["_response"]
        if len(prompt) % 2 != 1 or len(response) != 1:
            raise RecordError(
                RecordFault.MALFORMED,
                "not a conversation that ends with an answer of the assistant: check the roles, and `tags` in "
                "dataset_info.json",
            )
        input_ids, labels = self._encode(example, response)
        findings = []
        surplus = len(input_ids) - self.data_args.cutoff_len
        if surplus > 0:
            detail = f"{len(input_ids):,} tokens, cutoff_len is {self.data_args.cutoff_len:,}"
            if self.data_args.overlong_policy == "truncate":
                input_ids, labels = self._shortened(example, surplus) or ([], [])
            if self.data_args.overlong_policy != "truncate" or not input_ids:
                raise RecordError(RecordFault.OVERLONG, detail)
            findings = [Finding(RecordFault.OVERLONG, Handling.TRUNCATED, detail)]
        return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}, findings

    def _grpo_row(self, example: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
        prompt = example["_prompt"]
        if len(prompt) % 2 != 1:
            raise RecordError(
                RecordFault.MALFORMED,
                "not a conversation that ends with a question of the user: check the roles, and `tags` in "
                "dataset_info.json",
            )
        if not example["_gold"]:
            raise RecordError(RecordFault.NO_GOLD, f"the record has none (question: {prompt[-1]['content'][:60]!r})")
        input_ids = self._encode(example, None)[0]
        if len(input_ids) > self.data_args.cutoff_len:
            raise RecordError(
                RecordFault.OVERLONG,
                f"a prompt of {len(input_ids):,} tokens, cutoff_len is {self.data_args.cutoff_len:,}",
            )
        row = {
            "input_ids": input_ids,
            "question": prompt[-1]["content"],
            "gold": example["_gold"],
            "answer_type": example["_answer_type"] or "auto",
            "match": example["_match"] or "",
            "source": example["_source"],
            "record": example["_record"],
            "opening": getattr(self.template, "opens_thought", ""),
            "pass_rate": example["_pass_rate"],
            "problem_id": example.get("_problem_id") or "",
        }
        return row, []

    def _empty_row(self) -> dict[str, Any]:
        if self.stage == "grpo":
            return {"input_ids": [], "record": -1, "pass_rate": None, **dict.fromkeys(PROMPT_TEXTS, "")}
        return {"input_ids": [], "attention_mask": [], "labels": []}

    def _encode(self, example: dict[str, Any], response: list[dict[str, str]] | None) -> tuple[list[int], list[int]]:
        """Token ids and labels of the whole record; without a response, the ids of the prompt and no labels.

        Raises RecordError for media that cannot be used.
        """
        media = [example[f"_{name}"] or [] for name in ("images", "videos", "audios")]
        prompt = example["_prompt"]
        check_texts([*prompt, *(response or [])])
        if self.template.mm_plugin.image_token is not None:  # else `<image>` is a word like any other
            check_placeholders([*prompt, *(response or [])], media[0])
        processor = self.processor
        if media[0]:
            headers = [header_of(image) for image in media[0]]
            if self.counting is not None and not media[1] and not media[2]:
                media[0], processor = headers, self.counting
        self._sft.processor = processor
        try:
            if response is not None:
                return self._sft._encode_data_example(prompt, response, example["_system"], example["_tools"], *media)
            return self._encode_prompt(prompt, example, media, processor), []
        except MEDIA_ERRORS as error:
            if not any(media):
                raise RecordError(RecordFault.MALFORMED, f"{error}") from error
            raise RecordError(RecordFault.BROKEN_IMAGE, f"{error} ({describe_media(example['_images'])})") from error
        except RuntimeError as error:
            # LLaMA-Factory's formatters raise it for tools and tool calls that are not JSON.
            if not isinstance(error.__context__, json.JSONDecodeError):
                raise
            raise RecordError(RecordFault.MALFORMED, f"{error}") from error

    def _encode_prompt(self, prompt: Any, example: dict[str, Any], media: list[Any], processor: Any) -> list[int]:
        messages = [*prompt, {"role": Role.ASSISTANT.value, "content": ""}]
        plugin = self.template.mm_plugin
        messages = plugin.process_messages(messages, *media, processor)
        ids, _ = self.template.encode_oneturn(self._sft.tokenizer, messages, example["_system"], example["_tools"])
        ids, _ = plugin.process_token_ids(ids, None, *media, self.tokenizer, processor)
        return ids

    def _shortened(self, example: dict[str, Any], surplus: int) -> tuple[list[int], list[int]] | None:
        """The record with a thought that is short enough; None where only its answer or prompt could be cut."""
        text = example["_response"][0]["content"]
        words = (
            self.template.thought_words if self.template.thought_words[1].strip() in text else ("<think>", "</think>")
        )
        for _ in range(MAX_SHORTENINGS):
            shorter = shorten_thought(
                text,
                words,
                lambda part: self.tokenizer.encode(part, add_special_tokens=False),
                lambda ids: self.tokenizer.decode(ids, skip_special_tokens=False),
                surplus,
            )
            if shorter is None:
                return None
            input_ids, labels = self._encode(example, [{**example["_response"][0], "content": shorter}])
            missing = len(input_ids) - self.data_args.cutoff_len
            if missing <= 0:
                return input_ids, labels
            surplus += missing
        return None

    def fingerprint(self, aligned: Any) -> str:
        """The cache key of what this makes from `aligned`."""
        settings = {
            key: getattr(self.data_args, key)
            for key in ("cutoff_len", "train_on_prompt", "mask_history", "overlong_policy")
        }
        # Some of LLaMA-Factory's templates, `qwen3_vl` and `qwen3_vl_nothink`, differ in their class only.
        template = {
            "class": type(self.template).__qualname__,
            **{key: repr(value) for key, value in vars(self.template).items()},
        }
        return digest_of(
            aligned._fingerprint,
            self.stage,
            settings,
            template,
            tokenizer_digest(self.tokenizer),
            processor_settings(self.processor),
            media_digest(media_paths(aligned)),
        )


class PackTokenised(PackedSupervisedDatasetProcessor):
    """LLaMA-Factory's packing of rows that are tokenised already."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Packs a batch; its encoder is given the tokens where it expects texts."""
        num_rows = len(examples["input_ids"])
        return super().preprocess_dataset(
            {
                "_prompt": [[None]] * num_rows,
                "_response": [[None]] * num_rows,
                "_system": examples["input_ids"],
                "_tools": examples["labels"],
                **{f"_{name}": examples[name] for name in ("images", "videos", "audios")},
            }
        )

    def _encode_data_example(
        self, prompt: Any, response: Any, system: Any, tools: Any, *media: Any, **more: Any
    ) -> Any:
        return system, tools


def check_texts(turns: list[dict[str, str]]) -> None:
    """Raises RecordError for a turn without a text, which LLaMA-Factory's converters pass on."""
    for turn in turns:
        if not isinstance(turn["content"], str):
            raise RecordError(
                RecordFault.MALFORMED,
                f"the content of a turn ({turn['role']}) is {turn['content']!r}: write a text",
            )


def check_placeholders(turns: list[dict[str, str]], images: list[Any]) -> None:
    """Raises RecordError where the text has not one `<image>` per image."""
    tags = sum(turn["content"].count("<image>") for turn in turns)
    if tags != len(images):
        raise RecordError(
            RecordFault.PLACEHOLDERS,
            f"{tags} <image> in the text for {len(images)} images: write one <image> per image, in order "
            f"(text: {turns[0]['content'][:80]!r})",
        )


def header_of(image: Any) -> HeaderImage:
    """Size and mode of an aligned image: a path, bytes, `{"bytes", "path"}` or a PIL image. Raises RecordError."""
    if isinstance(image, Image.Image):
        return HeaderImage(image.size, image.mode)
    encoded = encoded_image(image)
    if encoded is None:
        raise RecordError(
            RecordFault.BROKEN_IMAGE, f"an image is of type {type(image).__name__}: write its path, or its bytes"
        )
    return read_header(encoded)


def describe_media(images: list[Any] | None) -> str:
    """`images: ['a.png', '1,024 bytes']`."""
    sources = [image.get("path") or "bytes" if isinstance(image, dict) else image for image in images or []]
    return f"images: {[image if isinstance(image, str) else type(image).__name__ for image in sources]}"


def processor_settings(processor: Any) -> dict[str, Any]:
    """Everything of a multimodal processor that decides about token counts."""
    if processor is None:
        return {}
    own = {key: value for key, value in vars(processor).items() if isinstance(value, (int, float, str, bool, list))}
    settings = {"own": repr(sorted(own.items()))}
    for name in ("image_processor", "video_processor", "feature_extractor"):
        part = getattr(processor, name, None)
        if part is not None:
            settings[name] = repr(sorted(part.to_dict().items()))
    return settings


def num_workers(written: int | None, num_records: int) -> int | None:
    """`preprocessing_num_workers`, or as many processes as pay; None for this one."""
    if written is not None:
        return written
    workers = min(os.cpu_count() or 1, MAX_WORKERS, math.ceil(num_records / RECORDS_PER_WORKER))
    return workers if workers > 1 else None


def tokenised_features(stage: str, aligned: Any) -> Any:
    """Given, since `datasets` would infer `list of null` from a first batch without images and refuse later ones."""
    from datasets import Features, Value
    from datasets import Sequence as ListOf

    def media(name: str) -> Any:
        feature = aligned[f"_{name}"]
        return ListOf(Value("string")) if feature == Value("null") or feature == ListOf(Value("null")) else feature

    text = Value("string")
    numbers = {name: ListOf(Value(dtype)) for name, dtype in NUMBERS.items()}
    columns: dict[str, Any] = {"input_ids": numbers.pop("input_ids")}
    if stage == "grpo":
        columns |= dict.fromkeys(PROMPT_TEXTS, text) | {"record": Value("int64"), "pass_rate": Value("float64")}
    else:
        columns |= numbers
    columns |= {name: media(name) for name in ("images", "videos", "audios")}
    columns |= {"_source": text, "_file": text, "_record": Value("int64"), "_findings": text}
    return Features(columns)


def tokenise(dataset: Any, tokeniser: RecordTokeniser, use_cache: bool, description: str) -> Any:
    """One tokenised row per record of an aligned data set."""
    data_args = tokeniser.data_args
    return dataset.map(
        tokeniser.arrays,
        batched=True,
        batch_size=min(data_args.preprocessing_batch_size, 200),  # smaller ones move the progress bar
        remove_columns=dataset.column_names,
        features=tokenised_features(tokeniser.stage, dataset.features),
        num_proc=num_workers(data_args.preprocessing_num_workers, len(dataset)),
        load_from_cache_file=use_cache,
        new_fingerprint=tokeniser.fingerprint(dataset),
        desc=description,
    )


def tokenise_stream(dataset: Any, tokeniser: RecordTokeniser) -> Any:
    """The tokenised stream of an aligned one."""
    columns = list(next(iter(dataset)))
    stream = dataset.map(tokeniser, batched=True, batch_size=32, remove_columns=columns)
    if tokeniser.stage == "sft" and tokeniser.data_args.packing:
        raise ArgumentError("streaming: packing needs whole data sets here: leave `packing` out, or `streaming`.")
    return stream


def check_columns(dataset_module: dict[str, Any], stage: str, tokenized_path: str | None) -> None:
    """Raises DataError for data sets that `tokenized_path` holds from another stage or version."""
    if tokenized_path is None:
        return
    expected = {field.name for field in fields(PromptRecord)} if stage == "grpo" else {"input_ids", "labels"}
    for split in dataset_module.values():
        for dataset in split.values() if isinstance(split, dict) else [split]:
            columns = dataset.column_names or list(expected)  # a stream may not know its columns
            if missing := expected.difference(columns):
                raise DataError(
                    f"tokenized_path: {tokenized_path} was tokenised for another stage, or by another version of "
                    f"lcot-plugin: stage {stage} needs the columns {', '.join(sorted(missing))}, which it lacks (it "
                    f"has {', '.join(columns)}). Write another `tokenized_path`, one that does not exist yet is "
                    "filled, or leave it out."
                )
