"""Data sets in LLaMA-Factory's own formats (alpaca, sharegpt, openai) in, aligned columns with their record's name out.

In stage grpo the gold answer, its type and the pass rate travel along too: LLaMA-Factory drops every column but its
own.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import replace
from typing import Any

from lcot_plugin.data.gold import gold_text
from lcot_plugin.errors import DataError, RewardError
from lcot_plugin.integration.cache import digest_of, may_use_cache, media_paths
from lcot_plugin.integration.conversion import aligned_features, as_media, problem_id, record_features
from lcot_plugin.integration.dataset_columns import GOLD_COLUMNS
from lcot_plugin.integration.pass_rates import as_pass_rate, pass_rate_column
from lcot_plugin.rewards import extract_answer
from lcot_plugin.rewards.settings import match_settings, read_settings, settings_text


def align(original: Any, dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any, stage: str) -> Any:
    """LLaMA-Factory's aligned data set with the columns that name each record.

    In SFT: `_source`, `_file`, `_record`, `_findings`. In GRPO also `_gold`, `_answer_type`, `_match`,
    `_pass_rate` and `_problem_id`, and no `_response`, so that sets with and without one can be joined.
    """
    dataset = undecoded(dataset)
    if stage == "grpo":
        return _align_with_gold(original, dataset, dataset_attr, data_args, training_args)
    import pyarrow as pa

    aligned = _aligned(original, dataset, dataset_attr, data_args, training_args)
    num_records = len(aligned)
    columns = {
        "_source": pa.repeat(dataset_attr.lcot_name, num_records),
        "_file": pa.repeat(dataset_attr.dataset_name, num_records),
        "_record": pa.array(range(num_records), pa.int64()),
        "_findings": pa.repeat("", num_records),
    }
    for name, column in columns.items():
        aligned = aligned.add_column(name, column)
    return aligned


def _aligned(original: Any, dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
    """What LLaMA-Factory aligns; anew where a file has turned up that was missing when its cached result was made.

    It joins media_dir with the paths of the files that exist, and leaves the others as they are.
    """
    aligned = original(dataset, dataset_attr, data_args, training_args)
    folder = os.path.join(data_args.media_dir, "")
    left = (path for paths in media_paths(aligned) for path in paths if not path.startswith(folder))
    if any(not os.path.isfile(path) and os.path.isfile(folder + path) for path in left):
        anew = copy.copy(data_args)
        anew.overwrite_cache = True
        aligned = original(dataset, dataset_attr, anew, training_args)
    return aligned


def undecoded(dataset: Any) -> Any:
    """The same data set with pictures as the bytes that they are, which LLaMA-Factory takes as well.

    It would decode every picture of a parquet file, and encode it again as PNG, to copy a row.
    """
    from datasets import Dataset, Features

    features = Features({name: _without_decoding(feature) for name, feature in dataset.features.items()})
    if features == dataset.features:
        return dataset
    return Dataset(
        dataset.data,
        info=dataclasses.replace(dataset.info, features=features),
        split=dataset.split,
        indices_table=dataset._indices,
        fingerprint=digest_of(dataset._fingerprint, "undecoded"),
    )


def _without_decoding(feature: Any) -> Any:
    from datasets import Image

    if isinstance(feature, Image):
        return Image(decode=False)
    if isinstance(feature, dict):
        return {name: _without_decoding(item) for name, item in feature.items()}
    if isinstance(feature, list):
        return [_without_decoding(item) for item in feature]
    if hasattr(feature, "feature"):  # a list type, of which `datasets` has several
        return dataclasses.replace(feature, feature=_without_decoding(feature.feature))
    return feature


def align_stream(original: Any, dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
    """The same for a stream, in SFT: GRPO refuses streams."""
    from datasets import Features

    for name, feature in (dataset.features or {}).items():
        if _without_decoding(feature) != feature:
            dataset = dataset.cast_column(name, _without_decoding(feature))

    def with_name(example: dict[str, Any], index: int) -> dict[str, Any]:
        name, file = dataset_attr.lcot_name, dataset_attr.dataset_name
        media = _media_alike({column: [example[column]] for column in ("_images", "_videos", "_audios")})
        return {
            **{column: values[0] for column, values in media.items()},
            "_source": name,
            "_file": file,
            "_record": index,
            "_findings": "",
        }

    stream = original(dataset, dataset_attr, data_args, training_args).map(with_name, with_indices=True)
    known = aligned_features()
    return stream.cast(Features({name: known[name] for name in next(iter(stream))}))


def _align_with_gold(original: Any, dataset: Any, dataset_attr: Any, data_args: Any, training_args: Any) -> Any:
    from datasets import Features, concatenate_datasets

    for column in (getattr(dataset_attr, name) for name in GOLD_COLUMNS):
        if column is not None and column not in dataset.column_names:
            raise DataError(
                f"Data set {dataset_attr.lcot_name} ({dataset_attr.dataset_name}) has no column '{column}', which "
                f"dataset_info.json names: its columns are {', '.join(dataset.column_names)}."
            )
    options = {
        "num_proc": data_args.preprocessing_num_workers,
        "load_from_cache_file": may_use_cache(data_args, training_args),
    }
    extras = dataset.map(
        _extra_columns,
        with_indices=True,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "columns": {
                **{name: getattr(dataset_attr, name) for name in GOLD_COLUMNS},
                "pass_rate": pass_rate_column(dataset.column_names, dataset_attr.pass_rate),
            },
            "source": dataset_attr.lcot_name,
            "file": dataset_attr.dataset_name,
        },
        # Given, since `datasets` would infer them from the first records, whose gold answers may all be None.
        features=Features(record_features()),
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
    aligned = _aligned(original, dataset, dataset_attr, data_args, training_args)
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
    example: dict[str, Any], index: int, columns: dict[str, str | None], source: str, file: str
) -> dict[str, Any]:
    values = {role: example[column] if column else None for role, column in columns.items()}
    try:
        settings = read_settings(_without_none(values["match"]))
        if values["options"]:
            settings = replace(settings, options=match_settings(options=values["options"]).options)
    except RewardError as error:
        raise DataError(f"Data set {source} ({file}), record {index}: {error}.") from None
    return {
        "_gold": gold_text(values["gold"]),
        "_answer_type": str(values["answer_type"] or "auto"),
        "_match": settings_text(settings),
        "_pass_rate": as_pass_rate(values["pass_rate"]),
        "_problem_id": problem_id(values["problem_id"]),
        "_source": source,
        "_file": file,
        "_record": index,
        "_findings": "",
    }


def _without_none(value: Any) -> Any:
    """A struct column gives every record every field."""
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


def _gold_of_response(example: dict[str, Any]) -> dict[str, str | None]:
    response = example["_response"]
    found = extract_answer(response[0]["content"]) if response else None
    return {"_gold": gold_text(found.answer) if found else None}


def _close_user_turn(
    example: dict[str, Any], column: str, role: str, content: str, user: str, assistant: str
) -> dict[str, Any]:
    """An RL record may end with the user's turn; LLaMA-Factory's converters want an answer after it."""
    turns = example[column]
    if isinstance(turns, list) and turns and turns[-1].get(role) == user:
        return {column: [*turns, {**dict.fromkeys(turns[-1]), role: assistant, content: ""}]}
    return {column: turns}


def alike(datasets: list[Any]) -> list[Any]:
    """The same data sets with the same features, so that they can be joined: pictures given as paths in one and as
    bytes in another, none at all in a third."""
    if all(dataset.features == datasets[0].features for dataset in datasets[1:]):
        return datasets
    return [_with_common_features(dataset) for dataset in datasets]


def _with_common_features(dataset: Any) -> Any:
    from datasets import Features

    if dataset.features is None:  # a stream without declared types
        return dataset
    known = aligned_features()
    features = Features({name: known.get(name, feature) for name, feature in dataset.features.items()})
    if features == dataset.features:
        return dataset
    return dataset.map(_media_alike, batched=True, batch_size=200, features=features, desc="Making data sets alike")


def _media_alike(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
    images = [
        [as_media(image) if isinstance(image, (str, bytes)) else image for image in images or []]
        for images in examples["_images"]
    ]
    empty = {name: [values or [] for values in examples[name]] for name in ("_videos", "_audios")}
    return {**examples, "_images": images, **empty}
