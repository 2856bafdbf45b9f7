"""A recipe's model and data sets in, the pass rate of every record out (`lcot data difficulty`).

    recipe --get_dataset--> prompts --TransformersEngine, Scorer--> rollouts.jsonl --difficulty_sets--> data sets

Prompts, sampling and verdicts are those of the GRPO stage, so that a pass rate says what GRPO with the same recipe
would meet. Each batch is appended to rollouts.jsonl; a run that was killed goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from tqdm.auto import tqdm

from lcot_plugin.errors import ArgumentError, DataError
from lcot_plugin.integration.cache import file_stamp
from lcot_plugin.integration.difficulty_sets import (
    LoadedSource,
    merge_json,
    part_name,
    recorded_sources,
    write_set,
)
from lcot_plugin.integration.grpo import check_arguments, check_template, make_parts
from lcot_plugin.integration.grpo_trainer import GrpoTrainer
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.stage import with_sampling_defaults
from lcot_plugin.policy.trainer import GrpoParts, prompt_records
from lcot_plugin.report.data import DataReport
from lcot_plugin.report.difficulty import LEARNABLE, SetDifficulty, Thresholds, difficulty_table, plot_difficulty
from lcot_plugin.rewards import Scorer
from lcot_plugin.rewards.requests import scoring_request
from lcot_plugin.types import Ending, Finding, Handling, Outcome, RecordFault, RolloutGroup, SamplingParams, Score

ROLLOUTS_FILE = "rollouts.jsonl"
SUMMARY_FILE = "difficulty.json"
HISTOGRAM_FILE = "difficulty.png"
IGNORED_KEYS = (
    "dataset",
    "val_size",
    "tokenized_path",
    "mix_strategy",
    "interleave_probs",
    "eval_on_each_dataset",
    "deepspeed",
    "fsdp",
    "eval_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "early_stopping_steps",
    "resume_from_checkpoint",
    "plot_loss",
    "grpo_reward_weights",
    "ref_model",
)
"""Keys of a recipe that are about training, or that would turn rows into something else than one per record."""
MODEL_KEYS_WITHOUT_EFFECT = (
    "cache_dir",
    "hf_hub_token",
    "ms_hub_token",
    "om_hub_token",
    "device_map",
    "print_param_status",
)


@dataclass(frozen=True)
class RolloutCounts:
    """What the rollouts of one record gave; a line of rollouts.jsonl."""

    key: str
    """Fingerprint of model, sampling, prompt, images and gold answer."""
    source: str
    record: int
    num_rollouts: int
    num_correct: int
    num_truncated: int
    num_unparsable: int
    gold_readable: bool
    """False where the verifier cannot read the gold answer: nothing was measured."""


class RolloutLog:
    """rollouts.jsonl: read at the start, appended to after every batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, RolloutCounts] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # a kill cut the last line short
                os.truncate(path, len(whole))
            for line in whole.splitlines():
                self._take(RolloutCounts(**json.loads(line)))

    def _take(self, counts: RolloutCounts) -> None:
        self.counts[counts.key] = counts

    def append(self, batch: Iterable[RolloutCounts]) -> None:
        """Adds the records of a batch; they are in the file when this returns."""
        batch = list(batch)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(vars(counts)) + "\n" for counts in batch)
        for counts in batch:
            self._take(counts)


def difficulty(
    config: str,
    overrides: Sequence[str] = (),
    datasets: str | None = None,
    dataset_dir: str | None = None,
    out: Path | None = None,
    rollouts: int = 8,
    thresholds: Sequence[float] = (0.25, 0.75),
) -> int:
    """`lcot data difficulty`: measures, writes everything to `out` (default: `difficulty` in output_dir), prints.

    datasets: names, joined by commas, in place of the recipe's `dataset`, else `eval_dataset`. Raises ArgumentError for
    a recipe that cannot be used, where another process writes to `out`, and where `out` is the folder of the data sets.
    """
    limits = Thresholds(*thresholds)
    if rollouts < 1:
        raise ArgumentError(f"--rollouts {rollouts}: at least 1 answer per record is needed, 8 are usual.")
    written = read_recipe(config, overrides)
    if datasets is not None:
        written["dataset"] = datasets
    if dataset_dir is not None:
        written["dataset_dir"] = dataset_dir
    if not written.get("dataset") and not written.get("eval_dataset"):
        raise ArgumentError(f"{config} names neither `dataset` nor `eval_dataset`: add one, or give --dataset NAME.")
    folder = out or Path(str(written.get("output_dir") or "saves"), "difficulty")
    if Path(str(written.get("dataset_dir", "data"))).resolve() == folder.resolve():
        raise ArgumentError(
            f"{folder} holds the data sets that are to be measured, whose files and entries would be overwritten: "
            "write to another folder with --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        run = RunArguments(*get_train_args(measuring(written, rollouts, folder)))
        sources, sets, report = measure(run, folder, limits)
        publish(sources, sets, report, run, folder)
    return 0


def read_recipe(config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of a YAML or JSON file, the `key=value` overrides taking precedence."""
    from omegaconf import OmegaConf

    if not config.endswith((".yaml", ".yml", ".json")) or not Path(config).is_file():
        raise ArgumentError(f"{config} is not a .yaml, .yml or .json file that exists: give a run's configuration.")
    merged = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_cli(list(overrides)))
    written: dict[str, Any] = OmegaConf.to_container(merged)
    if written.get("stage") != "grpo":
        raise ArgumentError(
            f"{config}: stage {written.get('stage', 'sft')} knows no verifiable answers: give a recipe with "
            "`stage: grpo`, for example yaml_recipes/eval.yaml."
        )
    return written


def measuring(written: dict[str, Any], num_rollouts: int, folder: Path) -> dict[str, Any]:
    """The recipe as one that only samples: of `dataset`, else of `eval_dataset`."""
    arguments = {
        **{key: value for key, value in written.items() if key not in IGNORED_KEYS},
        "do_train": False,
        "do_eval": True,
        "eval_dataset": written.get("dataset") or written["eval_dataset"],
        "output_dir": str(folder),
        "grpo_num_generations": num_rollouts,
        "grpo_eval_generations": num_rollouts,
        "grpo_reward_funcs": "accuracy",
        "report_to": "none",
    }
    with_defaults = with_sampling_defaults(arguments)
    assert isinstance(with_defaults, dict)
    return with_defaults


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time writes to `folder`; the lock goes with the process that holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArgumentError(
                f"Another process is measuring into {folder}: wait for it, or write to another folder with --out."
            ) from error
        yield


def measure(
    run: RunArguments, folder: Path, thresholds: Thresholds
) -> tuple[dict[str, LoadedSource], list[SetDifficulty], DataReport]:
    """Samples what rollouts.jsonl does not hold yet; returns the data sets, what was measured of each, and what was not
    and why.
    """
    model_args, data_args, training_args, finetuning_args, _ = run
    plan = check_arguments(run)
    with ExitStack() as stack:
        scorer = stack.enter_context(Scorer(["accuracy"], deadline_seconds=finetuning_args.grpo_reward_deadline))
        module = load_tokenizer(model_args)
        tokenizer = module["tokenizer"]
        check_template(tokenizer, model_args, data_args)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        with recorded_sources() as sources:
            loaded = get_dataset(template, model_args, data_args, training_args, stage="grpo", **module)
        prompts = loaded["eval_dataset"]
        if missing := set(data_args.eval_dataset) - sources.keys():
            raise ArgumentError(
                f"{', '.join(sorted(missing))}: only data sets from files and from the Hugging Face hub can be "
                "measured: download it and write its `file_name` in dataset_info.json."
            )
        model = load_model(tokenizer, model_args, finetuning_args, False)
        parts = make_parts(run, model, template, module, plan, scorer, stack)
        trainer = GrpoTrainer(
            model=model,
            args=training_args,
            finetuning_args=finetuning_args,
            data_collator=list,
            eval_dataset=prompts,
            **module,
        )
        sets = {
            name: SetDifficulty(name, len(source.dataset), thresholds, num_rollouts=plan.num_generations)
            for name, source in sources.items()
        }
        log = RolloutLog(folder / ROLLOUTS_FILE)
        parts.sampling = replace(parts.sampling, seed=training_args.seed)
        keys = record_keys(prompts, run_fingerprint(run, parts.sampling))
        report = next(iter(sources.values())).report
        sample_missing(trainer, parts, prompts, keys, log, report)
    for key in keys:
        if key in log.counts:
            add_counts(sets[log.counts[key].source], log.counts[key], report)
    for name, entry in sets.items():
        entry.num_no_gold = report.sets[name].counts[RecordFault.NO_GOLD.value, Handling.DROPPED.value]
        entry.num_left_out = report.sets[name].num_dropped - entry.num_no_gold
    return sources, list(sets.values()), report


def run_fingerprint(run: RunArguments, sampling: SamplingParams) -> str:
    """What of a run decides about completions, besides the prompts: the model, its settings and the sampling."""
    model = {
        key: repr(value)
        for key, value in vars(run.model).items()
        if key not in MODEL_KEYS_WITHOUT_EFFECT and not key.startswith("export_")
    }
    folders = [run.model.model_name_or_path, *(run.model.adapter_name_or_path or [])]
    files = [
        [path.name, file_stamp(str(path))]
        for folder in map(Path, folders)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    precision = (run.training.bf16, run.training.fp16)
    text = json.dumps([model, files, precision, vars(sampling)], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def record_keys(prompts: Any, fingerprint: str) -> list[str]:
    """The key of every row: that of the run, the prompt's tokens, its images and its gold answer."""
    keys = []
    for row in prompts:
        digest = hashlib.sha256(fingerprint.encode())
        names = ("source", "record", "input_ids", "question", "gold", "answer_type", "match")
        digest.update(json.dumps([row[name] for name in names]).encode())
        for name in ("images", "videos", "audios"):
            for medium in row[name] or []:
                digest.update(medium_stamp(medium))
        keys.append(digest.hexdigest()[:32])
    return keys


def medium_stamp(medium: Any) -> bytes:
    """What changes where a picture changes: the bytes, or the path with size and time of the file."""
    if isinstance(medium, dict):
        medium = medium.get("path") if medium.get("bytes") is None else medium["bytes"]
    return medium if isinstance(medium, bytes) else repr((medium, file_stamp(str(medium)))).encode()


def sample_missing(
    trainer: GrpoTrainer,
    parts: GrpoParts,
    prompts: Any,
    keys: list[str],
    log: RolloutLog,
    report: DataReport,
) -> None:
    """Samples the rows whose key the log does not have; a record whose images do not decode goes to the report."""
    missing = [row for row, key in enumerate(keys) if key not in log.counts]
    group, batch_size = parts.sampling.num_generations, trainer.args.per_device_eval_batch_size
    num_done = len(keys) - len(missing)
    if num_done:
        print(
            f"{num_done * group:,} rollouts, those of {num_done:,} of {len(keys):,} records, are reused from "
            f"{log.path}: delete it to sample them again."
        )
    with (
        parts.engine.policy(trainer.model, trainer.accelerator, 0) as model,
        tqdm(total=len(keys) * group, initial=num_done * group, desc="Sampling", unit="rollout") as bar,
        trainer.compute_loss_context_manager(),
    ):

        def ended(num_completions: int, _: int) -> None:
            bar.update(num_completions)

        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            encoded = []
            for row, record in zip(rows, prompt_records([prompts[row] for row in rows]), strict=True):
                try:
                    encoded.append((keys[row], parts.encode(record)))
                except DataError as error:
                    broken = Finding(RecordFault.BROKEN_IMAGE, Handling.DROPPED, str(error))
                    report.add(record.source, record.record, [broken])
                    bar.update(group)
            batch = [prompt for _, prompt in encoded]
            slots = [prompt.record.record for prompt in batch]
            groups = parts.engine.generate(model, batch, parts.sampling, slots, ended) if batch else []
            requests = [scoring_request(group.prompt.record, c) for group in groups for c in group.completions]
            scores = iter(parts.scorer.score(requests))
            log.append(
                count_rollouts(key, group, [next(scores) for _ in group.completions])
                for (key, _), group in zip(encoded, groups, strict=True)
            )


def count_rollouts(key: str, group: RolloutGroup, scores: list[Score]) -> RolloutCounts:
    """The line of one record."""
    outcomes = [score.verdict.outcome if score.verdict else Outcome.GOLD_UNPARSABLE for score in scores]
    return RolloutCounts(
        key=key,
        source=group.prompt.record.source,
        record=group.prompt.record.record,
        num_rollouts=len(outcomes),
        num_correct=outcomes.count(Outcome.MATCHED),
        num_truncated=sum(completion.ending is Ending.TRUNCATED for completion in group.completions),
        num_unparsable=outcomes.count(Outcome.UNPARSABLE),
        gold_readable=Outcome.GOLD_UNPARSABLE not in outcomes,
    )


def add_counts(entry: SetDifficulty, counts: RolloutCounts, report: DataReport) -> None:
    """Takes one record into the figures of its data set, or into the report where nothing was measured."""
    if not counts.gold_readable:
        unreadable = Finding(RecordFault.NO_GOLD, Handling.DROPPED, "the verifier cannot read it")
        report.add(entry.name, counts.record, [unreadable])
        return
    entry.pass_rates[counts.record] = counts.num_correct / counts.num_rollouts
    entry.num_truncated += counts.num_truncated
    entry.num_unparsable += counts.num_unparsable


def publish(
    sources: dict[str, LoadedSource], sets: list[SetDifficulty], report: DataReport, run: RunArguments, folder: Path
) -> None:
    """The data sets with pass rates, the summary as table and JSON, data_report.json and the histogram.

    What dataset_info.json and the summary say of data sets that were measured into `folder` before stays there.
    """
    known = dataset_info(run.data.dataset_dir)
    entries: dict[str, Any] = {}
    for entry in sets:
        entries |= write_set(sources[entry.name], entry, known.get(entry.name, {}), folder)
    merge_json(folder / "dataset_info.json", entries)
    merge_json(folder / SUMMARY_FILE, {entry.name: entry.as_dict() for entry in sets})
    report_file = report.write(folder)
    plot_difficulty(sets, folder / HISTOGRAM_FILE)
    if report.num_findings:
        print(f"\n{report.table()}\nThe first records of each kind: {report_file}")
    info = json.dumps(entries, ensure_ascii=False, indent=2)
    print(f"\n{difficulty_table(sets)}\n\n{folder / 'dataset_info.json'}:\n{info}\n")
    names = [part_name(entry.name, LEARNABLE) for entry in sets if entry.counts()[LEARNABLE]]
    if not names:
        print("No record has a pass rate above 0 and below 1: there is nothing here that GRPO would learn from.")
        return
    print(f"In a recipe for GRPO:\ndataset: {','.join(names)}")
    print(f"dataset_dir: {folder.resolve()}\nmedia_dir: {Path(run.data.media_dir).resolve()}")


def dataset_info(dataset_dir: Any) -> dict[str, Any]:
    """The entries of the recipe's dataset_info.json; none where a hub's name stands for the data set."""
    if isinstance(dataset_dir, dict):
        return dataset_dir
    path = Path(dataset_dir, "dataset_info.json")
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return entries
