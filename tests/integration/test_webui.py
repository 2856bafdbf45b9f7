"""LLaMA Board with the GRPO stage: its real page is built, and its events are called as gradio calls them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from board_page import DEFAULT_STAGE, Board, command_line, options, parse

from lcot_plugin.integration.stage import with_sampling_defaults
from lcot_plugin.integration.webui import SFT_KEYS, without_sft


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board"))  # the Board writes into the folder it is started in
        yield Board()


def test_the_stage_list_offers_grpo_behind_the_board_s_own_stages(board: Board) -> None:
    choices = [value for _, value in board.elem("train.training_stage").choices]
    assert choices[0] == board.elem("train.training_stage").value == DEFAULT_STAGE
    assert choices[-1] == "GRPO"
    assert len(choices) == len(set(choices)) == 7


def test_grpo_lists_the_data_sets_without_preference_pairs(board: Board, tmp_path: Path) -> None:
    from llamafactory.webui.control import change_stage, list_datasets

    pairs = {"file_name": "x.json", "ranking": True}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"problems": {"file_name": "y.json"}, "pairs": pairs}))
    assert [value for _, value in list_datasets(str(tmp_path), "GRPO").choices] == ["problems"]
    assert change_stage("GRPO") == ([], False)


def test_the_previewed_command_is_a_grpo_run(board: Board) -> None:
    words = command_line(board.preview())
    arguments = parse(with_sampling_defaults(words))  # as the tuner gives them to this stage
    assert arguments["stage"] == "grpo"
    assert arguments["do_train"]
    assert arguments["grpo_num_generations"] == 8
    assert arguments["grpo_reward_funcs"] == "accuracy"
    assert (arguments["temperature"], arguments["top_p"], arguments["top_k"]) == (1.0, 1.0, 0)
    assert arguments["max_new_tokens"] == 1024
    assert arguments["dataset"] == ["demo_rl"]
    assert arguments["optim"] == "adamw_torch"  # what the box for extra arguments holds from the start
    assert arguments["output_dir"].endswith("saves/Custom/lora/board")


def test_settings_of_sft_do_not_reach_the_command(board: Board) -> None:
    ticked = {
        "packing": True,
        "neat_packing": True,
        "train_on_prompt": True,
        "mask_history": True,
        "neftune_alpha": 5,
    }
    assert options(board.preview(training_stage=DEFAULT_STAGE, **ticked)).keys() >= SFT_KEYS
    command = board.preview(**ticked)
    assert not SFT_KEYS & options(command).keys()
    assert command == board.preview()


def test_what_the_user_writes_himself_is_not_hidden_from_the_checks(board: Board) -> None:
    assert options(board.preview(extra_args='{"packing": true}'))["packing"] == "True"


def test_arguments_keep_their_order_and_values() -> None:
    args = {"stage": "grpo", "packing": False, "per_device_train_batch_size": 2}
    assert list(without_sft(args, ())) == ["stage", "per_device_train_batch_size"]
    assert without_sft(args, {"packing"}) == args


def test_a_batch_that_groups_do_not_divide_is_refused_with_what_to_write(board: Board) -> None:
    said = board.preview(batch_size=1, gradient_accumulation_steps=4)
    assert "Write gradient_accumulation_steps: 8, or grpo_num_generations one of 2, 4." in said
    assert options(board.preview(batch_size=1, gradient_accumulation_steps=4, grpo_num_generations="4"))


def test_start_trains_with_the_previewed_arguments(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.webui import runner

    started: list[tuple[list[str], dict[str, Any]]] = []

    class NotStarted(Exception):
        pass

    def start(command: list[str], **settings: Any) -> None:
        started.append((command, settings))
        raise NotStarted

    monkeypatch.setattr(runner, "Popen", start)
    monkeypatch.setattr(runner, "is_accelerator_available", lambda: True)  # no warning about the missing GPU
    changed = {"grpo_beta": "0.01", "grpo_log_completions": False, "extra_args": json.dumps({"seed": 7})}
    previewed = parse(command_line(board.preview(**changed)))
    with pytest.raises(NotStarted):
        list(board.engine.runner.run_train(board.inputs(**changed)))
    ((command, _),) = started
    assert command[:2] == ["llamafactory-cli", "train"]
    written = parse(yaml.safe_load(Path(command[2]).read_text()))
    assert written == previewed
    assert (written["grpo_beta"], written["grpo_log_completions"], written["seed"]) == (0.01, False, 7)
