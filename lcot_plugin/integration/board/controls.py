"""The controls that the plugin adds to LLaMA Board: which there are, what they start as, and when they apply.

In:  the dataclasses of our YAML keys, whose defaults and choices are the controls'.
Out: `BOXES`, the accordions with their rows of `Control`s. Consumers: `panels` makes components of them, `arguments`
     makes YAML keys of what they hold, `texts` must name each of them.

A control that does not apply is not shown and writes nothing: the keys of vLLM stand there with the engine vLLM only.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lcot_plugin.arguments import SAMPLING_DEFAULTS, GrpoArguments
from lcot_plugin.data_arguments import LcotDataArguments
from lcot_plugin.packing_arguments import PackingArguments

Values = Mapping[str, Any]
"""What the components hold, by the controls' names; also `stage` (LLaMA-Factory's word) and `tracks`, whether a tracker
is chosen."""


def always(values: Values) -> bool:
    """The rule of what applies wherever the accordion around it does."""
    return True


Kind = Literal["whole", "number", "text", "flag", "choice", "choices"]

KEY_GROUPS = (GrpoArguments, LcotDataArguments, PackingArguments)
OBJECTIVES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo")
ADVANTAGES = ("group", "rloo", "reinforce_pp", "reinforce_pp_baseline")
MAX_NEW_TOKENS = 1024
"""LLaMA-Factory's default."""


@dataclass(frozen=True)
class Control:
    """One component that stands for one YAML key."""

    name: str
    """Of the component in the Board's manager, below `train.`; its texts have this name too."""
    key: str
    """In YAML."""
    kind: Kind
    """`whole` and `number` are written into a text field, which may hold 1e-6; `choices` is a list."""
    default: Any
    """Of the key; None for one that may be empty. A control at its default writes no key."""
    choices: tuple[str, ...] = ()
    custom: bool = False
    """Whether other values than `choices` can be written."""
    applies: Callable[[Values], bool] = always
    """Whether the key is read, as far as the other controls say."""
    wide: bool = False

    @property
    def start(self) -> Any:
        """What the component holds at first."""
        if self.kind == "choices":
            return [self.default] if self.default else []
        if self.kind == "flag":
            return self.default
        return "" if self.default is None else str(self.default)


@dataclass(frozen=True)
class Box:
    """An accordion."""

    name: str
    rows: tuple[tuple[Control, ...], ...]
    boxes: tuple[Box, ...] = ()
    applies: Callable[[Values], bool] = always

    def controls(self) -> Iterator[Control]:
        for row in self.rows:
            yield from row
        for box in self.boxes:
            yield from box.controls()


@dataclass(frozen=True)
class _Declared:
    """A key as its dataclass declares it."""

    kind: Kind
    default: Any
    choices: tuple[str, ...] = ()


def _declared_keys() -> dict[str, _Declared]:
    kinds: dict[Any, Kind] = {int: "whole", float: "number", str: "text", bool: "flag"}
    found = {}
    for group in KEY_GROUPS:
        hints = get_type_hints(group)
        for item in fields(group):
            hint = hints[item.name]
            if get_origin(hint) in (Union, types.UnionType):
                (hint,) = (part for part in get_args(hint) if part is not type(None))
            if get_origin(hint) is Literal:
                choices = ("", *get_args(hint)) if item.default is None else get_args(hint)
                found[item.name] = _Declared("choice", item.default, choices)
            else:
                found[item.name] = _Declared(kinds[hint], item.default)
    return found


DECLARED = _declared_keys()
"""Key -> how it is written and what it is where it is not written."""
LITERAL_CHOICES = {key: tuple(filter(None, declared.choices)) for key, declared in DECLARED.items() if declared.choices}
"""Key -> the only values that it takes."""


def _key(key: str, applies: Callable[[Values], bool] = always, **changes: Any) -> Control:
    declared = DECLARED[key]
    made = {"kind": declared.kind, "default": declared.default, "choices": declared.choices, **changes}
    return Control(key, key, applies=applies, **made)


def _theirs(key: str, kind: Kind, default: Any, applies: Callable[[Values], bool] = always) -> Control:
    """A key of LLaMA-Factory's; its component's name must differ from those that the Board has."""
    return Control(f"grpo_{key}", key, kind, default, applies=applies)


def whole_of(value: Any) -> str:
    """A text field's content without blanks around it."""
    return str("" if value is None else value).strip()


def is_nonzero(value: Any) -> bool:
    """Whether a number's text is that of another number than 0; a text that is none is left to be complained of."""
    try:
        return float(whole_of(value) or 0) != 0
    except ValueError:
        return True


def num_rewards(values: Values) -> int:
    return len(values["grpo_reward_funcs"] or ()) + bool(whole_of(values["grpo_custom_reward"]))


# When a control applies. An objective in a file of the user's may read everything that the shipped ones read.
def _is_clipped(values: Values) -> bool:
    return values["grpo_loss_type"] not in ("gspo", "cispo", "sapo")


def _reads_epsilon(values: Values) -> bool:
    bound = values["grpo_loss_type"] == "cispo" and whole_of(values["grpo_epsilon_high"])
    return values["grpo_loss_type"] != "sapo" and not bound


def _has_reference(values: Values) -> bool:
    return is_nonzero(values["grpo_beta"])


def _is_vllm(values: Values) -> bool:
    return values["grpo_rollout_engine"] == "vllm"


def _starts_vllm(values: Values) -> bool:
    return _is_vllm(values) and not (whole_of(values["grpo_vllm_url"]) and not whole_of(values["grpo_vllm_python"]))


def _sums(values: Values) -> bool:
    return num_rewards(values) < 2 or values["grpo_multi_objective_aggregation"] == "sum_then_normalize"


def _scales(values: Values) -> bool:
    return _sums(values) and values["grpo_advantage"] not in ADVANTAGES[1:]


def _tracks(values: Values) -> bool:
    return bool(values["tracks"])


def _is_sft(values: Values) -> bool:
    return values["stage"] == "sft"


def _packs(values: Values) -> bool:
    return _is_sft(values) and bool(values["length_aware_packing"])


GRPO_BOX = Box(
    "grpo_tab",
    (
        (
            _key("grpo_num_generations"),
            _theirs("max_new_tokens", "whole", MAX_NEW_TOKENS),
            _key("grpo_loss_type", kind="choice", choices=OBJECTIVES, custom=True),
            _key("grpo_beta"),
        ),
        (
            _key("grpo_reward_funcs", kind="choices", custom=True, wide=True),
            Control("grpo_custom_reward", "grpo_reward_funcs", "text", None),
            _key("grpo_reward_weights"),
        ),
    ),
    (
        Box(
            "grpo_sampling_tab",
            (
                (
                    _theirs("temperature", "number", SAMPLING_DEFAULTS["temperature"]),
                    _theirs("top_p", "number", SAMPLING_DEFAULTS["top_p"]),
                    _theirs("top_k", "whole", SAMPLING_DEFAULTS["top_k"]),
                    _key("grpo_min_p"),
                ),
                (
                    _theirs("repetition_penalty", "number", 1.0),
                    _key("grpo_stop_strings"),
                    _key("grpo_rollout_batch_size"),
                ),
            ),
        ),
        Box(
            "grpo_advantage_tab",
            (
                (
                    _key("grpo_advantage", _sums, kind="choice", choices=ADVANTAGES, custom=True),
                    _key("grpo_scale_rewards", _scales),
                    _key("grpo_multi_objective_aggregation", lambda values: num_rewards(values) > 1),
                ),
                (_key("grpo_reward_errors"), _key("grpo_reward_deadline")),
            ),
        ),
        Box(
            "grpo_objective_tab",
            (
                (
                    _key("grpo_epsilon", _reads_epsilon),
                    _key("grpo_epsilon_high", lambda values: values["grpo_loss_type"] != "sapo"),
                    _key("grpo_delta", _is_clipped),
                    _key("grpo_sapo_temperature_pos", lambda values: values["grpo_loss_type"] == "sapo"),
                    _key("grpo_sapo_temperature_neg", lambda values: values["grpo_loss_type"] == "sapo"),
                ),
                (_key("grpo_importance_sampling_level", _is_clipped), _key("grpo_loss_aggregation")),
                (_key("grpo_num_iterations"), _key("grpo_steps_per_generation"), _key("grpo_mask_truncated")),
                (_key("grpo_entropy_coef"), _key("grpo_top_entropy_quantile"), _key("grpo_llds_coef")),
            ),
        ),
        Box(
            "grpo_kl_tab",
            (
                (
                    _key("grpo_kl_estimator"),
                    _key("grpo_kl_in"),
                    _theirs("ref_model", "text", None),
                    _key("grpo_ref_sync_steps"),
                    _key(
                        "grpo_ref_mixup_alpha",
                        lambda values: _has_reference(values) and bool(whole_of(values["grpo_ref_sync_steps"])),
                    ),
                ),
            ),
            applies=_has_reference,
        ),
        Box(
            "grpo_prompts_tab",
            (
                (
                    _key("grpo_dynamic_sampling"),
                    _key("grpo_dynamic_sampling_rounds", lambda values: bool(values["grpo_dynamic_sampling"])),
                    _key("grpo_replay_groups"),
                ),
                (_key("grpo_min_pass_rate"), _key("grpo_max_pass_rate"), _key("grpo_curriculum")),
            ),
        ),
        Box(
            "grpo_engine_tab",
            (
                (
                    _key("grpo_rollout_engine"),
                    _key("grpo_sampler_correction"),
                    _key(
                        "grpo_sampler_correction_cap",
                        lambda values: values["grpo_sampler_correction"] != "none",
                    ),
                    _key("grpo_async_rollouts", _is_vllm),
                ),
                (_key("grpo_vllm_python", _is_vllm, wide=True), _key("grpo_vllm_url", _is_vllm, wide=True)),
                (
                    _key("grpo_vllm_devices", _starts_vllm),
                    _key("grpo_vllm_tensor_parallel", _starts_vllm),
                    _key("grpo_vllm_memory", _starts_vllm),
                    _key("grpo_vllm_start_timeout", _starts_vllm),
                    _key("grpo_vllm_args", _starts_vllm, wide=True),
                ),
                (
                    _key("grpo_vllm_sync", _is_vllm),
                    _key("grpo_vllm_weights_dir", _is_vllm),
                    _key("grpo_vllm_timeout", _is_vllm),
                    _key("grpo_vllm_retries", _is_vllm),
                    _key("grpo_vllm_api_key_env", _is_vllm),
                ),
            ),
        ),
        Box(
            "grpo_update_tab",
            (
                (
                    _key("grpo_update_layout"),
                    _key("grpo_micro_batch_tokens", lambda values: values["grpo_update_layout"] != "rows"),
                    _key("grpo_logits_chunk_size"),
                    _key("grpo_max_skipped_steps"),
                ),
            ),
        ),
        Box(
            "grpo_log_tab",
            (
                (
                    Control("grpo_eval_dataset", "eval_dataset", "choices", None, custom=True, wide=True),
                    _key("grpo_eval_generations"),
                ),
                (
                    _key("grpo_log_completions"),
                    _key("grpo_log_token_log_probs", lambda values: bool(values["grpo_log_completions"])),
                    _key("grpo_log_completions_to_trackers", _tracks),
                    _key(
                        "grpo_tracker_completions_steps",
                        lambda values: _tracks(values) and is_nonzero(values["grpo_log_completions_to_trackers"]),
                    ),
                ),
            ),
        ),
    ),
    applies=lambda values: values["stage"] == "grpo",
)

DATA_BOX = Box(
    "lcot_data_tab",
    (
        (
            _key("cot_format"),
            _key("malformed_trace_policy"),
            _key("overlong_policy"),
            _key("bad_record_policy"),
        ),
        (
            _key("length_aware_packing", _is_sft),
            _key("pack_max_tokens", _packs),
            _key("pack_max_patches", _packs),
        ),
        (_key("pack_mode", _packs), _key("pack_cost", _packs), _key("pack_loss_weighting", _packs)),
    ),
    applies=lambda values: values["stage"] in ("sft", "grpo"),
)

BOXES = (GRPO_BOX, DATA_BOX)


def _all_boxes(boxes: tuple[Box, ...]) -> Iterator[Box]:
    for box in boxes:
        yield box
        yield from _all_boxes(box.boxes)


SWITCHES = (
    "grpo_loss_type",
    "grpo_epsilon_high",
    "grpo_beta",
    "grpo_ref_sync_steps",
    "grpo_reward_funcs",
    "grpo_custom_reward",
    "grpo_multi_objective_aggregation",
    "grpo_advantage",
    "grpo_dynamic_sampling",
    "grpo_rollout_engine",
    "grpo_vllm_python",
    "grpo_vllm_url",
    "grpo_sampler_correction",
    "grpo_update_layout",
    "grpo_log_completions",
    "grpo_log_completions_to_trackers",
    "length_aware_packing",
)
"""The controls that decide whether others apply, beside `stage` and `tracks`."""

CONTROLS = {control.name: control for box in BOXES for control in box.controls()}
ALL_BOXES = {box.name: box for box in _all_boxes(BOXES)}


def shown(values: Values) -> dict[str, bool]:
    """Name -> whether the control or box is shown; what stands in a box that is not, does not apply either."""
    result: dict[str, bool] = {}

    def visit(box: Box, outer: bool) -> None:
        result[box.name] = inner = outer and box.applies(values)
        for row in box.rows:
            for control in row:
                result[control.name] = inner and control.applies(values)
        for below in box.boxes:
            visit(below, inner)

    for box in BOXES:
        visit(box, True)
    return result
