"""What LLaMA Board writes: a command for a shell, a YAML file, configurations; and what it does without the plugin."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml
from board_page import DEFAULT_STAGE, ROOT, Board, command_line, options, parse
from gradio.helpers import special_args
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.demo.model import MODEL_DIR
from lcot_plugin.integration.board import loading
from lcot_plugin.integration.board.command import MARK, cleaned, command_text, controls_of, save_cmd
from lcot_plugin.integration.board.controls import CONTROLS

HOSTILE = 'Think "first",\nthen \'answer\' in\t中文: $HOME `date` \\ {"a": [1, 2]} & ; | > x # !! ```'
"""What a shell would take apart, and a Markdown block end with."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("board with blanks"))
        yield Board()


def in_a_shell(text: str) -> list[str]:
    """The words that a program gets which a user pastes the previewed command for."""
    fence = text[: len(text) - len(text.lstrip("`"))]
    command = text.removeprefix(f"{fence}bash\n").removesuffix(f"\n{fence}")
    probe = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    script = f'llamafactory-cli() {{ {probe} "$@"; }}\n{command}'
    return json.loads(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout)[1:]


EXTRA = {
    "default_system": HOSTILE,
    "run_name": "-x",
    "grpo_stop_strings": ["</answer>", "結束"],
    "lr_scheduler_kwargs": {"note": "a 'b' \"c\" 中"},
    "dataloader_pin_memory": False,
    "freeze_trainable_layers": -2,
    "seed": 7,
}
CHANGED = {
    "grpo_num_generations": "4",
    "grpo_epsilon_high": "2.8e-1",
    "grpo_reward_funcs": ["accuracy", "cosine_length(min_correct=0.5, max_length=64)"],
    "grpo_log_completions": False,
    "grpo_vllm_python": "not read without vLLM",
    "cot_format": "think_answer",
    "overlong_policy": "error",
}


def test_a_shell_gives_the_arguments_of_the_yaml_file(board: Board, tmp_path: Path) -> None:
    changed = {**CHANGED, "extra_args": json.dumps(EXTRA), "output_dir": f"{tmp_path}/my 中文 run"}
    text = board.preview(**changed)
    words = in_a_shell(text)
    assert words == command_line(text)
    args = board.engine.runner._parse_train_args(board.inputs(**changed))
    path = save_cmd(args)
    assert path == f"{tmp_path}/my 中文 run/training_args.yaml"
    typed, written = parse(words), parse(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    assert typed == written
    assert typed["default_system"] == HOSTILE
    assert typed["lr_scheduler_kwargs"] == EXTRA["lr_scheduler_kwargs"]
    assert (typed["grpo_log_completions"], typed["dataloader_pin_memory"]) == (False, False)
    assert typed["grpo_stop_strings"] == "</answer>,結束"
    assert typed["grpo_reward_funcs"] == "accuracy,cosine_length(min_correct=0.5, max_length=64)"
    assert (typed["cot_format"], typed["overlong_policy"]) == ("think_answer", "error")
    assert typed["output_dir"] == f"{tmp_path}/my 中文 run"


@given(
    st.dictionaries(st.sampled_from(["default_system", "run_name"]), st.text(st.characters(codec="utf-8"), min_size=1))
)
def test_any_text_comes_through_the_quoting(texts: dict[str, str]) -> None:
    args = {key: value.replace("\0", "") or "x" for key, value in texts.items()}
    assert options(command_text({"stage": "sft", **args})) == {"stage": "sft", **args}


def test_a_command_that_needs_no_quotes_is_the_board_s_own() -> None:
    from llamafactory.webui.common import gen_cmd

    args = {"stage": "sft", "do_train": True, "learning_rate": 5e-5, "dataset": "a,b", "packing": False, "fp16": False}
    assert command_text(cleaned(args)) == gen_cmd(args)


def test_controls_at_their_defaults_write_nothing(board: Board) -> None:
    written = options(board.preview())
    assert not [key for key in written if key.startswith(("grpo_", "pack_")) or key in ("cot_format", "temperature")]
    assert options(board.preview(extra_args='{"grpo_beta": 0.0}'))["grpo_beta"] == "0.0"  # the user wrote it


def test_long_cot_sft_gets_its_keys(board: Board) -> None:
    changed = {"length_aware_packing": True, "pack_max_tokens": "4096", "malformed_trace_policy": "drop"}
    written = options(board.preview(training_stage=DEFAULT_STAGE, **changed, **{"grpo_beta": "0.1"}))
    assert written["length_aware_packing"] == "True"
    assert (written["pack_max_tokens"], written["malformed_trace_policy"]) == ("4096", "drop")
    assert "grpo_beta" not in written
    extra = '{"pack_max_tokens": "4k", "length_aware_packing": true}'
    assert "pack_max_tokens: '4k' is not a whole" in board.preview(training_stage=DEFAULT_STAGE, extra_args=extra)
    extra = '{"per_device_train_batch_size": "two"}'
    assert "per_device_train_batch_size: 'two' is not a whole" in board.preview(extra_args=extra)
    assert "two ways to pack" in board.preview(training_stage=DEFAULT_STAGE, packing=True, **changed)


@pytest.mark.parametrize(
    ("lang", "begins"), [("en", "This cannot run:"), ("zh", "无法以此设置运行"), ("ja", "この設定では実行できません")]
)
def test_wrong_input_is_told_in_the_language_of_the_board(board: Board, lang: str, begins: str) -> None:
    said = board.preview(grpo_beta="much", **{"top.lang": lang})
    assert said.startswith(begins)
    assert "grpo_beta: 'much' is not a number" in said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"learning_rate": "2e-4x"}, "learning_rate: '2e-4x' is not a number"),
        ({"max_samples": "all"}, "max_samples: 'all' is not a whole number"),
        ({"num_train_epochs": "-1"}, "num_train_epochs: write a number above 0"),
        ({"max_grad_norm": ""}, "max_grad_norm: '' is not a number"),
    ],
)
def test_a_number_of_the_board_s_own_is_told_by_its_name(board: Board, written: dict[str, str], said: str) -> None:
    assert said in board.preview(**written)
    assert board.preview(max_grad_norm="0").startswith("`")  # no clipping


def test_extra_arguments_must_be_a_dictionary(board: Board) -> None:
    assert "JSON object" in board.preview(extra_args="[1]")
    assert "JSON object" in board.preview(extra_args="5")


def test_a_contradiction_is_said_and_the_extra_arguments_win(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    written = options(board.preview(grpo_beta="0.1", extra_args='{"grpo_beta": 0.02}'))
    assert written["grpo_beta"] == "0.02"
    assert said == ["grpo_beta: the extra arguments say 0.02, which is used; the control says 0.1."]


def test_a_saved_configuration_comes_back(board: Board) -> None:
    settings = {**CHANGED, "batch_size": 3, "gradient_accumulation_steps": 4, "grpo_stop_strings": HOSTILE}
    board.engine.runner.save_args(board.inputs(config_path="grpo.yaml", **settings))
    theirs = yaml.safe_load(Path("llamaboard_config/grpo.yaml").read_text(encoding="utf-8"))
    assert theirs["train.training_stage"] == "GRPO"
    assert not {f"train.{name}" for name in CONTROLS} & theirs.keys()
    loaded = board.engine.runner.load_args("en", "grpo.yaml")
    begun = board.inputs(training_stage=DEFAULT_STAGE, batch_size=1, grpo_beta="0.5", dataset=[]) | loaded
    (update,) = board.engine.runner.preview_train(begun)
    assert update[board.elem("train.output_box")] == board.preview(**settings)


def test_what_was_loaded_is_not_overwritten_by_the_board_s_events(board: Board) -> None:
    runner = board.engine.runner
    (stage,) = board.events("keep_data_sets")
    model = board.events("keep_template")[0].fn
    chosen = {"top.model_name": "lcot-demo-Qwen2.5-VL-1M", "top.template": "qwen2_vl_lcot"}
    runner.save_args(board.inputs(config_path="kept.yaml", **chosen))
    assert stage.fn("DPO") == ([], False)  # a user's choice empties the data sets
    runner.load_args("en", "kept.yaml")
    for _ in range(2):  # gradio may report a change twice
        assert stage.fn("GRPO") == (gr.skip(), gr.skip())
        assert model("lcot-demo-Qwen2.5-VL-1M") == (str(MODEL_DIR), "qwen2_vl_lcot")
    runner.load_args("en", "kept.yaml")
    assert stage.fn("DPO") == ([], False)
    assert stage.fn("GRPO") == ([], False)
    assert model("Custom")[1] == "default"
    assert model("lcot-demo-Qwen2.5-VL-1M") == (str(MODEL_DIR), "qwen2_vl")


def test_the_folder_of_a_run_that_was_started_in_a_shell_can_be_chosen(board: Board) -> None:
    folder = Path("saves/Custom/lora/shell")
    folder.mkdir(parents=True)
    with pytest.warns(UserWarning, match="Output dir already exists"):
        values = board.engine.runner.check_output_dir("en", "Custom", "lora", "shell")
    assert values[board.elem("train.output_box")].startswith("Output dir already exists")


def test_a_file_that_is_no_configuration_is_told(board: Board, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(gr.Error, match="list instead of keys"):
        board.engine.runner.load_args("en", str(tmp_path / "list.yaml"))


def test_a_finished_run_s_folder_is_refused_before_a_second_start(board: Board) -> None:
    folder = Path("saves/Custom/lora/finished")
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    settings = {"output_dir": "finished"}

    def start(**changed: Any) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is no GPU
            return board.engine.runner._initialize(board.inputs(**settings, **changed), True, False)

    assert "holds a finished model and no checkpoint to go on from" in start()
    with pytest.raises(ValueError, match="overwrite_output_dir"):
        parse(board.engine.runner._parse_train_args(board.inputs(**settings)))
    assert start(extra_args='{"overwrite_output_dir": true}') == ""
    assert "--output_dir" in board.preview(**settings)
    (folder / "checkpoint-3").mkdir()
    assert start() == ""


def in_page(session: str) -> gr.Request:
    return gr.Request(session_hash=session)


def test_two_users_load_different_files(board: Board) -> None:
    """gradio tells these functions which page an event comes from; a page that is opened anew is another one."""
    runner = board.engine.runner
    events = {name: board.events(name)[0].fn for name in ("keep_data_sets", "keep_template", "load_args")}
    for function in (*events.values(), board.events("check_output_dir")[0].fn, board.events("resume_noted")[0].fn):
        parameters = inspect.signature(function).parameters
        inputs, _, _ = special_args(function, [""] * (len(parameters) - 1), in_page("x"))
        assert isinstance(inputs[-1], gr.Request) and len(inputs) == len(parameters)
    demo = "lcot-demo-Qwen2.5-VL-1M"
    for template in ("qwen2_vl_lcot", "smolvlm"):
        settings = {"top.model_name": demo, "top.template": template}
        runner.save_args(board.inputs(config_path=f"{template}.yaml", **settings))
        events["load_args"]("en", f"{template}.yaml", in_page(template))
    for template in ("qwen2_vl_lcot", "smolvlm"):
        assert events["keep_template"](demo, in_page(template)) == (str(MODEL_DIR), template)
        assert events["keep_data_sets"]("GRPO", in_page(template)) == (gr.skip(), gr.skip())
    assert events["keep_template"](demo, in_page("another")) == (str(MODEL_DIR), "qwen2_vl")
    assert events["keep_data_sets"]("GRPO", in_page("another")) == ([], False)


def test_pages_are_forgotten_some_time(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_SESSIONS", 2)
    runner = board.engine.runner
    first = loading.session_of(runner, in_page("1"))
    loading.session_of(runner, in_page("2"))
    assert loading.session_of(runner, in_page("1")) is first
    loading.session_of(runner, in_page("3"))
    assert loading.session_of(runner, in_page("1")) is first
    loading.session_of(runner, in_page("2"))
    loading.session_of(runner, in_page("3"))
    assert loading.session_of(runner, in_page("1")) is not first


def test_the_page_of_a_running_training_keeps_its_settings(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = board.engine.runner
    board.open_again(in_page("before"))
    monkeypatch.setattr(runner, "running", True)
    monkeypatch.setattr(runner, "running_data", board.inputs(**{"top.model_path": "mine", "top.template": "smolvlm"}))
    board.open_again(in_page("during"))
    (stage,) = board.events("keep_data_sets")
    template = board.events("keep_template")[0].fn
    assert stage.fn("GRPO", in_page("during")) == (gr.skip(), gr.skip())
    assert template("Custom", in_page("during")) == ("mine", "smolvlm")
    assert stage.fn("DPO", in_page("during")) == ([], False)
    assert stage.fn("GRPO", in_page("before")) == ([], False), "a user's choice, in a page that shows other settings"
    assert template("Custom", in_page("before"))[1] == "default"


def test_what_was_saved_without_controls_puts_them_back(board: Board) -> None:
    Path("llamaboard_config").mkdir(exist_ok=True)
    Path("llamaboard_config/plain.yaml").write_text("train.batch_size: 3\n")
    loaded = board.engine.runner.load_args("en", "plain.yaml")
    assert loaded[board.elem("train.batch_size")] == 3
    assert all(loaded[board.elem(f"train.{name}")] == control.start for name, control in CONTROLS.items())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["grpo_beta: [1"], "cannot be read"),
        (["- 1"], "they name no controls"),
        (["grpo_log_completions: maybe"], "grpo_log_completions cannot be 'maybe'"),
        (["cot_format: other"], "cot_format cannot be 'other'"),
        (["grpo_reward_funcs: accuracy"], "grpo_reward_funcs cannot be 'accuracy'"),
    ],
)
def test_lines_of_ours_that_are_broken_are_told(lines: list[str], message: str) -> None:
    with pytest.raises(gr.Error, match=r"x\.yaml: the lines that begin with #lcot") as caught:
        controls_of(lines, "x.yaml")
    assert message in caught.value.message


def test_controls_of_a_later_version_are_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    assert controls_of(["grpo_beta: 0.1", "grpo_of_tomorrow: 1"], "x.yaml")["grpo_beta"] == "0.1"
    assert "grpo_of_tomorrow" in said[0]


@pytest.fixture(scope="module")
def twice(board: Board, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a Board makes of the same settings and files without the plugin and with it."""
    board.engine.runner.save_args(board.inputs(config_path="both.yaml", **CHANGED))
    board.engine.runner.save_args(board.inputs(config_path="sft.yaml", training_stage=DEFAULT_STAGE))
    found = []
    for switch in ("0", "1"):
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "LCOT_PLUGIN": switch, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        program = "from lcot_plugin import activation; activation.activate(); import board_probe; board_probe.main()"
        environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
        result = subprocess.run(
            [sys.executable, "-c", program, str(Path("llamaboard_config").resolve())],
            cwd=tmp_path_factory.mktemp("probe"),
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        found.append(json.loads(result.stdout.splitlines()[-1]))
    return found[0], found[1]


def test_other_stages_are_as_without_the_plugin(twice: tuple[dict[str, Any], dict[str, Any]]) -> None:
    without, with_plugin = (found["made"] for found in twice)
    assert len(without) == 12
    assert {name: item["args"] for name, item in with_plugin.items()} == {
        name: item["args"] for name, item in without.items()
    }
    unquoted = {name: item["command"] for name, item in without.items() if name.endswith(" 0")}
    for name, command in unquoted.items():
        # Its box for extra arguments holds nothing that a shell would change; nor do its other components.
        assert with_plugin[name]["command"] == command


def test_a_configuration_with_our_controls_loads_without_the_plugin(
    twice: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    without, with_plugin = (found["loaded"] for found in twice)
    assert {"both.yaml", "sft.yaml"} <= without.keys()
    for name, values in without.items():
        assert values.items() <= with_plugin[name].items()  # the plugin adds its controls
    assert without["both.yaml"]["train.training_stage"] == "GRPO"
    assert with_plugin["both.yaml"]["train.grpo_num_generations"] == "4"


def test_our_lines_are_comments_to_yaml(board: Board) -> None:
    board.engine.runner.save_args(board.inputs(config_path="lines.yaml", grpo_beta="0.25"))
    lines = Path("llamaboard_config/lines.yaml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(MARK)] == [f"{MARK}grpo_beta: '0.25'"]
