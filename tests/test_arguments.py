import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.arguments import GRPO_KEYS, BatchPlan, GrpoArguments, plan_batches
from lcot_plugin.errors import ArgumentError


def test_defaults_are_valid():
    GrpoArguments().check_grpo()
    GrpoArguments().check_grpo(training=False)


def test_keys_are_prefixed_and_explained():
    """They are flattened into LLaMA-Factory's arguments, whose names they must not meet."""
    assert all(key.startswith("grpo_") for key in GRPO_KEYS)
    for item in dataclasses.fields(GrpoArguments):
        assert len(item.metadata["help"]) > 20, item.name


def test_a_yaml_is_parsed_with_its_types():
    """HfArgumentParser reads the annotations: optional numbers and choices among them."""
    from transformers import HfArgumentParser

    yaml = {
        "grpo_num_generations": 4,
        "grpo_steps_per_generation": 8,
        "grpo_epsilon_high": 0.28,
        "grpo_loss_type": "dr_grpo",
        "grpo_mask_truncated": True,
    }
    (arguments,) = HfArgumentParser(GrpoArguments).parse_dict(yaml)
    assert {key: getattr(arguments, key) for key in yaml} == yaml
    command_line = [
        "--grpo_loss_aggregation",
        "token",
        "--grpo_delta",
        "4.0",
        "--grpo_rollout_batch_size",
        "16",
        "--grpo_reward_weights",
        "1.0,0.2",
    ]
    (arguments,) = HfArgumentParser(GrpoArguments).parse_args_into_dataclasses(command_line)
    assert (arguments.grpo_delta, arguments.grpo_rollout_batch_size) == (4.0, 16)
    assert arguments.reward_weights() == [1.0, 0.2]
    assert arguments.grpo_loss_aggregation == "token"
    with pytest.raises(SystemExit):
        HfArgumentParser(GrpoArguments).parse_args_into_dataclasses(["--grpo_loss_aggregation", "mean"])


VLLM = {"grpo_rollout_engine": "vllm", "grpo_vllm_url": "http://localhost:8000"}
WRONG = [
    ({"grpo_num_generations": 1}, "grpo_num_generations: 1", "write 2 or more"),
    ({"grpo_num_iterations": 0}, "grpo_num_iterations: 0", "at least 1"),
    ({"grpo_logits_chunk_size": 0}, "grpo_logits_chunk_size: 0", "at least 1"),
    ({"grpo_beta": -0.1}, "grpo_beta: -0.1", "not be negative"),
    ({"grpo_loss_aggregation": "mean"}, "grpo_loss_aggregation: 'mean'", "must be one of sequence, micro_batch"),
    ({"grpo_update_layout": "padded"}, "grpo_update_layout: 'padded'", "must be one of auto, packed, rows"),
    ({"grpo_micro_batch_tokens": 0}, "grpo_micro_batch_tokens: 0", "at least 1, or left out"),
    ({"grpo_ref_sync_steps": 0}, "grpo_ref_sync_steps: 0", "at least 1, or left out"),
    ({"grpo_dynamic_sampling_rounds": 0}, "grpo_dynamic_sampling_rounds: 0", "at least 1"),
    ({"grpo_replay_groups": -1}, "grpo_replay_groups: -1", "not be negative"),
    ({"grpo_min_pass_rate": 20}, "grpo_min_pass_rate: 20", "between 0 and 1"),
    ({"grpo_min_pass_rate": 0.9, "grpo_max_pass_rate": 0.1}, "grpo_min_pass_rate: 0.9", "no prompt lies between"),
    ({"grpo_min_p": 1.5}, "grpo_min_p: 1.5", "must lie in"),
    ({"grpo_eval_generations": -1}, "grpo_eval_generations: -1", "not be negative"),
    ({"grpo_steps_per_generation": 0}, "grpo_steps_per_generation: 0", "at least 1, or left out"),
    ({"grpo_rollout_batch_size": 0}, "grpo_rollout_batch_size: 0", "at least 1, or left out"),
    ({"grpo_reward_errors": "ignore"}, "grpo_reward_errors: 'ignore'", "must be one of stop, skip"),
    ({"grpo_reward_deadline": 0.0}, "grpo_reward_deadline: 0.0", "more than 0 seconds"),
    ({"grpo_epsilon": 0.0}, "grpo_epsilon: 0.0", "between 0 and 1"),
    ({"grpo_epsilon": 1.0}, "grpo_epsilon: 1.0", "0.2 is usual"),
    ({"grpo_epsilon_high": 0.0}, "grpo_epsilon_high: 0.0", "0.28 in DAPO"),
    ({"grpo_delta": 1.2}, "grpo_delta: 1.2", "must exceed 1 + epsilon_high = 1.2"),
    ({"grpo_delta": 1.25, "grpo_epsilon_high": 0.5}, "grpo_delta: 1.25", "must exceed 1 + epsilon_high = 1.5"),
    ({"grpo_top_entropy_quantile": 0.0}, "grpo_top_entropy_quantile: 0.0", "must lie in (0, 1]"),
    ({"grpo_top_entropy_quantile": 1.01}, "grpo_top_entropy_quantile: 1.01", "must lie in (0, 1]"),
    ({"grpo_reward_funcs": " , "}, "grpo_reward_funcs", "grpo_reward_funcs: accuracy"),
    ({"grpo_reward_weights": "1.0,high"}, "grpo_reward_weights: '1.0,high'", "grpo_reward_weights: 1.0,0.2"),
    ({"grpo_reward_weights": "1.0,0.2"}, "grpo_reward_weights has 2 weights", "one weight per function"),
    ({"grpo_rollout_engine": "sglang"}, "grpo_rollout_engine: 'sglang'", "must be one of transformers, vllm"),
    ({"grpo_vllm_url": "http://localhost:8000"}, "grpo_vllm_url needs", "grpo_rollout_engine: vllm"),
    ({"grpo_async_rollouts": True}, "grpo_async_rollouts needs", "grpo_rollout_engine: vllm"),
    ({"grpo_rollout_engine": "vllm"}, "needs either grpo_vllm_python", "grpo_vllm_url"),
    ({**VLLM, "grpo_vllm_python": "python"}, "needs either grpo_vllm_python", "not both"),
    ({**VLLM, "grpo_vllm_url": "localhost:8000"}, "'localhost:8000'", "must begin with http://"),
    ({**VLLM, "grpo_vllm_timeout": 0.0}, "grpo_vllm_timeout: 0.0", "more than 0"),
    ({**VLLM, "grpo_vllm_retries": -1}, "grpo_vllm_retries: -1", "not be negative"),
    ({**VLLM, "grpo_vllm_memory": 40}, "grpo_vllm_memory: 40", "must lie in (0, 1]"),
    ({**VLLM, "grpo_async_rollouts": True}, "an older policy", "grpo_sampler_correction: token_truncate"),
]


@pytest.mark.parametrize(("settings", "names_the_key", "says_what_to_write"), WRONG)
def test_errors_name_the_key_and_what_to_write(settings, names_the_key, says_what_to_write):
    with pytest.raises(ArgumentError, match=re.escape(names_the_key)) as error:
        GrpoArguments(**settings).check_grpo()
    assert says_what_to_write in str(error.value)


def test_values_at_the_edge_are_allowed():
    GrpoArguments(
        grpo_num_generations=2,
        grpo_num_iterations=1,
        grpo_epsilon=0.999,
        grpo_epsilon_high=3.0,
        grpo_delta=4.01,
        grpo_top_entropy_quantile=1.0,
        grpo_steps_per_generation=1,
        grpo_rollout_batch_size=1,
        grpo_eval_generations=0,
        grpo_reward_deadline=0.1,
    ).check_grpo()


def test_servers():
    GrpoArguments(**VLLM, grpo_async_rollouts=True, grpo_sampler_correction="token_mask").check_grpo()
    several = GrpoArguments(**{**VLLM, "grpo_vllm_url": "http://a:8000/, https://b"})
    several.check_grpo()
    assert several.vllm_urls() == ["http://a:8000", "https://b"]
    assert GrpoArguments(grpo_vllm_url=["http://a:1", "http://b:2"]).vllm_urls() == ["http://a:1", "http://b:2"]


def test_an_evaluation_needs_no_group():
    GrpoArguments(grpo_num_generations=1).check_grpo(training=False)


def test_reward_functions_and_weights():
    arguments = GrpoArguments(grpo_reward_funcs="accuracy, rewards/mine.py:brevity,", grpo_reward_weights="1, 0.25")
    assert arguments.reward_functions() == ["accuracy", "rewards/mine.py:brevity"]
    assert arguments.reward_weights() == [1.0, 0.25]
    arguments.check_grpo()
    assert GrpoArguments().reward_weights() is None
    # YAML makes a number of a single weight.
    assert GrpoArguments(grpo_reward_weights=2.0).reward_weights() == [2.0]


@pytest.mark.parametrize(
    "written",
    [
        "accuracy, f(a=1, b=(2, 3)), g(text='a), b')@number|time",
        ["accuracy", "f(a=1, b=(2, 3))", "g(text='a), b')@number|time"],
        # A flow sequence of YAML without quotes is cut at every comma.
        ["accuracy", "f(a=1", "b=(2", "3))", "g(text='a)", "b')@number|time"],
    ],
)
def test_commas_in_the_parameters_of_a_reward_divide_nothing(written):
    specs = [spec.replace(", ", ",") for spec in GrpoArguments(grpo_reward_funcs=written).reward_functions()]
    assert specs == ["accuracy", "f(a=1,b=(2,3))", "g(text='a),b')@number|time"]


def test_a_bracket_that_never_closes_is_left_to_the_reader_of_specs():
    assert GrpoArguments(grpo_reward_funcs="accuracy,f(a=1,b").reward_functions() == ["accuracy", "f(a=1,b"]
    assert GrpoArguments(grpo_reward_funcs="o'neil.py:f,accuracy").reward_functions() == ["o'neil.py:f", "accuracy"]


def test_reward_functions_and_weights_as_yaml_lists():
    arguments = GrpoArguments(grpo_reward_funcs=["accuracy", " my, rewards.py:brevity "], grpo_reward_weights=[1, 0.25])
    assert arguments.reward_functions() == ["accuracy", "my, rewards.py:brevity"]
    assert arguments.reward_weights() == [1.0, 0.25]
    arguments.check_grpo()
    with pytest.raises(ArgumentError, match="grpo_reward_funcs is empty"):
        GrpoArguments(grpo_reward_funcs=[]).check_grpo()
    with pytest.raises(ArgumentError, match=r"grpo_reward_weights: .* is not a list of numbers"):
        GrpoArguments(grpo_reward_weights=["high"]).check_grpo()


# --- batches ----------------------------------------------------------------------------------------------------------


def plan(batch_size, accumulation, world_size=1, **settings):
    return plan_batches(GrpoArguments(**settings), batch_size, accumulation, world_size)


def test_plan_of_the_example():
    """4 completions per device, 4 accumulation steps, 2 processes, groups of 8."""
    batches = plan(4, 4, world_size=2)
    assert batches == BatchPlan(4, 4, 1, 8, 2)
    assert (batches.prompts_per_rank, batches.prompts_per_rollout, batches.micro_steps_per_rollout) == (2, 4, 4)


def test_plan_of_several_updates_per_rollout():
    batches = plan(4, 2, grpo_steps_per_generation=8, grpo_num_iterations=3, grpo_num_generations=16)
    assert (batches.prompts_per_rank, batches.micro_steps_per_rollout) == (2, 24)


def test_an_optimizer_step_cannot_straddle_rollouts():
    with pytest.raises(ArgumentError, match=r"grpo_steps_per_generation: 6 must be a multiple .*\(4\)"):
        plan(4, 4, grpo_steps_per_generation=6)


def test_an_indivisible_batch_is_told_what_would_do():
    with pytest.raises(ArgumentError) as error:
        plan(3, 2, grpo_num_generations=4)
    message = str(error.value)
    assert "per_device_train_batch_size (3, it counts completions) x gradient_accumulation_steps (2) = 6" in message
    assert "grpo_num_generations (4)" in message
    assert message.endswith("Write gradient_accumulation_steps: 4, or grpo_num_generations one of 2, 3, 6.")


def test_one_completion_has_no_group_size_to_suggest():
    with pytest.raises(ArgumentError, match=r"Write gradient_accumulation_steps: 8\.$"):
        plan(1, 1)


SIZES = {"batch_size": st.integers(1, 12), "accumulation": st.integers(1, 6), "group": st.integers(2, 12)}


@settings(deadline=None)
@given(**SIZES, multiple=st.one_of(st.none(), st.integers(1, 4)), world_size=st.integers(1, 4))
def test_a_plan_serves_every_completion_once_and_suggestions_work(
    batch_size, accumulation, group, multiple, world_size
):
    steps = None if multiple is None else multiple * accumulation
    chosen = {"grpo_num_generations": group, "grpo_steps_per_generation": steps}
    try:
        batches = plan(batch_size, accumulation, world_size, **chosen)
    except ArgumentError as error:
        assert batch_size * (steps or accumulation) % group
        key, value = re.search(r"Write (\w+): (\d+)", str(error)).groups()
        if key == "gradient_accumulation_steps":
            plan(batch_size, int(value), world_size, **chosen)
        else:
            plan(batch_size, accumulation, world_size, **chosen | {key: int(value)})
        listed = re.search(r"one of ([\d, ]+)\.", str(error))
        for other in listed.group(1).split(", ") if listed else []:
            plan(batch_size, accumulation, world_size, **chosen | {"grpo_num_generations": int(other)})
    else:
        assert batches.prompts_per_rank * group == batch_size * batches.steps_per_generation
        assert batches.prompts_per_rank >= 1
        assert batches.prompts_per_rollout == batches.prompts_per_rank * world_size
