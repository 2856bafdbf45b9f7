"""LLaMA Board with the GRPO stage: its real page is built, and its events are called as gradio calls them."""

import asyncio
import json
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest
import yaml

from lcot_plugin.arguments import GrpoArguments, plan_batches
from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration.webui import SFT_KEYS, default_group_size, grpo_arguments

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_STAGE = "Supervised Fine-Tuning"


class Board:
    """The page and what a user does with it."""

    def __init__(self) -> None:
        from llamafactory.webui import interface

        engines: list[Any] = []

        class CapturedEngine(interface.Engine):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                engines.append(self)

        async def create_ui() -> Any:
            return interface.create_ui()  # in a running loop: without one, gradio makes loops and leaves them open

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(interface, "Engine", CapturedEngine)
            patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
            warnings.simplefilter("ignore", DeprecationWarning)  # LLaMA-Factory passes `css` where gradio 5 wants it
            self.page = asyncio.run(create_ui())
        (self.engine,) = engines

    def elem(self, elem_id: str) -> Any:
        return self.engine.manager.get_elem_by_id(elem_id)

    def inputs(self, **changed: Any) -> dict[Any, Any]:
        """What gradio hands to the preview: the components of the event, at their defaults or as the user set them."""
        (event,) = [event for event in self.page.fns.values() if event.name == "preview_train"]
        data = {component: component.value for component in event.inputs}
        settings = {
            "top.lang": "en",
            "top.model_name": "Custom",
            "top.model_path": str(ROOT / "lcot_plugin/demo/model"),
            "top.template": "qwen2_vl",
            "train.training_stage": "GRPO",
            "train.dataset_dir": str(ROOT / "dataset_info"),
            "train.dataset": ["demo_rl"],
            "train.compute_type": "fp32",
            "train.output_dir": "board",
            **{f"train.{name}": value for name, value in changed.items()},
        }
        return data | {self.elem(elem_id): value for elem_id, value in settings.items()}

    def preview(self, **changed: Any) -> str:
        (update,) = self.engine.runner.preview_train(self.inputs(**changed))
        return update[self.elem("train.output_box")]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board"))  # the Board writes into the folder it is started in
        yield Board()


def command_line(text: str) -> list[str]:
    """The arguments after `llamafactory-cli train` in the previewed Markdown, as a shell would split them."""
    assert text.startswith("```bash\nllamafactory-cli train ") and text.endswith("\n```"), text
    lines = text.removeprefix("```bash\n").removesuffix("\n```")
    return shlex.split(lines.replace("\\\n", ""))[2:]


def options(text: str) -> dict[str, str]:
    arguments = command_line(text)
    return dict(zip([key.removeprefix("--") for key in arguments[::2]], arguments[1::2], strict=True))


def parse(arguments: list[str] | dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's five argument objects as one dictionary."""
    from llamafactory.hparams import get_train_args

    model, data, training, finetuning, generating = get_train_args(arguments)
    volatile = {"logging_dir", "run_name"}  # transformers writes the time and the host into their defaults
    training_fields = {key: value for key, value in training.to_dict().items() if key not in volatile}
    return {**vars(model), **vars(data), **training_fields, **vars(finetuning), **vars(generating)}


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
    arguments = parse(command_line(board.preview()))
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


def test_extra_arguments_override(board: Board) -> None:
    extra = {
        "grpo_num_generations": 4,
        "grpo_reward_funcs": "accuracy,format_think_boxed",
        "max_new_tokens": 64,
        "temperature": 0.8,
        "grpo_beta": 0.04,
        "max_steps": 2,
    }
    arguments = parse(command_line(board.preview(extra_args=json.dumps(extra))))
    assert {key: arguments[key] for key in extra} == extra


def test_what_the_user_writes_himself_is_not_hidden_from_the_checks(board: Board) -> None:
    assert options(board.preview(extra_args='{"packing": true}'))["packing"] == "True"


@pytest.mark.parametrize(
    ("settings", "group_size"),
    [
        ({"batch_size": 1, "gradient_accumulation_steps": 4}, 4),
        ({"batch_size": 3, "gradient_accumulation_steps": 4}, 6),
        ({"extra_args": '{"per_device_train_batch_size": 10, "gradient_accumulation_steps": 1}'}, 10),
        ({"batch_size": 1, "gradient_accumulation_steps": 1, "extra_args": '{"grpo_steps_per_generation": 16}'}, 8),
    ],
)
def test_the_group_size_fits_the_batch(board: Board, settings: dict[str, Any], group_size: int) -> None:
    assert options(board.preview(**settings))["grpo_num_generations"] == str(group_size)


@pytest.mark.parametrize("num_completions", range(2, 50))
def test_every_default_group_size_starts(num_completions: int) -> None:
    group_size = default_group_size(num_completions)
    assert plan_batches(GrpoArguments(grpo_num_generations=group_size), 1, num_completions, 1).prompts_per_rank >= 1


def test_a_batch_of_one_is_left_to_the_error_that_says_what_to_write() -> None:
    with pytest.raises(ArgumentError, match="Write gradient_accumulation_steps: 8"):
        plan_batches(GrpoArguments(grpo_num_generations=default_group_size(1)), 1, 1, 1)


def test_other_stages_are_as_they_were(board: Board) -> None:
    for stage in (DEFAULT_STAGE, "DPO", "Pre-Training"):
        written = options(board.preview(training_stage=stage))
        assert not [key for key in written if key.startswith("grpo_")]
        assert "packing" in written and "max_new_tokens" not in written


def test_arguments_keep_their_order_and_values() -> None:
    args = {"stage": "grpo", "packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    made = grpo_arguments({**args, "top_p": 0.9}, {"top_p"})
    assert next(iter(made)) == "stage"
    assert made["top_p"] == 0.9
    assert grpo_arguments(made, {"top_p"}) == made


def test_start_trains_with_the_previewed_arguments(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.webui import runner

    started: list[list[str]] = []

    class FakeRun:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)
            self.polls = 0

        def communicate(self, timeout: float) -> tuple[str, str]:
            self.polls += 1
            if self.polls == 1:
                raise TimeoutExpired("llamafactory-cli", timeout)
            return "", ""

    monkeypatch.setattr(runner, "Popen", FakeRun)
    monkeypatch.setattr(runner, "is_accelerator_available", lambda: True)  # no warning about the missing GPU
    monkeypatch.setattr(runner.gr, "Info", lambda message: None)
    previewed = parse(command_line(board.preview()))
    updates = list(board.engine.runner.run_train(board.inputs()))
    assert "Finished" in updates[-1][board.elem("train.output_box")]
    ((program, command, config),) = started
    assert (program, command) == ("llamafactory-cli", "train")
    assert parse(yaml.safe_load(Path(config).read_text())) == previewed


def test_a_saved_configuration_comes_back(board: Board) -> None:
    settings = {"batch_size": 3, "gradient_accumulation_steps": 4}
    board.engine.runner.save_args(board.inputs(config_path="grpo.yaml", **settings))
    assert yaml.safe_load(Path("llamaboard_config/grpo.yaml").read_text())["train.training_stage"] == "GRPO"
    loaded = board.engine.runner.load_args("en", "grpo.yaml")
    (update,) = board.engine.runner.preview_train(board.inputs(training_stage=DEFAULT_STAGE, batch_size=1) | loaded)
    assert update[board.elem("train.output_box")] == board.preview(**settings)
