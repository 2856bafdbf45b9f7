"""Seam: `llamafactory.data.loader`. Carries the gold answer to the GRPO stage, and names the record in data errors.

LLaMA-Factory drops every source column but its own after conversion and again after tokenising, skips a record whose
last turn is the user's, and cuts prompts at cutoff_len. In stage grpo the gold answer, its type, the data set's name
and the record's number travel with the prompt; a record that cannot be used stops the run with an error that names
it; a prompt over cutoff_len is left out whole, counted and said. Can go when columns can be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from lcot_plugin.errors import DataError
from lcot_plugin.integration.gold import answer_of_response, gold_text
from lcot_plugin.integration.prompts import (
    GrpoPromptProcessor,
    NamedErrorsPackedProcessor,
    NamedErrorsSupervisedProcessor,
)

_stage: ContextVar[str] = ContextVar("lcot_stage", default="sft")
"""The stage whose data are being loaded: `align_dataset` is not told."""


def apply(module: ModuleType) -> None:
    """Wraps the loading, aligning and tokenising functions of the loader."""
    original_list = module.get_dataset_list
    original_load = module._load_single_dataset
    original_merged = module._get_merged_dataset
    original_align = module.align_dataset
    original_preprocessed = module._get_preprocessed_dataset

    def get_dataset_list(dataset_names: list[str] | None, *args: Any, **kwargs: Any) -> list[Any]:
        attributes = original_list(dataset_names, *args, **kwargs)
        for name, attribute in zip(dataset_names or [], attributes, strict=True):
            attribute.lcot_name = name  # the key in dataset_info.json; LLaMA-Factory keeps the file's name only
        return attributes

    def _get_merged_dataset(
        dataset_names: Any, model_args: Any, data_args: Any, training_args: Any, stage: Any, *args: Any, **kwargs: Any
    ) -> Any:
        token = _stage.set(stage)
        try:
            return original_merged(dataset_names, model_args, data_args, training_args, stage, *args, **kwargs)
        finally:
            _stage.reset(token)

    def _load_single_dataset(dataset_attr: Any, model_args: Any, data_args: Any, training_args: Any) -> Any:
        if dataset_attr.load_from == "file":
            _check_not_empty(dataset_attr, data_args)
        if _stage.get() not in ("sft", "grpo"):
            return original_load(dataset_attr, model_args, data_args, training_args)
        with named_errors(dataset_attr):
            return original_load(dataset_attr, model_args, data_args, training_args)

    def align_dataset(dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
        if not data_args.streaming and len(dataset) == 0:
            raise DataError(f"Data set {describe(dataset_attr)} is empty: check the file and max_samples.")
        if _stage.get() != "grpo":
            return original_align(dataset, dataset_attr, data_args, training_args)
        return _align_with_gold(original_align, dataset, dataset_attr, data_args, training_args)

    def _get_preprocessed_dataset(
        dataset: Any,
        data_args: Any,
        training_args: Any,
        stage: str,
        template: Any,
        tokenizer: Any,
        processor: Any = None,
        is_eval: bool = False,
    ) -> Any:
        if stage != "grpo" or dataset is None:
            return original_preprocessed(
                dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval
            )
        prompt_processor = GrpoPromptProcessor(
            template=template, tokenizer=tokenizer, processor=processor, data_args=data_args
        )
        return _tokenise_prompts(dataset, prompt_processor, data_args, training_args, is_eval)

    module.get_dataset_list = get_dataset_list
    module._get_merged_dataset = _get_merged_dataset
    module._load_single_dataset = _load_single_dataset
    module.align_dataset = align_dataset
    module._get_preprocessed_dataset = _get_preprocessed_dataset
    module.SupervisedDatasetProcessor = NamedErrorsSupervisedProcessor
    module.PackedSupervisedDatasetProcessor = NamedErrorsPackedProcessor


def describe(dataset_attr: Any) -> str:
    """`demo_rl (../data/rl.parquet)`: the name in dataset_info.json and the file or hub repository."""
    return f"{getattr(dataset_attr, 'lcot_name', dataset_attr.dataset_name)} ({dataset_attr.dataset_name})"


@contextmanager
def named_errors(dataset_attr: Any) -> Iterator[None]:
    """Turns what `datasets` and the converters raise about a malformed file into a DataError that names it."""
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    try:
        yield
    except (DatasetGenerationError, ArrowException, TypeError, KeyError) as error:
        # The other errors say what is wrong themselves; theirs, from a worker process, would be its whole traceback.
        cause = (error.__cause__ if isinstance(error, DatasetGenerationError) else None) or error
        advice = "check that the columns in dataset_info.json exist and that every record has the same types in them."
        if str(cause).endswith("to null"):
            # `datasets` takes a column's type from the records that it writes first.
            advice = (
                "a column, most likely the images, is empty in the first 1000 records and filled in later ones: put "
                "one of the later ones first, or shuffle the file."
            )
        raise DataError(
            f"Data set {describe(dataset_attr)} cannot be read ({type(cause).__name__}: {cause}): {advice}"
        ) from error


def _check_not_empty(dataset_attr: Any, data_args: Any) -> None:
    """An empty file or list makes `datasets` fail with a message about schemas."""
    path = Path(data_args.dataset_dir, dataset_attr.dataset_name)
    if not path.is_file():
        return  # a folder, or missing: LLaMA-Factory says so itself
    with path.open("rb") as file:
        start = file.read(64).strip()
    if start in (b"", b"[]", b"{}"):
        raise DataError(f"Data set {describe(dataset_attr)} is empty: {path} holds no records.")


def _align_with_gold(original_align: Any, dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
    """LLaMA-Factory's aligned data set with `_gold`, `_answer_type`, `_source`, `_file` and `_record` for `_response`.

    Sets with and without a response can be joined since none keeps it.
    """
    from datasets import Features, Value, concatenate_datasets

    for column in (dataset_attr.gold, dataset_attr.answer_type):
        if column is not None and column not in dataset.column_names:
            raise DataError(
                f"Data set {describe(dataset_attr)} has no column '{column}', which dataset_info.json names: its "
                f"columns are {', '.join(dataset.column_names)}."
            )
    options = {
        "num_proc": data_args.preprocessing_num_workers,
        "load_from_cache_file": not data_args.overwrite_cache or training_args.local_process_index != 0,
    }
    extras = dataset.map(
        _extra_columns,
        with_indices=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "gold_column": dataset_attr.gold,
            "type_column": dataset_attr.answer_type,
            "source": getattr(dataset_attr, "lcot_name", dataset_attr.dataset_name),
            "file": dataset_attr.dataset_name,
        },
        # Given, since `datasets` would infer them from the first records, whose gold answers may all be None.
        features=Features(
            {
                "_gold": Value("string"),
                "_answer_type": Value("string"),
                "_source": Value("string"),
                "_file": Value("string"),
                "_record": Value("int64"),
            }
        ),
        desc="Reading gold answers",
        **options,
    )
    messages = dataset_attr.messages
    if dataset_attr.formatting != "alpaca" and messages in dataset.column_names:
        roles = {
            "role": dataset_attr.role_tag or "from",
            "content": dataset_attr.content_tag or "value",
            "user": dataset_attr.user_tag or "human",
            "assistant": dataset_attr.assistant_tag or "gpt",
        }
        dataset = dataset.map(
            _close_user_turn,
            fn_kwargs={"column": messages, **roles},
            desc="Closing user turns",
            **options,
        )
    aligned = original_align(dataset, dataset_attr, data_args, training_args)
    if dataset_attr.gold is None:
        extras = concatenate_datasets([extras, aligned.select_columns("_response")], axis=1).map(
            _gold_of_response,
            remove_columns="_response",
            features=extras.features,
            desc="Reading answers of responses",
            **options,
        )
    return concatenate_datasets([aligned.remove_columns("_response"), extras], axis=1)


def _extra_columns(
    example: dict[str, Any], index: int, gold_column: str | None, type_column: str | None, source: str, file: str
) -> dict[str, Any]:
    return {
        "_gold": gold_text(example[gold_column]) if gold_column else None,
        "_answer_type": str(example[type_column] or "auto") if type_column else "auto",
        "_source": source,
        "_file": file,
        "_record": index,
    }


def _gold_of_response(example: dict[str, Any]) -> dict[str, str | None]:
    return {"_gold": answer_of_response(example["_response"])}


def _close_user_turn(
    example: dict[str, Any], column: str, role: str, content: str, user: str, assistant: str
) -> dict[str, Any]:
    """An RL record may end with the user's turn; LLaMA-Factory's converters want an answer after it."""
    turns = example[column]
    if isinstance(turns, list) and turns and turns[-1].get(role) == user:
        return {column: [*turns, {**dict.fromkeys(turns[-1]), role: assistant, content: ""}]}
    return {column: turns}


def _tokenise_prompts(
    dataset: Any, processor: GrpoPromptProcessor, data_args: Any, training_args: Any, is_eval: bool
) -> Any:
    tokenised = dataset.map(
        processor.preprocess_dataset,
        features=_prompt_features(dataset.features),
        batched=True,
        batch_size=data_args.preprocessing_batch_size,
        remove_columns=dataset.column_names,
        num_proc=data_args.preprocessing_num_workers,
        load_from_cache_file=not data_args.overwrite_cache or training_args.local_process_index != 0,
        desc="Tokenising evaluation prompts" if is_eval else "Tokenising prompts",
    )
    if len(tokenised) < len(dataset):
        _report_overlong(dataset, tokenised, data_args.cutoff_len, training_args.should_log)
    if training_args.should_log:
        print("eval example:" if is_eval else "training example:")
        processor.print_data_example(tokenised[0])
    return tokenised


def _prompt_features(aligned: Any) -> Any:
    """Given, since `datasets` would infer `list of null` from a first batch without images and refuse later ones."""
    from datasets import Features, Value
    from datasets import Sequence as ListOf

    def media(name: str) -> Any:
        feature = aligned[f"_{name}"]
        return ListOf(Value("string")) if feature == Value("null") else feature

    text = {name: Value("string") for name in ("question", "gold", "answer_type", "source")}
    lists = {name: media(name) for name in ("images", "videos", "audios")}
    return Features({"input_ids": ListOf(Value("int32")), **lists, **text, "record": Value("int64")})


def _report_overlong(dataset: Any, tokenised: Any, cutoff_len: int, should_log: bool) -> None:
    kept = set(zip(tokenised["source"], tokenised["record"], strict=True)) if len(tokenised) else set()
    lost = [key for key in zip(dataset["_source"], dataset["_record"], strict=True) if key not in kept]
    message = (
        f"{len(lost)} of {len(dataset)} prompts are longer than cutoff_len = {cutoff_len} tokens and are left out "
        f"(a cut prompt would lose its images or its question): {_listing(lost)}. Raise cutoff_len, or lower "
        "image_max_pixels, to keep them."
    )
    if not kept:
        raise DataError(message)
    if should_log:
        from llamafactory.extras import logging

        logging.get_logger(f"llamafactory.{__name__}").warning(message)


def _listing(keys: Sequence[tuple[str, int]], limit: int = 5) -> str:
    shown = ", ".join(f"{source} record {record}" for source, record in keys[:limit])
    return shown + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
