"""`lcot doctor RECIPE` from the first finding to the last line. Reads like a table of contents."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lcot_plugin.arguments import BatchPlan
from lcot_plugin.errors import ArgumentError, LcotError
from lcot_plugin.integration.data_sets import DataRecipe, loading, read_recipe
from lcot_plugin.integration.grpo import check_template
from lcot_plugin.integration.recipe_doctor.estimate import examine_memory
from lcot_plugin.integration.recipe_doctor.folders import MODEL_FOLDER, adapter_lines, output_problem
from lcot_plugin.integration.recipe_doctor.golds import room_line
from lcot_plugin.integration.recipe_doctor.lines import (
    GIB,
    GOOD,
    NOTE,
    SKIPPED,
    WRONG,
    Examination,
    Line,
    gib,
    millions,
)
from lcot_plugin.integration.recipe_doctor.sets import entry_lines, record_lines
from lcot_plugin.integration.recipe_doctor.settings import looks_local, made_by, read_settings
from lcot_plugin.integration.recipe_doctor.shape import count, empty_model
from lcot_plugin.integration.recipe_doctor.tokens import token_lines
from lcot_plugin.integration.refusals import RunArguments


def examine(
    config: str,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    num_processes: int = 1,
    memory_gib: float | None = None,
    num_records: int = 500,
    json_file: Path | None = None,
) -> int:
    """Prints every finding; 1 where something is wrong.

    Raises ArgumentError where the recipe cannot be read, or json_file not be written.
    """
    if json_file is not None:
        check_json_file(json_file)
    memory = memory_gib * GIB if memory_gib is not None else _memory_here()
    found = Examination(config, tuple(overrides), dry_run, num_processes, memory, num_records)
    written, run, plan, lines = read_settings(config, found.overrides, num_processes, dry_run)
    found.add(*lines)
    if run is not None:
        here, entries = entry_lines(run, dry_run)
        found.add(*entries)
        if dry_run:
            found.add(Line(SKIPPED, "model and data", "--dry-run: nothing was opened"))
        elif run.finetuning.stage not in loading.STAGES:
            of_stage = f"of stage {run.finetuning.stage} arguments, files and entries were looked at"
            found.add(Line(SKIPPED, "model and data", f"{of_stage}; records, model and memory only of sft and grpo"))
        else:
            examine_data_and_model(found, written, run, plan, here)
    return finish(found, json_file)


def check_json_file(file: Path) -> None:
    """Raises ArgumentError where it cannot be written, before minutes are spent on what goes into it."""
    problem = f"{file} is a folder." if file.is_dir() else output_problem(file.parent)
    if problem is not None:
        raise ArgumentError(f"--json {file}: {problem}")


def _memory_here() -> float | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def examine_data_and_model(
    found: Examination, written: dict[str, Any], run: RunArguments, plan: BatchPlan | None, here: Sequence[str]
) -> None:
    """What needs the tokenizer, the configuration and the data."""
    changes = [*found.overrides, f"max_samples={found.num_records}"]
    try:
        # Without its sets a recipe has no data to read; the tokenizer is wanted all the same.
        recipe = read_recipe(found.config, changes, datasets=",".join(here) or "none")
    except LcotError as error:
        said = any(line.subject == MODEL_FOLDER and line.level == WRONG for line in found.lines)
        is_here = Path(str(run.model.model_name_or_path)).is_dir() and not said
        found.add(Line(WRONG if is_here else SKIPPED, "model", _why_no_model(run, error)))
        return
    # Whatever is long is counted below; the tokenizer's own warning would stand between the lines.
    recipe.tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    try:
        check_template(recipe.tokenizer, run.model, run.data)
    except LcotError as error:
        found.add(Line(WRONG, "template", str(error)))
    if here:
        measures, lines = record_lines(recipe, run, found.num_records)
        found.estimates["data"] = measures
        found.add(*lines)
    if run.finetuning.stage == "grpo":
        folder = str(written.get("adapter_name_or_path") or run.model.model_name_or_path)
        room = room_line(run, made_by(folder, Path(found.config)), found.num_records)
        found.add(*([room] if room else []))
    examine_model(found, written, run, plan, recipe)


def _on_a_hub(run: RunArguments) -> bool:
    name = str(run.model.model_name_or_path)
    return not Path(name).is_dir() and not looks_local(name)


def _why_no_model(run: RunArguments, error: LcotError) -> str:
    if not Path(str(run.model.model_name_or_path)).is_dir() and not _on_a_hub(run):
        return (
            f"{run.model.model_name_or_path} is not there yet, so template, lengths, golds and memory were not looked "
            "at: name the model that it will be made of, model_name_or_path=..., to have an estimate now."
        )
    if _on_a_hub(run) and os.environ.get("HF_HUB_OFFLINE") == "1":
        return (
            f"{run.model.model_name_or_path} is not on this machine, so template, lengths, golds and memory were not "
            "looked at: --download fetches its configuration and tokenizer (a few MB, no weights)."
        )
    if Path(str(run.model.model_name_or_path)).is_dir():
        return f"{run.model.model_name_or_path}: its configuration or tokenizer cannot be loaded: {error}"
    return str(error)


def examine_model(
    found: Examination, written: dict[str, Any], run: RunArguments, plan: BatchPlan | None, recipe: DataRecipe
) -> None:
    """Parameters, context, end tokens, disk, memory and time."""
    try:
        model = empty_model(run, recipe.tokenizer, run.training.do_train)
    except ValueError as error:  # of arguments, which the run would fail on too
        found.add(Line(WRONG, "model", f"cannot be built: {' '.join(str(error).split())}"))
        return
    except Exception as error:  # whatever a family raises where it is built without weights
        found.add(Line(SKIPPED, "model", f"cannot be built without weights ({type(error).__name__}: {error})"))
        return
    parameters = count(model)
    found.estimates["parameters"] = vars(parameters)
    language, vision = millions(parameters.language), millions(parameters.vision)
    text = f"{language} parameters in the language model, {vision} in the vision tower; {millions(parameters.trained)}"
    found.add(Line(GOOD, "model", f"{text} are trained"))
    found.add(*adapter_lines(written, model))
    found.add(*token_lines(run, recipe, model, found.estimates.get("data", {}).get("longest")))
    examine_disk(found, run, parameters.trained, saved_bytes(model, run))
    examine_memory(found, written, run, plan, recipe, model)


def saved_bytes(model: Any, run: RunArguments) -> int:
    """Of the weights in a checkpoint: adapters alone, or all; DeepSpeed saves them in the compute dtype."""
    kept = [p for p in model.parameters() if p.requires_grad or run.finetuning.finetuning_type != "lora"]
    size = (run.model.compute_dtype or torch.float32).itemsize if run.training.deepspeed else None
    return sum(parameter.numel() * (size or parameter.element_size()) for parameter in kept)


def examine_disk(found: Examination, run: RunArguments, trained: int, weights: int) -> None:
    """Whether the checkpoints fit where they go. trained: parameters. weights: bytes of them in a checkpoint."""
    if not run.training.do_train:
        return
    folder = Path(run.training.output_dir)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    saves = str(run.training.save_strategy) not in ("no", "SaveStrategy.NO")
    # Masters and two moments in float32; where there are no checkpoints, the model at the end.
    each = weights + (trained * 8 if saves and not run.training.save_only_model else 0)
    # While one is written, the one that it takes the place of is still there; then the model at the end.
    limit = run.training.save_total_limit
    wanted = each * ((limit or 5) + 1) + weights if saves else weights
    free = shutil.disk_usage(existing).free
    what = "a checkpoint" if saves else "the model at the end"
    text = f"{what} takes {gib(each)}; {gib(free)} are free in {existing}"
    if free >= wanted:
        found.add(Line(GOOD, "disk", text))
        return
    kept = f"with {f'save_total_limit {limit}' if limit else 'no save_total_limit'} {gib(wanted)} may be needed: "
    advice = "free some, write to another output_dir, lower save_total_limit, or set save_only_model: true."
    level = NOTE if limit is None and free > 2 * each else WRONG
    found.add(Line(level, "disk", f"{text}: {kept if saves else ''}{advice}"))


def finish(found: Examination, json_file: Path | None) -> int:
    """The last line, the JSON file, the exit code."""
    num_wrong = sum(line.level == WRONG for line in found.lines)
    num_notes = sum(line.level == NOTE for line in found.lines)
    num_skipped = sum(line.level == SKIPPED for line in found.lines)
    notes = f"; {num_notes} note{'s' if num_notes != 1 else ''}" if num_notes else ""
    notes += f"; {num_skipped} not looked at (skip)" if num_skipped else ""
    what = "fault" if num_wrong == 1 else "faults"
    print(f"{num_wrong} {what} found{notes}" if num_wrong else f"nothing is wrong{notes}")
    if json_file is not None:
        result = {
            "ok": not num_wrong,
            "skipped": num_skipped,
            "recipe": found.config,
            "findings": [line.as_dict() for line in found.lines],
            "estimates": found.estimates,
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(json_file)
    return 1 if num_wrong else 0
