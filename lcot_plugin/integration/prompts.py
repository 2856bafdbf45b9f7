"""Prompts of the GRPO stage: LLaMA-Factory's aligned records in, tokenised prompts with their gold answers out.

The prompt is encoded by the calls that SFT makes (`mm_plugin.process_messages`, `template.encode_oneturn`,
`mm_plugin.process_token_ids`), so its tokens are those that SFT trained on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any

from llamafactory.data.data_utils import Role
from llamafactory.data.processor import (
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)

from lcot_plugin.errors import DataError
from lcot_plugin.integration.media import MEDIA_ERRORS
from lcot_plugin.types import PromptRecord


@dataclass
class GrpoPromptProcessor(UnsupervisedDatasetProcessor):
    """Turns a batch of aligned records into rows of PromptRecord's fields."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Raises DataError naming every unusable record of the batch; leaves out prompts over cutoff_len."""
        rows: dict[str, list[Any]] = defaultdict(list)
        faults = []
        for i in range(len(examples["_prompt"])):
            example = {key: values[i] for key, values in examples.items()}
            try:
                row = self._prompt_row(example)
            except DataError as fault:
                faults.append(f"{example['_source']} ({example['_file']}), record {example['_record']}: {fault}")
                continue
            if len(row["input_ids"]) <= self.data_args.cutoff_len:
                for key, value in row.items():
                    rows[key].append(value)
        if faults:
            listing = "\n  ".join(faults[:10]) + (f"\n  and {len(faults) - 10} more" if len(faults) > 10 else "")
            raise DataError(f"{len(faults)} records cannot be used:\n  {listing}")
        return rows or {key: [] for key in row}

    def _prompt_row(self, example: dict[str, Any]) -> dict[str, Any]:
        media = {name: example[f"_{name}"] or [] for name in ("images", "videos", "audios")}
        prompt = example["_prompt"]
        if len(prompt) % 2 != 1:
            raise DataError(
                "not a conversation that ends with a question of the user: check the roles and `tags` in "
                "dataset_info.json."
            )
        gold = example["_gold"]
        if not gold:
            raise DataError(
                "no gold answer. Stage grpo needs one per record: name its column in dataset_info.json, for example "
                '"columns": {"prompt": "problem", "images": "images", "gold": "answer"}, and fill or remove empty ones.'
            )
        check_images_exist(media["images"])
        messages = [*prompt, {"role": Role.ASSISTANT.value, "content": ""}]
        try:
            messages = self.template.mm_plugin.process_messages(
                messages, media["images"], media["videos"], media["audios"], self.processor
            )
            input_ids, _ = self.template.encode_oneturn(self.tokenizer, messages, example["_system"], example["_tools"])
            input_ids, _ = self.template.mm_plugin.process_token_ids(
                input_ids, None, media["images"], media["videos"], media["audios"], self.tokenizer, self.processor
            )
        except MEDIA_ERRORS as error:
            raise DataError(explain_media_error(error, prompt, media["images"])) from error
        return {
            "input_ids": input_ids,
            **media,
            "question": prompt[-1]["content"],
            "gold": gold,
            "answer_type": example["_answer_type"],
            "source": example["_source"],
            "record": example["_record"],
        }

    def print_data_example(self, example: dict[str, Any]) -> None:
        """What one prompt looks like to the model, and the answer that is expected."""
        print("inputs:\n{}".format(self.tokenizer.decode(example["input_ids"], skip_special_tokens=False)))
        print(f"gold answer: {example['gold']} (type {example['answer_type']}, from {example['source']})")


def check_prompt_columns(dataset_module: dict[str, Any], tokenized_path: str | None) -> None:
    """Raises DataError for data sets that `tokenized_path` holds from another stage."""
    expected = {field.name for field in fields(PromptRecord)}
    for split in dataset_module.values():
        for dataset in split.values() if isinstance(split, dict) else [split]:
            if missing := expected.difference(dataset.column_names):
                raise DataError(
                    f"tokenized_path: {tokenized_path} was tokenised for another stage: stage grpo needs the columns "
                    f"{', '.join(sorted(missing))}, which it lacks (it has {', '.join(dataset.column_names)}). Write "
                    "another `tokenized_path`, one that does not exist yet is filled, or leave it out."
                )


def check_images_exist(images: list[Any]) -> None:
    """Raises DataError for a path that is no file."""
    for image in images:
        path = image if isinstance(image, str) else None
        if isinstance(image, dict) and image.get("bytes") is None:
            path = image.get("path")
        if path is not None and not os.path.isfile(path):
            raise DataError(f"image {path} does not exist: check the path, and that media_dir is the folder it is in.")


def explain_media_error(error: Exception, prompt: list[dict[str, str]], images: list[Any]) -> str:
    """LLaMA-Factory's complaint about a record's media with what to do."""
    tags = sum(turn["content"].count("<image>") for turn in prompt)
    if tags != len(images):
        return (
            f"{tags} <image> in the text for {len(images)} images: write one <image> per image, in order "
            f"(text: {prompt[-1]['content'][:80]!r})."
        )
    return f"{error} (images: {[image if isinstance(image, str) else type(image).__name__ for image in images]})"


class NamedErrors:
    """A processor whose encoding errors say which record they are about; LLaMA-Factory's do not."""

    def _encode_data_example(self, prompt: Any, response: Any, **kwargs: Any) -> Any:
        try:
            return super()._encode_data_example(prompt=prompt, response=response, **kwargs)  # type: ignore[misc]
        except MEDIA_ERRORS as error:
            question = prompt[-1]["content"][:80] if prompt else ""
            raise DataError(
                f"The record with the question {question!r} cannot be used: "
                f"{explain_media_error(error, [*prompt, *response], kwargs.get('images') or [])}"
            ) from error


class NamedErrorsSupervisedProcessor(NamedErrors, SupervisedDatasetProcessor):
    """LLaMA-Factory's SFT processor with errors that name the record."""


class NamedErrorsPackedProcessor(NamedErrors, PackedSupervisedDatasetProcessor):
    """LLaMA-Factory's packing SFT processor with errors that name the record."""
