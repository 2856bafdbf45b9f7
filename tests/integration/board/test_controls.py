"""The Board's controls: which there are, what they start as, when they apply, and what becomes of what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.arguments import GRPO_KEYS, SAMPLING_DEFAULTS, GrpoArguments
from lcot_plugin.data_arguments import LcotDataArguments
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.board import texts
from lcot_plugin.integration.board.arguments import as_declared, contradictions, faults, merged, written_keys
from lcot_plugin.integration.board.controls import (
    ADVANTAGES,
    ALL_BOXES,
    CONTROLS,
    DECLARED,
    MAX_NEW_TOKENS,
    OBJECTIVES,
    SWITCHES,
    shown,
)
from lcot_plugin.packing_arguments import PackingArguments

LEFT_OUT = {"pack_buffer_size"}
"""Keys of ours without a control: it acts with `streaming`, which the Board does not have either."""
GRPO = {"stage": "grpo", "tracks": False, **{name: control.start for name, control in CONTROLS.items()}}
BOARD = {
    "stage": "grpo",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "save_steps": 100,
    "dataset": "demo_rl",
}


def keys(**changed: Any) -> dict[str, Any]:
    return written_keys({**GRPO, **changed})


def test_every_key_of_ours_has_one_control() -> None:
    mine = [control.key for control in CONTROLS.values() if control.key in DECLARED]
    chosen_twice = ["grpo_reward_funcs"]  # from a list, and one of the user's own
    assert sorted(mine) == sorted([*(DECLARED.keys() - LEFT_OUT), *chosen_twice])


def test_the_controls_start_as_a_file_without_their_keys_would_run() -> None:
    defaults = {**vars(GrpoArguments()), **vars(LcotDataArguments()), **vars(PackingArguments())}
    for name, control in CONTROLS.items():
        if name != "grpo_custom_reward" and control.key in defaults:
            assert control.default == defaults[control.key], name
    assert keys() == {}
    assert written_keys({**GRPO, "stage": "sft"}) == {}
    assert written_keys({**GRPO, "stage": "dpo", "grpo_beta": "1", "cot_format": "native"}) == {}


def test_the_sampling_controls_start_as_the_stage_does() -> None:
    from llamafactory.hparams import GeneratingArguments

    assert {key: CONTROLS[f"grpo_{key}"].default for key in SAMPLING_DEFAULTS} == SAMPLING_DEFAULTS
    theirs = GeneratingArguments()
    assert CONTROLS["grpo_max_new_tokens"].default == theirs.max_new_tokens == MAX_NEW_TOKENS
    assert CONTROLS["grpo_repetition_penalty"].default == theirs.repetition_penalty


def test_the_lists_offer_what_is_registered() -> None:
    from lcot_plugin.policy.advantages.registry import ADVANTAGES as ESTIMATORS
    from lcot_plugin.policy.objectives.registry import LOSS_TYPES

    assert tuple(LOSS_TYPES) == OBJECTIVES
    assert tuple(ESTIMATORS) == ADVANTAGES


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_control_and_accordion_has_its_texts(language: str) -> None:
    table = texts.LANGUAGES[language]
    assert table.BOXES.keys() == ALL_BOXES.keys()
    assert table.CONTROLS.keys() == CONTROLS.keys()
    assert table.ALERTS.keys() == texts.LANGUAGES["en"].ALERTS.keys()
    for name, (label, info) in table.CONTROLS.items():
        assert 0 < len(label) <= 40 and info and len(info) <= 120, name
    labels = [label for label, _ in table.CONTROLS.values()]
    assert len(set(labels)) == len(labels), {label for label in labels if labels.count(label) > 1}


@pytest.mark.parametrize("language", ["ru", "zh", "ko", "ja"])
def test_the_texts_are_of_their_language(language: str) -> None:
    """What is a name everywhere (Top-p, KL, GRPO) may stand alone; a sentence may not."""
    script = {
        "ru": r"[\u0400-\u04ff]",
        "zh": r"[\u4e00-\u9fff]",
        "ko": r"[\uac00-\ud7af]",
        "ja": r"[\u3040-\u30ff\u4e00-\u9fff]",
    }
    table = texts.LANGUAGES[language]
    foreign = [name for name, (_, info) in table.CONTROLS.items() if not re.search(script[language], info)]
    assert not set(foreign) - {"grpo_kl_estimator"}
    assert table.CONTROLS["grpo_beta"] != texts.LANGUAGES["en"].CONTROLS["grpo_beta"]


def test_keys_and_figures_are_the_same_in_every_language() -> None:
    """A translated tooltip names the same keys, paths and values."""
    figure = re.compile(r"[\w/]+\.py:\w+|https?://[\w.:]+\d|0\.\d+|NaN|lcot data difficulty|lcot vllm install")
    for name in CONTROLS:
        found = {
            language: sorted(figure.findall(table.CONTROLS[name][1])) for language, table in texts.LANGUAGES.items()
        }
        assert all(words == found["en"] for words in found.values()), (name, found)


class Asked(Mapping[str, Any]):
    """Values that remember which of them were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values_, self.asked = values, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def held() -> st.SearchStrategy[dict[str, Any]]:
    """Any content of the components, sensible or not."""

    def of(name: str) -> st.SearchStrategy[Any]:
        control = CONTROLS[name]
        if control.kind == "flag":
            return st.booleans()
        if control.kind == "choices":
            return st.lists(st.sampled_from(["accuracy", "format_think_boxed", "a.py:b"]), max_size=3)
        if control.choices:
            return st.sampled_from(control.choices)
        return st.sampled_from(["", "0", "1", "0.5", " 3 ", "1e-3", "x"])

    parts = {name: of(name) for name in CONTROLS}
    stages = st.sampled_from(["grpo", "sft", "dpo"])
    return st.fixed_dictionaries({"stage": stages, "tracks": st.booleans(), **parts})


@given(held())
def test_what_applies_depends_on_the_switches_alone(values: dict[str, Any]) -> None:
    asked = Asked(values)
    shown(asked)
    assert asked.asked <= {"stage", "tracks", *SWITCHES}


@given(held())
def test_a_control_that_is_not_shown_writes_nothing(values: dict[str, Any]) -> None:
    try:
        written = written_keys(values)
    except ArgumentError as error:
        name = str(error).split(":")[0]
        assert shown(values)[name]  # and only what is shown is complained of
        return
    visible = {CONTROLS[name].key for name, seen in shown(values).items() if seen and name in CONTROLS}
    assert written.keys() <= visible


@pytest.mark.parametrize(
    ("changed", "appear", "vanish"),
    [
        ({"grpo_rollout_engine": "vllm"}, {"grpo_vllm_python", "grpo_vllm_memory", "grpo_async_rollouts"}, set()),
        (
            {"grpo_rollout_engine": "vllm", "grpo_vllm_url": "http://127.0.0.1:8000"},
            {"grpo_vllm_url", "grpo_vllm_timeout"},
            {"grpo_vllm_memory", "grpo_vllm_args"},
        ),
        ({"grpo_loss_type": "gspo"}, {"grpo_epsilon"}, {"grpo_delta", "grpo_importance_sampling_level"}),
        ({"grpo_loss_type": "sapo"}, {"grpo_sapo_temperature_pos"}, {"grpo_epsilon", "grpo_epsilon_high"}),
        ({"grpo_loss_type": "mine.py:loss"}, {"grpo_delta", "grpo_epsilon"}, {"grpo_sapo_temperature_pos"}),
        ({"grpo_beta": "0.01"}, {"grpo_kl_tab", "grpo_kl_in", "grpo_ref_sync_steps"}, {"grpo_ref_mixup_alpha"}),
        ({"grpo_advantage": "rloo"}, set(), {"grpo_scale_rewards"}),
        ({"grpo_custom_reward": "mine.py:reward"}, {"grpo_multi_objective_aggregation"}, set()),
        ({"grpo_dynamic_sampling": True}, {"grpo_dynamic_sampling_rounds"}, set()),
        ({"grpo_update_layout": "rows"}, set(), {"grpo_micro_batch_tokens"}),
        ({"grpo_log_completions": False}, set(), {"grpo_log_token_log_probs"}),
        ({"tracks": True}, {"grpo_log_completions_to_trackers", "grpo_tracker_completions_steps"}, set()),
        ({"stage": "sft"}, {"length_aware_packing"}, {"grpo_tab", "grpo_beta"}),
        ({"stage": "sft", "length_aware_packing": True}, {"pack_max_tokens", "pack_mode"}, {"grpo_tab"}),
        ({"stage": "dpo"}, set(), {"grpo_tab", "lcot_data_tab", "cot_format"}),
    ],
)
def test_a_control_shows_only_where_it_applies(changed: dict[str, Any], appear: set[str], vanish: set[str]) -> None:
    visible = {name for name, seen in shown({**GRPO, **changed}).items() if seen}
    assert appear <= visible
    assert not vanish & visible


def test_what_is_chosen_is_written_as_yaml_has_it() -> None:
    assert keys(
        grpo_num_generations=" 4 ",
        grpo_max_new_tokens="2048",
        grpo_temperature="1e0",
        grpo_top_p="0.95",
        grpo_mask_truncated=True,
        grpo_loss_type="gspo",
        grpo_epsilon="3e-4",
        grpo_loss_aggregation="",
        grpo_log_completions=False,
        grpo_delta="2.0",  # not read by gspo
        grpo_vllm_memory="0.9",  # not read without vLLM
    ) == {
        "grpo_num_generations": 4,
        "max_new_tokens": 2048,
        "top_p": 0.95,
        "grpo_loss_type": "gspo",
        "grpo_epsilon": 3e-4,
        "grpo_mask_truncated": True,
        "grpo_log_completions": False,
    }


def test_rewards_from_the_list_and_of_the_users_own() -> None:
    chosen = ["accuracy", "cosine_length(min_correct=0.5, max_length=64)"]
    written = keys(grpo_reward_funcs=chosen, grpo_custom_reward="mine.py:f", grpo_reward_weights="1, 0.5, 0.2")
    arguments = GrpoArguments(**written)
    assert arguments.reward_functions() == [*chosen, "mine.py:f"]
    assert arguments.reward_weights() == [1.0, 0.5, 0.2]
    assert keys(grpo_reward_funcs=[], grpo_custom_reward="mine.py:f") == {"grpo_reward_funcs": "mine.py:f"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grpo_num_generations": "eight"}, "grpo_num_generations: 'eight' is not a whole number"),
        ({"grpo_num_generations": "8.0"}, "grpo_num_generations: '8.0' is not a whole number"),
        ({"grpo_beta": "0,1"}, "grpo_beta: '0,1' is not a number"),
        ({"grpo_epsilon": "nan"}, "grpo_epsilon: 'nan' is not a number"),
        ({"grpo_temperature": "inf"}, "grpo_temperature: 'inf' is not a number"),
    ],
)
def test_a_text_that_is_no_number_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        keys(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grpo_num_generations": "1"}, "leaves every advantage at 0"),
        ({"grpo_num_generations": "6"}, "Batch not divisible"),
        ({"grpo_epsilon": "2"}, "must lie between 0 and 1"),
        ({"grpo_top_p": "1.5"}, "top_p: 1.5 must lie in"),
        ({"grpo_temperature": "0"}, "temperature: 0.0 must be more than 0"),
        ({"grpo_max_new_tokens": "0"}, "max_new_tokens: 0 must be at least 1"),
        ({"grpo_reward_funcs": []}, "grpo_reward_funcs is empty"),
        ({"grpo_reward_funcs": ["acuracy"]}, "did you mean 'accuracy'"),
        ({"grpo_reward_funcs": ["cosine_length(max=1)"]}, "max"),
        ({"grpo_custom_reward": "nowhere/mine.py:f"}, "there is no file"),
        ({"grpo_loss_type": "nowhere.py:f"}, "there is no file"),
        ({"grpo_loss_type": "dappo"}, "did you mean 'dapo'"),
        ({"grpo_reward_weights": "1,2"}, "2 weights for the 1 functions"),
        ({"grpo_rollout_engine": "vllm"}, "needs either grpo_vllm_python"),
        ({"grpo_delta": "1.1"}, "must exceed 1 + epsilon_high"),
        ({"grpo_beta": "0.1", "grpo_kl_in": "reward"}, "grpo_scale_rewards"),
        ({"grpo_min_pass_rate": "0.9", "grpo_max_pass_rate": "0.1"}, "no prompt lies between"),
    ],
)
def test_what_cannot_run_is_told_in_words(changed: dict[str, Any], message: str) -> None:
    told = faults(merged(BOARD, keys(**changed), {}))
    assert len([sentence for sentence in told if message in sentence]) == 1, told


def test_settings_that_can_run_are_not_complained_of(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('the Board must not run this')\n")
    changed = {
        "grpo_reward_funcs": ["accuracy", "cosine_length(min_correct=0.5)", "trl:think_format_reward"],
        "grpo_custom_reward": f"{tmp_path}/mine.py:reward",
        "grpo_loss_type": f"{tmp_path}/mine.py:loss",
        "grpo_beta": "0.01",
        "grpo_eval_dataset": ["demo_eval"],
    }
    args = merged(BOARD, keys(**changed), {"grpo_num_generations": 4})
    assert faults(args) == []
    assert (args["eval_dataset"], args["eval_strategy"], args["eval_steps"]) == ("demo_eval", "steps", 100)


def test_an_unknown_argument_is_told_with_the_nearest_one() -> None:
    assert faults({**BOARD, "grpo_bta": 0.1}) == ["grpo_bta: there is no such argument: did you mean grpo_beta?"]


def test_two_ways_to_pack_are_refused() -> None:
    args = {"stage": "sft", "length_aware_packing": True, "packing": True}
    assert "two ways to pack" in faults(args)[0]
    assert faults({**args, "packing": False}) == []
    assert "pack_max_tokens: 0 is too small." in faults({**args, "packing": False, "pack_max_tokens": 0})
    assert "cot_format: 'x' must be one of" in faults({"stage": "sft", "cot_format": "x"})[0]


def test_extra_arguments_win_and_contradictions_are_named() -> None:
    written = keys(grpo_beta="0.1", grpo_num_generations="4", grpo_epsilon="0.3")
    extra = {"grpo_beta": 0.04, "grpo_num_generations": "4", "grpo_reward_funcs": ["accuracy", "format_think_boxed"]}
    args = merged({**BOARD, **extra}, written, extra)
    assert args["grpo_beta"] == 0.04
    assert args["grpo_num_generations"] == 4
    assert args["grpo_epsilon"] == 0.3
    assert args["grpo_reward_funcs"] == "accuracy,format_think_boxed"  # a command line has no lists of texts
    assert list(contradictions(written, extra)) == [("grpo_beta", 0.04, 0.1)]


@pytest.mark.parametrize(
    ("key", "value", "typed"),
    [
        ("grpo_beta", "1e-3", 1e-3),
        ("grpo_num_generations", "4", 4),
        ("grpo_mask_truncated", "True", True),
        ("grpo_reward_weights", [1, 0.5], "1,0.5"),
        ("grpo_reward_weights", 0.5, "0.5"),
        ("grpo_delta", None, None),
        ("seed", "7", "7"),
    ],
)
def test_values_of_extra_arguments_get_the_type_of_their_key(key: str, value: Any, typed: Any) -> None:
    made = as_declared(key, value)
    assert made == typed and type(made) is type(typed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grpo_stop_strings", ["a, b"]),
        ("grpo_beta", True),
        ("grpo_beta", [1]),
        ("grpo_mask_truncated", 2),
        ("grpo_reward_funcs", {"accuracy": 1}),
    ],
)
def test_values_that_a_key_cannot_hold_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{key}: "):
        as_declared(key, value)


def test_all_grpo_keys_are_known_to_the_table() -> None:
    assert {*GRPO_KEYS} <= DECLARED.keys()
