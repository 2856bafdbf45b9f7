"""How every run was made: arguments, versions, hardware, as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lcot_plugin.report.page import Html, Section, chips, count, folded, join, listed, paragraph, shortened, table, tag
from lcot_plugin.report.sections.facts import run_facts
from lcot_plugin.report.subjects import Subject

GROUPS = (
    (
        "Model",
        (
            "model",
            "adapter",
            "template",
            "finetuning",
            "lora",
            "freeze",
            "quantization",
            "flash",
            "use_",
            "image_",
            "video_",
        ),
    ),
    (
        "Data",
        (
            "dataset",
            "eval_dataset",
            "media",
            "cutoff",
            "max_samples",
            "preprocessing",
            "cot_",
            "overlong",
            "bad_",
            "malformed",
            "mix_",
            "pack",
            "length_",
            "tokenized",
            "streaming",
            "val_size",
        ),
    ),
    ("GRPO", ("grpo_", "stage")),
    ("Sampling", ("temperature", "top_", "max_new_tokens", "repetition", "do_sample", "max_length")),
    (
        "Training",
        (
            "learning",
            "lr_",
            "per_device",
            "gradient",
            "num_train",
            "max_steps",
            "warmup",
            "max_grad",
            "optim",
            "weight_decay",
            "adam",
            "bf16",
            "fp16",
            "seed",
            "deepspeed",
            "fsdp",
            "ddp",
            "disable_gradient",
        ),
    ),
)
"""Heading, beginnings of the keys; what fits none is "Everything else"."""
OTHER = "Everything else"


def section(subjects: Sequence[Subject]) -> Section:
    """Always there: a run that kept no record of itself is said to."""
    if len(subjects) == 1:
        return Section("configuration", "Configuration", _of_run(subjects[0]))
    body = (folded(subject.name, chips(run_facts(subject)), _of_run(subject)) for subject in subjects)
    return Section("configuration", "Configuration", join(body))


def _of_run(subject: Subject) -> Html:
    record = subject.run.record
    folder = paragraph("Folder: ", tag("code", str(subject.run.folder)), class_="note")
    if not record:
        words = "This run kept no run.json, as earlier versions and LLaMA-Factory alone: its arguments are not known."
        return join([folder, paragraph(words)])
    arguments = record.get("arguments") or {}
    parts: list[object] = [folder]
    for title, keys in grouped(arguments):
        rows = [(key, value_cell(arguments[key])) for key in keys]
        parts.append(tag("h3", title))
        parts.append(table(("key", "value"), rows, label=f"Arguments: {title}", words=(0, 1), class_="arguments"))
    words = f"{count(len(arguments), 'argument')}: those that were written, or that differ from the defaults."
    parts.append(paragraph(words, class_="note"))
    plan = record.get("plan")
    if isinstance(plan, dict) and plan:
        rows = [(str(key).replace("_", " "), value_cell(value)) for key, value in plan.items()]
        parts += [tag("h3", "Plan"), table(("what", "value"), rows, label="Plan", words=(0, 1), class_="arguments")]
    parts += [tag("h3", "Versions and hardware"), _machine(record)]
    return join(parts)


def _machine(record: dict[str, Any]) -> Html:
    rows: list[tuple[str, Html]] = []
    versions, hardware = record.get("versions"), record.get("hardware")
    if isinstance(hardware, dict):
        rows += [(str(key).replace("_", " "), value_cell(value)) for key, value in hardware.items()]
    if isinstance(versions, dict):
        rows += [(str(name), value_cell(version)) for name, version in versions.items()]
    if not rows:
        return paragraph("Not recorded.")
    return table(("what", "value"), rows, label="Versions and hardware", words=(0, 1), class_="arguments")


def grouped(arguments: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Keys under their headings, in the order in which they were written."""
    found: dict[str, list[str]] = {title: [] for title in (*(title for title, _ in GROUPS), OTHER)}
    for key in arguments:
        title = next((title for title, starts in GROUPS if str(key).startswith(starts)), OTHER)
        found[title].append(key)
    return [(title, keys) for title, keys in found.items() if keys]


def value_cell(value: Any) -> Html:
    """A value of YAML or JSON as a person writes it."""
    return tag("code", shortened(value_text(value)))


def value_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return listed([str(part) for part in value], 24)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        counts = Counter(", ".join(f"{key} {inner}" for key, inner in part.items()) for part in value)
        return "; ".join(f"{number} x {text}" if number > 1 else text for text, number in counts.items())
    if isinstance(value, dict | list | bool) or value is None:
        return json.dumps(value, ensure_ascii=False)
    return str(value)
