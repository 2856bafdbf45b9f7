"""A run's YAML file in, its data sets out, read and tokenised as training would, for `lcot data`.

    recipe --read_recipe--> tokenizer, processor, template, arguments (no weights, no GPU)
    its data sets --load_sets--> aligned records and their tokens, one row per record that can be used; Findings

What training would drop is counted in the report, and nothing stops at the first fault. Records longer than
`cutoff_len` stay among the rows: `lcot data stats` counts what each cutoff would leave out.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llamafactory.data import get_template_and_fix_tokenizer, loader
from llamafactory.hparams import get_train_args, parser
from llamafactory.hparams.model_args import ProcessorArguments
from llamafactory.model import load_config, load_tokenizer

from lcot_plugin.command_checks import near_names, read_run_file
from lcot_plugin.data.formats import get_format
from lcot_plugin.errors import ArgumentError, LcotError, RecordError
from lcot_plugin.integration import data as loading
from lcot_plugin.integration.cache import may_use_cache
from lcot_plugin.integration.conversion import JSON_COLUMN, findings_of, is_ours, make_converter, rows_with_findings
from lcot_plugin.integration.settling import Policies
from lcot_plugin.integration.tokenising import RecordTokeniser, tokenise
from lcot_plugin.report.data import DataReport
from lcot_plugin.rewards import Verifier, gold_is_usable
from lcot_plugin.rewards.settings import read_settings
from lcot_plugin.types import Finding, GoldAnswer, Handling, RecordFault

MODEL_KEYS = (
    "model_name_or_path",
    "cache_dir",
    "use_fast_tokenizer",
    "split_special_tokens",
    "add_tokens",
    "add_special_tokens",
    "new_special_tokens_config",
    "model_revision",
    "hf_hub_token",
    "ms_hub_token",
    "om_hub_token",
    "trust_remote_code",
)
"""What of ModelArguments decides about tokens, besides ProcessorArguments."""
NOT_FOR_DATA = ("streaming", "packing", "neat_packing", "tokenized_path", "buffer_size")
"""Keys of DataArguments that would change the rows into something else than records."""
UNLIMITED = 2**31 - 1
PLACEHOLDER_KEYS = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}


@dataclass(frozen=True)
class DataRecipe:
    """What of a run's configuration decides about its data."""

    model_args: Any
    data_args: Any
    training_args: Any
    stage: str
    output_dir: Path
    tokenizer: Any
    processor: Any
    template: Any
    placeholders: dict[int, str]
    """Token id -> image, video or audio."""

    def tokeniser(self, **changes: Any) -> RecordTokeniser:
        """Tokenises as training does, with some DataArguments changed."""
        data_args = copy.copy(self.data_args)
        for key, value in changes.items():
            setattr(data_args, key, value)
        return RecordTokeniser(self.stage, self.template, self.tokenizer, self.processor, data_args)


def read_recipe(
    config: str, overrides: Sequence[str] = (), datasets: str | None = None, dataset_dir: str | None = None
) -> DataRecipe:
    """The recipe `config` (.yaml, .yml or .json) with `key=value` overrides. `datasets`: names, joined by commas, in
    place of the recipe's. `dataset_dir`: the folder of dataset_info.json in place of the recipe's.

    Raises ArgumentError for keys that do not exist and for stages whose data are LLaMA-Factory's own business.
    """
    written = read_run_file(config, overrides)
    if datasets is not None:
        written = {**written, "dataset": datasets, "eval_dataset": None}
    if dataset_dir is not None:
        written["dataset_dir"] = dataset_dir
    _check(written, config, {part.partition("=")[0].partition(".")[0] for part in overrides})
    try:
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(_about_data(written))
        module = load_tokenizer(model_args)
        tokenizer, processor = module["tokenizer"], module["processor"]
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        model_config = load_config(model_args)
    except LcotError:
        raise
    except (ValueError, OSError) as error:  # LLaMA-Factory's for keys, transformers' for folders and hub names
        cause = " ".join(str(error.__cause__ or error).split())
        model = written.get("model_name_or_path")
        missing = isinstance(error, OSError) and not Path(str(model)).is_dir()
        advice = (
            f" There is no folder {model} here (model_name_or_path), so it was looked for on the hub."
            if missing
            else ""
        )
        raise ArgumentError(f"{config}: {cause}{advice}") from error
    return DataRecipe(
        model_args=model_args,
        data_args=data_args,
        training_args=training_args,
        stage=finetuning_args.stage,
        output_dir=Path(str(written.get("output_dir") or "saves")),
        tokenizer=tokenizer,
        processor=processor,
        template=template,
        placeholders=placeholder_ids(template, tokenizer, processor, model_config),
    )


def _check(written: dict[str, Any], config: str, overridden: set[str]) -> None:
    """overridden: the keys given on the command line."""
    known = {item.name for arguments in parser._TRAIN_ARGS for item in dataclasses.fields(arguments)}
    messages = []
    for origin, keys in ((config, set(written) - overridden), ("command line", set(written) & overridden)):
        if unknown := sorted(keys - known):
            advice = near_names(unknown, sorted(known)) or "check the spelling."
            messages.append(f"{origin}: no argument is called {', '.join(unknown)}: {advice}")
    if messages:
        raise ArgumentError(" ".join(messages))
    if written.get("stage", "sft") not in loading.STAGES:
        raise ArgumentError(
            f"{config}: `lcot data` reads the data of {' and '.join(loading.STAGES)}, not of stage {written['stage']}."
        )
    if not written.get("dataset") and not written.get("eval_dataset"):
        raise ArgumentError(f"{config} names neither `dataset` nor `eval_dataset`: add one, or give --dataset NAME.")


def _about_data(written: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide about data; the others may need a GPU, a launcher or a package that this machine lacks."""
    data_arguments = {item.name for item in dataclasses.fields(parser._TRAIN_ARGS[1])}.difference(NOT_FOR_DATA)
    names = {*data_arguments, *MODEL_KEYS, *(item.name for item in dataclasses.fields(ProcessorArguments))}
    return {
        **{key: value for key, value in written.items() if key in names | {"stage", "seed"}},
        "do_train": bool(written.get("dataset")),
        "bad_record_policy": "drop",
        "output_dir": "saves/lcot_data",  # nothing is written there; an existing folder of a run would be refused
        "report_to": "none",
        "use_cpu": True,
        "packing": False,
    }


def placeholder_ids(template: Any, tokenizer: Any, processor: Any, config: Any) -> dict[int, str]:
    """Token id -> `image`, `video` or `audio`, for the tokens that stand for media."""
    found: dict[int, str] = {}
    for name, keys in PLACEHOLDER_KEYS.items():
        written = getattr(template.mm_plugin, f"{name}_token", None)
        if written is not None and written in tokenizer.get_vocab():
            found[tokenizer.convert_tokens_to_ids(written)] = name
        for holder in (config, processor):
            for key in keys:
                token_id = getattr(holder, key, None)
                if isinstance(token_id, int):
                    found.setdefault(token_id, name)
    return found


class Findings(DataReport):
    """A DataReport that keeps every finding with its record."""

    def __init__(self) -> None:
        super().__init__()
        self.every: list[tuple[str, int, Finding]] = []
        """(data set, record, finding)."""

    def add(self, source: str, record: int, findings: list[Finding]) -> None:
        super().add(source, record, findings)
        self.every += [(source, record, finding) for finding in findings]

    def of_record(self, source: str, record: int) -> list[Finding]:
        return [finding for name, number, finding in self.every if (name, number) == (source, record)]


@dataclass(frozen=True)
class LoadedSet:
    """The records of one data set that can be used."""

    source: str
    sides: tuple[bool, ...]
    """Whether the run evaluates on it: (False,) for training, (True,) for evaluation, both where it does both."""
    attribute: Any
    """LLaMA-Factory's DatasetAttr."""
    aligned: Any
    """Data set of LLaMA-Factory's columns and ours (`_prompt`, `_images`, `_record`...), one row per record."""

    @property
    def ours(self) -> bool:
        """Whether its formatting is one of the `lcot_...` formats, whose traces and golds are read."""
        return is_ours(self.attribute.formatting)


def load_sets(recipe: DataRecipe, report: Findings) -> Iterator[LoadedSet | tuple[str, Exception]]:
    """The data sets in the order of training, then of evaluation; (name, error) for one that cannot be read at all.

    What the reading leaves out is in `report`.
    """
    training, evaluation = recipe.data_args.dataset or [], recipe.data_args.eval_dataset or []
    for name in dict.fromkeys([*training, *evaluation]):
        sides = tuple(side for side, names in ((False, training), (True, evaluation)) if name in names)
        np.random.seed(recipe.training_args.seed)  # `num_samples` draws records
        try:
            (attribute,) = loader.get_dataset_list([name], recipe.data_args.dataset_dir)
            yield LoadedSet(name, sides, attribute, load_aligned(recipe, attribute, recipe.stage, report))
        except (ValueError, OSError) as error:  # what LLaMA-Factory and `datasets` raise for files and entries
            report.add_error(name, str(error))
            yield name, error


def describe_error(report: DataReport, name: str, error: Exception) -> str:
    """Why a set cannot be used; the reasons of its records, which an error names too, are in the report."""
    entry = report.sets[name]
    if entry.num_records and entry.num_dropped >= entry.num_records:
        return "none of its records can be used, see below"
    return str(error)


def load_aligned(recipe: DataRecipe, attribute: Any, stage: str, report: DataReport) -> Any:
    """The aligned records of a data set that can be used in `stage`."""
    with loading.loading(loading.DataRun(stage, Policies("drop", "drop"), report)):
        return loader._load_single_dataset(attribute, recipe.model_args, recipe.data_args, recipe.training_args)


def raw_records(recipe: DataRecipe, name: str) -> Any:
    """The records of a data set as they stand in its files; its row numbers are the record numbers.

    Raises what LLaMA-Factory and `datasets` raise for a set that cannot be read.
    """
    (attribute,) = loader.get_dataset_list([name], recipe.data_args.dataset_dir)
    original = loader.align_dataset
    np.random.seed(recipe.training_args.seed)
    loader.align_dataset = lambda dataset, *_: dataset
    try:
        return load_aligned(recipe, attribute, recipe.stage, DataReport())
    finally:
        loader.align_dataset = original


def raw_record(records: Any, record: int) -> dict[str, Any]:
    """One of `raw_records`, pictures undecoded."""
    (found,) = records.with_format("arrow")[record : record + 1].to_pylist()
    return json.loads(found[JSON_COLUMN]) if JSON_COLUMN in found else found


def states_gold(recipe: DataRecipe, loaded: LoadedSet, records: Sequence[int]) -> bool:
    """Whether any of some records has a gold answer of its own; without, that of the response serves as one."""
    if not loaded.ours:
        return loaded.attribute.gold is not None
    raw = raw_records(recipe, loaded.source)
    converter, _ = make_converter(raw, loaded.attribute, recipe.data_args, recipe.stage)
    for record in records:
        try:
            read = get_format(converter.format_name).read(raw_record(raw, record), converter.columns)
        except RecordError:
            continue
        if read.gold is not None:
            return True
    return False


def golds_of(recipe: DataRecipe, loaded: LoadedSet) -> dict[int, GoldAnswer]:
    """Record -> gold answer, of the records that have one.

    LLaMA-Factory's own formats carry gold answers in stage grpo only, so such a set is read once more.
    """
    aligned = loaded.aligned
    if "_gold" not in aligned.column_names:
        if loaded.attribute.gold is None:
            return {}
        state = np.random.get_state()
        np.random.seed(recipe.training_args.seed)
        try:
            aligned = load_aligned(recipe, loaded.attribute, "grpo", DataReport())
        finally:
            np.random.set_state(state)
    columns = aligned.select_columns(["_record", "_gold", "_answer_type", "_match"])[:]
    return {
        record: GoldAnswer(gold, answer_type or "auto", read_settings(match))
        for record, gold, answer_type, match in zip(*(columns[name] for name in columns), strict=True)
        if gold
    }


def is_usable(gold: GoldAnswer, verifier: Verifier | None = None) -> bool:
    """Whether a completion that states the gold answer scores 1.0."""
    return gold_is_usable(gold.text, gold.answer_type, settings=gold.settings, verifier=verifier)


def tokenise_set(recipe: DataRecipe, loaded: LoadedSet, report: Findings) -> tuple[Any, Any]:
    """(tokens, aligned): whole records, however long, without those whose images or turns cannot be used.

    Only the last answer counts as a response, whatever the recipe trains on, so that prompts and answers can be told
    apart; the token ids are those of training.
    """
    tokeniser = recipe.tokeniser(
        cutoff_len=UNLIMITED, overlong_policy="drop", train_on_prompt=False, mask_history=recipe.stage == "sft"
    )
    use_cache = may_use_cache(recipe.data_args, recipe.training_args)
    tokens = tokenise(loaded.aligned, tokeniser, use_cache, f"Tokenising {loaded.source}")
    dropped = set()
    for row, name in rows_with_findings(tokens):
        findings = findings_of(name["_findings"])
        report.add(loaded.source, name["_record"], findings)
        if any(finding.handling is Handling.DROPPED for finding in findings):
            dropped.add(row)
    if not dropped:
        return tokens, loaded.aligned
    kept = [row for row in range(len(tokens)) if row not in dropped]
    return tokens.select(kept), loaded.aligned.select(kept)


def add_overlong(recipe: DataRecipe, source: str, tokens: Any, aligned: Any, totals: Any, report: Findings) -> None:
    """Reports the records that are longer than the recipe's cutoff_len, and what its policy makes of them.

    totals: [N] tokens of each row.
    """
    cutoff_len, policy = recipe.data_args.cutoff_len, recipe.data_args.overlong_policy
    rows = np.flatnonzero(totals > cutoff_len)
    if not len(rows):
        return
    if policy == "truncate" and recipe.stage == "sft":
        # Whether a record can be shortened is only known once it has been tried.
        again = tokenise(aligned.select(rows), recipe.tokeniser(), True, f"Shortening {source}")
        handlings = [
            next(finding.handling for finding in findings_of(text) if finding.fault is RecordFault.OVERLONG)
            for text in again["_findings"]
        ]
    else:
        handlings = [Handling.DROPPED] * len(rows)
    records = tokens.select(rows)["_record"]
    for row, record, handling in zip(rows.tolist(), records, handlings, strict=True):
        detail = f"{int(totals[row]):,} tokens, cutoff_len is {cutoff_len:,}"
        report.add(source, record, [Finding(RecordFault.OVERLONG, handling, detail)])
