"""Seam: `llamafactory.data.loader`. Loads, aligns and tokenises the data of SFT and GRPO; nothing is lost silently.

    get_dataset                   one DataReport per run: counted here, logged and written at the end
      _load_single_dataset        a DataError names the data set; JSON of `lcot_...` sets is read as it is
        align_dataset             conversion.py for `lcot_...` formats, LLaMA-Factory's own converters for its own
      merge_dataset               sets with and without pictures, of paths and of bytes, are made alike
      _get_preprocessed_dataset   tokenising.py

LLaMA-Factory drops every source column but its own, skips records without a word, decodes every picture to count its
tokens, and cuts what is longer than cutoff_len. Can go when columns can be kept and records are counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from llamafactory.extras.logging import get_logger

from lcot_plugin.errors import ArgumentError, DataError
from lcot_plugin.integration import plain_formats
from lcot_plugin.integration.cache import may_use_cache
from lcot_plugin.integration.conversion import aligned_features, convert, convert_stream, is_ours, make_converter
from lcot_plugin.integration.json_files import json_paths, load_json
from lcot_plugin.integration.settling import Policies, print_example, publish, say, settled, settled_stream
from lcot_plugin.integration.template_check import differences
from lcot_plugin.integration.templates import SUFFIX
from lcot_plugin.integration.tokenising import (
    RECORD_COLUMNS,
    PackTokenised,
    RecordTokeniser,
    check_columns,
    num_workers,
    tokenise,
    tokenise_stream,
)
from lcot_plugin.packing_arguments import PackingArguments
from lcot_plugin.report.data import DataReport

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it

STAGES = ("sft", "grpo")
"""The stages whose data we load; the others are LLaMA-Factory's own."""


@dataclass
class DataRun:
    """What the wrapped functions of one `get_dataset` call share."""

    stage: str
    policies: Policies
    report: DataReport = field(default_factory=DataReport)
    attribute: Any = None
    """The DatasetAttr of the data set being loaded."""


_run: ContextVar[DataRun | None] = ContextVar("lcot_data_run", default=None)


@contextmanager
def loading(run: DataRun) -> Iterator[None]:
    """Makes `run` the one that the wrapped functions serve."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def current_run() -> DataRun | None:
    """The run whose data are being loaded; None outside of SFT and GRPO."""
    return _run.get()


def apply(module: ModuleType) -> None:
    """Wraps the loading, aligning and tokenising functions of the loader."""
    original_get = module.get_dataset
    original_list = module.get_dataset_list
    original_load = module._load_single_dataset
    original_load_dataset = module.load_dataset
    original_align = module.align_dataset
    original_merge = module.merge_dataset
    original_preprocessed = module._get_preprocessed_dataset
    original_processor = module._get_dataset_processor

    def get_dataset(
        template: Any,
        model_args: Any,
        data_args: Any,
        training_args: Any,
        stage: str,
        tokenizer: Any,
        processor: Any = None,
    ) -> Any:
        check_packing_is_possible(data_args, training_args, stage)
        if stage not in STAGES:
            return original_get(template, model_args, data_args, training_args, stage, tokenizer, processor)
        template.bad_record_policy = data_args.bad_record_policy  # all that the collator is given
        warn_of_other_tokens(template, data_args.template, processor or tokenizer, training_args)
        run = DataRun(stage, Policies(data_args.bad_record_policy, data_args.overlong_policy))
        try:
            with loading(run):
                loaded = original_get(template, model_args, data_args, training_args, stage, tokenizer, processor)
            check_columns(loaded, stage, data_args.tokenized_path)
            return loaded
        finally:
            publish(run.report, training_args)

    def get_dataset_list(dataset_names: list[str] | None, *args: Any, **kwargs: Any) -> list[Any]:
        attributes = original_list(dataset_names, *args, **kwargs)
        for name, attribute in zip(dataset_names or [], attributes, strict=True):
            attribute.lcot_name = name  # the key in dataset_info.json; LLaMA-Factory keeps the file's name only
        return attributes

    def _load_single_dataset(dataset_attr: Any, model_args: Any, data_args: Any, training_args: Any) -> Any:
        run = current_run()
        if dataset_attr.load_from == "file":
            check_not_empty(dataset_attr, data_args)
            if data_args.streaming and training_args.dataloader_num_workers < 1:
                raise ArgumentError(
                    "streaming: LLaMA-Factory cuts a file into dataloader_num_workers shards, none at all for 0: write "
                    "dataloader_num_workers: 1, or more."
                )
        if run is None:
            return original_load(dataset_attr, model_args, data_args, training_args)
        run.attribute = dataset_attr
        with named_errors(dataset_attr):
            return original_load(dataset_attr, model_args, data_args, training_args)

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        run = current_run()
        if run is not None and is_ours(run.attribute.formatting) and (paths := json_paths(kwargs)):
            return load_json(paths, kwargs.get("cache_dir"))
        return original_load_dataset(*args, **kwargs)

    def align_dataset(dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
        if not data_args.streaming and len(dataset) == 0:
            raise DataError(f"Data set {describe(dataset_attr)} is empty: check the file and max_samples.")
        run = current_run()
        if run is None:
            return original_align(dataset, dataset_attr, data_args, training_args)
        if data_args.streaming:
            if is_ours(dataset_attr.formatting):
                converter, note = make_converter(dataset, dataset_attr, data_args, run.stage)
                stream = settled_stream(convert_stream(dataset, converter), run.policies, describe(dataset_attr))
                return stream.cast(aligned_features())  # so that any can be joined with any
            return plain_formats.align_stream(original_align, dataset, dataset_attr, data_args, training_args)
        source = dataset_attr.lcot_name
        entry = run.report.add_set(source, dataset_attr.dataset_name, len(dataset))
        if not is_ours(dataset_attr.formatting):
            return plain_formats.align(original_align, dataset, dataset_attr, data_args, training_args, run.stage)
        converter, note = make_converter(dataset, dataset_attr, data_args, run.stage)
        if note:
            entry.notes.append(note)
            say(training_args, f"Data set {describe(dataset_attr)}: {note}")
        workers = num_workers(data_args.preprocessing_num_workers, len(dataset))
        aligned = convert(dataset, converter, workers, may_use_cache(data_args, training_args))
        return settled(aligned, run.policies, run.report)

    def merge_dataset(all_datasets: list[Any], data_args: Any, seed: int) -> Any:
        run = current_run()
        if run is None or len(all_datasets) == 1:
            return original_merge(all_datasets, data_args, seed)
        merged = original_merge(plain_formats.alike(all_datasets), data_args, seed)
        if data_args.mix_strategy != "concat" and not data_args.streaming:
            count_mixed(all_datasets, merged, run.report)
        return merged

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
        run = current_run()
        predicts = stage == "sft" and training_args.predict_with_generate and is_eval
        if run is None or dataset is None or predicts:
            return original_preprocessed(
                dataset, data_args, training_args, stage, template, tokenizer, processor, is_eval
            )
        tokeniser = RecordTokeniser(stage, template, tokenizer, processor, data_args)
        if data_args.streaming:
            tokenised = tokenise_stream(dataset, tokeniser)
            return settled_stream(tokenised, run.policies, "The stream").remove_columns(list(RECORD_COLUMNS))
        description = f"Tokenising {'evaluation ' if is_eval else ''}{'prompts' if stage == 'grpo' else 'records'}"
        tokenised = tokenise(dataset, tokeniser, may_use_cache(data_args, training_args), description)
        tokenised = settled(tokenised, run.policies, run.report).remove_columns(list(RECORD_COLUMNS))
        if stage == "sft" and data_args.packing:
            original_processor(data_args, stage, template, tokenizer, processor)  # prepares `datasets` for its masks
            tokenised = tokenised.map(
                PackTokenised(template, tokenizer, processor, data_args).preprocess_dataset,
                batched=True,
                batch_size=data_args.preprocessing_batch_size,
                remove_columns=tokenised.column_names,
                desc="Packing",
            )
        if training_args.should_log:
            print_example(tokenised[0], tokenizer, is_eval)
        return tokenised

    module.get_dataset = get_dataset
    module.get_dataset_list = get_dataset_list
    module._load_single_dataset = _load_single_dataset
    module.load_dataset = load_dataset
    module.align_dataset = align_dataset
    module.merge_dataset = merge_dataset
    module._get_preprocessed_dataset = _get_preprocessed_dataset


def check_packing_is_possible(data_args: Any, training_args: Any, stage: str) -> None:
    """Raises ArgumentError where `length_aware_packing` would be ignored; warns of its keys where it is not on."""
    from lcot_plugin.integration.packing import packs_now

    written = [item.name for item in fields(PackingArguments) if getattr(data_args, item.name) != item.default]
    if written and not data_args.length_aware_packing:
        logger.warning_rank0(f"{', '.join(written)}: without effect, since `length_aware_packing` is not on.")
    if data_args.length_aware_packing and training_args.do_train and not packs_now():
        where = f"stage: {stage}" if stage != "sft" else "Megatron, HyperParallel or another training loop"
        raise ArgumentError(
            f"length_aware_packing: it packs the examples of LLaMA-Factory's own SFT loop, {where} does not use it. "
            "Remove it."
        )


def count_mixed(datasets: list[Any], merged: Any, report: DataReport) -> None:
    """Counts the records that interleaving repeated or left out."""
    num_mixed_in = records_per_source(merged)
    for dataset in datasets:
        num_mixed_in.subtract(records_per_source(dataset))
    for source, num_records in num_mixed_in.items():
        report.add_mixed(source, num_records)


def records_per_source(dataset: Any) -> Counter[str]:
    """Records of an aligned data set by the set that they are from."""
    batches = dataset.select_columns("_source").iter(batch_size=10_000)
    return Counter(source for batch in batches for source in batch["_source"])


def describe(dataset_attr: Any) -> str:
    """`demo_rl (../data/rl.parquet)`: the name in dataset_info.json and the file or hub repository."""
    return f"{getattr(dataset_attr, 'lcot_name', dataset_attr.dataset_name)} ({dataset_attr.dataset_name})"


def warn_of_other_tokens(template: Any, name: str | None, processor: Any, training_args: Any) -> None:
    """Says where one of our templates differs from the chat template that the model brings along."""
    if not (name or "").endswith(SUFFIX) or not training_args.should_log:
        return
    difference = differences(template, processor)
    if difference:
        logger.warning(
            f"template: {name} writes other tokens than the chat template of the model: {difference} Training works, "
            "but the model has to learn the new form; check that the template is that of its family."
        )


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
        if isinstance(cause, DataError):
            raise DataError(f"Data set {describe(dataset_attr)}: {cause}") from error
        advice = (
            "check that the columns in dataset_info.json exist and that every record has the same types in them; "
            '"formatting": "lcot_auto" reads JSON files with mixed types.'
        )
        if str(cause).endswith("to null"):
            # `datasets` takes a column's type from the records that it writes first.
            advice = (
                "a column, most likely the images, is empty in the first 1000 records and filled in later ones: put "
                'one of the later ones first, shuffle the file, or write "formatting": "lcot_auto" in '
                "dataset_info.json, which reads such files."
            )
        raise DataError(
            f"Data set {describe(dataset_attr)} cannot be read ({type(cause).__name__}: {cause}): {advice}"
        ) from error


def check_not_empty(dataset_attr: Any, data_args: Any) -> None:
    """An empty file or list makes `datasets` fail with a message about schemas."""
    path = Path(data_args.dataset_dir, dataset_attr.dataset_name)
    if not path.is_file():
        return  # a folder, or missing: LLaMA-Factory says so itself
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").strip()
    if start in (b"", b"[]", b"{}"):
        raise DataError(f"Data set {describe(dataset_attr)} is empty: {path} holds no records.")
