"""Seam: `llamafactory.webui.runner`. Adds the GRPO stage to LLaMA Board, and gives it the arguments that it runs with.

In:  the arguments that the Board collects from its components, which are SFT's for every stage that it does not know.
Out: those of `stage: grpo`, for the previewed command and for the YAML file that Start writes and trains from.

The Board's other modules take the stages from the one dictionary `TRAINING_STAGES`, when its page is built, and list
for GRPO the data sets without preference pairs. Can go when stages can be registered there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from types import ModuleType
from typing import Any

from lcot_plugin.arguments import SAMPLING_DEFAULTS, GrpoArguments
from lcot_plugin.integration.refusals import REFUSED, WARNED

STAGE_LABEL = "GRPO"
"""The stage in the Board's list; its saved configurations hold this name."""

# Prompts are never concatenated, and have no labels: LLaMA-Factory refuses these three outside SFT.
SFT_KEYS = frozenset({"neat_packing", "train_on_prompt", "mask_history"}) | {
    setting.key for setting in (*REFUSED, *WARNED) if setting.of_sft
}
"""Keys that the Board writes for every stage, and that are refused or without effect in stage grpo."""

MAX_NEW_TOKENS = 1024
"""LLaMA-Factory's own default, written out since it bounds the time and memory of a step more than any other key."""


def apply(module: ModuleType) -> None:
    """Adds the stage, and wraps `Runner._parse_train_args`."""
    module.TRAINING_STAGES[STAGE_LABEL] = "grpo"
    original = module.Runner._parse_train_args

    def _parse_train_args(self: Any, data: dict[Any, Any]) -> dict[str, Any]:
        args = original(self, data)
        if args["stage"] != "grpo":
            return args
        written = json.loads(data[self.manager.get_elem_by_id("train.extra_args")])
        return grpo_arguments(args, written)

    module.Runner._parse_train_args = _parse_train_args


def grpo_arguments(args: dict[str, Any], written: Collection[str]) -> dict[str, Any]:
    """The Board's arguments without those of SFT, and with the keys that decide a GRPO run.

    Args:
        args: what the Board made of its components and of its box for extra arguments.
        written: keys that the user wrote into that box; they stay as they are.
    """
    kept = {key: value for key, value in args.items() if key not in SFT_KEYS or key in written}
    micro_steps = args.get("grpo_steps_per_generation") or args["gradient_accumulation_steps"]
    defaults = {
        "grpo_num_generations": default_group_size(args["per_device_train_batch_size"] * micro_steps),
        "grpo_reward_funcs": GrpoArguments.grpo_reward_funcs,
        "max_new_tokens": MAX_NEW_TOKENS,
        **SAMPLING_DEFAULTS,
    }
    return {**kept, **{key: value for key, value in defaults.items() if key not in kept}}


def default_group_size(num_completions: int) -> int:
    """The group size nearest to the usual one that divides `num_completions`, those of one process and one rollout.

    Example: 8 for the Board's 2 x 8 completions, 6 for 12. A single completion makes no group: the usual size is
    returned, and the run stops with what to write instead.
    """
    usual = GrpoArguments.grpo_num_generations
    divisors = (size for size in range(2, num_completions + 1) if num_completions % size == 0)
    return min(divisors, key=lambda size: abs(size - usual), default=usual)
