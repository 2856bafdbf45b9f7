"""The YAML keys about data that every stage of ours reads, with their meanings.

In: what the user wrote. Out: `LcotDataArguments` (part of LLaMA-Factory's DataArguments).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lcot_plugin.errors import ArgumentError


def _key(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


# Read by HfArgumentParser at run time: see GrpoArguments.
@dataclass
class LcotDataArguments:
    """What becomes of long-CoT responses, of records that are too long and of those that cannot be used."""

    cot_format: Literal["think_boxed", "think_answer", "native"] = _key(
        "think_boxed",
        "How thought and answer are written, in data sets with an `lcot_...` formatting and in the system prompt of "
        "`..._lcot` templates: `think_boxed` (<think>...</think> and \\boxed{}), `think_answer` (<think>...</think> "
        "and <answer>...</answer>), or `native` (the thinking format of the model's family).",
    )
    malformed_trace_policy: Literal["keep", "repair", "drop"] = _key(
        "repair",
        "Responses of `lcot_...` data sets whose thought never closes, that state no answer, or whose answer "
        "contradicts the gold answer: `keep` them, `repair` what can be repaired and leave out the rest, or `drop` "
        "them all.",
    )
    overlong_policy: Literal["drop", "error", "truncate"] = _key(
        "drop",
        "Records longer than cutoff_len, in SFT and GRPO: leave them out whole and say so (`drop`), stop (`error`), or "
        "shorten the thought so that images, answer and end token stay whole (`truncate`, SFT; what cannot be "
        "shortened so is left out).",
    )
    bad_record_policy: Literal["drop", "error"] = _key(
        "drop",
        "Records that cannot be used (missing or broken image, wrong number of <image>, no gold answer...), in SFT and "
        "GRPO: leave them out and say so (`drop`), or stop and name them (`error`).",
    )


def check_choices(arguments: Any, group: type) -> None:
    """Raises ArgumentError for a value that is none of its choices: LLaMA-Factory does not check a YAML file's.

    `group`: the dataclass among the bases of `arguments` whose keys are checked.
    """
    hints = get_type_hints(group)
    for item in fields(group):
        if get_origin(hints[item.name]) is not Literal:
            continue
        choices = get_args(hints[item.name])
        if getattr(arguments, item.name) not in choices:
            raise ArgumentError(f"{item.name}: {getattr(arguments, item.name)!r} must be one of {', '.join(choices)}.")
