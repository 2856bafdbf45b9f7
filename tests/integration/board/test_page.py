"""The composed page of LLaMA Board: what stands where, what its lists offer, what changes with the language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_page import ROOT, Board, options, parse

from lcot_plugin.demo.model import MODEL_DIR
from lcot_plugin.integration.board import texts
from lcot_plugin.integration.board.controls import ALL_BOXES, CONTROLS, SWITCHES, shown
from lcot_plugin.integration.board.page import DEMO_MODEL, ROLLOUTS_TAB
from lcot_plugin.integration.board.panels import START, default_dataset_dir, dependent_names, tracks


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board"))
        yield Board()


def values_of(dropdown: Any) -> list[Any]:
    return [value for _, value in dropdown.choices]


def order_of(board: Board) -> list[Any]:
    """All blocks of the page in the order in which they stand."""
    found: list[Any] = []

    def visit(block: Any) -> None:
        found.append(block)
        for child in getattr(block, "children", ()):
            visit(child)

    visit(board.page)
    return found


def test_what_is_added_stands_where_it_belongs(board: Board) -> None:
    order = order_of(board)
    places = [
        order.index(board.elem(f"train.{name}"))
        for name in (
            *("dataset", "records_box", "learning_rate", "grpo_tab", "lcot_data_tab", "extra_tab", "rlhf_tab"),
            *("start_btn", "live_box", "output_dir", "output_box"),
        )
    ]
    assert places == sorted(places)
    tabs = [block.label for block in order if block.get_block_name() == "tabitem" and block.parent.parent is board.page]
    assert tabs == ["Train", "Evaluate & Predict", "Chat", "Export", ROLLOUTS_TAB]


def test_nothing_stands_twice_and_nothing_is_lost(board: Board) -> None:
    order = order_of(board)
    assert len({id(block) for block in order}) == len(order)
    manager = board.engine.manager
    assert all(elem in order for elem in manager.get_elem_list())
    assert {id(block) for block in order if block is not board.page} == {id(b) for b in board.page.blocks.values()}


def test_every_control_reaches_preview_start_save_and_load(board: Board) -> None:
    components = {board.elem(f"train.{name}") for name in CONTROLS}
    for name in ("preview_train", "run_train", "save_args"):
        (event,) = board.events(name)
        assert components <= set(event.inputs), name
    for name in ("load_args", "check_output_dir"):
        # What is wrapped keeps its name.
        (event,) = board.events(name)
        assert components <= set(event.outputs), name
    assert components <= set(board.events("change_lang")[0].outputs)


def test_the_demo_model_starts_with_its_path_and_template(board: Board) -> None:
    from llamafactory.webui.control import get_model_info

    assert DEMO_MODEL in values_of(board.elem("top.model_name"))
    assert get_model_info(DEMO_MODEL) == (str(MODEL_DIR), "qwen2_vl")
    chosen = {"top.model_name": DEMO_MODEL, "top.template": "qwen2_vl", "freeze_vision_tower": False}
    written = options(board.preview(**chosen))
    assert written["freeze_vision_tower"] == "False"  # only models with images have these keys
    assert written["output_dir"] == f"saves/{DEMO_MODEL}/lora/board"


def test_the_lists_hold_the_templates_and_data_sets_of_ours(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.webui.control import list_datasets

    assert {"qwen2_vl_lcot", "smolvlm"} <= set(values_of(board.elem("top.template")))
    folder = board.elem("train.dataset_dir").value
    assert folder == board.elem("eval.dataset_dir").value == str(ROOT / "dataset_info")
    assert {"demo_rl", "demo_sft_long"} <= set(values_of(list_datasets(folder, "GRPO")))
    # A listing in the folder that the Board is started in comes first, that of LLaMA-Factory before ours.
    monkeypatch.chdir(tmp_path)
    for name in ("dataset_info", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text("{}")
        assert default_dataset_dir("data") == name


def test_the_lists_offer_the_registered_rewards(board: Board) -> None:
    from lcot_plugin.rewards.functions.registry import reward_names

    rewards = board.elem("train.grpo_reward_funcs")
    assert values_of(rewards) == reward_names()
    assert rewards.allow_custom_value and rewards.multiselect
    assert rewards.value == ["accuracy"]


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_the_language_reaches_every_component_of_ours(board: Board, language: str) -> None:
    updates = board.in_language(language)
    for name in (*CONTROLS, *ALL_BOXES):
        update = updates[board.elem(f"train.{name}")]
        expected = texts.LOCALES[name][language]
        assert {key: getattr(update, key) for key in expected} == expected


def test_our_texts_change_none_of_the_board_s(board: Board) -> None:
    from llamafactory.webui.locales import LOCALES

    assert LOCALES["training_stage"]["en"]["label"] == "Stage"
    assert LOCALES["max_new_tokens"]["en"]["label"] == "Maximum new tokens"  # of the chat tab
    for name in (*CONTROLS, *ALL_BOXES):
        assert LOCALES[name] is texts.LOCALES[name]


def test_the_stage_opens_its_accordions(board: Board) -> None:
    events = board.events("show_what_applies")
    assert len(events) == 3 + len(SWITCHES)
    names = sorted(dependent_names())
    held = [START[name] for name in SWITCHES]
    for label, expected in {
        "GRPO": {"grpo_tab": True, "lcot_data_tab": True, "length_aware_packing": False},
        "Supervised Fine-Tuning": {"grpo_tab": False, "lcot_data_tab": True, "length_aware_packing": True},
        "DPO": {"grpo_tab": False, "lcot_data_tab": False},
    }.items():
        for event in events:
            updates = event.fn(label, "none", False, *held)
            visible = {name: update["visible"] for name, update in zip(names, updates, strict=True)}
            assert expected.items() <= visible.items()
            assert [board.elem(f"train.{name}") for name in names] == event.outputs


def test_the_page_begins_as_its_first_stage(board: Board) -> None:
    visible = shown(START)
    for name in ("grpo_tab", "lcot_data_tab", "length_aware_packing", "pack_max_tokens"):
        assert board.elem(f"train.{name}").visible == visible[name], name
    assert board.elem("train.grpo_num_generations").visible  # within an accordion that is not


@pytest.mark.parametrize(
    ("report_to", "swanlab", "expected"),
    [
        ("none", False, False),
        ("tensorboard", False, True),
        (["wandb"], False, True),
        (None, False, False),
        ("", True, True),
    ],
)
def test_a_tracker_is_one_of_the_list_or_swanlab(report_to: Any, swanlab: bool, expected: bool) -> None:
    assert tracks(report_to, swanlab) is expected


def test_components_are_what_gradio_can_send(board: Board) -> None:
    config = board.page.get_config_file()
    assert {component["type"] for component in config["components"]} >= {"accordion", "textbox", "dropdown"}
    for name, control in CONTROLS.items():
        component = board.elem(f"train.{name}")
        assert component.postprocess(component.value) == control.start or not control.start, name


def test_a_whole_page_of_settings_parses(board: Board) -> None:
    """Every control away from its default, as far as they go together."""
    changed = {
        "grpo_num_generations": "4",
        "grpo_max_new_tokens": "64",
        "grpo_beta": "0.01",
        "grpo_reward_funcs": ["accuracy", "format_think_boxed"],
        "grpo_reward_weights": "1, 0.2",
        "grpo_temperature": "0.9",
        "grpo_min_p": "0.01",
        "grpo_stop_strings": "</answer>",
        "grpo_epsilon_high": "0.28",
        "grpo_delta": "2",
        "grpo_importance_sampling_level": "sequence",
        "grpo_loss_aggregation": "sequence",
        "grpo_num_iterations": "2",
        "grpo_mask_truncated": True,
        "grpo_ref_sync_steps": "10",
        "grpo_ref_mixup_alpha": "0.6",
        "grpo_dynamic_sampling": True,
        "grpo_dynamic_sampling_rounds": "2",
        "grpo_sampler_correction": "token_mask",
        "grpo_rollout_engine": "vllm",
        "grpo_vllm_python": "/envs/my vllm/bin/python",
        "grpo_vllm_args": "--max-model-len 4096",
        "grpo_async_rollouts": True,
        "grpo_eval_dataset": ["demo_eval"],
        "grpo_log_token_log_probs": True,
        "grpo_log_completions_to_trackers": "2",
        "grpo_tracker_completions_steps": "10",
        "report_to": "tensorboard",
        "bad_record_policy": "error",
    }
    arguments = parse(board.engine.runner._parse_train_args(board.inputs(**changed)))
    assert options(board.preview(**changed))
    assert arguments["grpo_vllm_args"] == "--max-model-len 4096"
    assert arguments["grpo_reward_weights"] == "1, 0.2"
    assert (arguments["eval_dataset"], arguments["eval_steps"]) == (["demo_eval"], 100)
    assert (arguments["grpo_ref_mixup_alpha"], arguments["grpo_tracker_completions_steps"]) == (0.6, 10)
