"""Values of a recipe that LLaMA-Factory's parser lets through."""

from __future__ import annotations

from typing import Literal

import pytest

from lcot_plugin.integration.recipe_doctor.values import fault, value_lines


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cutoff_len", "ten", "must be a number"),
        ("cutoff_len", 0, "must be at least 1"),
        ("cutoff_len", 10.5, "must be a whole number"),
        ("gradient_accumulation_steps", 0, "must be at least 1"),
        ("grpo_num_generations", "ten", "must be a number"),
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", True, "must be a number"),
        ("do_train", "maybe", "must be true or false"),
        ("do_train", 1, "must be true or false"),
        ("stage", "foo", "must be one of pt, sft, rm, ppo, dpo, kto, grpo"),
        ("flash_attn", "spda", "did you mean sdpa?"),
        ("template", "qwen2_vll", "did you mean qwen2_vl"),
        ("template", "zzz", "docs/families.md"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(key: str, value: object, said: str) -> None:
    (line,) = value_lines({key: value})
    assert line.text.startswith(f"{key}: ") and said in line.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1),
        ("cutoff_len", 512.0),
        ("cutoff_len", None),
        ("save_strategy", "no"),
        ("save_steps", 0.5),
        ("report_to", ["none"]),
        ("dataset", "a,b"),
        ("flash_attn", "fa2"),
        ("deepspeed", {"zero_optimization": {}}),
        ("warmup_steps", 0.1),
        ("template", "qwen2_vl_lcot"),
        ("no_such_key", "x"),
    ],
)
def test_values_that_are_right_are_left_alone(key: str, value: object) -> None:
    assert value_lines({key: value}) == []


def test_only_plain_annotations_are_judged() -> None:
    assert fault("x", dict[str, int] | None) is None
    assert fault("x", int | str) is None
    assert fault("x", Literal["y"] | str) is None
    assert fault("x", Literal["y"] | None) == "must be one of y"
